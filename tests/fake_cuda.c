/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A module in the place of eqfs-cuda.so whose device is the host: "device memory"
 * is malloc's, and what the kernels would decode is decoded when the feed is waited
 * for, by the CPU. It takes the jobs that the kernels would take, checks what the
 * interface asks of its user, and fails when told to by $EQFS_FAKE:
 *
 *    nodevice   open() finds none         memory     no device memory
 *    staging    no feed at all            feeds=N    no more than N feeds
 *    launch     every feed_decode: full   lost=N     the N-th feed_decode and all
 *                                                    after it: device lost
 *    corrupt=N  the N-th job of the device is found corrupt
 *    broken=N   the N-th decode and all after it: device lost
 */
#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_abi.h"
#include "gpu_task.h"

struct feed {
	struct eq_gpu_feed pub;
	struct eq_decode_job *jobs;
	size_t n;
	bool taken[EQ_GPU_FEED_JOBS];
	struct copy {
		void *to;
		const uint8_t *from;
		size_t n;
	} copy[EQ_GPU_FEED_JOBS];
	size_t n_copies;
	struct eq_gpu_table table[48];
};

static struct fake {
	struct eq_backend backend;
	const struct eq_backend *cpu;
	pthread_mutex_t lock;
	unsigned feeds, max_feeds;      /* these and below: under the lock */
	unsigned decodes, lost_at, jobs, corrupt_at;
	_Atomic unsigned host_decodes;
	unsigned broken_at;
	bool no_memory, launch_fails;
	size_t blocks;                  /* of device memory */
} fake = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* What the interface promises was broken: no test may go on. */
static void require(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "fake_cuda: %s\n", what);
	abort();
}

static int fake_decode(void *ctx, struct eq_decode_job *jobs, size_t n)
{
	(void)ctx;
	if (++fake.host_decodes >= fake.broken_at && fake.broken_at)
		return -EIO;
	return fake.cpu->decode(fake.cpu->ctx, jobs, n);
}

static unsigned number(const char *plan, const char *key)
{
	const char *at = plan ? strstr(plan, key) : NULL;

	return at ? (unsigned)strtoul(at + strlen(key), NULL, 10) : 0;
}

static int fake_open(const struct eq_gpu_open *o, const struct eq_backend **out, char *text,
		     size_t text_size)
{
	const char *plan = getenv("EQFS_FAKE");

	*out = NULL;
	if ((plan && strstr(plan, "nodevice")) || o->device > 0) {
		snprintf(text, text_size, "no such device");
		return -ENODEV;
	}
	fake.backend = (struct eq_backend){ .abi = EQ_BACKEND_ABI, .name = "cuda/0 fake",
					    .decode = fake_decode, .ctx = &fake };
	fake.cpu = o->cpu;
	fake.max_feeds = plan && strstr(plan, "staging") ? 0 :
			 number(plan, "feeds=") ? number(plan, "feeds=") : 1000;
	fake.no_memory = plan && strstr(plan, "memory");
	fake.launch_fails = plan && strstr(plan, "launch");
	fake.lost_at = number(plan, "lost=");
	fake.corrupt_at = number(plan, "corrupt=");
	fake.broken_at = number(plan, "broken=");
	fake.host_decodes = 0;
	fake.feeds = fake.decodes = fake.jobs = 0;
	*out = &fake.backend;
	return 0;
}

static void fake_close(const struct eq_backend *be)
{
	require(be == &fake.backend, "close of another back end");
	require(fake.feeds == 0, "closed while feeds are in use");
	require(fake.blocks == 0, "closed while memory is in use");
}

static int fake_alloc(const struct eq_backend *be, size_t n, void **out)
{
	(void)be;
	*out = fake.no_memory ? NULL : aligned_alloc(256, (n + 255) / 256 * 256);
	if (!*out)
		return -ENOMEM;
	memset(*out, 0xdb, n);
	pthread_mutex_lock(&fake.lock);
	fake.blocks++;
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

static void fake_free(const struct eq_backend *be, void *p)
{
	(void)be;
	pthread_mutex_lock(&fake.lock);
	require(fake.blocks-- > 0, "freed twice");
	pthread_mutex_unlock(&fake.lock);
	free(p);
}

static bool lost(void)
{
	bool is;

	pthread_mutex_lock(&fake.lock);
	is = fake.lost_at && fake.decodes >= fake.lost_at;
	pthread_mutex_unlock(&fake.lock);
	return is;
}

static int fake_copy(const struct eq_backend *be, void *to, const void *from, size_t n)
{
	(void)be;
	if (lost())
		return -EIO;
	memcpy(to, from, n);
	return 0;
}

static int fake_feed_get(const struct eq_backend *be, size_t size, struct eq_gpu_feed **out)
{
	struct feed *f;
	bool full;

	(void)be;
	*out = NULL;
	pthread_mutex_lock(&fake.lock);
	full = fake.feeds >= fake.max_feeds;
	fake.feeds += !full;
	pthread_mutex_unlock(&fake.lock);
	if (full)
		return -ENOMEM;
	f = calloc(1, sizeof(*f));
	require(f, "out of memory");
	f->pub.size = size;
	f->pub.buf = aligned_alloc(64, (size + 63) / 64 * 64);
	require(f->pub.buf, "out of memory");
	*out = &f->pub;
	return 0;
}

static void fake_feed_put(const struct eq_backend *be, struct eq_gpu_feed *pub)
{
	(void)be;
	free(pub->buf);
	free(pub);
	pthread_mutex_lock(&fake.lock);
	require(fake.feeds-- > 0, "feed put twice");
	pthread_mutex_unlock(&fake.lock);
}

static int fake_feed_decode(struct eq_gpu_feed *pub, struct eq_decode_job *jobs, size_t n)
{
	struct eq_gpu_tables tables = { .max = 48 };
	struct feed *f = (struct feed *)pub;
	struct eq_gpu_task task;
	int rc = 0;

	require(!f->n && !f->n_copies, "feed_decode without feed_wait");
	require(n <= EQ_GPU_FEED_JOBS, "too many jobs");
	pthread_mutex_lock(&fake.lock);
	fake.decodes++;
	if (fake.lost_at && fake.decodes >= fake.lost_at)
		rc = -EIO;
	else if (fake.launch_fails)
		rc = -ENOMEM;
	pthread_mutex_unlock(&fake.lock);
	if (rc)
		return rc;
	tables.array = f->table;
	f->jobs = jobs;
	f->n = n;
	for (size_t i = 0; i < n; i++) {
		require(jobs[i].in >= pub->buf && (uintptr_t)jobs[i].in % 16 == 0 &&
			jobs[i].in + jobs[i].in_len + EQ_SLACK <= pub->buf + pub->size,
			"a job's input is not in the buffer");
		require((uintptr_t)jobs[i].out % 32 == 0, "output is not aligned");
		f->taken[i] = eq_gpu_prepare(&jobs[i], &task, &tables) != EQ_GPU_CPU;
		jobs[i].status = f->taken[i] ? 0 : EQ_GPU_LEFT;
	}
	return 0;
}

static int fake_feed_copy(struct eq_gpu_feed *pub, void *to, const uint8_t *from, size_t n)
{
	struct feed *f = (struct feed *)pub;

	require(from >= pub->buf && from + n <= pub->buf + pub->size, "copy from elsewhere");
	require(f->n_copies < EQ_GPU_FEED_JOBS, "too many copies");
	f->copy[f->n_copies++] = (struct copy){ to, from, n };
	return 0;
}

static int fake_feed_wait(struct eq_gpu_feed *pub)
{
	struct feed *f = (struct feed *)pub;
	size_t i;

	for (i = 0; i < f->n_copies && !lost(); i++)
		memcpy(f->copy[i].to, f->copy[i].from, f->copy[i].n);
	for (i = 0; i < f->n && !lost(); i++) {
		bool corrupt;

		if (!f->taken[i])
			continue;
		pthread_mutex_lock(&fake.lock);
		corrupt = ++fake.jobs == fake.corrupt_at;
		pthread_mutex_unlock(&fake.lock);
		fake.cpu->decode(fake.cpu->ctx, &f->jobs[i], 1);
		if (corrupt)
			f->jobs[i].status = EQ_ECORRUPT;
	}
	f->n = f->n_copies = 0;
	return lost() ? -EIO : 0;
}

static int fake_measure(const struct eq_backend *be, struct eq_decode_job *jobs, size_t n,
			unsigned copies, unsigned runs, struct eq_gpu_measure *out)
{
	(void)be, (void)jobs, (void)n, (void)copies, (void)runs, (void)out;
	return -ENOTSUP;
}

static int fake_measure_encode(const struct eq_backend *be, struct eq_encode_job *jobs, size_t n,
			       unsigned copies, unsigned runs, struct eq_gpu_measure_encode *out)
{
	(void)be, (void)jobs, (void)n, (void)copies, (void)runs, (void)out;
	return -ENOTSUP;
}

static const struct eq_gpu_load_abi load = {
	fake_alloc, fake_free, fake_copy, fake_feed_get, fake_feed_put, fake_feed_decode,
	fake_feed_copy, fake_feed_wait,
};

static const struct eq_gpu_abi abi = {
	.abi = EQ_GPU_ABI, .backend_abi = EQ_BACKEND_ABI, .table_size = sizeof(struct eq_table),
	.plan_size = sizeof(struct eq_plan), .job_size = sizeof(struct eq_decode_job),
	.open = fake_open, .close = fake_close, .measure = fake_measure, .load = &load,
	.measure_encode = fake_measure_encode,
};

__attribute__((visibility("default"))) const struct eq_gpu_abi *eq_cuda_module(void);

const struct eq_gpu_abi *eq_cuda_module(void)
{
	return &abi;
}
