/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading. Each thread takes the next few chunks, reads them to pinned memory,
 * checks them, and has them copied and decoded while it does the same with the
 * next ones in its other buffer. So reading, checking, copying and decoding run
 * side by side, and what is in flight is bounded by the buffers.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib_priv.h"

#define STAGE_BYTES ((size_t)4 << 20)   /* a buffer at most, unless chunks are larger */
#define LEAST_BYTES ((size_t)1 << 20)
#define STAGE_JOBS EQ_GPU_FEED_JOBS
#define STAGE_TENSORS 32u               /* whose tables travel with a batch */
#define STAGES 2                        /* a thread */
#define STAGE_EXTRA ((size_t)1 << 20)   /* what a buffer needs beside itself */
#define HOST_BYTES ((size_t)1 << 20)    /* stored, of a batch without a device */
#define ALIGN 32u

struct load {
	struct eq_archive *archive;
	struct eqfs_device *d;
	const struct eq_tensor_info *tensors;
	const size_t *index;
	void *const *to;
	size_t n;
	size_t room;            /* bytes of a buffer */
	pthread_mutex_t lock;   /* and what is below it */
	size_t next;            /* of index, and the byte of that tensor */
	uint64_t at;
	bool full;              /* no more staging memory: that was logged */
	int rc;                 /* the first failure, with its line */
	struct eq_error err;
};

/* A batch of chunks and, on a device, the buffer that they are in. */
struct stage {
	struct eq_gpu_feed *feed;
	size_t n, n_jobs;
	struct eq_extent_job ext[STAGE_JOBS];
	struct eq_decode_job job[STAGE_JOBS];
	uint32_t which[STAGE_JOBS];
};

static void failed(struct load *l, int rc, const struct eq_error *err)
{
	pthread_mutex_lock(&l->lock);
	if (!l->rc) {
		l->rc = rc;
		l->err = *err;
	}
	pthread_mutex_unlock(&l->lock);
}

static void device_failed(struct load *l, int rc)
{
	struct eq_error err;

	eq_fail(&err, rc, "device %d: %s", l->d->number, eq_strerror(rc));
	failed(l, rc, &err);
}

/* ---- batches ------------------------------------------------------------------ */

/* The next chunks that go together; false when there are none, or after a failure.
 * Those without stored bytes (constants) are not mixed with the others. */
static bool take(struct load *l, struct stage *s)
{
	size_t room = 0, n_tensors = 0;

	s->n = s->n_jobs = 0;
	pthread_mutex_lock(&l->lock);
	while (!l->rc && l->next < l->n && s->n < STAGE_JOBS && n_tensors < STAGE_TENSORS) {
		const struct eq_tensor_info *t = &l->tensors[l->index[l->next]];
		struct eq_extent_job *j = &s->ext[s->n];

		if (l->at == t->n_bytes) {
			l->next++;
			l->at = 0;
			n_tensors += s->n > 0; /* none of those skipped before the first */
			continue;
		}
		eq_archive_locate(l->archive, t->begin + l->at, &j->ext);
		if (s->n && (room + eq_archive_fetch_room(l->archive, &j->ext) > l->room ||
			     !eq_archive_stored(l->archive, &j->ext) !=
			     !eq_archive_stored(l->archive, &s->ext[0].ext)))
			break;
		room += eq_archive_fetch_room(l->archive, &j->ext);
		j->out = (uint8_t *)l->to[l->next] + l->at;
		j->status = 0;
		l->at += j->ext.len;
		s->n++;
	}
	pthread_mutex_unlock(&l->lock);
	return s->n > 0;
}

/* By the CPU, to memory of the host, and from there to the device: one extent. */
static int decode_and_copy(struct load *l, struct eq_extent_job *j, struct eq_error *err)
{
	void *to = j->out, *buf = aligned_alloc(64, ((size_t)j->ext.len + 63) / 64 * 64);
	int rc;

	if (!buf)
		return eq_fail(err, -ENOMEM, "device %d: out of memory of the host", l->d->number);
	j->out = buf;
	rc = eq_archive_decode(l->archive, NULL, j, 1, err);
	j->out = to;
	if (!rc) {
		rc = l->d->load->copy(l->d->inner, to, buf, (size_t)j->ext.len);
		if (rc)
			eq_fail(err, rc, "device %d: %s", l->d->number, eq_strerror(rc));
	}
	free(buf);
	return rc;
}

static void on_cpu(struct load *l, struct stage *s)
{
	struct eq_error err;
	size_t i;
	int rc = 0;

	for (i = 0; i < s->n && !rc; i++)
		rc = decode_and_copy(l, &s->ext[i], &err);
	if (rc)
		failed(l, rc, &err);
}

/* ---- on the device ------------------------------------------------------------- */

/* Wait for what was queued, and see what came of it. */
static void finish(struct load *l, struct stage *s)
{
	struct eq_error err;
	size_t i;
	int rc;

	if (!s->n_jobs)
		return;
	rc = l->d->load->feed_wait(s->feed);
	if (rc)
		device_failed(l, rc);
	for (i = 0; i < s->n_jobs; i++) { /* each lets go of its plan */
		int verdict = eq_archive_verdict(l->archive, &s->ext[s->which[i]],
						 rc ? rc : s->job[i].status, &err);

		if (verdict)
			failed(l, verdict, &err);
	}
	s->n_jobs = 0;
}

/* What the device left: raw chunks are there as they are, others are decoded. */
static int leftover(struct load *l, struct stage *s, size_t i, struct eq_error *err)
{
	struct eq_decode_job *job = &s->job[i];
	size_t len = (size_t)job->n_units * job->plan->unit;
	int rc;

	job->status = 0;
	if (job->plan->codec != EQ_CODEC_RAW || job->in_len != len)
		return decode_and_copy(l, &s->ext[s->which[i]], err);
	rc = l->d->load->feed_copy(s->feed, job->out, job->in, len);
	return rc ? eq_fail(err, rc, "device %d: %s", l->d->number, eq_strerror(rc)) : 0;
}

/* Read the batch and queue it. */
static void submit(struct load *l, struct stage *s)
{
	struct eq_error err = { "" };
	size_t n, i;
	int rc = 0;

	n = eq_archive_fetch(l->archive, s->ext, s->n, s->feed->buf, s->job, s->which, &err);
	for (i = 0; i < s->n && !rc; i++)
		rc = s->ext[i].status;
	if (!rc && n) {
		rc = l->d->load->feed_decode(s->feed, s->job, n);
		if (rc == -ENOMEM) { /* no room for the kernels themselves */
			l->d->load->feed_wait(s->feed);
			for (i = 0; i < n; i++)
				eq_archive_verdict(l->archive, &s->ext[s->which[i]], 0, NULL);
			on_cpu(l, s);
			return;
		}
		if (rc)
			eq_fail(&err, rc, "device %d: %s", l->d->number, eq_strerror(rc));
	}
	s->n_jobs = n; /* to be waited for, whatever became of them */
	for (i = 0; i < n && !rc; i++)
		if (s->job[i].status == EQ_GPU_LEFT)
			rc = leftover(l, s, i, &err);
	if (rc)
		failed(l, rc, &err);
}

/* Without a buffer: say so, once a load. */
static void no_room(struct load *l, int rc)
{
	struct eq_error line;
	bool first;

	pthread_mutex_lock(&l->lock);
	first = !l->full;
	l->full = true;
	pthread_mutex_unlock(&l->lock);
	eq_fail(&line, rc, "device %d: no room for staging memory; decoding on the CPU",
		l->d->number);
	if (first)
		l->d->log(l->d->log_arg, line.text);
}

static bool is_full(struct load *l)
{
	bool full;

	pthread_mutex_lock(&l->lock);
	full = l->full;
	pthread_mutex_unlock(&l->lock);
	return full;
}

/* See that there is a buffer for the next batch: its own, a new one, or the other
 * one's, which is then waited for. False: there is none. */
static bool with_feed(struct load *l, struct stage *s, struct stage *other)
{
	int rc;

	if (s->feed)
		return true;
	if (is_full(l))
		return false;
	rc = eq_lib_feed_get(l->d, l->room, !other->feed, &s->feed);
	if (rc == 0)
		return true;
	if (rc != -ENOMEM) {
		device_failed(l, rc);
	} else if (other->feed) {
		finish(l, other);
		s->feed = other->feed;
		other->feed = NULL;
	} else {
		no_room(l, rc);
	}
	return s->feed != NULL;
}

static bool more(struct load *l)
{
	bool is;

	pthread_mutex_lock(&l->lock);
	is = !l->rc && l->next < l->n;
	pthread_mutex_unlock(&l->lock);
	return is;
}

static void gpu_worker(void *arg, size_t i)
{
	struct load *l = arg;
	struct stage *s = calloc(STAGES, sizeof(*s));
	struct eq_error err;
	unsigned turn = 0;

	(void)i;
	if (!s) {
		failed(l, eq_fail(&err, -ENOMEM, "out of memory"), &err);
		return;
	}
	for (; more(l); turn = !turn) {
		struct stage *now = &s[turn];
		bool fed;

		finish(l, now);
		fed = with_feed(l, now, &s[!turn]);
		if (!take(l, now))
			break;
		if (fed && eq_archive_stored(l->archive, &now->ext[0].ext))
			submit(l, now);
		else
			on_cpu(l, now);
	}
	for (turn = 0; turn < STAGES; turn++) {
		finish(l, &s[turn]);
		if (s[turn].feed)
			eq_lib_feed_put(l->d, s[turn].feed);
	}
	free(s);
}

/* ---- on the host ------------------------------------------------------------- */

static void host_worker(void *arg, size_t i)
{
	struct load *l = arg;
	struct stage *s = calloc(1, sizeof(*s));
	struct eq_error err;
	int rc;

	(void)i;
	if (!s) {
		failed(l, eq_fail(&err, -ENOMEM, "out of memory"), &err);
		return;
	}
	while (take(l, s)) {
		rc = eq_archive_decode(l->archive, NULL, s->ext, s->n, &err);
		if (rc)
			failed(l, rc, &err);
	}
	free(s);
}

/* ---- loading ------------------------------------------------------------------ */

/* Buffers hold the largest chunk; else they are as large as leaves each thread its
 * share of the staging memory, within reason. */
static size_t room_for(const struct load *l)
{
	uint64_t share = l->d->staging / (STAGES * (uint64_t)l->d->threads);
	size_t room = LEAST_BYTES, i;

	if (share > room + STAGE_EXTRA)
		room = (size_t)share - STAGE_EXTRA;
	if (room > STAGE_BYTES)
		room = STAGE_BYTES;
	if (!l->d->load)
		room = HOST_BYTES;
	for (i = 0; i < l->n; i++) {
		const struct eq_tensor_info *t = &l->tensors[l->index[i]];
		struct eq_extent ext;
		uint32_t chunk;

		for (chunk = 0; chunk < t->n_chunks; chunk++) {
			size_t need;

			eq_archive_locate(l->archive, t->begin + chunk * t->chunk_bytes, &ext);
			need = eq_archive_fetch_room(l->archive, &ext);
			if (need > room)
				room = need;
		}
	}
	return room;
}

/* No more threads than find buffers. */
static size_t workers_for(const struct load *l)
{
	uint64_t most = l->d->staging / (STAGES * (l->room + STAGE_EXTRA));

	if (!l->d->load || most >= l->d->threads)
		return l->d->threads;
	return most ? (size_t)most : 1;
}

static int check(const struct eqfs_file *f, const struct load *l, struct eq_error *err)
{
	size_t i;

	for (i = 0; i < l->n; i++) {
		if (l->index[i] >= f->n)
			return eq_fail(err, -EINVAL, "no tensor %zu: there are %zu", l->index[i], f->n);
		if (f->tensor[l->index[i]].n_bytes &&
		    (!l->to[i] || (l->d->load && (uintptr_t)l->to[i] % ALIGN)))
			return eq_fail(err, -EINVAL, "tensor '%.128s': memory at %p is none, or not aligned to %u",
				       f->tensor[l->index[i]].name, l->to[i], ALIGN);
	}
	return 0;
}

int eqfs_load(struct eqfs_file *f, struct eqfs_device *d, const size_t *index,
	      void *const *to, size_t n, struct eqfs_error *err)
{
	struct load l = { .archive = f->archive, .d = d, .index = index, .to = to, .n = n,
			  .tensors = eq_archive_tensors(f->archive) };
	int rc = check(f, &l, eq_lib_error(err));

	if (rc)
		return rc;
	l.room = room_for(&l);
	pthread_mutex_init(&l.lock, NULL);
	/* A child has none of the threads, and perhaps their lock as one held it. */
	eq_pool_for(d->process == getpid() ? d->pool : NULL, workers_for(&l),
		    d->load ? gpu_worker : host_worker, &l);
	pthread_mutex_destroy(&l.lock);
	while (l.next < n && l.at == l.tensors[l.index[l.next]].n_bytes) { /* empty ones */
		l.next++;
		l.at = 0;
	}
	if (!l.rc && l.next < n)
		l.rc = eq_fail(&l.err, -EIO, "%zu tensors were not loaded", n - l.next);
	if (l.rc && err)
		*eq_lib_error(err) = l.err;
	return l.rc;
}
