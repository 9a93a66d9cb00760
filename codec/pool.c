/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Worker threads for parallel loops. Every caller works on its own loop as
 * well, so a loop always makes progress, whatever the workers are busy with:
 * that is what makes nested and concurrent calls safe.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "eqcodec.h"

#define MAX_WORKERS 1024

struct loop {
	void (*fn)(void *arg, size_t i);
	void *arg;
	size_t n;
	atomic_size_t next;
	unsigned users;         /* workers inside, under the pool's lock */
	struct loop *prev, *link;
};

struct eq_pool {
	pthread_mutex_t lock;
	pthread_cond_t work, idle;
	struct loop *loops;     /* those that may still have items */
	bool stop;
	unsigned n_workers;
	pthread_t worker[];
};

unsigned eq_cpu_count(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
		return (unsigned)CPU_COUNT(&set);
	return 1;
}

static void loop_run(struct loop *l)
{
	size_t i;

	while ((i = atomic_fetch_add_explicit(&l->next, 1, memory_order_relaxed)) < l->n)
		l->fn(l->arg, i);
}

static struct loop *loop_find(struct eq_pool *pool)
{
	struct loop *l;

	for (l = pool->loops; l; l = l->link)
		if (atomic_load_explicit(&l->next, memory_order_relaxed) < l->n)
			return l;
	return NULL;
}

static void *worker_main(void *arg)
{
	struct eq_pool *pool = arg;
	struct loop *l = NULL;

	pthread_mutex_lock(&pool->lock);
	for (;;) {
		while (!pool->stop && !(l = loop_find(pool)))
			pthread_cond_wait(&pool->work, &pool->lock);
		if (pool->stop)
			break;
		l->users++;
		pthread_mutex_unlock(&pool->lock);
		loop_run(l);
		pthread_mutex_lock(&pool->lock);
		if (--l->users == 0)
			pthread_cond_broadcast(&pool->idle);
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

static void pool_stop(struct eq_pool *pool)
{
	unsigned i;

	pthread_mutex_lock(&pool->lock);
	pool->stop = true;
	pthread_cond_broadcast(&pool->work);
	pthread_mutex_unlock(&pool->lock);
	for (i = 0; i < pool->n_workers; i++)
		pthread_join(pool->worker[i], NULL);
	pthread_cond_destroy(&pool->idle);
	pthread_cond_destroy(&pool->work);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}

int eq_pool_create(unsigned n, struct eq_pool **out)
{
	struct eq_pool *pool;
	int rc;

	*out = NULL;
	if (n == 0)
		n = eq_cpu_count() - 1;
	if (n > MAX_WORKERS)
		n = MAX_WORKERS;
	pool = calloc(1, sizeof(*pool) + n * sizeof(pool->worker[0]));
	if (!pool)
		return -ENOMEM;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->work, NULL);
	pthread_cond_init(&pool->idle, NULL);
	while (pool->n_workers < n) {
		rc = pthread_create(&pool->worker[pool->n_workers], NULL, worker_main, pool);
		if (rc) {
			pool_stop(pool);
			return -rc;
		}
		pool->n_workers++;
	}
	*out = pool;
	return 0;
}

void eq_pool_free(struct eq_pool *pool)
{
	if (pool)
		pool_stop(pool);
}

void eq_pool_for(struct eq_pool *pool, size_t n, void (*fn)(void *arg, size_t i),
		 void *arg)
{
	struct loop l = { .fn = fn, .arg = arg, .n = n };
	size_t i;

	if (!pool || pool->n_workers == 0 || n <= 1) {
		for (i = 0; i < n; i++)
			fn(arg, i);
		return;
	}
	pthread_mutex_lock(&pool->lock);
	l.link = pool->loops;
	if (l.link)
		l.link->prev = &l;
	pool->loops = &l;
	if (n - 1 < pool->n_workers)
		for (i = 0; i < n - 1; i++)
			pthread_cond_signal(&pool->work);
	else
		pthread_cond_broadcast(&pool->work);
	pthread_mutex_unlock(&pool->lock);

	loop_run(&l);

	pthread_mutex_lock(&pool->lock);
	if (l.prev)
		l.prev->link = l.link;
	else
		pool->loops = l.link;
	if (l.link)
		l.link->prev = l.prev;
	while (l.users)
		pthread_cond_wait(&pool->idle, &pool->lock);
	pthread_mutex_unlock(&pool->lock);
}
