/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GB/s of weights encoded on the GPU: with all data in its memory, and through the back
 * end from pinned memory of the host and from ordinary memory, beside the CPU and
 * beside what the link carries. Every result is compared with the CPU's.
 *
 * Usage: bench_gpu_encode [seconds a row [part of a case's name]]
 */
#include <config.h>

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>

#include "encode_device.h"
#include "gpu_load.h"
#include "codec_util.h"
#include "floats.h"
#include "quant_ops.h"

enum { CHUNK = 131072, N = 4096 * 4096, CHUNKS = N / CHUNK, THREADS = 16, RESIDENT = 40 };

/* The driver's own functions, so that the program needs no CUDA to be built. */
struct driver {
	int (*retain)(void **ctx, int device);
	int (*set)(void *ctx);
	int (*host)(void **p, size_t n, unsigned flags);
	int (*unhost)(void *p);
	int (*alloc)(unsigned long long *p, size_t n);
	int (*release)(unsigned long long p);
	int (*stream)(void **stream, unsigned flags);
	int (*wait)(void *stream);
	int (*to)(unsigned long long to, const void *from, size_t n, void *stream);
	int (*from)(void *to, unsigned long long from, size_t n, void *stream);
};

static double seconds = 1;
static const char *only = "";   /* cases whose names have this */
static struct driver driver;
static const struct eq_backend *gpu;
static struct eq_pool *pool;

static double clock_of(clockid_t id)
{
	struct timespec t;

	clock_gettime(id, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "%s\n", what);
	exit(1);
}

static void *symbol(const char *name)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW), *p = lib ? dlsym(lib, name) : NULL;

	check(p != NULL, name);
	return p;
}

static void driver_open(void)
{
	void *ctx;

	*(void **)&driver.retain = symbol("cuDevicePrimaryCtxRetain");
	*(void **)&driver.set = symbol("cuCtxSetCurrent");
	*(void **)&driver.host = symbol("cuMemHostAlloc");
	*(void **)&driver.unhost = symbol("cuMemFreeHost");
	*(void **)&driver.alloc = symbol("cuMemAlloc_v2");
	*(void **)&driver.release = symbol("cuMemFree_v2");
	*(void **)&driver.stream = symbol("cuStreamCreate");
	*(void **)&driver.wait = symbol("cuStreamSynchronize");
	*(void **)&driver.to = symbol("cuMemcpyHtoDAsync_v2");
	*(void **)&driver.from = symbol("cuMemcpyDtoHAsync_v2");
	check(!driver.retain(&ctx, 0) && !driver.set(ctx), "no context");
}

static void *pinned(size_t n)
{
	void *p;

	check(!driver.host(&p, n, 1), "no pinned memory"); /* portable */
	return p;
}

/* Bytes to the device and others from it, beside each other; GB/s of the former. */
static double link_rate(size_t in, size_t out, uint8_t *host)
{
	unsigned long long p;
	void *stream[2];
	double t = 0;

	check(!driver.alloc(&p, in + out), "no device memory");
	for (int i = 0; i < 2; i++)
		check(!driver.stream(&stream[i], 1), "no stream");
	for (int i = 0; i < 20; i++) {
		if (i == 4)
			t = clock_of(CLOCK_MONOTONIC);
		check(!in || !driver.to(p, host, in, stream[0]), "copy");
		check(!out || !driver.from(host + in, p + in, out, stream[1]), "copy");
		for (int k = 0; k < 2; k++)
			check(!driver.wait(stream[k]), "copy");
	}
	t = clock_of(CLOCK_MONOTONIC) - t;
	driver.release(p);
	return 16e-9 * (double)(in ? in : out) / t;
}

/* What the host link carries: each way alone, and in while 2/3 as much goes out. */
static void bench_link(void)
{
	const size_t size = (size_t)256 << 20;
	uint8_t *host = pinned(2 * size);

	printf("%-46s %6.1f GB/s in, %.1f out; in %.1f with 2/3 of it out\n",
	       "host link, pinned memory", link_rate(size, 0, host), link_rate(0, size, host),
	       link_rate(size, size / 3 * 2, host));
	driver.unhost(host);
}

/* ---- threads that repeat something ------------------------------------------------- */

struct crew {
	void (*fn)(void *arg, unsigned thread);
	void *arg;
	double until;
	unsigned n;
	unsigned long done[THREADS];
};

struct member {
	struct crew *crew;
	unsigned thread;
};

static void *member_main(void *arg)
{
	const struct member *m = arg;

	do {
		m->crew->fn(m->crew->arg, m->thread);
		m->crew->done[m->thread]++;
	} while (clock_of(CLOCK_MONOTONIC) < m->crew->until);
	return NULL;
}

/* All members at once; each does it once at least. */
static void crew_run(struct crew *c)
{
	struct member m[THREADS];
	pthread_t thread[THREADS];

	memset(c->done, 0, sizeof(c->done));
	for (unsigned i = 0; i < c->n; i++) {
		m[i] = (struct member){ c, i };
		check(!pthread_create(&thread[i], NULL, member_main, &m[i]), "no thread");
	}
	for (unsigned i = 0; i < c->n; i++)
		pthread_join(thread[i], NULL);
}

/* Repeat fn, which goes through a tensor of N units of so many bytes, in n threads. */
static void bench(const char *name, size_t unit, unsigned n, void (*fn)(void *, unsigned), void *arg)
{
	struct crew c = { .fn = fn, .arg = arg, .n = n };
	unsigned long total = 0;
	double t, cpu, gigabytes;

	/* Memory, clocks, and as many of the module's buffers as there will be. */
	for (unsigned i = 0; i < 4; i++)
		crew_run(&c);
	t = clock_of(CLOCK_MONOTONIC);
	cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID);
	c.until = t + seconds;
	crew_run(&c);
	t = clock_of(CLOCK_MONOTONIC) - t;
	cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	for (unsigned i = 0; i < n; i++)
		total += c.done[i];
	gigabytes = 1e-9 * (double)(total * unit * N);
	printf("%-34s %2u threads %6.2f GB/s, %.3f CPU s a GB\n", name, n, gigabytes / t,
	       cpu / gigabytes);
	fflush(stdout);
}

/* Of chunks that have been encoded once, in device memory. */
static void bench_resident(const char *name, const struct eq_encode_job *jobs, unsigned n,
			   double gigabytes)
{
	struct eq_encode_job *again = must_alloc(n * sizeof(*again));
	struct eq_gpu_measure_encode m;

	memcpy(again, jobs, n * sizeof(*again));
	for (unsigned i = 0; i < n; i++)
		again[i].out = must_alloc(jobs[i].len);
	check(!eq_gpu_bench_encode(gpu, again, n, RESIDENT, 7, &m), "resident");
	for (unsigned i = 0; i < n; i++) {
		check(again[i].len == jobs[i].len && !memcmp(again[i].out, jobs[i].out, jobs[i].len),
		      "other bytes");
		free(again[i].out);
	}
	free(again);
	printf("%-34s resident  %7.1f GB/s\n", name, RESIDENT * gigabytes / m.encode_s);
	fflush(stdout);
}

/* ---- lossless ------------------------------------------------------------------------ */

struct planes {
	const uint8_t *units;
	struct eq_coding *c;
	struct eq_encode_plan plan;
	struct eq_encode_job job[THREADS][CHUNKS];
	uint8_t *scratch[THREADS];
};

static void planes_gpu(void *arg, unsigned thread)
{
	struct planes *p = arg;

	for (unsigned i = 0; i < CHUNKS; i++)
		p->job[thread][i].units = p->units + (size_t)i * 2 * CHUNK;
	check(!gpu->encoder->encode(gpu->ctx, p->job[thread], CHUNKS), "encode");
}

static void planes_cpu_one(void *arg, size_t i)
{
	struct planes *p = arg;
	struct eq_encode_job *j = &p->job[0][i];
	uint8_t *scratch = malloc(eq_chunk_scratch(p->c));

	check(scratch != NULL, "no memory");
	j->len = eq_chunk_encode_planes(p->c, (uint32_t)i, p->units + i * 2 * CHUNK, CHUNK, j->out,
					scratch);
	free(scratch);
}

static void planes_cpu(void *arg, unsigned thread)
{
	(void)thread;
	eq_pool_for(pool, CHUNKS, planes_cpu_one, arg);
}

static void planes_check(struct planes *p)
{
	uint8_t *want = must_alloc(eq_chunk_bound(p->c, 0));
	uint8_t *scratch = must_alloc(eq_chunk_scratch(p->c));

	planes_gpu(p, 1);
	for (unsigned i = 0; i < CHUNKS; i++) {
		size_t len = eq_chunk_encode_planes(p->c, i, p->units + (size_t)i * 2 * CHUNK, CHUNK,
						    want, scratch);

		check(len == p->job[1][i].len && !memcmp(want, p->job[1][i].out, len), "other bytes");
	}
	free(want);
	free(scratch);
}

static void bench_planes(const char *name, const uint8_t *units, const uint8_t *ordinary)
{
	uint64_t (*hist)[256];
	struct planes *p;
	char row[64];

	if (!strstr(name, only))
		return;
	hist = calloc(8, sizeof(*hist));
	p = must_alloc(sizeof(*p));
	memset(p, 0, sizeof(*p));
	p->units = units;
	p->c = must_alloc(sizeof(*p->c));
	eq_hist_planes(2, EQ_TRANSFORM_ROTATED, units, N, hist);
	eq_coding_planes(p->c, 2, EQ_TRANSFORM_ROTATED, N, CHUNK, (const uint64_t (*)[256])hist);
	check(!eq_device_plan(p->c, &p->plan), "no memory");
	for (unsigned t = 0; t < THREADS; t++)
		for (unsigned i = 0; i < CHUNKS; i++) {
			p->job[t][i] = (struct eq_encode_job){
				.plan = &p->plan, .n_units = CHUNK,
				.out = must_alloc(eq_chunk_bound(p->c, 0)),
			};
			eq_device_parts(p->c, i, p->job[t][i].part);
		}
	planes_check(p);
	bench_resident(name, p->job[1], CHUNKS, 2e-9 * N);
	snprintf(row, sizeof(row), "%s, pinned", name);
	for (unsigned t = 1; t <= THREADS; t *= 2)
		bench(row, 2, t, planes_gpu, p);
	p->units = ordinary;
	snprintf(row, sizeof(row), "%s, ordinary memory", name);
	bench(row, 2, THREADS, planes_gpu, p);
	snprintf(row, sizeof(row), "%s, %s, all CPUs", name, eq_cpu_isa());
	bench(row, 2, 1, planes_cpu, p);
	for (unsigned t = 0; t < THREADS; t++)
		for (unsigned i = 0; i < CHUNKS; i++)
			free(p->job[t][i].out);
	free((void *)(uintptr_t)p->plan.table);
	free(p->c);
	free(p);
	free(hist);
}

/* ---- quantised ------------------------------------------------------------------------ */

/* As encode_quant.c goes about it, with the back end or without. */
struct quantised {
	struct eq_encoder e;
	struct eq_policy policy;
	struct eq_quant_tensor t;
	double lambda;
	size_t unit;            /* bytes of a weight */
	bool resident;          /* the reconstruction stays where it is */
	uint8_t *recon[THREADS], *out[THREADS];
	uint16_t *scale[THREADS];
	size_t bound, len[THREADS][CHUNKS];
	double took[THREADS][5];
};

static void quant_chunks(struct quantised *q, struct eq_quantiser *d, const struct eq_coding *c,
			 unsigned thread)
{
	struct eq_encode_job job[CHUNKS];
	struct eq_encode_plan plan;
	struct eq_encoder e = q->e;
	size_t rows = CHUNK / q->t.k;

	check(!eq_device_plan(c, &plan), "no memory");
	for (unsigned i = 0; i < CHUNKS; i++) {
		job[i] = (struct eq_encode_job){
			.plan = &plan, .n_units = CHUNK, .first_unit = (uint64_t)i * CHUNK,
			.scales = q->scale[thread] + i * rows, .scale_bytes = 2 * rows,
			.out = q->out[thread] + i * q->bound,
		};
		eq_device_parts(c, i, job[i].part);
	}
	check(eq_device_symbols(&e, &d, job, CHUNKS), "encode");
	for (unsigned i = 0; i < CHUNKS; i++)
		q->len[thread][i] = job[i].len;
	free((void *)(uintptr_t)plan.table);
}

static void quant_gpu(void *arg, unsigned thread)
{
	struct quantised *q = arg;
	struct eq_coding *c = must_alloc(sizeof(*c));
	struct eq_encoder e = q->e;
	struct eq_quant_result r;
	struct eq_quantiser *d;
	double l1, at[6], value_l1;
	float value[256];
	bool finite;

	at[0] = clock_of(CLOCK_MONOTONIC);
	eq_device_open(&e, &q->t, &d);
	check(d && eq_device_l1(&e, &d, &q->t, &l1, &finite), "norm");
	at[1] = clock_of(CLOCK_MONOTONIC);
	value_l1 = eq_quant_price(q->lambda, l1, N);
	check(eq_device_search(&e, &d, value_l1, q->scale[thread]), "search");
	at[2] = clock_of(CLOCK_MONOTONIC);
	check(eq_device_apply(&e, &d, &q->t, q->scale[thread],
			      q->resident ? NULL : q->recon[thread], &r), "apply");
	at[3] = clock_of(CLOCK_MONOTONIC);
	eq_quant_values(q->policy.format, value);
	eq_coding_quant(c, (unsigned)q->unit, EQ_SCALE_BF16, N, q->t.k, CHUNK, r.hist, value,
			r.n_outliers);
	at[4] = clock_of(CLOCK_MONOTONIC);
	quant_chunks(q, d, c, thread);
	at[5] = clock_of(CLOCK_MONOTONIC);
	for (unsigned i = 0; i < 5; i++)
		q->took[thread][i] = at[i + 1] - at[i];
	eq_device_close(&d);
	eq_quant_result_fini(&r);
	free(c);
}

/* The least time of each step, of some runs. */
static void quant_best(struct quantised *q)
{
	double best[5] = { 1, 1, 1, 1, 1 };

	for (unsigned run = 0; run < 10; run++) {
		quant_gpu(q, 0);
		for (unsigned i = 0; i < 5; i++)
			best[i] = q->took[0][i] < best[i] ? q->took[0][i] : best[i];
	}
	memcpy(q->took[0], best, sizeof(best));
}

struct quant_cpu {
	struct quantised *q;
	const struct eq_coding *c;
	const uint8_t *sym;
};

static void quant_cpu_one(void *arg, size_t i)
{
	const struct quant_cpu *x = arg;
	struct quantised *q = x->q;
	uint8_t *scratch = malloc(eq_chunk_scratch(x->c));
	size_t rows = CHUNK / q->t.k;

	check(scratch != NULL, "no memory");
	q->len[0][i] = eq_chunk_encode_quant(x->c, x->sym + i * CHUNK, CHUNK, q->scale[0] + i * rows,
					     2 * rows, NULL, 0, q->out[0] + i * q->bound, scratch);
	free(scratch);
}

static void quant_cpu(void *arg, unsigned thread)
{
	struct quantised *q = arg;
	struct eq_coding *c = must_alloc(sizeof(*c));
	uint8_t *sym = must_alloc(N);
	struct quant_cpu x = { q, c, sym };
	struct eq_quant_result r;
	float value[256];
	bool finite;
	double l1;

	check(!eq_quant_l1(&q->t, pool, &l1, &finite), "l1");
	check(!eq_quant_search(&q->t, q->policy.format, q->lambda, l1, N, pool, q->scale[thread]),
	      "search");
	check(!eq_quant_apply(&q->t, q->policy.format, q->scale[thread], pool, sym, q->recon[thread],
			      &r), "apply");
	eq_quant_values(q->policy.format, value);
	eq_coding_quant(c, (unsigned)q->unit, EQ_SCALE_BF16, N, q->t.k, CHUNK, r.hist, value,
			r.n_outliers);
	eq_pool_for(pool, CHUNKS, quant_cpu_one, &x);
	eq_quant_result_fini(&r);
	free(sym);
	free(c);
}

static void quant_check(struct quantised *q)
{
	quant_cpu(q, 0);
	quant_gpu(q, 1);
	check(!memcmp(q->scale[0], q->scale[1], q->t.rows * sizeof(uint16_t)), "other scales");
	check(!memcmp(q->recon[0], q->recon[1], q->unit * N), "other weights");
	for (unsigned i = 0; i < CHUNKS; i++)
		check(q->len[0][i] == q->len[1][i] &&
		      !memcmp(q->out[0] + i * q->bound, q->out[1] + i * q->bound, q->len[0][i]),
		      "other bytes");
}

/* Room for a chunk of any coding. */
static size_t chunk_room(const struct quantised *q)
{
	uint64_t hist[256] = { 1, 1 };
	struct eq_coding *c = must_alloc(sizeof(*c));
	float value[256] = { 0 };
	size_t room;

	eq_coding_quant(c, (unsigned)q->unit, EQ_SCALE_BF16, N, q->t.k, CHUNK, hist, value, 0);
	room = eq_align(eq_chunk_bound(c, 0), 64);
	free(c);
	return room;
}

static const struct quant_case {
	const char *name;
	int dtype;
	unsigned k;
	enum eq_qformat format;
	double lambda;
} quant_cases[] = {
	{ "fp8, lambda 3.9", EQ_BF16, 4096, EQ_Q_FP8, 3.9 },
	{ "fp8, lambda 58", EQ_BF16, 4096, EQ_Q_FP8, 58 },
	{ "int8, lambda 14.5", EQ_BF16, 4096, EQ_Q_INT8, 14.5 },
	{ "float16, fp8, lambda 3.9", EQ_F16, 4096, EQ_Q_FP8, 3.9 },
	{ "float16, int8, lambda 14.5", EQ_F16, 4096, EQ_Q_INT8, 14.5 },
	{ "float16, rows of 16384", EQ_F16, 16384, EQ_Q_FP8, 3.9 },
	{ "float16, rows of 32768", EQ_F16, 32768, EQ_Q_FP8, 3.9 },
	{ "float32, fp8, lambda 3.9", EQ_F32, 4096, EQ_Q_FP8, 3.9 },
	{ "float32, int8, lambda 14.5", EQ_F32, 4096, EQ_Q_INT8, 14.5 },
	{ "float32, rows of 16384", EQ_F32, 16384, EQ_Q_FP8, 3.9 },
};

static void quant_rows(struct quantised *q, const char *name)
{
	char row[64];

	snprintf(row, sizeof(row), "%s, pinned", name);
	for (unsigned t = 1; t <= THREADS; t *= 2)
		bench(row, q->unit, t, quant_gpu, q);
	quant_best(q);
	printf("    alone: in and norm %.2f, search %.2f, apply and out %.2f, tables %.2f, "
	       "encode %.2f ms\n", 1e3 * q->took[0][0], 1e3 * q->took[0][1], 1e3 * q->took[0][2],
	       1e3 * q->took[0][3], 1e3 * q->took[0][4]);
	q->resident = true;
	quant_best(q);
	printf("%-34s resident  %7.1f GB/s: search %.2f, apply %.2f, encode %.2f ms\n", name,
	       1e-9 * (double)(q->unit * N) / (q->took[0][1] + q->took[0][2] + q->took[0][4]),
	       1e3 * q->took[0][1], 1e3 * q->took[0][2], 1e3 * q->took[0][4]);
	snprintf(row, sizeof(row), "%s, %s, all CPUs", name, eq_cpu_isa());
	bench(row, q->unit, 1, quant_cpu, q);
}

static void bench_quant(const struct quant_case *g, const uint8_t *units)
{
	struct quantised *q;
	size_t stored = 0;

	if (!strstr(g->name, only))
		return;
	q = must_alloc(sizeof(*q));
	memset(q, 0, sizeof(*q));
	q->policy.format = g->format;
	q->e = (struct eq_encoder){ .device = gpu, .policy = &q->policy };
	q->t = (struct eq_quant_tensor){ units, g->dtype, N / g->k, g->k };
	q->unit = eq_quant_unit(g->dtype);
	q->lambda = g->lambda;
	q->bound = chunk_room(q);
	for (unsigned i = 0; i < THREADS; i++) {
		q->recon[i] = pinned(q->unit * N);
		q->out[i] = must_alloc(CHUNKS * q->bound);
		q->scale[i] = must_alloc(q->t.rows * sizeof(uint16_t));
	}
	quant_check(q);
	for (unsigned i = 0; i < CHUNKS; i++)
		stored += q->len[1][i];
	printf("%s: %.3f bits\n", g->name, 8.0 * (double)stored / N);
	quant_rows(q, g->name);
	for (unsigned i = 0; i < THREADS; i++) {
		driver.unhost(q->recon[i]);
		free(q->out[i]);
		free(q->scale[i]);
	}
	free(q);
}

/* The same weights in all dtypes. */
static void bench_quantised(const uint8_t *units)
{
	uint8_t *f16 = pinned(2 * N), *f32 = pinned(4 * (size_t)N);
	uint64_t seed = 3;

	for (size_t i = 0; i < N; i++) {
		float x = (float)(0.02 * rnd_gauss(&seed));
		uint16_t h = eq_half_narrow(x);

		memcpy(f16 + 2 * i, &h, 2);
		memcpy(f32 + 4 * i, &x, 4);
	}
	for (size_t i = 0; i < sizeof(quant_cases) / sizeof(quant_cases[0]); i++) {
		int dtype = quant_cases[i].dtype;

		bench_quant(&quant_cases[i], dtype == EQ_BF16 ? units : dtype == EQ_F16 ? f16 : f32);
	}
	driver.unhost(f16);
	driver.unhost(f32);
}

int main(int argc, char **argv)
{
	const struct eq_gpu_options options = { .spec = "0", .mem_limit = (uint64_t)4 << 30 };
	uint8_t *units, *wide, *ordinary;
	uint64_t seed = 3;
	struct eq_error err;

	if (argc > 1)
		seconds = atof(argv[1]);
	if (argc > 2)
		only = argv[2];
	if (eq_gpu_backend(&options, &gpu, &err)) {
		printf("no GPU: %s\n", err.text);
		return 0;
	}
	check(!eq_pool_create(0, &pool), "no threads");
	driver_open();
	units = pinned(2 * N);
	wide = pinned(2 * N);
	ordinary = must_alloc(2 * N);
	for (size_t i = 0; i < N; i++) {
		double x = 0.02 * rnd_gauss(&seed);
		uint16_t h = eq_bf16_narrow((float)x);

		memcpy(units + 2 * i, &h, 2);
		h = eq_bf16_narrow((float)(x * exp2((double)(rnd(&seed) % 40) - 20)));
		memcpy(wide + 2 * i, &h, 2);
	}
	memcpy(ordinary, units, 2 * N);
	printf("%s\n", gpu->name);
	bench_link();
	bench_planes("lossless", units, ordinary);
	memcpy(ordinary, wide, 2 * N);
	bench_planes("lossless, 60 exponents", wide, ordinary);
	bench_quantised(units);
	eq_pool_free(pool);
	eq_gpu_release(gpu);
	return 0;
}
