/* SPDX-License-Identifier: Apache-2.0 */
/* A queue by time. Whoever has it guards it by a lock, of its entries as well. */
#ifndef EQ_QUEUE_H
#define EQ_QUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct eq_node;

/* What waits, as a part of something else; zero-initialised. */
struct eq_wait {
	struct eq_wait *prev, *next;
	struct eq_node *node;   /* whose it is; NULL: a parked file's */
	struct timespec due;    /* of CLOCK_MONOTONIC */
	uint64_t bytes;         /* of interest to statistics only */
	bool listed;
};

struct eq_queue {
	struct eq_wait *first, *last; /* by due time */
	uint64_t files, bytes;
};

/* Is it due at that time? */
bool eq_wait_due(const struct eq_wait *w, const struct timespec *now);
/* From now on it is in the queue, with the due time and the bytes that it has. */
void eq_queue_add(struct eq_queue *q, struct eq_wait *w);
/* It is no longer. Returns whether it was. */
bool eq_queue_del(struct eq_queue *q, struct eq_wait *w);

#endif
