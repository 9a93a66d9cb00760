/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "notify.h"
#include "trim.h"

#define REST_SECONDS 1  /* when all that are left are in use */

struct eq_trim {
	struct eq_fs *fs;
	pthread_t thread;
	bool joined;
	bool stop;              /* under the table's lock */
	size_t low;
};

/* Ask for the idle ones, a batch at a time, until there are few enough. false: there is
 * nothing to be had. */
static bool trim(struct eq_trim *t)
{
	struct eq_nodes *nodes = &t->fs->nodes;
	struct eq_node *n[EQ_NOTIFY_MAX];
	size_t got, i;

	got = eq_nodes_idle(nodes, n, EQ_NOTIFY_MAX);
	if (got)
		eq_notify_unused(t->fs, n, got);
	for (i = 0; i < got; i++)
		eq_node_unref(nodes, n[i]);
	return got;
}

static void *trimmer(void *arg)
{
	struct eq_trim *t = arg;
	struct eq_nodes *nodes = &t->fs->nodes;
	struct timespec until;
	bool more;

	pthread_mutex_lock(&nodes->lock);
	while (!t->stop) {
		if (nodes->count <= nodes->many) {
			pthread_cond_wait(&nodes->crowded, &nodes->lock);
			continue;
		}
		for (more = true; more && !t->stop && nodes->count > t->low;) {
			pthread_mutex_unlock(&nodes->lock);
			more = trim(t);
			pthread_mutex_lock(&nodes->lock);
		}
		if (more || t->stop)
			continue;
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += REST_SECONDS;
		pthread_cond_timedwait(&nodes->crowded, &nodes->lock, &until);
	}
	pthread_mutex_unlock(&nodes->lock);
	return NULL;
}

void eq_trim_pace(struct eq_fs *fs)
{
	struct eq_nodes *nodes = &fs->nodes;
	struct timespec until;

	pthread_mutex_lock(&nodes->lock);
	if (nodes->many && nodes->count > nodes->many + nodes->many / 4) {
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += REST_SECONDS;
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
		fs->nodes.many = (size_t)r.rlim_cur / 2;
		t->low = fs->nodes.many / 4 * 3;
		rc = -pthread_create(&t->thread, NULL, trimmer, t);
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
	if (!t->joined)
		t->joined = pthread_tryjoin_np(t->thread, NULL) == 0;
	return t->joined;
}

void eq_trim_free(struct eq_trim *t)
{
	free(t);
}
