/* SPDX-License-Identifier: Apache-2.0 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "ops.h"
#include "passthrough.h"
#include "tune.h"

struct scratch {
	size_t size;
	char data[];
};

struct eq_node *eq_node_of(struct eq_fs *fs, fuse_ino_t ino)
{
	/* The kernel only names nodes that it has looked up and not forgotten, but for
	 * eq_export_self. */
	return eq_node_of_id(&fs->nodes, ino);
}

fuse_ino_t eq_ino_of(struct eq_fs *fs, const struct eq_node *n)
{
	(void)fs;
	return n->id;
}

int eq_errno(int rc)
{
	if (rc >= 0)
		return 0;
	return rc < -4095 ? EIO : -rc;
}

void eq_reply(fuse_req_t req, int rc)
{
	fuse_reply_err(req, eq_errno(rc));
}

void eq_handle_add(struct eq_fs *fs, struct eq_handle *h,
		   void (*drop)(struct eq_fs *fs, struct eq_handle *h))
{
	h->drop = drop;
	h->prev = NULL;
	pthread_mutex_lock(&fs->handles_lock);
	h->next = fs->handles;
	if (h->next)
		h->next->prev = h;
	fs->handles = h;
	pthread_mutex_unlock(&fs->handles_lock);
}

void eq_handle_del(struct eq_fs *fs, struct eq_handle *h)
{
	pthread_mutex_lock(&fs->handles_lock);
	*(h->prev ? &h->prev->next : &fs->handles) = h->next;
	if (h->next)
		h->next->prev = h->prev;
	pthread_mutex_unlock(&fs->handles_lock);
}

void eq_handles_drop(struct eq_fs *fs)
{
	while (fs->handles)
		fs->handles->drop(fs, fs->handles);
}

char *eq_scratch(struct eq_fs *fs, size_t size)
{
	struct scratch *s = pthread_getspecific(fs->scratch);

	if (s && s->size >= size)
		return s->data;
	free(s);
	if (size < EQ_MAX_REQUEST)
		size = EQ_MAX_REQUEST;
	s = malloc(sizeof(*s) + size);
	if (s)
		s->size = size;
	pthread_setspecific(fs->scratch, s);
	return s ? s->data : NULL;
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	struct eq_fs *fs = userdata;

	/* The kernel then heeds the access control lists of the store; it leaves the
	 * umask to us, because a directory's list may take its place. */
	if (conn->capable & FUSE_CAP_POSIX_ACL)
		conn->want |= FUSE_CAP_POSIX_ACL | FUSE_CAP_DONT_MASK;
	conn->want |= conn->capable & FUSE_CAP_EXPORT_SUPPORT;
	/* We write with our own rights, so the kernel has to drop set-id bits. */
	conn->want &= ~(unsigned)FUSE_CAP_HANDLE_KILLPRIV;
	eq_pass_init(fs, conn);
	eq_tune_conn(conn);
	eq_log(&fs->log, EQ_LOG_DEBUG, "kernel protocol %u.%u, requests of up to %u KiB",
	       conn->proto_major, conn->proto_minor, conn->max_write >> 10);
	eq_ready_now(&fs->ready, &fs->log);
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t n)
{
	struct eq_fs *fs = eq_fs_of(req);

	eq_node_forget(&fs->nodes, eq_node_of(fs, ino), n);
	fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	struct eq_fs *fs = eq_fs_of(req);
	size_t i;

	for (i = 0; i < count; i++)
		eq_node_forget(&fs->nodes, eq_node_of(fs, forgets[i].ino), forgets[i].nlookup);
	fuse_reply_none(req);
}

const struct fuse_lowlevel_ops eq_ops = {
	.init = op_init,
	.lookup = eq_op_lookup,
	.forget = op_forget,
	.forget_multi = op_forget_multi,
	.getattr = eq_op_getattr,
	.setattr = eq_op_setattr,
	.readlink = eq_op_readlink,
	.mknod = eq_op_mknod,
	.mkdir = eq_op_mkdir,
	.unlink = eq_op_unlink,
	.rmdir = eq_op_rmdir,
	.symlink = eq_op_symlink,
	.rename = eq_op_rename,
	.link = eq_op_link,
	.create = eq_op_create,
#ifdef HAVE_FUSE_TMPFILE
	.tmpfile = eq_op_tmpfile,
#endif
	.open = eq_op_open,
	.read = eq_op_read,
	.write = eq_op_write,
	.flush = eq_op_flush,
	.release = eq_op_release,
	.fsync = eq_op_fsync,
	.fallocate = eq_op_fallocate,
	.lseek = eq_op_lseek,
	.copy_file_range = eq_op_copy_file_range,
	.opendir = eq_op_opendir,
	.readdir = eq_op_readdir,
	.releasedir = eq_op_releasedir,
	.fsyncdir = eq_op_fsyncdir,
	.statfs = eq_op_statfs,
	.getxattr = eq_op_getxattr,
	.listxattr = eq_op_listxattr,
	.setxattr = eq_op_setxattr,
	.removexattr = eq_op_removexattr,
	/* What is added here must be known to ops_virtual.c as well. */
	/* flock and POSIX locks stay in the kernel: no such operations here. */
};
