/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GB/s of units written by the GPU, with chunks and output in its memory, beside
 * a copy within that memory in the same process; and through the back end, from
 * and to memory of the host, beside the CPU, and by launches of few chunks. Symbols
 * are drawn from a Gaussian;
 * outputs are compared with the CPU's. Beside it, where its library is found
 * (bench_nvcomp.h), nvCOMP's ANS on the same symbols or weights.
 *
 * Usage: bench_gpu [GB of output [resident]]; "resident" leaves out what goes
 * through the host.
 */
#include <config.h>

#include <pthread.h>
#include <time.h>

#include "bench_nvcomp.h"
#include "floats.h"
#include "gpu_load.h"
#include "gpu_util.h"

enum { CHUNK = 131072, CHUNKS = 64, ROW = 4096, N = CHUNK * CHUNKS };

struct bench {
	const char *name;
	bool quant;
	double step;            /* of the quantiser, in standard deviations */
	int dtype;
};

static const struct bench benches[] = {
	{ "quantised, 4 bits", true, 0.25, EQ_BF16 },
	{ "quantised, 2 bits", true, 1.2, EQ_BF16 },
	{ "quantised, 4 bits, f32", true, 0.25, EQ_F32 },
	{ "lossless bf16", false, 0, EQ_BF16 },
	{ "lossless bf16, exponents of 60 symbols", false, 1, EQ_BF16 },
	{ "lossless f16", false, 0, EQ_F16 },
	{ "lossless f32", false, 0, EQ_F32 },
};

struct data {
	struct eq_coding coding;
	struct eq_plan plan;
	uint8_t *in[CHUNKS];
	struct eq_decode_job job[CHUNKS];
	size_t out_len, in_len;
	uint8_t *out, *expected;
	uint8_t *symbols;       /* N of them, or NULL: planes */
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cpu_seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void data_plan(struct data *d, int dtype)
{
	uint8_t params[EQ_PARAMS_MAX];

	d->plan = (struct eq_plan){ .codec = d->coding.codec, .unit = d->coding.unit,
				    .transform = d->coding.transform,
				    .scale_dtype = d->coding.scale_dtype,
				    .dtype = (uint8_t)dtype, .chunk_units = CHUNK, .n_units = N,
				    .row_units = d->coding.row_units };
	if (eq_plan_init(&d->plan, params, eq_params_write(&d->coding, params)))
		abort();
	d->out_len = (size_t)N * d->coding.unit;
	d->out = must_alloc(d->out_len);
	d->expected = must_alloc(d->out_len);
	d->in_len = 0;
}

static void data_add(struct data *d, unsigned i, const uint8_t *chunk, size_t len)
{
	d->in[i] = gpu_chunk_copy(chunk, len);
	d->in_len += len;
	d->job[i] = (struct eq_decode_job){ .plan = &d->plan, .in = d->in[i], .in_len = len,
					    .first_unit = (uint64_t)i * CHUNK, .n_units = CHUNK,
					    .out = d->out + (size_t)i * CHUNK * d->coding.unit };
}

static void make_quant(struct data *d, const struct bench *b)
{
	uint8_t *sym = must_alloc(N), *out, *scratch;
	uint16_t scale[CHUNK / ROW];
	uint64_t seed = 5, hist[256] = { 0 };
	float value[256];

	for (size_t i = 0; i < N; i++) {
		double q = nearbyint(rnd_gauss(&seed) / b->step);

		sym[i] = (uint8_t)(int)(q < -127 ? -127 : q > 127 ? 127 : q);
		hist[sym[i]]++;
	}
	for (unsigned s = 0; s < 256; s++)
		value[s] = (float)(int8_t)s;
	for (unsigned i = 0; i < CHUNK / ROW; i++)
		scale[i] = (uint16_t)(0x3c00 + i);
	eq_coding_quant(&d->coding, eq_dtype_unit(b->dtype), EQ_SCALE_BF16, N, ROW, CHUNK, hist,
			value, 0);
	out = must_alloc(eq_chunk_bound(&d->coding, 0));
	scratch = must_alloc(eq_chunk_scratch(&d->coding));
	data_plan(d, b->dtype);
	for (unsigned i = 0; i < CHUNKS; i++)
		data_add(d, i, out, eq_chunk_encode_quant(&d->coding, sym + (size_t)i * CHUNK, CHUNK,
							  scale, sizeof(scale), NULL, 0, out, scratch));
	d->symbols = sym;
	free(out);
	free(scratch);
}

/* Gaussian weights; their exponents take pair mode, unless a spread of scales
 * gives the exponents more symbols than that. */
static void make_planes(struct data *d, const struct bench *b)
{
	unsigned unit = eq_dtype_unit(b->dtype);
	uint8_t *units = must_alloc((size_t)N * unit), *out, *scratch;
	uint64_t seed = 6, (*hist)[256] = calloc(8, sizeof(*hist));

	for (size_t i = 0; i < N; i++) {
		double spread = b->step ? exp2((double)(rnd(&seed) % 40) - 20) : 1;
		float v = (float)(rnd_gauss(&seed) * 0.02 * spread);
		uint32_t bits;

		memcpy(&bits, &v, 4);
		if (b->dtype == EQ_F16) { /* near enough: no subnormals */
			uint32_t e = (bits >> 23 & 255) > 113 ? (bits >> 23 & 255) - 112 : 1;

			bits = (bits >> 16 & 0x8000) | e << 10 | (bits >> 13 & 1023);
		} else if (b->dtype == EQ_BF16) {
			bits >>= 16;
		}
		memcpy(units + i * unit, &bits, unit);
	}
	eq_hist_planes(unit, EQ_TRANSFORM_ROTATED, units, N, hist);
	eq_coding_planes(&d->coding, unit, EQ_TRANSFORM_ROTATED, N, CHUNK,
			 (const uint64_t (*)[256])hist);
	out = must_alloc(eq_chunk_bound(&d->coding, 0));
	scratch = must_alloc(eq_chunk_scratch(&d->coding));
	data_plan(d, b->dtype);
	for (unsigned i = 0; i < CHUNKS; i++)
		data_add(d, i, out, eq_chunk_encode_planes(&d->coding, 0,
							   units + (size_t)i * CHUNK * unit, CHUNK,
							   out, scratch));
	free(units);
	free(hist);
	free(out);
	free(scratch);
}

static void check(const struct data *d, const char *who)
{
	for (unsigned i = 0; i < CHUNKS; i++)
		if (d->job[i].status) {
			fprintf(stderr, "%s: chunk %u: status %d\n", who, i, d->job[i].status);
			exit(1);
		}
	if (memcmp(d->out, d->expected, d->out_len)) {
		fprintf(stderr, "%s: wrong output\n", who);
		exit(1);
	}
}

static void bench_resident(const struct eq_backend *gpu, const struct bench *b, struct data *d,
			   double gigabytes)
{
	unsigned copies = (unsigned)(gigabytes * 1e9 / (double)d->out_len) + 1;
	struct eq_gpu_measure m;
	int rc;

	memset(d->out, 0, d->out_len);
	rc = eq_gpu_bench(gpu, d->job, CHUNKS, copies, 9, &m);
	if (rc) {
		fprintf(stderr, "%s: %s\n", b->name, eq_strerror(rc));
		exit(1);
	}
	check(d, b->name);
	printf("%-40s %5.2f %s %6.1f GB  %7.0f GB/s written; copy %5.0f read + written\n", b->name,
	       8.0 * (double)d->in_len / N,
	       d->coding.part[d->plan.codec == EQ_CODEC_QUANT].kind == EQ_PART_PAIR ? "pair  " : "single",
	       1e-9 * (double)m.out_bytes, 1e-9 * (double)m.out_bytes / m.decode_s,
	       1e-9 * (double)m.out_bytes / m.copy_s);
}

/* The same symbols, or the weights as they are. */
static void bench_nvcomp(const struct data *d, double gigabytes)
{
	const uint8_t *p = d->symbols ? d->symbols : d->expected;
	size_t len = d->symbols ? N : d->out_len;
	struct nvcomp_result r;

	if (nvcomp_measure(p, len, d->symbols ? NVCOMP_BYTES : NVCOMP_HALVES,
			   (unsigned)(gigabytes * 1e9 / (double)len) + 1, &r))
		return;
	printf("    nvCOMP ANS, chunks of %3zu KiB   %5.2f bits a unit   %7.0f GB/s of %s\n",
	       r.chunk >> 10, 8.0 * r.ratio * (double)len / N, 1e-9 * r.rate,
	       d->symbols ? "symbols, which are not weights yet" : "weights");
}

struct host {
	const struct eq_backend *be;
	struct data *d;
};

/* One call of the back end, of 16 chunks. */
static void host_task(void *arg, size_t i)
{
	const struct host *h = arg;

	struct eq_decode_job job[16];

	memcpy(job, h->d->job + i % (CHUNKS / 16) * 16, sizeof(job));
	if (h->be->decode(h->be->ctx, job, 16))
		abort();
}

/* Through the back end, as an archive's reader calls it, from all threads. */
static void bench_host(const struct eq_backend *be, struct data *d, struct eq_pool *pool)
{
	struct host h = { be, d };
	double t, c;
	size_t tasks = 64;

	eq_pool_for(pool, tasks, host_task, &h);
	t = now();
	c = cpu_seconds();
	eq_pool_for(pool, 4 * tasks, host_task, &h);
	t = now() - t;
	c = cpu_seconds() - c;
	printf("    from and to the host, %-28.28s %7.2f GB/s, %.3f CPU s a GB\n", be->name,
	       1e-9 * (double)(4 * tasks * (d->out_len / (CHUNKS / 16))) / t,
	       c / (1e-9 * (double)(4 * tasks * (d->out_len / (CHUNKS / 16)))));
}

/* ---- launches of few chunks beside each other, as the mount makes them -------------- */

enum { LAUNCH = 32, LAUNCHES = 100, STREAMS = 16 };

struct launcher {
	const struct eq_gpu_load_abi *load;
	const struct eq_backend *inner;
	const struct data *d;
	struct eq_gpu_feed *feed;
	struct eq_decode_job job[LAUNCH];
	void *out;
};

static void launcher_open(struct launcher *l)
{
	size_t size = 0, unit = (size_t)CHUNK * l->d->coding.unit, at = 0;

	for (unsigned i = 0; i < LAUNCH; i++)
		size += eq_align(l->d->job[i].in_len + EQ_SLACK, 64);
	if (l->load->feed_get(l->inner, size, &l->feed) ||
	    l->load->alloc(l->inner, LAUNCH * unit, &l->out))
		abort();
	for (unsigned i = 0; i < LAUNCH; i++) {
		struct eq_decode_job *j = &l->job[i];

		*j = l->d->job[i];
		j->in = memcpy(l->feed->buf + at, j->in, j->in_len);
		j->out = (uint8_t *)l->out + i * unit;
		at += eq_align(j->in_len + EQ_SLACK, 64);
	}
}

static void *launcher_main(void *arg)
{
	struct launcher *l = arg;

	for (unsigned i = 0; i < LAUNCHES; i++)
		if (l->load->feed_decode(l->feed, l->job, LAUNCH) || l->load->feed_wait(l->feed))
			abort();
	return NULL;
}

/* Stored bytes go over the host link, output stays; a stream and a thread each. */
static void bench_launches(const struct eq_backend *gpu, const struct data *d)
{
	struct launcher l[STREAMS] = { { NULL } };
	pthread_t thread[STREAMS];
	struct eq_error err;
	double t;

	for (unsigned i = 0; i < STREAMS; i++) {
		l[i].d = d;
		if (eq_gpu_loading(gpu, &l[i].load, &l[i].inner, &err))
			abort();
		launcher_open(&l[i]);
		launcher_main(&l[i]);
	}
	printf("    launches of %u chunks, streams 1 to %u, GB/s written:", LAUNCH, STREAMS);
	for (unsigned n = 1; n <= STREAMS; n *= 2) {
		t = now();
		for (unsigned i = 0; i < n; i++)
			if (pthread_create(&thread[i], NULL, launcher_main, &l[i]))
				abort();
		for (unsigned i = 0; i < n; i++)
			pthread_join(thread[i], NULL);
		t = now() - t;
		printf(" %.0f", 1e-9 * n * LAUNCHES * LAUNCH * CHUNK * d->coding.unit / t);
	}
	printf("\n");
	for (unsigned i = 0; i < STREAMS; i++) {
		l[i].load->feed_put(l[i].inner, l[i].feed);
		l[i].load->free(l[i].inner, l[i].out);
	}
}

int main(int argc, char **argv)
{
	double gigabytes = argc > 1 ? atof(argv[1]) : 8;
	bool through_host = argc < 3 || strcmp(argv[2], "resident");
	const struct eq_gpu_options options = { .spec = "0" };
	const struct eq_backend *gpu;
	struct eq_pool *pool;
	struct eq_error err;

	if (eq_gpu_backend(&options, &gpu, &err)) {
		printf("no GPU: %s\n", err.text);
		return 0;
	}
	if (eq_pool_create(0, &pool))
		return 1;
	printf("%s\n%-40s bits a unit\n", gpu->name, "");
	for (size_t i = 0; i < sizeof(benches) / sizeof(benches[0]); i++) {
		struct data *d = must_alloc(sizeof(*d));

		memset(d, 0, sizeof(*d));
		if (benches[i].quant)
			make_quant(d, &benches[i]);
		else
			make_planes(d, &benches[i]);
		for (unsigned k = 0; k < CHUNKS; k++)
			d->job[k].out = d->expected + (size_t)k * CHUNK * d->coding.unit;
		eq_backend_cpu()->decode(NULL, d->job, CHUNKS);
		for (unsigned k = 0; k < CHUNKS; k++)
			d->job[k].out = d->out + (size_t)k * CHUNK * d->coding.unit;
		bench_resident(gpu, &benches[i], d, gigabytes);
		if (benches[i].dtype == EQ_BF16)
			bench_nvcomp(d, gigabytes / 2);
		if (benches[i].dtype == EQ_BF16 && through_host) {
			bench_host(eq_backend_cpu(), d, pool);
			bench_host(gpu, d, pool);
			bench_launches(gpu, d);
		}
		fflush(stdout);
		for (unsigned k = 0; k < CHUNKS; k++)
			free(d->in[k]);
		eq_plan_fini(&d->plan);
		free(d->out);
		free(d->expected);
		free(d->symbols);
		free(d);
	}
	eq_pool_free(pool);
	eq_gpu_release(gpu);
	return 0;
}
