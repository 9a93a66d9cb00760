/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encoding chunks. As decode() in gpu_module.cu: a call is cut into batches, each
 * of which takes a slot, and those of all calls run beside each other. Only the
 * device knows how long parts are, so a batch is waited for twice: when that is
 * known, and when as many bytes have been copied. A thread that makes the chunks of
 * one batch has an eye on its others meanwhile. All copies in go by one stream and all
 * copies out by another, since copies of many streams get in each other's way.
 */
#include <cerrno>
#include <cstdlib>
#include <pthread.h>

#include "gpu_encode.cuh"
#include "gpu_module.cuh"

#define SLOT_JOBS 64u
#define SLOT_TASKS 256u
#define SLOT_TABLES 96u
#define SLOT_UNITS ((size_t)8 << 20)
#define SLOT_WORK ((size_t)12 << 20)
#define SLOT_MADE ((size_t)9 << 20)
#define SLOTS_MAX 32u
#define IN_FLIGHT 4u                    /* slots of one call */
#define SLOTS_SHARE 4                   /* of the memory limit: one part in so many */

/* What goes in: once in pinned memory, once on the device. */
struct enc_in {
	struct eq_gpu_enc_task task[SLOT_TASKS];
	struct eq_encode_table table[SLOT_TABLES];
	alignas(256) unsigned char units[SLOT_UNITS];
};

struct enc_slot {
	struct enc_slot *link;
	cudaStream_t stream;            /* of kernels */
	cudaStream_t copy_in, copy_out; /* the encoder's */
	cudaEvent_t came, ready;
	struct enc_in *in, *dev_in;
	unsigned char *dev_work;
	struct eq_gpu_enc_done *done, *dev_done;
	unsigned char *made, *dev_made;
	/* The batch. */
	struct eq_encode_job *jobs;
	unsigned n_jobs, n_tasks, n_tables;
	size_t units, work, bound;
	bool fetched;                   /* or on its way */
	unsigned first[SLOT_JOBS];      /* task of a job */
	/* Tables that are there, of which plans. */
	const struct eq_encode_plan *plan[SLOT_TABLES];
	uint8_t arg[SLOT_TABLES];
};

struct eq_gpu_encoder {
	const struct eq_backend *be;
	struct eq_gpu_quantisers *quantisers;
	pthread_mutex_t lock;
	pthread_cond_t freed;
	struct enc_slot *free_slots;    /* these and below: under the lock */
	unsigned n_slots, max_slots;
	cudaStream_t copy_in, copy_out; /* NULL until there is a slot */
};

/* ---- slots ------------------------------------------------------------------ */

static void slot_free(struct enc_slot *s)
{
	if (!s)
		return;
	cudaFree(s->dev_made);
	cudaFree(s->dev_done);
	cudaFree(s->dev_work);
	cudaFree(s->dev_in);
	cudaFreeHost(s->made);
	cudaFreeHost(s->done);
	cudaFreeHost(s->in);
	if (s->ready)
		cudaEventDestroy(s->ready);
	if (s->came)
		cudaEventDestroy(s->came);
	if (s->stream)
		cudaStreamDestroy(s->stream);
	free(s);
}

/* The streams that all slots copy by. */
static cudaError_t copy_streams(struct eq_gpu_encoder *e, struct enc_slot *s)
{
	cudaError_t rc = cudaSuccess;

	pthread_mutex_lock(&e->lock);
	if (!e->copy_in)
		rc = cudaStreamCreateWithFlags(&e->copy_in, cudaStreamNonBlocking);
	if (!rc && !e->copy_out)
		rc = cudaStreamCreateWithFlags(&e->copy_out, cudaStreamNonBlocking);
	s->copy_in = e->copy_in;
	s->copy_out = e->copy_out;
	pthread_mutex_unlock(&e->lock);
	return rc;
}

static cudaError_t slot_create(struct eq_gpu_encoder *e, struct enc_slot **out)
{
	const size_t done = SLOT_TASKS * sizeof(struct eq_gpu_enc_done);
	struct enc_slot *s = (struct enc_slot *)calloc(1, sizeof(*s));
	int least, greatest;
	cudaError_t rc;

	*out = NULL;
	if (!s)
		return cudaErrorMemoryAllocation;
	rc = copy_streams(e, s);
	if (!rc) /* few warps that run for long: before the many of a search */
		rc = cudaDeviceGetStreamPriorityRange(&least, &greatest);
	if (!rc)
		rc = cudaStreamCreateWithPriority(&s->stream, cudaStreamNonBlocking, greatest);
	if (!rc) /* sleeping, not spinning: the CPU has other work */
		rc = cudaEventCreateWithFlags(&s->ready, cudaEventBlockingSync |
							 cudaEventDisableTiming);
	if (!rc)
		rc = cudaEventCreateWithFlags(&s->came, cudaEventDisableTiming);
	if (!rc)
		rc = cudaHostAlloc((void **)&s->in, sizeof(*s->in), cudaHostAllocDefault);
	if (!rc)
		rc = cudaHostAlloc((void **)&s->done, done, cudaHostAllocDefault);
	if (!rc)
		rc = cudaHostAlloc((void **)&s->made, SLOT_MADE, cudaHostAllocDefault);
	if (!rc)
		rc = cudaMalloc((void **)&s->dev_in, sizeof(*s->dev_in));
	if (!rc)
		rc = cudaMalloc((void **)&s->dev_work, SLOT_WORK);
	if (!rc)
		rc = cudaMalloc((void **)&s->dev_done, done);
	if (!rc)
		rc = cudaMalloc((void **)&s->dev_made, SLOT_MADE);
	if (rc)
		slot_free(s);
	else
		*out = s;
	return rc;
}

static void slot_put(struct eq_gpu_encoder *e, struct enc_slot *s)
{
	pthread_mutex_lock(&e->lock);
	s->link = e->free_slots;
	e->free_slots = s;
	pthread_cond_signal(&e->freed);
	pthread_mutex_unlock(&e->lock);
}

/* A free slot, or a new one; *out may be NULL without `wait`, with which a caller
 * comes that holds none, so that some slot is always on its way back. */
static cudaError_t slot_get(struct eq_gpu_encoder *e, bool wait, struct enc_slot **out)
{
	cudaError_t rc = cudaSuccess;
	bool make;

	pthread_mutex_lock(&e->lock);
	while (wait && !e->free_slots && e->n_slots >= e->max_slots)
		pthread_cond_wait(&e->freed, &e->lock);
	*out = e->free_slots;
	if (*out)
		e->free_slots = (*out)->link;
	make = !*out && e->n_slots < e->max_slots;
	e->n_slots += make;
	pthread_mutex_unlock(&e->lock);
	if (make)
		rc = slot_create(e, out);
	if (rc) {
		pthread_mutex_lock(&e->lock);
		e->n_slots--;
		pthread_cond_broadcast(&e->freed);
		pthread_mutex_unlock(&e->lock);
	}
	return rc;
}

/* ---- batches ---------------------------------------------------------------- */

static size_t align_to(size_t n, size_t a)
{
	return (n + a - 1) / a * a;
}

/* Address on the device of a table, taken in if need be. */
static const struct eq_encode_table *batch_table(struct enc_slot *s,
						 const struct eq_encode_plan *plan, uint8_t arg)
{
	unsigned i = 0;

	while (i < s->n_tables && (s->plan[i] != plan || s->arg[i] != arg))
		i++;
	if (i == s->n_tables) {
		s->plan[i] = plan;
		s->arg[i] = arg;
		s->in->table[i] = plan->table[arg];
		s->n_tables++;
	}
	return &s->dev_in->table[i];
}

/* Is there room for one more? A chunk may bring a table and a spare one a part. */
static bool batch_fits(const struct enc_slot *s, const struct eq_encode_job *job, bool bring)
{
	size_t units = bring ? (size_t)job->n_units * job->plan->unit : 0;

	return s->n_jobs < SLOT_JOBS && s->n_tasks + eq_enc_tasks(job->plan) <= SLOT_TASKS &&
	       s->n_tables + 2 * eq_enc_tasks(job->plan) <= SLOT_TABLES &&
	       s->units + units <= SLOT_UNITS && s->work + eq_enc_work_all(job) <= SLOT_WORK &&
	       s->bound + eq_enc_bound(job) <= SLOT_MADE;
}

static bool is_pinned(const void *p)
{
	struct cudaPointerAttributes a;

	if (cudaPointerGetAttributes(&a, p)) {
		cudaGetLastError(); /* not an error of ours */
		return false;
	}
	return a.type == cudaMemoryTypeHost;
}

/* Bring the units of all jobs in: neighbours in pinned memory at once. */
static cudaError_t batch_units(struct enc_slot *s)
{
	bool pinned = is_pinned(s->jobs[0].units);
	cudaError_t rc = cudaSuccess;
	size_t at = 0, run, len;

	for (unsigned i = 0, k; i < s->n_jobs && !rc; i = k, at = align_to(at + run, 256)) {
		const unsigned char *p = (const unsigned char *)s->jobs[i].units;

		for (k = i, run = 0; k < s->n_jobs; k++) {
			len = (size_t)s->jobs[k].n_units * s->jobs[k].plan->unit;
			if (k > i && (!pinned || run % 256 || s->jobs[k].units != p + run))
				break;
			run += len;
		}
		if (pinned)
			rc = cudaMemcpyAsync(s->dev_in->units + at, p, run, cudaMemcpyHostToDevice,
					     s->copy_in);
		else
			memcpy(s->in->units + at, p, run);
	}
	if (!pinned)
		rc = cudaMemcpyAsync(s->dev_in->units, s->in->units, s->units,
				     cudaMemcpyHostToDevice, s->copy_in);
	return rc;
}

static void batch_tasks(struct enc_slot *s, const struct eq_encode_job *job,
			const unsigned char *units)
{
	for (unsigned i = 0; i < eq_enc_tasks(job->plan); i++) {
		struct eq_gpu_enc_task *t = &s->in->task[s->n_tasks];
		const struct eq_encode_part *p = &job->part[i];

		eq_enc_task(job, i, t);
		t->units = units;
		t->made = s->dev_made;
		t->done = s->dev_done + s->n_tasks++;
		if (!eq_enc_coded(p->kind))
			continue;
		t->table = batch_table(s, job->plan, p->arg);
		if (p->spare != EQ_NO_TABLE)
			t->spare = batch_table(s, job->plan, p->spare);
		t->work = s->dev_work + s->work;
		s->work += eq_enc_work(job->n_units, p->kind == EQ_PART_PAIR);
	}
}

/* Stage jobs, as many as there is room for. */
static cudaError_t batch_stage(struct enc_slot *s, struct eq_encode_job *jobs, size_t n,
			       const unsigned char *symbols)
{
	s->jobs = jobs;
	s->n_jobs = s->n_tasks = s->n_tables = 0;
	s->units = s->work = s->bound = 0;
	s->fetched = false;
	while (s->n_jobs < n && batch_fits(s, &jobs[s->n_jobs], !symbols)) {
		struct eq_encode_job *j = &jobs[s->n_jobs];

		s->first[s->n_jobs++] = s->n_tasks;
		batch_tasks(s, j, symbols ? symbols + j->first_unit : s->dev_in->units + s->units);
		if (!symbols)
			s->units = align_to(s->units + (size_t)j->n_units * j->plan->unit, 256);
		s->bound += eq_enc_bound(j);
	}
	return s->n_jobs && !symbols ? batch_units(s) : cudaSuccess;
}

/* All that can be queued before lengths are known; nothing is waited for. */
static cudaError_t batch_launch(struct enc_slot *s)
{
	cudaError_t rc;

	rc = cudaMemcpyAsync(s->dev_in->task, s->in->task, s->n_tasks * sizeof(s->in->task[0]),
			     cudaMemcpyHostToDevice, s->copy_in);
	if (!rc && s->n_tables)
		rc = cudaMemcpyAsync(s->dev_in->table, s->in->table,
				     s->n_tables * sizeof(s->in->table[0]),
				     cudaMemcpyHostToDevice, s->copy_in);
	if (!rc)
		rc = cudaEventRecord(s->came, s->copy_in);
	if (!rc)
		rc = cudaStreamWaitEvent(s->stream, s->came, 0);
	if (!rc)
		rc = eq_enc_launch(s->dev_in->task, s->dev_done, s->n_tasks, s->done, s->stream);
	if (!rc)
		rc = cudaEventRecord(s->ready, s->stream);
	return rc;
}

/* Have what the kernels have made on its way, once they are done: `wait` for that, or
 * see whether they are. */
static cudaError_t batch_fetch(struct enc_slot *s, bool wait)
{
	cudaError_t rc;

	if (s->fetched)
		return cudaSuccess;
	rc = wait ? cudaEventSynchronize(s->ready) : cudaEventQuery(s->ready);
	if (rc == cudaErrorNotReady) {
		cudaGetLastError(); /* not an error of ours */
		return cudaSuccess;
	}
	if (!rc)
		rc = cudaMemcpyAsync(s->made, s->dev_made, eq_enc_made(s->done),
				     cudaMemcpyDeviceToHost, s->copy_out);
	if (!rc)
		rc = cudaEventRecord(s->ready, s->copy_out);
	s->fetched = !rc;
	return rc;
}

/* ---- calls ------------------------------------------------------------------ */

struct call {
	struct enc_slot *flight[IN_FLIGHT];     /* the oldest first */
	unsigned n;
	size_t next;            /* first job that is not in a slot yet */
};

/* Have what is done by now on its way. */
static cudaError_t call_tend(struct call *c)
{
	cudaError_t rc = cudaSuccess;

	for (unsigned i = 0; i < c->n && !rc; i++)
		rc = batch_fetch(c->flight[i], false);
	return rc;
}

/* The chunks of the oldest batch. */
static cudaError_t call_collect(struct call *c)
{
	struct enc_slot *s = c->flight[0];
	cudaError_t rc = batch_fetch(s, true);

	if (!rc)
		rc = cudaEventSynchronize(s->ready);
	for (unsigned i = 0; i < s->n_jobs && !rc; i++) {
		eq_enc_finish(&s->jobs[i], s->done + s->first[i], s->made);
		rc = call_tend(c);
	}
	return rc;
}

/* One more batch on its way, if there is a slot; a chunk that fits in none gives
 * -ENOSPC. */
static cudaError_t call_start(struct eq_gpu_encoder *e, struct call *c, struct eq_encode_job *jobs,
			      size_t n, const unsigned char *symbols, bool *started, int *result)
{
	struct enc_slot *s;
	cudaError_t rc = slot_get(e, c->n == 0, &s);

	*started = s != NULL;
	if (!s)
		return rc;
	c->flight[c->n++] = s;
	rc = batch_stage(s, jobs + c->next, n - c->next, symbols);
	if (!rc && s->n_jobs)
		rc = batch_launch(s);
	if (!rc && !s->n_jobs)
		*result = -ENOSPC;
	c->next += s->n_jobs;
	return rc;
}

/* After an error it stays in flight, for call_rest: not all of its streams need be at rest. */
static cudaError_t call_finish(struct eq_gpu_encoder *e, struct call *c)
{
	struct enc_slot *s = c->flight[0];
	cudaError_t rc = call_collect(c);

	if (rc)
		return rc;
	c->n--;
	memmove(c->flight, c->flight + 1, c->n * sizeof(c->flight[0]));
	slot_put(e, s);
	return cudaSuccess;
}

/* Nothing may read or write staging memory that others get. */
static void call_rest(struct eq_gpu_encoder *e, struct call *c)
{
	while (c->n) {
		struct enc_slot *s = c->flight[--c->n];

		cudaStreamSynchronize(s->copy_in);
		cudaStreamSynchronize(s->stream);
		cudaStreamSynchronize(s->copy_out);
		slot_put(e, s);
	}
}

int eq_gpu_encode_jobs(struct eq_gpu_encoder *e, struct eq_encode_job *jobs, size_t n,
		       const unsigned char *symbols)
{
	struct eq_gpu_scope scope(eq_gpu_context(e->be));
	struct call c = { { NULL }, 0, 0 };
	cudaError_t rc = scope.rc;
	int result = 0;
	bool started;

	if (eq_gpu_is_dead(e->be))
		return -EIO;
	while (!rc && !result && (c.next < n || c.n)) {
		started = false;
		if (c.next < n && c.n < IN_FLIGHT)
			rc = call_start(e, &c, jobs, n, symbols, &started, &result);
		if (!rc && !result && !started)
			rc = call_finish(e, &c);
	}
	call_rest(e, &c);
	return rc ? eq_gpu_give_up(e->be, rc) : result;
}

static int encoder_encode(void *ctx, struct eq_encode_job *jobs, size_t n)
{
	/* The back end's table is the first of what its ctx has. */
	return eq_gpu_encode_jobs(eq_gpu_encoder_of((const struct eq_backend *)ctx), jobs, n, NULL);
}

static int encoder_quantiser(void *ctx, const struct eq_quantiser_tensor *t,
			     struct eq_quantiser **out)
{
	struct eq_gpu_encoder *e = eq_gpu_encoder_of((const struct eq_backend *)ctx);

	return eq_gpu_quantiser_open(e->quantisers, t, out);
}

const struct eq_backend_encoder eq_gpu_encoder_ops = { encoder_encode, encoder_quantiser };

/* ---- opening ---------------------------------------------------------------- */

struct eq_gpu_encoder *eq_gpu_encoder_create(const struct eq_backend *be, uint64_t mem_limit)
{
	const uint64_t one = sizeof(struct enc_in) + SLOT_WORK + SLOT_MADE +
			     SLOT_TASKS * sizeof(struct eq_gpu_enc_done);
	struct eq_gpu_encoder *e = (struct eq_gpu_encoder *)calloc(1, sizeof(*e));
	uint64_t slots = mem_limit / SLOTS_SHARE / one;

	if (!e)
		return NULL;
	e->be = be;
	e->max_slots = slots < 1 ? 1 : slots < SLOTS_MAX ? (unsigned)slots : SLOTS_MAX;
	mem_limit = mem_limit > e->max_slots * one ? mem_limit - e->max_slots * one : 0;
	e->quantisers = eq_gpu_quantisers_create(be, mem_limit);
	if (!e->quantisers) {
		free(e);
		return NULL;
	}
	pthread_mutex_init(&e->lock, NULL);
	pthread_cond_init(&e->freed, NULL);
	return e;
}

void eq_gpu_encoder_free(struct eq_gpu_encoder *e)
{
	struct enc_slot *s;

	if (!e)
		return;
	eq_gpu_quantisers_free(e->quantisers);
	while ((s = e->free_slots) != NULL) {
		e->free_slots = s->link;
		slot_free(s);
	}
	if (e->copy_in)
		cudaStreamDestroy(e->copy_in);
	if (e->copy_out)
		cudaStreamDestroy(e->copy_out);
	pthread_cond_destroy(&e->freed);
	pthread_mutex_destroy(&e->lock);
	free(e);
}
