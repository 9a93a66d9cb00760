/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast the codec is on one core with each instruction set there is, against
 * memcpy and what else one could install. GB are 10^9 bytes of what is decoded,
 * or read by the encoder; best of several rounds, in time of the thread. "To
 * memory" writes it all, "to cache" writes four chunks again and again, as the
 * file system does; "two threads" share the work to memory. Cycles are those of the
 * core at the rate that it had meanwhile, for 32 symbols or units. Peers that choose
 * by the processor are held to the instruction set that they are compared with.
 */
#include <config.h>

#include <stdbool.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench_codec.h"
#include "codec_util.h"
#include "coding.h"
#include "cpu.h"
#include "eqcodec.h"
#include "rans.h"

/* ---- data ------------------------------------------------------------------ */

static void fill_weights(uint16_t *w)
{
	uint64_t seed = 1;

	/* A million Gaussians, shifted about: the rest would take a while. */
	for (size_t i = 0; i < N; i++) {
		float f = (float)(0.02 * rnd_gauss(&seed));
		uint32_t u;

		memcpy(&u, &f, 4);
		w[i] = (uint16_t)(u >> 16);
		if (i >= 1048576)
			w[i] = w[(rnd(&seed) >> 44)];
	}
}

/* Levels of a quantiser at about `bits` bits. */
static void fill_levels(uint8_t *p, double sigma)
{
	uint64_t seed = 2;

	for (size_t i = 0; i < 1048576; i++)
		p[i] = (uint8_t)lrint(sigma * rnd_gauss(&seed));
	for (size_t i = 1048576; i < N; i++)
		p[i] = p[rnd(&seed) >> 44];
}

/* ---- whole chunks ---------------------------------------------------------- */

struct tensor {
	struct eq_coding c;
	struct eq_plan plan;
	const uint8_t *src;
	uint8_t *scales;
	uint8_t *in[CHUNKS], *scratch;
	size_t len[CHUNKS], stored;
	struct eq_decode_job job[CHUNKS];
	uint8_t *out, *cached;
};

static void encode_piece(void *arg, unsigned piece)
{
	struct tensor *t = arg;
	uint64_t k = t->c.row_units;

	for (unsigned i = piece * TEAM; i < (piece + 1) * TEAM; i++) {
		if (t->c.codec == EQ_CODEC_QUANT)
			t->len[i] = eq_chunk_encode_quant(
				&t->c, t->src + (size_t)i * CHUNK, CHUNK,
				t->scales + i * (CHUNK / k) * 2, CHUNK / k * 2,
				NULL, 0, t->in[i], t->scratch);
		else
			t->len[i] = eq_chunk_encode_planes(
				&t->c, 0, t->src + (size_t)i * CHUNK * t->c.unit,
				CHUNK, t->in[i], t->scratch);
	}
}

static void decode_piece(void *arg, unsigned piece)
{
	struct tensor *t = arg;

	eq_backend_cpu()->decode(NULL, t->job + piece * TEAM, TEAM);
}

/* Measure the tensor as t->c says; `want` is what must come out, or NULL. */
static void measure(struct tensor *t, const char *name, const void *want)
{
	uint8_t params[EQ_PARAMS_MAX];
	size_t len = eq_params_write(&t->c, params), bytes = (size_t)N * t->c.unit;
	struct timing enc, dec, cached;
	double two, bits;
	char text[80];

	memset(&t->plan, 0, sizeof(t->plan));
	t->plan.codec = t->c.codec;
	t->plan.unit = t->c.unit;
	t->plan.transform = t->c.transform;
	t->plan.dtype = EQ_BF16;
	t->plan.scale_dtype = t->c.scale_dtype;
	t->plan.chunk_units = CHUNK;
	t->plan.n_units = N;
	t->plan.row_units = t->c.row_units;
	if (eq_plan_init(&t->plan, params, len))
		abort();
	t->scratch = must_alloc(eq_chunk_scratch(&t->c));
	t->out = must_alloc(bytes);
	t->cached = must_alloc((size_t)PIECE * t->c.unit);
	memset(t->out, 1, bytes);
	for (unsigned i = 0; i < CHUNKS; i++)
		t->in[i] = must_alloc(eq_chunk_bound(&t->c, 0) + EQ_SLACK);
	enc = best(encode_piece, t);
	t->stored = 0;
	for (unsigned i = 0; i < CHUNKS; i++) {
		struct eq_decode_job job = { &t->plan, t->in[i], t->len[i],
					     (uint64_t)i * CHUNK, CHUNK,
					     t->out + (size_t)i * CHUNK * t->c.unit, 0 };

		t->stored += t->len[i];
		t->job[i] = job;
	}
	dec = best(decode_piece, t);
	two = two_threads(decode_piece, t, dec.seconds);
	for (unsigned i = 0; i < CHUNKS; i++)
		if (t->job[i].status)
			abort();
	if (want && memcmp(want, t->out, bytes))
		abort();
	for (unsigned i = 0; i < CHUNKS; i++)
		t->job[i].out = t->cached + (size_t)(i % TEAM) * CHUNK * t->c.unit;
	cached = best(decode_piece, t);
	bits = 8.0 * (double)t->stored / N;
	snprintf(text, sizeof(text), "%s, decode to memory", name);
	row(text, (double)bytes, dec, bits);
	snprintf(text, sizeof(text), "%s, two threads", name);
	row_begin(text, (double)bytes / dec.seconds * two);
	printf("  %5.2f of one", two);
	row_end();
	snprintf(text, sizeof(text), "%s, decode to cache", name);
	row(text, (double)bytes, cached, 0);
	snprintf(text, sizeof(text), "%s, encode", name);
	row(text, t->c.codec == EQ_CODEC_QUANT ? N : (double)bytes, enc, 0);
	eq_plan_fini(&t->plan);
	free(t->scratch);
	free(t->out);
	free(t->cached);
	for (unsigned i = 0; i < CHUNKS; i++)
		free(t->in[i]);
}

/* Single tables or pairs, whichever the coding would have chosen. */
static void force(struct eq_coding *c, unsigned i, const uint64_t hist[256], bool pair)
{
	uint64_t bits;

	c->part[i].kind = pair ? EQ_PART_PAIR : EQ_PART_RANS;
	c->part[i].arg = c->table[i][0] = 0;
	memset(c->freq, 0, sizeof(c->freq));
	c->n_freq = 1;
	c->freq[0].mode = EQ_TABLE_SINGLE;
	if (!pair)
		eq_freq_fit(hist, c->freq[0].f);
	else if (eq_freq_fit_pair(hist, &c->freq[0], &bits))
		abort();
	eq_freq_enc(c->freq[0].f, &c->enc[0]);
}

static void bench_planes(struct tensor *t, const void *data, unsigned unit, const char *name)
{
	static uint64_t hist[8][256];
	unsigned transform = unit > 1 ? EQ_TRANSFORM_ROTATED : EQ_TRANSFORM_NONE;
	char text[80];

	memset(hist, 0, sizeof(hist));
	eq_hist_planes(unit, transform, data, N, hist);
	t->src = data;
	for (unsigned pair = 0; pair < 2; pair++) {
		eq_coding_planes(&t->c, unit, transform, N, CHUNK,
				 (const uint64_t(*)[256])hist);
		force(&t->c, 0, hist[0], pair);
		snprintf(text, sizeof(text), "%s, %s", name, pair ? "pair" : "single");
		measure(t, text, data);
	}
}

static void bench_quant(struct tensor *t, const uint8_t *sym, const char *name)
{
	uint64_t hist[256] = { 0 };
	float value[256];
	char text[80];

	eq_kernels_get()->histogram(sym, N, hist);
	for (unsigned s = 0; s < 256; s++)
		value[s] = (float)(int8_t)s;
	t->src = sym;
	t->scales = must_alloc(N / 4096 * 2);
	for (unsigned i = 0; i < N / 4096 * 2; i++)
		t->scales[i] = i & 1 ? 0x3c : (uint8_t)(i * 37);
	for (unsigned pair = 0; pair < 2; pair++) {
		eq_coding_quant(&t->c, 2, EQ_SCALE_BF16, N, 4096, CHUNK, hist, value, 0);
		force(&t->c, 1, hist, pair);
		snprintf(text, sizeof(text), "%s, %s", name, pair ? "pair" : "single");
		measure(t, text, NULL);
	}
	free(t->scales);
}

/* ---- the coder alone ------------------------------------------------------- */

struct coder {
	struct eq_table table;
	struct eq_rans_enc enc;
	uint8_t *sym, *part[CHUNKS];
	uint32_t n_words[CHUNKS];
	uint8_t *tile;
	uint64_t sum[256];
};

static void coder_decode(void *arg, unsigned piece)
{
	struct coder *c = arg;
	const struct eq_kernels *k = eq_kernels_get();
	struct eq_rans_dec dec[TEAM], *decs[TEAM];
	uint8_t *out[TEAM];

	for (unsigned j = 0; j < TEAM; j++) {
		eq_rans_dec_init(&dec[j], c->part[piece * TEAM + j],
				 c->n_words[piece * TEAM + j], &c->table);
		decs[j] = &dec[j];
		out[j] = c->tile + j * 2048;
	}
	for (unsigned g = 0; g < CHUNK / 128; g += 16)
		k->rans_decode(decs, out, TEAM, 16);
	for (unsigned j = 0; j < TEAM; j++)
		if (eq_rans_dec_finish(&dec[j]))
			abort();
}

static void coder_encode(void *arg, unsigned piece)
{
	struct coder *c = arg;

	for (unsigned i = piece * TEAM; i < (piece + 1) * TEAM; i++)
		eq_rans_write(eq_kernels_get(), &c->enc, c->sym + (size_t)i * CHUNK,
			      CHUNK, c->part[i], &c->n_words[i]);
}

static void coder_histogram(void *arg, unsigned piece)
{
	struct coder *c = arg;

	eq_kernels_get()->histogram(c->sym + (size_t)piece * PIECE, PIECE, c->sum);
}

static void bench_coder(const uint8_t *sym, const char *name)
{
	struct coder *c = must_alloc(sizeof(*c));
	struct eq_freq freq = { .mode = EQ_TABLE_SINGLE };
	uint64_t hist[256] = { 0 };
	char text[80];

	memset(c, 0, sizeof(*c));
	c->sym = must_alloc(N);
	memcpy(c->sym, sym, N);
	c->tile = must_alloc(8192);
	eq_kernels_get()->histogram(sym, N, hist);
	eq_freq_fit(hist, freq.f);
	eq_freq_enc(freq.f, &c->enc);
	eq_freq_dec(&freq, &c->table);
	for (unsigned i = 0; i < CHUNKS; i++)
		c->part[i] = must_alloc(eq_rans_bound(CHUNK) + EQ_SLACK);
	snprintf(text, sizeof(text), "%s, rANS alone, encode", name);
	row_peers(text, best(coder_encode, c), ENCODE);
	snprintf(text, sizeof(text), "%s, rANS alone, decode to cache", name);
	row_peers(text, best(coder_decode, c), DECODE);
	snprintf(text, sizeof(text), "%s, histogram", name);
	row(text, N, best(coder_histogram, c), 0);
	for (unsigned i = 0; i < CHUNKS; i++)
		free(c->part[i]);
	free(c->sym);
	free(c->tile);
	free(c);
}

/* ---- all of it ------------------------------------------------------------- */

static void bench_isa(const uint16_t *w, uint8_t *sym)
{
	struct tensor *t = must_alloc(sizeof(*t));

	printf("instruction set: %s; one core\n", eq_cpu_isa());
	for (size_t i = 0; i < N; i++)
		sym[i] = (uint8_t)(w[i] >> 7);
	bench_hts(sym);
	bench_coder(sym, "exponents of bf16");
	bench_planes(t, sym, 1, "exponents of bf16");
	bench_planes(t, w, 2, "bf16 lossless");
	fill_levels(sym, 0.8);
	bench_quant(t, sym, "2-bit levels to bf16");
	fill_levels(sym, 1.7);
	bench_quant(t, sym, "3-bit levels to bf16");
	fill_levels(sym, 16);
	bench_coder(sym, "6-bit levels");
	free(t);
}

/* In a process of its own, since the choice of kernels is made once. */
static void bench_without(const char *mask, const uint16_t *w, uint8_t *sym)
{
	pid_t child = fork();
	int status;

	if (!child) {
		setenv("EQFS_DISABLE_CPU", mask, 1);
		bench_isa(w, sym);
		exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || status)
		abort();
}

int main(void)
{
	static const char *const masks[] = { "", "avx512", "avx2,neon" };
	uint16_t *w = must_alloc(2 * (size_t)N);
	uint8_t *sym = must_alloc(N);
	unsigned flags = ~0u;

	fill_weights(w);
	for (size_t i = 0; i < N; i++)
		sym[i] = (uint8_t)(w[i] >> 7);
	bench_memcpy(w);
	bench_zstd(sym);
	/* What the user has switched off stays off. */
	if (getenv("EQFS_DISABLE_CPU")) {
		bench_isa(w, sym);
	} else {
		for (unsigned i = 0; i < sizeof(masks) / sizeof(*masks); i++) {
			if (eq_cpu_flags(masks[i]) != flags)
				bench_without(masks[i], w, sym);
			flags = eq_cpu_flags(masks[i]);
		}
	}
	free(w);
	free(sym);
	return 0;
}
