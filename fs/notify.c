/* SPDX-License-Identifier: Apache-2.0 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>

#include "notify.h"
#include "ops.h"

/* Of the protocol, 7.45, which libfuse has later than kernels. */
#define NOTIFY_PRUNE 9

struct prune {
	uint32_t len;
	int32_t code;
	uint64_t unique;        /* 0: a notification */
	uint32_t count, padding;
	uint64_t spare;
	uint64_t node[EQ_NOTIFY_MAX];
};

/* The kernel drops these nodes and their names, if nobody uses them. 0 or -errno. */
static int prune(struct eq_fs *fs, struct eq_node **n, size_t count)
{
	struct prune p = { .code = NOTIFY_PRUNE, .count = (uint32_t)count };
	struct iovec iov = { &p, offsetof(struct prune, node[count]) };
	size_t i;

	p.len = (uint32_t)iov.iov_len;
	for (i = 0; i < count; i++)
		p.node[i] = eq_ino_of(fs, n[i]);
	if (fs->no_prune)
		return -ENOSYS;
	if (writev(fuse_session_fd(fs->se), &iov, 1) >= 0 || errno == ENOENT)
		return 0;
	fs->no_prune = errno == EINVAL;
	return -errno;
}

/*
 * The old way waits for the directory's lock in the kernel, where a thread cannot be
 * killed: with another process in a request there, a daemon that is killed now does not
 * end before somebody aborts the connection (umount -f).
 */
static void drop_name(struct eq_fs *fs, struct eq_node *parent, const char *name)
{
	fuse_lowlevel_notify_inval_entry(fs->se, eq_ino_of(fs, parent), name, strlen(name));
}

void eq_notify_replaced(struct eq_fs *fs, struct eq_node *parent, const char *name,
			struct eq_node *n)
{
	if (prune(fs, &n, 1))
		drop_name(fs, parent, name);
}

void eq_notify_unused(struct eq_fs *fs, struct eq_node **n, size_t count)
{
	char name[NAME_MAX + 1];
	struct eq_node *parent;
	size_t i;

	if (prune(fs, n, count) == 0)
		return;
	for (i = 0; i < count; i++)
		/* With a directory this way drops what is mounted below. */
		if (!S_ISDIR(n[i]->type) && eq_node_place(&fs->nodes, n[i], &parent, name) == 0) {
			drop_name(fs, parent, name);
			eq_node_unref(&fs->nodes, parent);
		}
}

void eq_notify_changed(struct eq_fs *fs, struct eq_node *n)
{
	/* A negative offset: the attributes only, which takes no lock in the kernel. */
	fuse_lowlevel_notify_inval_inode(fs->se, eq_ino_of(fs, n), -1, 0);
}

void eq_notify_emptied(struct eq_fs *fs, struct eq_node *n)
{
	fuse_lowlevel_notify_inval_inode(fs->se, eq_ino_of(fs, n), 0, 0);
}
