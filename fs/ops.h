/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operations of the low-level FUSE interface. ops.c and its parts, ops_*.c,
 * are the only place where the kernel is answered.
 */
#ifndef EQ_OPS_H
#define EQ_OPS_H

#include <fuse_lowlevel.h>

#include "fs.h"

#define EQ_TIMEOUT 1.0          /* seconds that names and attributes are believed */
#define EQ_MAX_REQUEST ((size_t)1 << 20)

/* An open regular file. */
struct eq_file {
	struct eq_handle handle;
	struct eq_node *node;   /* with a reference */
	bool writer;
	struct eq_arc *arc;     /* opened as an archive; with a reference */
	struct eq_stream stream;
	pthread_mutex_t lock;   /* of fd while it is not there yet */
	_Atomic int fd;         /* of the plain file; -1: none (yet) */
	struct eq_hot_copy *copy; /* decoded, of an archive; with a reference; or NULL */
	bool opened;            /* the kernel has it, and will say when it is closed */
	bool passed;            /* the kernel reads and writes it without us */
};

extern const struct fuse_lowlevel_ops eq_ops;

/* ---- ops_virtual.c ---- */

/* The operations above with .eqfs/stats laid over them. */
void eq_ops_layer(struct fuse_lowlevel_ops *ops);
/* Say so when the store has an entry of that name, which comes first. */
void eq_virtual_check(struct eq_fs *fs);

/* ---- ops.c ---- */

static inline struct eq_fs *eq_fs_of(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

static inline struct eq_file *eq_file_of(const struct fuse_file_info *fi)
{
	return (struct eq_file *)(uintptr_t)fi->fh;
}

struct eq_node *eq_node_of(struct eq_fs *fs, fuse_ino_t ino);
fuse_ino_t eq_ino_of(struct eq_fs *fs, const struct eq_node *n);
/* What the kernel is told of a result: 0 or a positive errno. */
int eq_errno(int rc);
/* Answer with a result only. */
void eq_reply(fuse_req_t req, int rc);
void eq_handle_add(struct eq_fs *fs, struct eq_handle *h,
		   void (*drop)(struct eq_fs *fs, struct eq_handle *h));
void eq_handle_del(struct eq_fs *fs, struct eq_handle *h);
/* After the last request. */
void eq_handles_drop(struct eq_fs *fs);
/* This thread's buffer of at least size bytes; NULL: no memory. */
char *eq_scratch(struct eq_fs *fs, size_t size);

/* ---- ops_file.c ---- */

/* Open n as open(2) would with these flags. Takes no lock of the names: the
 * caller holds none. *keep: the kernel's cached pages are still right. */
int eq_file_open(struct eq_fs *fs, struct eq_node *n, int flags, struct eq_file **out,
		 bool *keep);
/* The handle of a file that was just made and is open as fd (taken over on
 * success). The caller holds fs->names. */
int eq_file_made(struct eq_fs *fs, struct eq_node *n, int fd, int flags, struct eq_file **out);
void eq_file_close(struct eq_fs *fs, struct eq_file *f);
/* Fill in fi, for the answer that gives f to the kernel as open; and take that back:
 * the kernel had given up, and will not say that it is closed. */
void eq_file_answer(fuse_req_t req, struct eq_file *f, bool keep, struct fuse_file_info *fi);
void eq_file_unopened(struct eq_fs *fs, struct eq_file *f);
/* Of the flags of open(2), those that we pass on. */
int eq_file_flags(int flags);

void eq_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void eq_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void eq_op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
		 struct fuse_file_info *fi);
void eq_op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void eq_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void eq_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void eq_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
		     struct fuse_file_info *fi);
void eq_op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
		 struct fuse_file_info *fi);
void eq_op_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
			   struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t off_out,
			   struct fuse_file_info *fi_out, size_t len, int flags);

/* ---- ops_name.c, ops_rename.c ---- */

void eq_op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void eq_op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
		  struct fuse_file_info *fi);
void eq_op_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, struct fuse_file_info *fi);
void eq_op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
void eq_op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void eq_op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name);
void eq_op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname);
void eq_op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void eq_op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void eq_op_readlink(fuse_req_t req, fuse_ino_t ino);
void eq_op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
		  const char *newname, unsigned int flags);
/* A name of n is gone: of a file with others left, or of one without. */
void eq_name_gone(struct eq_fs *fs, struct eq_node *n, struct eq_node *parent, const char *name);
/* May this be made here? Logs why not. */
int eq_name_check(struct eq_fs *fs, const char *name, mode_t type);

/* ---- ops_export.c ---- */

/* The node of a number that the kernel may have forgotten, and the directory in which the
 * directory n is: each with one more lookup by the kernel. 0, -ESTALE or another -errno. */
int eq_export_self(struct eq_fs *fs, fuse_ino_t ino, struct eq_node **out);
int eq_export_parent(struct eq_fs *fs, struct eq_node *n, struct eq_node **out);

/* ---- ops_dir.c ---- */

void eq_op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void eq_op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		   struct fuse_file_info *fi);
void eq_op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void eq_op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);

/* ---- ops_attr.c, ops_xattr.c ---- */

void eq_op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void eq_op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
		   struct fuse_file_info *fi);
void eq_op_statfs(fuse_req_t req, fuse_ino_t ino);
void eq_op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void eq_op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);
void eq_op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
		    size_t size, int flags);
void eq_op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);

#endif
