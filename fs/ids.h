/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The numbers by which the kernel knows nodes. A number stays its file's when the kernel
 * forgets the node, so that a file handle (name_to_handle_at, NFS) finds the file again:
 * what is kept of it is the handle that it has in the store's filesystem, about 60 bytes
 * in all. A number is never given to another file. Where the store has no such handles,
 * or we have no right to open them, nothing is kept.
 */
#ifndef EQ_IDS_H
#define EQ_IDS_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

#include "name.h"

#define EQ_ID_ROOT 1            /* FUSE_ROOT_ID */
#define EQ_ID_FIRST 16          /* of ours; in between is room for what is no file */

struct eq_id;
struct eq_node;

struct eq_ids {
	int store_fd;           /* borrowed */
	bool keeps;             /* files of this device: */
	dev_t dev;
	uint32_t generation;    /* of all numbers: this mount's */
	uint32_t turn;          /* of entries that were never in use: likewise */
	struct eq_id **block;   /* never move */
	_Atomic uint32_t used;  /* entries that were ever in use */
	uint32_t spare;         /* list of those that are not now */
	uint32_t *bucket;       /* of kept ones, by inode number */
	uint32_t n_buckets, kept;
	uint32_t hand;          /* where the search for one to give up goes on */
};

/* store_fd: the store, not O_PATH. 0 or -errno; after a failure eq_ids_fini may be called. */
int eq_ids_init(struct eq_ids *ids, int store_fd);
void eq_ids_fini(struct eq_ids *ids);

/*
 * The node that the kernel means; NULL: it was forgotten, or never was. Needs no lock for
 * a number that the kernel has looked up and not forgotten. The others need one, the
 * same for all.
 */
struct eq_node *eq_id_node(const struct eq_ids *ids, uint64_t id);
/* The number of a file that the kernel hears of, of which n is the node from now on (fd
 * and archive are its): the one that it had, or a new one. If it had several, the others
 * join the list *also. 0: there are none left. */
uint64_t eq_id_take(struct eq_ids *ids, int fd, bool archive, struct eq_node *n, uint64_t *also);
/* The node goes. fd and archive are its, parent is the number of the directory that it was
 * last seen in, or 0; keep its number, unless the file is gone. */
void eq_id_leave(struct eq_ids *ids, uint64_t id, int fd, bool archive, uint64_t parent);
/* The number of a node that goes is n's from now on, besides those that it has: it joins
 * the list *also. */
void eq_id_pass(struct eq_ids *ids, uint64_t id, struct eq_node *n, uint64_t *also);
/* Take the first from such a list, which is not empty. */
uint64_t eq_id_part(const struct eq_ids *ids, uint64_t *also);
/* That parent's number, as it was when the last node went or eq_id_seen said so; or 0. */
uint64_t eq_id_parent(const struct eq_ids *ids, uint64_t id);
void eq_id_seen(struct eq_ids *ids, uint64_t id, uint64_t parent);

/* The store's handle of a file. */
struct eq_fh {
	unsigned char type, len, bytes[20];
};
/* Of a number that is kept, copy what finds the file again. 0 or -ESTALE. */
int eq_id_kept(const struct eq_ids *ids, uint64_t id, struct eq_fh *fh, bool *archive);
/* Open it (O_PATH), without a lock, as f->fd with f->st. 0 or -errno, and f->fd is -1 then. */
int eq_fh_open(const struct eq_ids *ids, const struct eq_fh *fh, struct eq_found *f);

#endif
