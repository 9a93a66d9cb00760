/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the mount share.
 *
 * Order of locks: node->change, names, node->lock, then one of the inner ones
 * (table of nodes, queue, registry of archives, cache), none of which is held
 * while another is taken, except that prefetch and hot take the registry's.
 */
#ifndef EQ_FS_H
#define EQ_FS_H

#include <pthread.h>
#include <stdint.h>
#include <sys/stat.h>

#include "arc.h"
#include "cache.h"
#include "eqfs.h"
#include "hot.h"
#include "inode.h"
#include "log.h"
#include "prefetch.h"
#include "ready.h"
#include "stats.h"

struct fuse_session;
struct eq_fs;
struct eq_compact;
struct eq_scan;
struct eq_trim;

/*
 * The beginning of every open file and directory. The kernel need not say that
 * they are closed before the mount ends: what is left then is dropped.
 */
struct eq_handle {
	struct eq_handle *prev, *next;
	void (*drop)(struct eq_fs *fs, struct eq_handle *h);
};

struct eq_fs {
	const struct eq_mount *m;
	struct eq_log log;
	struct eq_stats stats;
	struct eq_ready ready;
	struct fuse_session *se;
	struct eq_nodes nodes;
	struct eq_arcs arcs;
	struct eq_pool *pool;
	struct eq_cache *cache;
	struct eq_ahead *ahead;
	struct eq_hot *hot;             /* NULL: no such copies are wanted */
	struct eq_compact *compact;     /* NULL when read-only */
	struct eq_trim *trim;
	struct eq_scan *scan;
	char *policy;                   /* text, for the xattr */
	bool privileged;                /* may act as another user */
	_Atomic bool ending;            /* long work is to be given up */
	_Atomic bool no_prune;          /* the kernel has no such notification */
	_Atomic bool pass;              /* the kernel takes files to pass through */
	_Atomic bool tuned;             /* the kernel's readahead is set */
	pthread_key_t scratch;          /* a buffer a thread */
	pthread_mutex_t handles_lock;
	struct eq_handle *handles;      /* all that is open */
	/*
	 * Held for writing while a plain file and its archive change places, so
	 * that nobody sees both or neither; for reading by whatever looks up or
	 * changes names or begins to write.
	 */
	pthread_rwlock_t names;
};

/* Extended attributes of our own, in the store; the mount hides them. */
#define EQ_XATTR_PREFIX "user.eqfs."
#define EQ_XATTR_QUEUED EQ_XATTR_PREFIX "queued" /* written, not yet encoded */

/* ---- attr.c ---- */

/* What stat shows. 0 or -errno. */
int eq_attr_get(struct eq_fs *fs, struct eq_node *n, struct stat *st);
/* The archive behind a node, with a reference; failures are logged, once. */
int eq_attr_archive(struct eq_fs *fs, struct eq_node *n, struct eq_arc **out);
/* Log what went wrong with this file, if that has not been said before. */
void eq_attr_complain(struct eq_fs *fs, struct eq_node *n, const char *text);

/* ---- session.c ---- */

/* Once the mount is initialised, as the first open shows, the kernel takes a larger
 * readahead than it negotiated. Cheap to call again. */
void eq_session_tune(struct eq_fs *fs);

/* ---- restore.c ---- */

/*
 * Make the archive n a plain file again, in its place, with its contents or
 * empty. n stays the same node, unless the kernel reads a decoded copy of it: then
 * n loses its name to the plain file, and the result is -ESTALE, upon which the
 * kernel looks the name up again. The caller holds n->change, and no other lock.
 * 0, or an error (logged); nothing has changed then.
 */
int eq_restore(struct eq_fs *fs, struct eq_node *n, bool empty);

#endif
