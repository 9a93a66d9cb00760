/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The module: a back end on one CUDA device. Here it decodes; gpu_encode.cu encodes.
 *
 * A call of decode() is cut into batches, each of which takes a slot: a stream
 * with staging memory on both sides. Copying in, decoding and copying out of one
 * slot run beside those of others, of the same call and of other threads, so the
 * copy engines and the processors are busy at the same time. Slots are made when
 * wanted, up to what the memory limit allows, and kept.
 *
 * Tables travel with every batch. One is 17 KiB where 32 chunks are some MiB, and
 * a cache would have to know when the plan behind a pointer is another one.
 */
#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <pthread.h>

#include "gpu_abi.h"
#include "gpu_encode.cuh"
#include "gpu_kernels.cuh"
#include "gpu_module.cuh"

#define SLOT_JOBS 64u
#define SLOT_TABLES 24u
#define SLOT_CHUNKS ((size_t)9 << 20)   /* stored bytes; one chunk fits for sure */
#define SLOT_UNITS ((size_t)8 << 20)    /* decoded bytes, likewise */
#define SLOTS_MAX 16u
#define IN_FLIGHT 3u                    /* slots of one call */
#define DEFAULT_LIMIT ((uint64_t)256 << 20)

static_assert(SLOT_CHUNKS >= EQ_MAX_CHUNK_BYTES + EQ_CHUNK_EXTRA + 2 * EQ_SLACK, "slot");
static_assert(SLOT_UNITS >= EQ_MAX_CHUNK_BYTES, "slot");

/* What goes in: once in pinned memory, once on the device. */
struct slot_in {
	struct eq_gpu_task task[SLOT_JOBS];
	struct eq_gpu_block block[SLOT_JOBS];
	struct eq_gpu_table table[SLOT_TABLES];
	alignas(256) unsigned char chunks[SLOT_CHUNKS];
};

struct slot_out {
	int32_t status[SLOT_JOBS];
	alignas(256) unsigned char units[SLOT_UNITS];
};

struct slot {
	struct slot *link;
	cudaStream_t stream;
	cudaEvent_t done;
	struct slot_in *in, *dev_in;
	struct slot_out *out, *dev_out;
	/* The batch: its jobs, and which of them each task is. */
	struct eq_decode_job *jobs;
	uint32_t job_of[SLOT_JOBS];
	size_t out_at[SLOT_JOBS];
	int cls[SLOT_JOBS];
	unsigned n;
};

struct gpu {
	struct eq_backend backend;
	int device;
	CUctx_st *context;
	char name[80];
	const struct eq_backend *cpu;
	void (*log)(void *arg, const char *line);
	void *log_arg;
	struct eq_gpu_feeds *feeds;
	struct eq_gpu_encoder *encoder;
	pthread_mutex_t lock;
	pthread_cond_t freed;
	struct slot *free_slots;        /* these and below: under the lock */
	unsigned n_slots, max_slots;
	bool dead;
};

/* ---- slots ------------------------------------------------------------------ */

static void slot_free(struct slot *s)
{
	if (!s)
		return;
	cudaFree(s->dev_out);
	cudaFree(s->dev_in);
	cudaFreeHost(s->out);
	cudaFreeHost(s->in);
	if (s->done)
		cudaEventDestroy(s->done);
	if (s->stream)
		cudaStreamDestroy(s->stream);
	free(s);
}

static cudaError_t slot_create(struct slot **out)
{
	struct slot *s = (struct slot *)calloc(1, sizeof(*s));
	cudaError_t rc;

	*out = NULL;
	if (!s)
		return cudaErrorMemoryAllocation;
	rc = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking);
	if (!rc) /* sleeping, not spinning: the CPU has other work */
		rc = cudaEventCreateWithFlags(&s->done, cudaEventBlockingSync |
							cudaEventDisableTiming);
	if (!rc)
		rc = cudaHostAlloc((void **)&s->in, sizeof(*s->in), cudaHostAllocDefault);
	if (!rc)
		rc = cudaHostAlloc((void **)&s->out, sizeof(*s->out), cudaHostAllocDefault);
	if (!rc)
		rc = cudaMalloc((void **)&s->dev_in, sizeof(*s->dev_in));
	if (!rc)
		rc = cudaMalloc((void **)&s->dev_out, sizeof(*s->dev_out));
	if (rc)
		slot_free(s);
	else
		*out = s;
	return rc;
}

static void slot_put(struct gpu *g, struct slot *s)
{
	pthread_mutex_lock(&g->lock);
	s->link = g->free_slots;
	g->free_slots = s;
	pthread_cond_signal(&g->freed);
	pthread_mutex_unlock(&g->lock);
}

/* A slot that was counted could not be made: go on with those there are. */
static cudaError_t slot_missing(struct gpu *g, cudaError_t rc)
{
	pthread_mutex_lock(&g->lock);
	g->max_slots = --g->n_slots;
	if (g->max_slots)
		rc = cudaSuccess;
	pthread_cond_broadcast(&g->freed);
	pthread_mutex_unlock(&g->lock);
	cudaGetLastError(); /* it is dealt with */
	return rc;
}

/* A free slot, or a new one. With `wait` there will be one unless an error is
 * returned; without, *out may be NULL. A caller waits only while it holds none,
 * so some slot always comes back. */
static cudaError_t slot_get(struct gpu *g, bool wait, struct slot **out)
{
	cudaError_t rc = cudaSuccess;

	*out = NULL;
	for (;;) {
		bool make;

		pthread_mutex_lock(&g->lock);
		while (wait && !g->free_slots && g->max_slots && g->n_slots >= g->max_slots)
			pthread_cond_wait(&g->freed, &g->lock);
		*out = g->free_slots;
		if (*out)
			g->free_slots = (*out)->link;
		make = !*out && g->n_slots < g->max_slots;
		g->n_slots += make;
		if (!g->max_slots)
			rc = cudaErrorMemoryAllocation;
		pthread_mutex_unlock(&g->lock);
		if (!make)
			return rc;
		rc = slot_create(out);
		if (rc)
			rc = slot_missing(g, rc);
		if (rc || *out || !wait)
			return rc;
	}
}

/* ---- batches ---------------------------------------------------------------- */

static void tables_begin(struct eq_gpu_tables *b, struct slot *s)
{
	memset(b, 0, sizeof(*b));
	b->array = s->in->table;
	b->max = SLOT_TABLES;
}

static size_t align_to(size_t n, size_t a)
{
	return (n + a - 1) / a * a;
}

/* Stage jobs from `next` on, as many as there is room for; returns how many. */
static size_t batch_stage(struct slot *s, struct eq_decode_job *jobs, size_t n,
			  struct eq_gpu_tables *tables, size_t *in_len, size_t *out_len)
{
	size_t in = 0, out = 0, i;

	tables_begin(tables, s);
	s->jobs = jobs;
	s->n = 0;
	for (i = 0; i < n && s->n < SLOT_JOBS; i++) {
		struct eq_decode_job *j = &jobs[i];
		struct eq_gpu_task *t = &s->in->task[s->n];
		size_t bytes = (size_t)j->n_units * j->plan->unit;
		int cls;

		if (s->n && (in + j->in_len + EQ_SLACK > SLOT_CHUNKS ||
			     out + bytes > SLOT_UNITS ||
			     tables->used + EQ_GPU_PARTS > SLOT_TABLES))
			break;
		j->status = 0;
		cls = j->in_len + EQ_SLACK > SLOT_CHUNKS || bytes > SLOT_UNITS ?
		      EQ_GPU_CPU : eq_gpu_prepare(j, t, tables);
		if (cls == EQ_GPU_CPU) {
			j->status = 1; /* for batch_cpu */
			continue;
		}
		memcpy(s->in->chunks + in, j->in, j->in_len);
		t->in = s->dev_in->chunks + in;
		t->out = s->dev_out->units + out;
		t->tables = s->dev_in->table;
		t->status = &s->dev_out->status[s->n];
		s->cls[s->n] = cls;
		s->job_of[s->n] = (uint32_t)i;
		s->out_at[s->n++] = out;
		in = align_to(in + j->in_len + EQ_SLACK, 256);
		out = align_to(out + bytes, 256);
		if (in > SLOT_CHUNKS)
			in = SLOT_CHUNKS;
		if (out > SLOT_UNITS)
			out = SLOT_UNITS;
	}
	*in_len = in;
	*out_len = out;
	return i;
}

unsigned eq_gpu_blocks(const struct eq_gpu_task *task, const int *cls, size_t n,
		       int which, unsigned warps, struct eq_gpu_block *out)
{
	unsigned n_out = 0;

	for (size_t i = 0; i < n; i++) {
		struct eq_gpu_block *b = &out[n_out - !!n_out];

		if (cls[i] != which)
			continue;
		if (n_out && b->n < warps && b->first + b->n == i &&
		    task[i].tables == task[b->first].tables &&
		    task[i].main.table == task[b->first].main.table) {
			b->n++;
			continue;
		}
		out[n_out].first = (uint32_t)i;
		out[n_out++].n = 1;
	}
	return n_out;
}

/* Copies in, kernels, copies out: all queued, nothing waited for. */
static cudaError_t batch_launch(struct slot *s, unsigned n_tables,
				size_t in_len, size_t out_len)
{
	/* A batch is small beside the device: chunks spread over all of it. */
	const unsigned warps = EQ_GPU_WARPS_ALONE;
	unsigned first[EQ_GPU_CLASSES + 1] = { 0 };
	cudaError_t rc;

	for (int c = 0; c < EQ_GPU_CLASSES; c++)
		first[c + 1] = first[c] + eq_gpu_blocks(s->in->task, s->cls, s->n, c, warps,
							s->in->block + first[c]);
	rc = cudaMemcpyAsync(s->dev_in, s->in,
			     offsetof(struct slot_in, table) + n_tables * sizeof(s->in->table[0]),
			     cudaMemcpyHostToDevice, s->stream);
	if (!rc)
		rc = cudaMemcpyAsync(s->dev_in->chunks, s->in->chunks, in_len,
				     cudaMemcpyHostToDevice, s->stream);
	for (int c = 0; c < EQ_GPU_CLASSES && !rc; c++)
		if (first[c + 1] > first[c])
			rc = eq_gpu_launch(c, s->dev_in->task, s->dev_in->block + first[c],
					   first[c + 1] - first[c], warps, s->stream);
	if (!rc)
		rc = cudaMemcpyAsync(s->out, s->dev_out,
				     offsetof(struct slot_out, units) + out_len,
				     cudaMemcpyDeviceToHost, s->stream);
	if (!rc)
		rc = cudaEventRecord(s->done, s->stream);
	return rc;
}

/* The jobs that batch_stage left aside, run by run. */
static void batch_cpu(struct gpu *g, struct eq_decode_job *jobs, size_t n)
{
	size_t i, run;

	for (i = 0; i < n; i += run) {
		for (run = 0; i + run < n && jobs[i + run].status == 1;)
			run++;
		if (run)
			g->cpu->decode(g->cpu->ctx, jobs + i, run);
		else
			run = 1;
	}
}

static cudaError_t batch_finish(struct slot *s)
{
	cudaError_t rc;

	if (!s->n)
		return cudaSuccess;
	rc = cudaEventSynchronize(s->done);
	for (unsigned i = 0; i < s->n && !rc; i++) {
		struct eq_decode_job *j = &s->jobs[s->job_of[i]];

		j->status = s->out->status[i];
		if (!j->status)
			memcpy(j->out, s->out->units + s->out_at[i],
			       (size_t)j->n_units * j->plan->unit);
	}
	return rc;
}

/* ---- the back end ----------------------------------------------------------- */

static void say(struct gpu *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void say(struct gpu *g, const char *fmt, ...)
{
	char line[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	g->log(g->log_arg, line);
}

int eq_gpu_give_up(const struct eq_backend *be, cudaError_t rc)
{
	struct gpu *g = (struct gpu *)be->ctx;
	bool first;

	pthread_mutex_lock(&g->lock);
	first = !g->dead;
	g->dead = true;
	pthread_mutex_unlock(&g->lock);
	if (first)
		say(g, "GPU %d (%s): %s; going on with the CPU", g->device, g->name,
		    cudaGetErrorString(rc));
	return rc == cudaErrorMemoryAllocation ? -ENOMEM : -EIO;
}

bool eq_gpu_is_dead(const struct eq_backend *be)
{
	struct gpu *g = (struct gpu *)be->ctx;
	bool dead;

	pthread_mutex_lock(&g->lock);
	dead = g->dead;
	pthread_mutex_unlock(&g->lock);
	return dead;
}

struct call {
	struct slot *flight[IN_FLIGHT];
	unsigned n;
	size_t next;            /* first job that is not in a slot yet */
};

/* One more batch on its way, if there is a slot. */
static cudaError_t call_start(struct gpu *g, struct call *c, struct eq_decode_job *jobs,
			      size_t n, bool *started)
{
	struct eq_gpu_tables tables;
	size_t count, in_len, out_len;
	struct slot *s;
	cudaError_t rc = slot_get(g, c->n == 0, &s);

	*started = s != NULL;
	if (!s)
		return rc;
	count = batch_stage(s, jobs + c->next, n - c->next, &tables, &in_len, &out_len);
	c->flight[c->n++] = s;
	if (s->n)
		rc = batch_launch(s, tables.used, in_len, out_len);
	if (!rc)
		batch_cpu(g, jobs + c->next, count);
	c->next += count;
	return rc;
}

static cudaError_t call_finish(struct gpu *g, struct call *c)
{
	struct slot *s = c->flight[0];
	cudaError_t rc = batch_finish(s);

	if (rc)
		return rc; /* it stays in flight, until its stream is at rest */
	c->n--;
	memmove(c->flight, c->flight + 1, c->n * sizeof(c->flight[0]));
	slot_put(g, s);
	return cudaSuccess;
}

static int cuda_decode(void *ctx, struct eq_decode_job *jobs, size_t n)
{
	struct gpu *g = (struct gpu *)ctx;
	struct eq_gpu_scope scope(g->context);
	struct call c = { { NULL }, 0, 0 };
	cudaError_t rc = scope.rc;
	bool started;

	if (eq_gpu_is_dead(&g->backend))
		return -EIO;
	while (!rc && (c.next < n || c.n)) {
		started = false;
		if (c.next < n && c.n < IN_FLIGHT)
			rc = call_start(g, &c, jobs, n, &started);
		if (!rc && !started)
			rc = call_finish(g, &c);
	}
	while (c.n) { /* an error: the staging memory must come to rest */
		cudaStreamSynchronize(c.flight[--c.n]->stream);
		slot_put(g, c.flight[c.n]);
	}
	return rc ? eq_gpu_give_up(&g->backend, rc) : 0;
}

CUctx_st *eq_gpu_context(const struct eq_backend *be)
{
	return ((const struct gpu *)be->ctx)->context;
}

struct eq_gpu_feeds *eq_gpu_feeds_of(const struct eq_backend *be)
{
	return ((const struct gpu *)be->ctx)->feeds;
}

struct eq_gpu_encoder *eq_gpu_encoder_of(const struct eq_backend *be)
{
	return ((const struct gpu *)be->ctx)->encoder;
}

/* ---- opening ---------------------------------------------------------------- */

static void gpu_free(struct gpu *g)
{
	if (!g)
		return;
	eq_gpu_encoder_free(g->encoder);
	eq_gpu_feeds_free(g->feeds);
	free(g);
}

static void gpu_close(const struct eq_backend *be)
{
	struct gpu *g = (struct gpu *)be->ctx;
	int device = g->device;
	struct slot *s;

	{
		struct eq_gpu_scope scope(g->context);

		while ((s = g->free_slots) != NULL) {
			g->free_slots = s->link;
			slot_free(s);
		}
		pthread_cond_destroy(&g->freed);
		pthread_mutex_destroy(&g->lock);
		gpu_free(g);
	}
	eq_gpu_context_put(device);
}

static cudaError_t kernels_init(CUctx_st *context)
{
	struct eq_gpu_scope scope(context);
	cudaError_t rc = scope.rc;

	if (!rc)
		rc = eq_gpu_kernels_init();
	return rc ? rc : eq_enc_kernels_init();
}

/* Can the kernels run on this device, and is it there? */
static cudaError_t gpu_try(struct gpu *g, int device)
{
	struct cudaDeviceProp prop;
	cudaError_t rc = cudaGetDeviceProperties(&prop, device);

	if (!rc)
		rc = eq_gpu_context_get(device, &g->context);
	if (rc)
		return rc;
	rc = kernels_init(g->context);
	if (rc) {
		eq_gpu_context_put(device);
		return rc;
	}
	g->device = device;
	snprintf(g->name, sizeof(g->name), "cuda/%d %.60s", device, prop.name);
	return cudaSuccess;
}

static int gpu_find(struct gpu *g, int device, char *text, size_t text_size)
{
	cudaError_t rc;
	int n = 0;

	rc = cudaGetDeviceCount(&n);
	if (!rc && (n == 0 || device >= n))
		rc = cudaErrorInvalidDevice;
	if (!rc && device >= 0)
		rc = gpu_try(g, device);
	else if (!rc)
		for (int i = 0; i < n; i++) {
			rc = gpu_try(g, i);
			if (!rc)
				break;
		}
	if (rc) {
		snprintf(text, text_size, "%s", cudaGetErrorString(rc));
		cudaGetLastError();
		return -ENODEV;
	}
	return 0;
}

static int gpu_open(const struct eq_gpu_open *o, const struct eq_backend **out,
		    char *text, size_t text_size)
{
	uint64_t limit = o->mem_limit ? o->mem_limit : DEFAULT_LIMIT;
	uint64_t one = sizeof(struct slot_in) + sizeof(struct slot_out);
	struct gpu *g;
	int rc;

	*out = NULL;
	if (limit < one) {
		snprintf(text, text_size, "needs %llu MiB of device memory at least",
			 (unsigned long long)(one >> 20) + 1);
		return -EINVAL;
	}
	g = (struct gpu *)calloc(1, sizeof(*g));
	if (g) {
		g->feeds = eq_gpu_feeds_create(limit);
		g->encoder = eq_gpu_encoder_create(&g->backend, limit);
	}
	if (!g || !g->feeds || !g->encoder) {
		gpu_free(g);
		snprintf(text, text_size, "out of memory");
		return -ENOMEM;
	}
	rc = gpu_find(g, o->device, text, text_size);
	if (rc) {
		gpu_free(g);
		return rc;
	}
	pthread_mutex_init(&g->lock, NULL);
	pthread_cond_init(&g->freed, NULL);
	g->max_slots = limit / one < SLOTS_MAX ? (unsigned)(limit / one) : SLOTS_MAX;
	g->cpu = o->cpu;
	g->log = o->log;
	g->log_arg = o->log_arg;
	g->backend.abi = EQ_BACKEND_ABI;
	g->backend.name = g->name;
	g->backend.decode = cuda_decode;
	g->backend.ctx = g;
	g->backend.encoder = &eq_gpu_encoder_ops;
	*out = &g->backend;
	return 0;
}

static const struct eq_gpu_abi abi = {
	EQ_GPU_ABI, EQ_BACKEND_ABI,
	sizeof(struct eq_table), sizeof(struct eq_plan), sizeof(struct eq_decode_job),
	gpu_open, gpu_close, eq_gpu_measure, &eq_gpu_load, eq_gpu_measure_encode,
};

extern "C" __attribute__((visibility("default"))) const struct eq_gpu_abi *eq_cuda_module(void)
{
	return &abi;
}
