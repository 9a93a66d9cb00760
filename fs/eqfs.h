/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fs/: a store of plain files and archives, shown as plain files. This is the
 * one header that tools/ includes.
 */
#ifndef EQFS_H
#define EQFS_H

#include <stdbool.h>
#include <stddef.h>

#include "eqcodec.h"

struct fuse_args;

enum eq_log_level { EQ_LOG_ERROR, EQ_LOG_WARN, EQ_LOG_INFO, EQ_LOG_DEBUG };

/* How to mount. Everything is borrowed until eq_mount returns. */
struct eq_mount {
	const char *store;              /* absolute path, for messages */
	int store_fd;                   /* the store, opened O_RDONLY | O_DIRECTORY */
	const char *mountpoint;         /* absolute path */
	struct fuse_args *args;         /* program name and options for libfuse */
	const struct eq_policy *policy;
	const struct eq_backend *backend;
	size_t cache_bytes;             /* of decoded extents */
	uint64_t hot_bytes;             /* of archives decoded as a whole; 0: none */
	double settle;                  /* seconds of quiet before a file is encoded */
	double drain;                   /* seconds, at a signal, for what is due */
	unsigned threads;               /* that decode and encode; 0: by the CPUs */
	bool read_only;
	bool foreground;                /* stay, and log to stderr rather than syslog */
	enum eq_log_level level;        /* the last one that is logged */
	const char *banner;             /* for stderr, once mounted; or NULL */
};

#define EQ_DEFAULT_CACHE ((size_t)256 << 20)
#define EQ_DEFAULT_SETTLE 2.0
#define EQ_DEFAULT_DRAIN 5.0

/*
 * Take the store for one mount: exclusively, or, read-only, together with other
 * read-only ones. Held until store_fd and its duplicates are closed. 0, -EBUSY
 * when another mount has it, or -errno.
 */
int eq_store_lock(int store_fd, bool read_only);

/*
 * Is one of the two directories the other, or inside it? Tells by identity, not
 * by name. 0: neither; 1: mountpoint is in the store; 2: the store is in the
 * mountpoint; or -errno.
 */
int eq_store_overlap(int store_fd, int mountpoint_fd);

/*
 * Go to the background (unless foreground), mount, serve until unmounted or
 * told to stop by SIGTERM, SIGINT or SIGHUP, and clean up. Returns 0 or a
 * negative errno when that is done, or, in the process that went not to the
 * background, once the mount is up or has failed. What goes wrong is said on
 * stderr or in the log. May end the process instead, when a thread is caught in
 * the store for good. To be called from the main thread of a process that has no
 * other threads.
 */
int eq_mount_run(const struct eq_mount *m);

#endif
