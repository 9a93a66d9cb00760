/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "compact.h"
#include "notify.h"
#include "thread.h"
#include "trim.h"

#define ANSWERS_MS 20           /* that the kernel has forgotten comes as a request, */
#define ANSWERS_MAX 25          /* which may take so many times as long under load */
#define PACE_SECONDS 1          /* for a request to wait for room, at most */
#define REST_SECONDS 1          /* when all that are left are in use; longer each time */
#define LONG_REST_SECONDS 16

struct eq_trim {
	struct eq_fs *fs;
	struct eq_thread thread;
	bool stop;              /* under the table's lock */
	size_t many, low;
	time_t rest;            /* seconds of the last one, or 0 */
};

/* Part with some of the idle ones among the next *left buckets, or ask the kernel to. */
static void ask(struct eq_trim *t, size_t *left)
{
	struct eq_nodes *nodes = &t->fs->nodes;
	struct eq_node *n[EQ_NOTIFY_MAX], *known[EQ_NOTIFY_MAX];
	size_t got, asked = 0, i;

	got = eq_nodes_idle(nodes, n, EQ_NOTIFY_MAX, left);
	for (i = 0; i < got; i++)
		if (!eq_compact_park(t->fs, n[i]) && n[i]->id)
			known[asked++] = n[i];
	if (asked)
		eq_notify_unused(t->fs, known, asked);
	for (i = 0; i < got; i++)
		eq_node_unref(nodes, n[i]);
}

/*
 * Under the table's lock, though not while asking. true: there are few enough. false:
 * none of them went while all were asked for. The kernel may have other uses for them,
 * of which we do not hear: watches, working directories, mounts.
 */
static bool trim(struct eq_trim *t)
{
	const struct timespec answers = { .tv_nsec = ANSWERS_MS * 1000000 };
	struct eq_nodes *nodes = &t->fs->nodes;
	size_t least = SIZE_MAX, left = 0; /* what the kernel forgets may have to be parked yet */
	unsigned waits = 0;

	while (!t->stop && nodes->count > t->low) {
		if (nodes->count + nodes->known < least) {
			least = nodes->count + nodes->known;
			left = 2 * nodes->n_buckets;
			waits = 0;
		} else if (waits == ANSWERS_MAX) {
			return false;
		}
		pthread_mutex_unlock(&nodes->lock);
		if (left)
			ask(t, &left);
		if (!left) {
			nanosleep(&answers, NULL);
			waits++;
		}
		pthread_mutex_lock(&nodes->lock);
	}
	return true;
}

/*
 * What is left is taken for what there has to be, for a while or until there is a good
 * deal more, so that neither we nor requests go on trying: as long as that leaves some
 * descriptors, since requests that wait are better than requests that fail.
 */
static void rest(struct eq_trim *t)
{
	struct eq_nodes *nodes = &t->fs->nodes;
	struct timespec until;

	t->rest = t->rest ? 2 * t->rest : REST_SECONDS;
	if (t->rest > LONG_REST_SECONDS)
		t->rest = LONG_REST_SECONDS;
	nodes->many = nodes->count + t->many / 8;
	if (nodes->many > t->many / 5 * 7)
		nodes->many = t->many / 5 * 7;
	if (nodes->many < nodes->count)
		nodes->many = nodes->count;
	pthread_cond_broadcast(&nodes->room);
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += t->rest;
	while (!t->stop && nodes->count <= nodes->many &&
	       pthread_cond_timedwait(&nodes->crowded, &nodes->lock, &until) == 0)
		;
}

static void *trimmer(void *arg)
{
	struct eq_trim *t = arg;
	struct eq_nodes *nodes = &t->fs->nodes;

	pthread_mutex_lock(&nodes->lock);
	while (!t->stop) {
		if (nodes->count <= t->many) {
			t->rest = 0;
			nodes->many = t->many;
			pthread_cond_wait(&nodes->crowded, &nodes->lock);
		} else if (trim(t)) {
			nodes->many = t->many;
		} else {
			rest(t);
		}
	}
	pthread_mutex_unlock(&nodes->lock);
	return NULL;
}

void eq_trim_pace(struct eq_fs *fs)
{
	struct eq_nodes *nodes = &fs->nodes;
	struct timespec until;
	size_t most;

	pthread_mutex_lock(&nodes->lock);
	most = nodes->many + nodes->many / 4;
	if (most > fs->trim->many / 5 * 8) /* as long as it leaves some for other uses */
		most = fs->trim->many / 5 * 8;
	if (nodes->many && nodes->count > most) {
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec += PACE_SECONDS;
		while (nodes->count > nodes->many &&
		       pthread_cond_timedwait(&nodes->room, &nodes->lock, &until) == 0)
			;
	}
	pthread_mutex_unlock(&nodes->lock);
}

int eq_trim_create(struct eq_fs *fs)
{
	struct eq_trim *t = calloc(1, sizeof(*t));
	struct rlimit r;
	int rc;

	if (!t)
		return -ENOMEM;
	t->fs = fs;
	rc = getrlimit(RLIMIT_NOFILE, &r) ? -errno : 0;
	if (!rc) {
		/* The other half is for open files, and for what comes meanwhile. */
		t->many = fs->nodes.many = (size_t)r.rlim_cur / 2;
		t->low = t->many / 4 * 3;
		rc = eq_thread_start(&t->thread, trimmer, t);
	}
	if (rc)
		free(t);
	else
		fs->trim = t;
	return rc;
}

void eq_trim_cancel(struct eq_trim *t)
{
	struct eq_nodes *nodes = &t->fs->nodes;

	pthread_mutex_lock(&nodes->lock);
	t->stop = true;
	pthread_cond_signal(&nodes->crowded);
	pthread_mutex_unlock(&nodes->lock);
}

bool eq_trim_ended(struct eq_trim *t)
{
	return eq_thread_ended(&t->thread);
}

void eq_trim_free(struct eq_trim *t)
{
	free(t);
}
