/* SPDX-License-Identifier: Apache-2.0 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
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
	uint64_t node;
};

/* The kernel drops n and its names, if nobody uses them. 0 or -errno. */
static int prune(struct eq_fs *fs, struct eq_node *n)
{
	struct prune p = { .len = sizeof(p), .code = NOTIFY_PRUNE, .count = 1,
			   .node = eq_ino_of(fs, n) };
	struct iovec iov = { &p, sizeof(p) };

	return writev(fuse_session_fd(fs->se), &iov, 1) < 0 ? -errno : 0;
}

void eq_notify_replaced(struct eq_fs *fs, struct eq_node *parent, const char *name,
			struct eq_node *n)
{
	int rc = fs->no_prune ? -ENOSYS : prune(fs, n);

	if (!rc || rc == -ENOENT)
		return;
	fs->no_prune = true;
	/*
	 * The old way waits for the directory's lock in the kernel, where a thread cannot
	 * be killed: with another process in a request there, a daemon that is killed now
	 * does not end before somebody aborts the connection (umount -f).
	 */
	fuse_lowlevel_notify_inval_entry(fs->se, eq_ino_of(fs, parent), name, strlen(name));
}

void eq_notify_changed(struct eq_fs *fs, struct eq_node *n)
{
	/* A negative offset: the attributes only, which takes no lock in the kernel. */
	fuse_lowlevel_notify_inval_inode(fs->se, eq_ino_of(fs, n), -1, 0);
}
