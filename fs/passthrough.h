/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernel passthrough: the kernel reads, writes and maps a file below instead of
 * asking us. It wants all that have an inode open to go one way, so a node
 * remembers which. All functions are for any thread; they take n->lock.
 *
 * A mapping made by passthrough holds the file below and not ours: it may live on
 * after the last close that we hear of. So a file that is opened for writing goes by
 * us, except where readers are passed through already.
 */
#ifndef EQ_PASSTHROUGH_H
#define EQ_PASSTHROUGH_H

#include "ops.h"

/* At the beginning of the mount: ask for it, and log what is done. */
void eq_pass_init(struct eq_fs *fs, struct fuse_conn_info *conn);

/*
 * f is about to be given to the kernel as open, by the answer that fi goes into.
 * Sets fi->backing_id, and then f->passed, where it is passed through to fd (-1: to
 * nothing new). No errors: without passthrough we answer reads.
 */
void eq_pass_open(fuse_req_t req, struct eq_fs *fs, struct eq_file *f, int fd,
		  struct fuse_file_info *fi);
/* The kernel has closed it, or has not taken it. */
void eq_pass_close(struct eq_fs *fs, struct eq_file *f);

/*
 * The contents of the archive n will be elsewhere from now on. true: someone reads
 * them by passthrough, which goes on as it is. false: nobody does, nor will.
 */
bool eq_pass_held(struct eq_node *n);
/* That came to nothing: n stays as it is. */
void eq_pass_back(struct eq_node *n);

#endif
