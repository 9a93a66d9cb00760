/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads beside the loop, which are asked to end and looked at, never waited for:
 * a call into a dead disk does not return.
 */
#ifndef EQ_THREAD_H
#define EQ_THREAD_H

#include <pthread.h>
#include <stdbool.h>
#include <time.h>

struct eq_thread {
	pthread_t id;
	bool joined;
};

/* 0 or -errno. */
static inline int eq_thread_start(struct eq_thread *t, void *(*fn)(void *arg), void *arg)
{
	t->joined = false;
	return -pthread_create(&t->id, NULL, fn, arg);
}

/* Has it ended? Then it is joined. Does not wait; one caller at a time. */
static inline bool eq_thread_ended(struct eq_thread *t)
{
	if (!t->joined)
		t->joined = pthread_tryjoin_np(t->id, NULL) == 0;
	return t->joined;
}

/* For waits with a deadline, which a clock that is set must not move. */
static inline void eq_cond_init_monotonic(pthread_cond_t *c)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(c, &attr);
	pthread_condattr_destroy(&attr);
}

#endif
