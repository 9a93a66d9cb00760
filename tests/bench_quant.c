/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Speed of the quantiser on one thread: MB/s of weights read and millions of them a
 * second, best of several runs, and as a part of memcpy's in the same run.
 * Usage: bench_quant [rows]    (of 4096 weights; others have as many bytes)
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "quant_ops.h"

#define RUNS 7
#define SAMPLE (4 << 20)        /* units sampled of a file for bits= */

static double now(void)
{
	struct timespec t;

	/* of this thread: other programs may be running */
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct bench {
	struct eq_quant_tensor t;
	enum eq_qformat format;
	double lambda, l1;
	void *w, *recon;
	uint8_t *sym;
	uint16_t *scale;
	double memcpy_mb;       /* MB/s */
	int failed;
};

static size_t bench_bytes(const struct bench *b)
{
	return b->t.rows * b->t.k * eq_quant_unit(b->t.dtype);
}

static void run_memcpy(struct bench *b)
{
	memcpy(b->recon, b->w, bench_bytes(b));
}

static void run_norm(struct bench *b)
{
	bool finite;

	b->failed |= eq_quant_l1(&b->t, NULL, &b->l1, &finite) || !finite;
}

static void run_search(struct bench *b)
{
	b->failed |= eq_quant_search(&b->t, b->format, b->lambda, b->l1,
				     b->t.rows * b->t.k, NULL, b->scale) != 0;
}

static void run_apply(struct bench *b)
{
	struct eq_quant_result r;

	b->failed |= eq_quant_apply(&b->t, b->format, b->scale, NULL, b->sym, b->recon,
				    &r) != 0;
	eq_quant_result_fini(&r);
}

static void run_both(struct bench *b)
{
	run_norm(b);
	run_search(b);
	run_apply(b);
}

static void run_rate(struct bench *b)
{
	struct eq_rate_tensor t = { .sample = b->t, .rows = b->t.rows, .overhead = 200,
				    .chunk_units = 131072 };
	struct eq_rate_result r;

	eq_rate_sample_rows(1, &b->t.rows, &b->t.k, SAMPLE, &t.sample.rows);
	b->failed |= eq_rate_find(&t, 1, b->format, 4, NULL, &r) != 0;
	b->lambda = r.lambda;
}

/* All that quantising takes from bits= on: what it costs depends on the size, since
 * so much is sampled of any. */
static void run_bits(struct bench *b)
{
	run_rate(b);
	run_both(b);
}

/* MB/s, best of RUNS. */
static double measure(struct bench *b, void (*run)(struct bench *b))
{
	double best = INFINITY;

	for (int i = 0; i < RUNS; i++) {
		double start = now(), t;

		run(b);
		t = now() - start;
		best = t < best ? t : best;
	}
	return (double)bench_bytes(b) / best * 1e-6;
}

static double gauss(uint64_t *seed)
{
	double u[2];

	for (int i = 0; i < 2; i++) {
		*seed ^= *seed << 13;
		*seed ^= *seed >> 7;
		*seed ^= *seed << 17;
		u[i] = ((double)(*seed >> 11) + 0.5) * 0x1p-53;
	}
	return sqrt(-2 * log(u[0])) * cos(6.283185307179586 * u[1]);
}

/* As many rows of k as have so many bytes. */
static int bench(int dtype, const char *name, uint64_t bytes, uint64_t k)
{
	static const struct {
		enum eq_qformat format;
		double lambda;
	} point[] = { { EQ_Q_FP8, 0.3 }, { EQ_Q_FP8, 3.9 }, { EQ_Q_FP8, 14.5 },
		      { EQ_Q_FP8, 58 }, { EQ_Q_INT8, 3.9 } };
	double both;
	uint64_t rows = bytes / (k * eq_quant_unit(dtype)) + 1;
	struct bench b = { .t = { .dtype = dtype, .rows = rows, .k = k } };
	uint64_t n = rows * k, seed = 88172645463325252u;

	b.w = malloc(n * 4);
	b.recon = malloc(n * 4);
	b.sym = malloc(n);
	b.scale = malloc(rows * sizeof(*b.scale));
	if (!b.w || !b.recon || !b.sym || !b.scale)
		return 1;
	for (uint64_t i = 0; i < n; i++) {
		float x = (float)(0.02 * gauss(&seed));

		if (dtype == EQ_F32)
			((float *)b.w)[i] = x;
		else
			((uint16_t *)b.w)[i] = dtype == EQ_F16 ? eq_half_narrow(x) :
								 eq_bf16_narrow(x);
	}
	b.t.w = b.w;
	b.memcpy_mb = measure(&b, run_memcpy);
	printf("%s, %llu rows of %llu: memcpy %.0f MB/s, norm %.0f\n", name,
	       (unsigned long long)rows, (unsigned long long)k, b.memcpy_mb,
	       measure(&b, run_norm));
	for (size_t i = 0; i < sizeof(point) / sizeof(*point); i++) {
		double search, apply;

		b.format = point[i].format;
		b.lambda = point[i].lambda;
		search = measure(&b, run_search);
		apply = measure(&b, run_apply);
		both = measure(&b, run_both);
		printf("  %-4s lambda %-5g search %5.0f  apply %5.0f  norm, search and apply %5.0f MB/s, %4.0f M weights/s (%.3f of memcpy)\n",
		       b.format == EQ_Q_FP8 ? "fp8" : "int8", b.lambda, search, apply, both,
		       both / (double)eq_quant_unit(dtype), both / b.memcpy_mb);
	}
	b.format = EQ_Q_FP8;
	both = measure(&b, run_rate);
	printf("  fp8  bits 4        rate control %.0f, all %.0f MB/s of weights\n", both,
	       measure(&b, run_bits));
	free(b.w);
	free(b.recon);
	free(b.sym);
	free(b.scale);
	if (b.failed)
		fprintf(stderr, "bench_quant: a call failed\n");
	return b.failed;
}

int main(int argc, char **argv)
{
	uint64_t rows = argc > 1 ? strtoull(argv[1], NULL, 10) : 1024, bytes = rows * 4096 * 2;
	int failed = 0;

	printf("quantiser, one thread, %s\n", eq_quant_ops_get()->isa);
	failed |= bench(EQ_BF16, "bfloat16", bytes, 4096);
	failed |= bench(EQ_BF16, "bfloat16", bytes, 1024);
	failed |= bench(EQ_BF16, "bfloat16", bytes, 384);
	failed |= bench(EQ_F16, "float16", bytes, 4096);
	failed |= bench(EQ_F16, "float16", bytes, 384);
	failed |= bench(EQ_F32, "float32", bytes, 4096);
	failed |= bench(EQ_F32, "float32", bytes, 384);
	return failed;
}
