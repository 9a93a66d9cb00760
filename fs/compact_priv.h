/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of compact.c, dirty.c and parked.c. */
#ifndef EQ_COMPACT_PRIV_H
#define EQ_COMPACT_PRIV_H

#include "compact.h"
#include "queue.h"
#include "thread.h"

#define EQ_PARKED_BUCKETS 4096

struct eq_parked;

struct eq_compact {
	struct eq_fs *fs;
	struct eq_thread thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct eq_queue queue;  /* of nodes, each with a reference, and parked files */
	struct eq_parked *parked[EQ_PARKED_BUCKETS]; /* by device and inode number */
	_Atomic size_t n_parked;
	struct eq_node *current;        /* being encoded */
	uint64_t current_bytes;
	_Atomic unsigned done;          /* of it, in 10,000ths */
	bool drain;                     /* end when nothing is due */
	_Atomic bool stop;
};

/* ---- dirty.c ---- */

/* Is it to be encoded, and may it be? */
bool eq_dirty_wanted(struct eq_node *n);
/* It is to be encoded no longer. reason: why it stays plain, or NULL. The caller has a
 * reference. changes: how many n had when that was found out; false, and nothing done, if
 * it has more by now. NULL: whatever it has. */
bool eq_dirty_clear(struct eq_fs *fs, struct eq_node *n, const uint64_t *changes,
		    const char *reason);
/* It could not be, for now, because of that. */
void eq_dirty_reason(struct eq_node *n, const char *reason);
/* It is in the queue from now on, due at that time. */
void eq_dirty_queue(struct eq_fs *fs, struct eq_node *n, const struct timespec *due);
/* Likewise, due in so many seconds, if it is wanted. */
void eq_dirty_offer(struct eq_fs *fs, struct eq_node *n, double delay);

/* ---- parked.c ---- */

/*
 * A file that waits to be encoded while descriptors are scarce: in place of a node,
 * which takes one, only what finds it again is kept. That is a hint; the mark on the
 * file says whether it is right.
 */

/* Where one was that is due. */
struct eq_parked_place {
	dev_t dev;
	ino_t ino;
	struct eq_node *parent; /* with a reference */
	char name[NAME_MAX + 1];
};

/* Under c->lock: w, which is in the queue, is a parked file's; it leaves the queue. */
void eq_parked_take(struct eq_compact *c, struct eq_wait *w, struct eq_parked_place *out);
/* The node of what is there, dirty again if it was, with a reference. NULL: it is there no
 * longer. Drops the reference to the parent. Without locks. */
struct eq_node *eq_parked_find(struct eq_fs *fs, struct eq_parked_place *at);
/* If n, to which the caller has a reference, is parked, it is no longer, but dirty and, if
 * it was, in the queue. */
void eq_parked_revive(struct eq_fs *fs, struct eq_node *n);
/* At the end. */
void eq_parked_free(struct eq_compact *c);

#endif
