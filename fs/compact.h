/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encoding in the background. What was written through the mount is dirty until
 * it was encoded or found not worth it; dirty files that nobody is writing wait
 * in a queue until they have been quiet for a while.
 */
#ifndef EQ_COMPACT_H
#define EQ_COMPACT_H

#include "fs.h"

/* Start the worker (fs->compact). 0 or -errno. */
int eq_compact_create(struct eq_fs *fs);
/* Have it encode what is due by now, and end. */
void eq_compact_drain(struct eq_compact *c);
/* Have it give up what it is doing, and end. From then on no invalidation is sent. */
void eq_compact_cancel(struct eq_compact *c);
/* Has it ended? Does not wait. */
bool eq_compact_ended(struct eq_compact *c);
void eq_compact_free(struct eq_compact *c); /* once it has ended */

/* The contents change: n is dirty from now on, also for the next mount. */
void eq_dirty_set(struct eq_fs *fs, struct eq_node *n);
/* Was it marked so by an earlier mount? */
bool eq_dirty_marked(const struct eq_fs *fs, const struct eq_node *n);
/* Mark a file (any descriptor) in the store as due to be encoded, with what is due:
 * what was written to a lossless mount is never quantised by a later one. */
void eq_dirty_mark(const struct eq_fs *fs, int fd);
/* A file that was seen again under a name: queue it, if it is due and was lost
 * sight of. Cheap when it is not. */
void eq_compact_seen(struct eq_fs *fs, struct eq_node *n);

/*
 * If n, to which the caller has a reference, is used by nobody, but waits to be encoded,
 * remember what finds it again in its place. Returns whether it is nothing but the caller's
 * then: its descriptor goes with it. A store without extended attributes keeps all.
 */
bool eq_compact_park(struct eq_fs *fs, struct eq_node *n);

/* A handle for writing comes; -ESTALE when the file has been replaced by its
 * archive and must be looked up again. The caller holds fs->names. */
int eq_writer_begin(struct eq_fs *fs, struct eq_node *n);
/* ... and goes. */
void eq_writer_end(struct eq_fs *fs, struct eq_node *n);

/* Something was done to n or its name that makes a running encode pointless.
 * Queue it (again) if there is reason to. */
void eq_compact_offer(struct eq_fs *fs, struct eq_node *n);
/* The last name of n is gone: nothing to encode. */
void eq_compact_drop(struct eq_fs *fs, struct eq_node *n);

struct eq_queue_stats {
	uint64_t files, bytes;          /* waiting */
	uint64_t encoding, current_bytes;
	double progress;                /* 0 to 1, of what is being encoded */
};
/* c NULL: a read-only mount, all zero. */
void eq_compact_stats(struct eq_compact *c, struct eq_queue_stats *out);

/* Text of user.eqfs.state. */
#define EQ_STATE_SIZE 256
void eq_compact_state(struct eq_fs *fs, struct eq_node *n, char buf[EQ_STATE_SIZE]);

#endif
