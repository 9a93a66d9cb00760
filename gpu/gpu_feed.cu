/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading into device memory (gpu_abi.h): what is decoded stays there. A feed is
 * a stream with staging memory for stored bytes only; its owner fills one while
 * others are being copied and decoded. Feeds are kept for the next load, since to
 * pin memory takes longer than to fill it.
 */
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <pthread.h>

#include "gpu_abi.h"
#include "gpu_kernels.cuh"
#include "gpu_module.cuh"

#define FEED_TABLES 48u

/* What the kernels are told, in pinned memory and on the device. */
struct feed_head {
	struct eq_gpu_task task[EQ_GPU_FEED_JOBS];
	struct eq_gpu_block block[EQ_GPU_FEED_JOBS];
	struct eq_gpu_table table[FEED_TABLES];
};

struct feed {
	struct eq_gpu_feed pub; /* the first */
	const struct eq_backend *be;
	struct feed *link;
	cudaStream_t stream;
	cudaEvent_t done;
	struct feed_head *head, *dev_head;
	unsigned char *dev_buf;
	int32_t *status, *dev_status;
	/* What is under way: its jobs, and which of them each task is. */
	struct eq_decode_job *jobs;
	uint32_t job_of[EQ_GPU_FEED_JOBS];
	int cls[EQ_GPU_FEED_JOBS];
	unsigned n;
};

struct eq_gpu_feeds {
	pthread_mutex_t lock;
	struct feed *kept;      /* this and `used`: under the lock */
	uint64_t used, limit;   /* bytes of device memory of all feeds */
};

/* ---- feeds ------------------------------------------------------------------ */

static uint64_t feed_cost(size_t size)
{
	return size + sizeof(struct feed_head) + EQ_GPU_FEED_JOBS * sizeof(int32_t);
}

static void feed_free(struct feed *f)
{
	if (!f)
		return;
	cudaFree(f->dev_status);
	cudaFree(f->dev_buf);
	cudaFree(f->dev_head);
	cudaFreeHost(f->status);
	cudaFreeHost(f->pub.buf);
	cudaFreeHost(f->head);
	if (f->done)
		cudaEventDestroy(f->done);
	if (f->stream)
		cudaStreamDestroy(f->stream);
	free(f);
}

static cudaError_t feed_create(const struct eq_backend *be, size_t size, struct feed **out)
{
	const size_t status = EQ_GPU_FEED_JOBS * sizeof(int32_t);
	struct feed *f = (struct feed *)calloc(1, sizeof(*f));
	cudaError_t rc;

	*out = NULL;
	if (!f)
		return cudaErrorMemoryAllocation;
	f->be = be;
	f->pub.size = size;
	rc = cudaStreamCreateWithFlags(&f->stream, cudaStreamNonBlocking);
	if (!rc) /* sleeping, not spinning: the CPU has other work */
		rc = cudaEventCreateWithFlags(&f->done, cudaEventBlockingSync |
							cudaEventDisableTiming);
	if (!rc)
		rc = cudaHostAlloc((void **)&f->head, sizeof(*f->head), cudaHostAllocDefault);
	if (!rc)
		rc = cudaHostAlloc((void **)&f->pub.buf, size, cudaHostAllocDefault);
	if (!rc)
		rc = cudaHostAlloc((void **)&f->status, status, cudaHostAllocDefault);
	if (!rc)
		rc = cudaMalloc((void **)&f->dev_head, sizeof(*f->dev_head));
	if (!rc) /* the kernels read up to the slack behind the last chunk */
		rc = cudaMalloc((void **)&f->dev_buf, size + EQ_SLACK);
	if (!rc)
		rc = cudaMalloc((void **)&f->dev_status, status);
	if (rc)
		feed_free(f);
	else
		*out = f;
	return rc;
}

struct eq_gpu_feeds *eq_gpu_feeds_create(uint64_t mem_limit)
{
	struct eq_gpu_feeds *all = (struct eq_gpu_feeds *)calloc(1, sizeof(*all));

	if (!all)
		return NULL;
	pthread_mutex_init(&all->lock, NULL);
	all->limit = mem_limit;
	return all;
}

void eq_gpu_feeds_free(struct eq_gpu_feeds *all)
{
	struct feed *f;

	if (!all)
		return;
	while ((f = all->kept) != NULL) {
		all->kept = f->link;
		feed_free(f);
	}
	pthread_mutex_destroy(&all->lock);
	free(all);
}

/* Take a kept feed that is large enough off the list; of the others, those that
 * stand in the way of a new one go to *old. True: make a new one, it is counted. */
static bool feed_find(struct eq_gpu_feeds *all, size_t size, struct feed **found,
		      struct feed **old)
{
	struct feed **p = &all->kept;
	bool make = false;

	*found = *old = NULL;
	pthread_mutex_lock(&all->lock);
	while (*p && (*p)->pub.size < size)
		p = &(*p)->link;
	*found = *p;
	if (*found) {
		*p = (*found)->link;
	} else {
		while (all->kept && all->used + feed_cost(size) > all->limit) {
			struct feed *f = all->kept;

			all->kept = f->link;
			all->used -= feed_cost(f->pub.size);
			f->link = *old;
			*old = f;
		}
		make = all->used + feed_cost(size) <= all->limit;
		if (make)
			all->used += feed_cost(size);
	}
	pthread_mutex_unlock(&all->lock);
	return make;
}

/* ---- the interface ---------------------------------------------------------- */

/* Full is for the caller to deal with, all else is the end. */
static int result(const struct eq_backend *be, cudaError_t rc)
{
	if (!rc)
		return 0;
	if (rc != cudaErrorMemoryAllocation)
		return eq_gpu_give_up(be, rc);
	cudaGetLastError(); /* it is dealt with */
	return -ENOMEM;
}

/* What each of the functions below does first, in the scope that it is in. */
static int begin(const struct eq_backend *be, const struct eq_gpu_scope &scope)
{
	return eq_gpu_is_dead(be) ? -EIO : result(be, scope.rc);
}

static int load_alloc(const struct eq_backend *be, size_t n, void **out)
{
	struct eq_gpu_scope scope(eq_gpu_context(be));
	int rc = begin(be, scope);

	*out = NULL;
	return rc ? rc : result(be, cudaMalloc(out, n));
}

static void load_free(const struct eq_backend *be, void *p)
{
	struct eq_gpu_scope scope(eq_gpu_context(be));

	if (!scope.rc)
		cudaFree(p);
}

static int load_copy(const struct eq_backend *be, void *to, const void *from, size_t n)
{
	struct eq_gpu_scope scope(eq_gpu_context(be));
	int rc = begin(be, scope);

	if (!rc)
		rc = result(be, cudaMemcpyAsync(to, from, n, cudaMemcpyHostToDevice,
						cudaStreamPerThread));
	return rc ? rc : result(be, cudaStreamSynchronize(cudaStreamPerThread));
}

static int load_feed_get(const struct eq_backend *be, size_t size, struct eq_gpu_feed **out)
{
	struct eq_gpu_feeds *all = eq_gpu_feeds_of(be);
	struct feed *found, *old;
	struct eq_gpu_scope scope(eq_gpu_context(be));
	int rc = begin(be, scope);
	bool make;

	*out = NULL;
	if (rc)
		return rc;
	make = feed_find(all, size, &found, &old);
	while (old) {
		struct feed *next = old->link;

		feed_free(old);
		old = next;
	}
	if (make) {
		rc = result(be, feed_create(be, size, &found));
		if (rc) {
			pthread_mutex_lock(&all->lock);
			all->used -= feed_cost(size);
			pthread_mutex_unlock(&all->lock);
		}
	}
	if (!found)
		return rc ? rc : -ENOMEM;
	*out = &found->pub;
	return 0;
}

static void load_feed_put(const struct eq_backend *be, struct eq_gpu_feed *pub)
{
	struct eq_gpu_feeds *all = eq_gpu_feeds_of(be);
	struct feed *f = (struct feed *)pub;
	struct eq_gpu_scope scope(eq_gpu_context(be));

	cudaStreamSynchronize(f->stream); /* after an error, it may not be at rest */
	f->n = 0;
	pthread_mutex_lock(&all->lock);
	f->link = all->kept;
	all->kept = f;
	pthread_mutex_unlock(&all->lock);
}

/* Make tasks of the jobs; returns the end of the stored bytes that they need, and
 * in *from where those begin. */
static size_t stage(struct feed *f, struct eq_gpu_tables *tables, struct eq_decode_job *jobs,
		    size_t n, size_t *from)
{
	size_t end = 0;

	f->jobs = jobs;
	f->n = 0;
	*from = SIZE_MAX;
	for (size_t i = 0; i < n; i++) {
		struct eq_gpu_task *t = &f->head->task[f->n];
		size_t at = (size_t)(jobs[i].in - f->pub.buf);
		int cls = eq_gpu_prepare(&jobs[i], t, tables);

		jobs[i].status = EQ_GPU_LEFT;
		if (cls == EQ_GPU_CPU)
			continue;
		t->in = f->dev_buf + at;
		t->out = (unsigned char *)jobs[i].out;
		t->tables = f->dev_head->table;
		t->status = &f->dev_status[f->n];
		jobs[i].status = 0;
		f->cls[f->n] = cls;
		f->job_of[f->n++] = (uint32_t)i;
		if (at < *from)
			*from = at;
		if (at + jobs[i].in_len > end)
			end = at + jobs[i].in_len;
	}
	return end;
}

static cudaError_t launch(struct feed *f, unsigned n_tables, size_t from, size_t end)
{
	const unsigned warps = EQ_GPU_WARPS_ALONE;
	unsigned first[EQ_GPU_CLASSES + 1] = { 0 };
	cudaError_t rc;

	for (int c = 0; c < EQ_GPU_CLASSES; c++)
		first[c + 1] = first[c] + eq_gpu_blocks(f->head->task, f->cls, f->n, c, warps,
							f->head->block + first[c]);
	rc = cudaMemcpyAsync(f->dev_head, f->head, offsetof(struct feed_head, table) +
			     n_tables * sizeof(f->head->table[0]),
			     cudaMemcpyHostToDevice, f->stream);
	if (!rc)
		rc = cudaMemcpyAsync(f->dev_buf + from, f->pub.buf + from, end - from,
				     cudaMemcpyHostToDevice, f->stream);
	for (int c = 0; c < EQ_GPU_CLASSES && !rc; c++)
		if (first[c + 1] > first[c])
			rc = eq_gpu_launch(c, f->dev_head->task, f->dev_head->block + first[c],
					   first[c + 1] - first[c], warps, f->stream);
	if (!rc)
		rc = cudaMemcpyAsync(f->status, f->dev_status, f->n * sizeof(f->status[0]),
				     cudaMemcpyDeviceToHost, f->stream);
	return rc;
}

static int load_feed_decode(struct eq_gpu_feed *pub, struct eq_decode_job *jobs, size_t n)
{
	struct feed *f = (struct feed *)pub;
	struct eq_gpu_tables tables = {};
	size_t from, end;
	struct eq_gpu_scope scope(eq_gpu_context(f->be));
	int rc = begin(f->be, scope);

	if (rc)
		return rc;
	if (n > EQ_GPU_FEED_JOBS)
		return -EINVAL;
	tables.array = f->head->table;
	tables.max = FEED_TABLES;
	end = stage(f, &tables, jobs, n, &from);
	return f->n ? result(f->be, launch(f, tables.used, from, end)) : 0;
}

static int load_feed_copy(struct eq_gpu_feed *pub, void *to, const uint8_t *from, size_t n)
{
	struct feed *f = (struct feed *)pub;
	struct eq_gpu_scope scope(eq_gpu_context(f->be));
	int rc = begin(f->be, scope);

	return rc ? rc : result(f->be, cudaMemcpyAsync(to, from, n, cudaMemcpyHostToDevice,
						       f->stream));
}

static int load_feed_wait(struct eq_gpu_feed *pub)
{
	struct feed *f = (struct feed *)pub;
	struct eq_gpu_scope scope(eq_gpu_context(f->be));
	int rc = begin(f->be, scope);

	if (!rc)
		rc = result(f->be, cudaEventRecord(f->done, f->stream));
	if (!rc)
		rc = result(f->be, cudaEventSynchronize(f->done));
	for (unsigned i = 0; i < f->n && !rc; i++)
		f->jobs[f->job_of[i]].status = f->status[i];
	f->n = 0;
	return rc;
}

const struct eq_gpu_load_abi eq_gpu_load = {
	load_alloc, load_free, load_copy,
	load_feed_get, load_feed_put, load_feed_decode, load_feed_copy, load_feed_wait,
};
