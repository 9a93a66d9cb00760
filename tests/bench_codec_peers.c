/* SPDX-License-Identifier: Apache-2.0 */
/* How bench_codec measures, and what it compares with: memcpy, libzstd and Debian's
 * htscodecs. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>
#include <zstd.h>

#include "bench_codec.h"
#include "codec_util.h"
#include "eqcodec.h"

/* ---- time ------------------------------------------------------------------ */

static double now(void)
{
	struct timespec t;

	/* The time of this thread: other programs may be running. */
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Cycles a second: a product that waits for the one before takes three of them. (An
 * addition may take none.) */
static double clock_hz(void)
{
	const unsigned n = 8000;
	double start = now();
	uint32_t x = 3;

	for (unsigned i = 0; i < n; i++) {
		x *= x;
		__asm__ volatile("" : "+r"(x));
	}
	return 3 * n / (now() - start);
}

static struct timing best_of(piece_fn *fn, void *arg, unsigned from, unsigned to)
{
	struct timing sum = { 0, 0 };
	double least[PIECES];

	for (unsigned p = from; p < to; p++)
		least[p] = 1e9;
	for (unsigned i = 0; i < ROUNDS; i++) {
		sum.hz = fmax(sum.hz, clock_hz());
		for (unsigned p = from; p < to; p++) {
			double t = now();

			fn(arg, p);
			t = now() - t;
			least[p] = t < least[p] ? t : least[p];
		}
	}
	for (unsigned p = from; p < to; p++)
		sum.seconds += least[p];
	return sum;
}

struct timing best(piece_fn *fn, void *arg)
{
	return best_of(fn, arg, 0, PIECES);
}

struct half {
	piece_fn *fn;
	void *arg;
	pthread_barrier_t *start;
	unsigned from, to;
	double seconds;
};

static void *half_run(void *arg)
{
	struct half *h = arg;

	pthread_barrier_wait(h->start);
	h->seconds = best_of(h->fn, h->arg, h->from, h->to).seconds;
	return NULL;
}

double two_threads(piece_fn *fn, void *arg, double seconds)
{
	pthread_barrier_t start;
	struct half h[2] = { { fn, arg, &start, 0, PIECES / 2, 0 },
			     { fn, arg, &start, PIECES / 2, PIECES, 0 } };
	pthread_t other;

	pthread_barrier_init(&start, NULL, 2);
	if (pthread_create(&other, NULL, half_run, &h[1]))
		abort();
	half_run(&h[0]);
	pthread_join(other, NULL);
	pthread_barrier_destroy(&start);
	return seconds / 2 / h[0].seconds + seconds / 2 / h[1].seconds;
}

/* ---- rows ------------------------------------------------------------------ */

/* Bytes a second of what everything is compared with; 0: not installed. */
static double memcpy_rate, zstd_rate[2], hts_rate[2];

void row_begin(const char *what, double rate)
{
	printf("%-48s %6.2f GB/s  %5.2f of memcpy", what, rate * 1e-9, rate / memcpy_rate);
}

static void row_cycles(struct timing t)
{
	printf("  %6.1f cycles at %.2f GHz", t.seconds * t.hz * 32 / N, t.hz * 1e-9);
}

void row_end(void)
{
	printf("\n");
	fflush(stdout);
}

void row(const char *what, double bytes, struct timing t, double bits)
{
	row_begin(what, bytes / t.seconds);
	row_cycles(t);
	if (bits > 0)
		printf("  %5.3f bits/symbol", bits);
	row_end();
}

void row_peers(const char *what, struct timing t, enum direction direction)
{
	row_begin(what, N / t.seconds);
	row_cycles(t);
	printf("  %5.2f of zstd", N / t.seconds / zstd_rate[direction]);
	if (hts_rate[direction] > 0)
		printf("  %5.2f of htscodecs", N / t.seconds / hts_rate[direction]);
	row_end();
}

/* ---- peers ----------------------------------------------------------------- */

struct peer {
	const uint8_t *src;
	uint8_t *out, *packed[PIECES];
	size_t len[PIECES];
};

static void copy_piece(void *arg, unsigned piece)
{
	struct peer *p = arg;

	memcpy(p->out + (size_t)piece * 2 * PIECE, p->src + (size_t)piece * 2 * PIECE,
	       2 * (size_t)PIECE);
}

void bench_memcpy(const void *data)
{
	struct peer p = { .src = data, .out = must_alloc(2 * (size_t)N) };
	struct timing t;

	memset(p.out, 1, 2 * (size_t)N);
	t = best(copy_piece, &p);
	memcpy_rate = 2.0 * N / t.seconds;
	row("memcpy", 2.0 * N, t, 0);
	free(p.out);
}

static void zstd_encode(void *arg, unsigned piece)
{
	struct peer *p = arg;

	p->len[piece] = ZSTD_compress(p->packed[piece], ZSTD_compressBound(PIECE),
				      p->src + (size_t)piece * PIECE, PIECE, 1);
}

static void zstd_decode(void *arg, unsigned piece)
{
	struct peer *p = arg;

	if (ZSTD_decompress(p->out + (size_t)piece * PIECE, PIECE, p->packed[piece],
			    p->len[piece]) != PIECE)
		abort();
}

void bench_zstd(const uint8_t *sym)
{
	struct peer p = { .src = sym, .out = must_alloc(N) };
	struct timing t;
	double bytes = 0;

	memset(p.out, 1, N);
	for (unsigned i = 0; i < PIECES; i++)
		p.packed[i] = must_alloc(ZSTD_compressBound(PIECE));
	t = best(zstd_encode, &p);
	for (unsigned i = 0; i < PIECES; i++)
		bytes += (double)p.len[i];
	zstd_rate[ENCODE] = N / t.seconds;
	row("exponents of bf16, zstd -1, encode", N, t, 8 * bytes / N);
	t = best(zstd_decode, &p);
	zstd_rate[DECODE] = N / t.seconds;
	row("exponents of bf16, zstd -1, decode", N, t, 0);
	for (unsigned i = 0; i < PIECES; i++)
		free(p.packed[i]);
	free(p.out);
}

/* Debian's htscodecs, if it is installed: order 0, with the instructions that we use. */
static const struct hts_way {
	const char *isa, *name;
	int order, cpu;         /* RANS_ORDER_X32; of RANS_CPU_*, those of an encoder */
} hts_ways[] = { { "c", "4x16", 0, 0 }, { "avx2", "32x16", 4, 2 },
		 { "avx512", "32x16", 4, 4 }, { "neon", "32x16", 4, 8 } };

typedef unsigned char *hts_coder(unsigned char *in, unsigned in_size, unsigned char *out,
				 unsigned *out_size, int order);

struct hts {
	const struct hts_way *way;
	const uint8_t *src;
	hts_coder *compress, *uncompress; /* the latter ignores the order */
	void (*set_cpu)(int cpu);
	unsigned char *packed[CHUNKS], *out;
	unsigned bound, packed_len[CHUNKS];
};

static void hts_encode(void *arg, unsigned piece)
{
	struct hts *h = arg;

	for (unsigned i = piece * TEAM; i < (piece + 1) * TEAM; i++) {
		h->packed_len[i] = h->bound;
		if (!h->compress((unsigned char *)(uintptr_t)(h->src + (size_t)i * CHUNK),
				 CHUNK, h->packed[i], &h->packed_len[i], h->way->order))
			abort();
	}
}

static void hts_decode(void *arg, unsigned piece)
{
	struct hts *h = arg;

	for (unsigned i = piece * TEAM; i < (piece + 1) * TEAM; i++) {
		unsigned len = CHUNK;

		if (!h->uncompress(h->packed[i], h->packed_len[i], h->out, &len, 0))
			abort();
	}
}

static void hts_rows(struct hts *h)
{
	struct timing t;
	double bytes = 0;
	char text[80];

	h->set_cpu(h->way->cpu | h->way->cpu << 8);
	h->out = must_alloc(CHUNK);
	for (unsigned i = 0; i < CHUNKS; i++)
		h->packed[i] = must_alloc(h->bound);
	t = best(hts_encode, h);
	for (unsigned i = 0; i < CHUNKS; i++)
		bytes += h->packed_len[i];
	hts_rate[ENCODE] = N / t.seconds;
	snprintf(text, sizeof(text), "exponents of bf16, htscodecs %s, encode", h->way->name);
	row(text, N, t, 8 * bytes / N);
	t = best(hts_decode, h);
	hts_rate[DECODE] = N / t.seconds;
	snprintf(text, sizeof(text), "exponents of bf16, htscodecs %s, decode", h->way->name);
	row(text, N, t, 0);
	for (unsigned i = 0; i < CHUNKS; i++)
		free(h->packed[i]);
	free(h->out);
}

void bench_hts(const uint8_t *sym)
{
	void *lib = dlopen("libhtscodecs.so.2", RTLD_NOW);
	unsigned (*bound)(unsigned size, int order) = NULL;
	struct hts h = { .src = sym };

	if (lib) {
		*(void **)&bound = dlsym(lib, "rans_compress_bound_4x16");
		*(void **)&h.compress = dlsym(lib, "rans_compress_to_4x16");
		*(void **)&h.uncompress = dlsym(lib, "rans_uncompress_to_4x16");
		*(void **)&h.set_cpu = dlsym(lib, "rans_set_cpu");
	}
	if (!bound || !h.compress || !h.uncompress || !h.set_cpu) {
		printf("(htscodecs is not installed)\n");
		return;
	}
	for (unsigned i = 0; i < sizeof(hts_ways) / sizeof(*hts_ways); i++)
		if (!strcmp(hts_ways[i].isa, eq_cpu_isa()))
			h.way = &hts_ways[i];
	h.bound = bound(CHUNK, h.way->order);
	hts_rows(&h);
	dlclose(lib);
}

