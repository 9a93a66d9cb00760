/* SPDX-License-Identifier: Apache-2.0 */
/* Chunks: encode, then decode with the back end, for every kind of part. */
#include <config.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <zstd.h>

#include "codec_util.h"
#include "coded_util.h"
#include "coding.h"
#include "eqcodec.h"
#include "floats.h"

static struct coded *code_planes(const void *data, unsigned unit, unsigned transform,
				 size_t n, uint32_t chunk_units)
{
	struct coded *t = must_alloc(sizeof(*t));
	uint64_t hist[8][256] = { { 0 } };
	uint8_t *out, *scratch;
	size_t bound;

	memset(t, 0, sizeof(*t));
	eq_hist_planes(unit, transform, data, n, hist);
	eq_coding_planes(&t->c, unit, transform, n, chunk_units,
			 (const uint64_t(*)[256])hist);
	coded_plan(t, EQ_BF16);
	bound = eq_chunk_bound(&t->c, 0);
	out = must_alloc(bound);
	scratch = must_alloc(eq_chunk_scratch(&t->c));
	for (size_t at = 0; at < n; at += chunk_units) {
		uint32_t now = n - at < chunk_units ? (uint32_t)(n - at) : chunk_units;
		size_t len = eq_chunk_encode_planes(
			&t->c, (uint32_t)(at / chunk_units), (const uint8_t *)data + at * unit, now, out,
			scratch);

		assert_in_range(len, 1, bound);
		assert_in_range(len, 1, (size_t)now * unit + EQ_CHUNK_EXTRA);
		coded_add(t, out, len, at, now);
	}
	free(out);
	free(scratch);
	return t;
}

/* Encode and decode; returns the stored bytes. */
static size_t planes_trip(const void *data, unsigned unit, unsigned transform, size_t n,
			  uint32_t chunk_units)
{
	struct coded *t = code_planes(data, unit, transform, n, chunk_units);
	size_t stored = t->stored;

	coded_decode(t);
	for (unsigned i = 0; i < t->n; i++)
		assert_int_equal(t->job[i].status, 0);
	assert_memory_equal(t->out, data, t->out_len);
	assert_int_equal(t->out[t->out_len], 0xee);
	/* The estimate holds, unless most of the size is overhead. */
	if (n > 100000 && stored > n / 8)
		assert_in_range(stored, t->c.size * 98 / 100, t->c.size * 102 / 100);
	coded_free(t);
	return stored;
}

static void fill_bf16(uint16_t *w, size_t n, double sigma, uint64_t *seed)
{
	for (size_t i = 0; i < n; i++) {
		float f = (float)(sigma * rnd_gauss(seed));
		uint32_t u;

		memcpy(&u, &f, 4);
		w[i] = (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
	}
}

static void test_bf16(void **state)
{
	static const size_t lengths[] = { 1, 127, 128, 129, 255, 257, 2047, 2048, 2049,
					  4096, 4097, 5000, 16384 + 300 };
	size_t n = 600000, stored;
	uint16_t *w = must_alloc(2 * n);
	uint64_t seed = 1;

	(void)state;
	fill_bf16(w, n, 0.02, &seed);
	stored = planes_trip(w, 2, EQ_TRANSFORM_ROTATED, n, 131072);
	assert_in_range(stored * 1000 / (2 * n), 650, 670);
	/* One chunk alone, then teams with a short last one. */
	for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
		planes_trip(w, 2, EQ_TRANSFORM_ROTATED, lengths[i], 32768);
		planes_trip(w, 2, EQ_TRANSFORM_ROTATED, lengths[i], 1280);
		planes_trip(w, 2, EQ_TRANSFORM_NONE, lengths[i], 512);
	}
	free(w);
}

/* float32 that holds bf16 values: two constant planes, a third of the size. */
static void test_f32_of_bf16(void **state)
{
	size_t n = 300001, stored;
	uint16_t *w = must_alloc(2 * n);
	uint32_t *f = must_alloc(4 * n);
	uint64_t seed = 2;

	(void)state;
	fill_bf16(w, n, 1, &seed);
	for (size_t i = 0; i < n; i++)
		f[i] = (uint32_t)w[i] << 16;
	stored = planes_trip(f, 4, EQ_TRANSFORM_ROTATED, n, 131072);
	assert_in_range(stored * 1000 / (4 * n), 320, 340);
	/* And with one unit that is not: its plane is no longer constant in one
	 * chunk, and costs 1/4096 of an octave there. */
	f[200000] |= 1;
	stored = planes_trip(f, 4, EQ_TRANSFORM_ROTATED, n, 65536);
	assert_in_range(stored * 1000 / (4 * n), 320, 340);
	free(w);
	free(f);
}

static void test_f64_and_bytes(void **state)
{
	size_t n = 120011;
	double *d = must_alloc(8 * n);
	uint8_t *b = must_alloc(n);
	uint64_t seed = 3;

	(void)state;
	for (size_t i = 0; i < n; i++)
		d[i] = rnd_gauss(&seed);
	planes_trip(d, 8, EQ_TRANSFORM_ROTATED, n, 16384);
	planes_trip(d, 8, EQ_TRANSFORM_NONE, 1001, 128);
	/* Bytes: single table, pairs, escapes, uniform (raw), constant. */
	rnd_symbols(&seed, b, n, 60, 0.9);
	assert_in_range(planes_trip(b, 1, 0, n, 8192), n / 2, n * 9 / 10);
	rnd_symbols(&seed, b, n, 15, 0.7);
	planes_trip(b, 1, 0, n, 8192);
	for (size_t i = 0; i < n; i += 2001)
		b[i] = (uint8_t)rnd(&seed);
	b[n - 1] = 251;
	planes_trip(b, 1, 0, n, 8192);
	planes_trip(b, 1, 0, n, 131072);
	for (size_t i = 0; i < n; i++)
		b[i] = (uint8_t)rnd(&seed);
	planes_trip(b, 1, 0, n, 8192);
	memset(b, 99, n);
	assert_in_range(planes_trip(b, 1, 0, n, 8192), 1, 16 * 15);
	b[5] = 1;
	planes_trip(b, 1, 0, n, 8192);
	free(d);
	free(b);
}

/* Pairs are chosen where they cost little, and escapes are in use. */
static void test_pair_chosen(void **state)
{
	size_t n = 400000;
	uint8_t *b = must_alloc(n);
	uint64_t seed = 4;
	struct coded *t;

	(void)state;
	rnd_symbols(&seed, b, n, 12, 0.5);
	for (size_t i = 77; i < n; i += 5003)
		b[i] = (uint8_t)(200 + i % 40);
	t = code_planes(b, 1, 0, n, 65536);
	assert_int_equal(t->c.part[0].kind, EQ_PART_PAIR);
	assert_int_equal(t->in[0][0], EQ_PART_PAIR);
	assert_int_not_equal(t->pairs_escaping, 0);
	coded_free(t);
	/* Two planes of pairs. */
	t = code_planes(b, 2, EQ_TRANSFORM_NONE, n / 2, 65536);
	assert_int_equal(t->in[0][0], EQ_PART_PAIR);
	assert_int_equal(t->in[0][16], EQ_PART_PAIR);
	coded_decode(t);
	assert_memory_equal(t->out, b, n);
	coded_free(t);
	rnd_symbols(&seed, b, n, 16, 1);
	t = code_planes(b, 1, 0, n, 65536);
	assert_int_equal(t->c.part[0].kind, EQ_PART_RANS);
	coded_free(t);
	free(b);
}

/* ---- quantised ------------------------------------------------------------- */

struct quant_case {
	int dtype;
	unsigned scale_dtype;
	size_t rows, k;
	uint32_t chunk_units;
	unsigned alphabet;
	double ratio;
	unsigned outliers;      /* every so many units, 0: none */
	float scale;
	bool pair;              /* whether that pays or not */
};

static void force_pairs(struct eq_coding *c, const uint64_t hist[256])
{
	uint64_t bits;

	c->part[1].kind = EQ_PART_PAIR;
	c->part[1].arg = 0;
	c->n_freq = 1;
	assert_int_equal(eq_freq_fit_pair(hist, &c->freq[0], &bits), 0);
	eq_freq_enc(c->freq[0].f, &c->enc[0]);
}

static struct coded *code_quant(const struct quant_case *q, uint64_t *seed)
{
	size_t n = q->rows * q->k, bound, ss = q->scale_dtype == EQ_SCALE_F32 ? 4 : 2;
	struct coded *t = must_alloc(sizeof(*t));
	struct eq_disk_outlier *o = must_alloc(n * sizeof(*o) + 8);
	uint8_t *sym = must_alloc(n), *scales = must_alloc(q->rows * ss);
	uint8_t *out, *scratch, *want = must_alloc(n * 4);
	uint64_t hist[256] = { 0 };
	float value[256];
	uint32_t units[256];    /* of this row, as far as known */
	bool known[256];
	unsigned unit = q->dtype == EQ_F32 ? 4 : 2;

	memset(t, 0, sizeof(*t));
	rnd_symbols(seed, sym, n, q->alphabet, q->ratio);
	for (size_t i = 0; i < n; i++)
		hist[sym[i]]++;
	for (unsigned s = 0; s < 256; s++)
		value[s] = ((float)s - 100) * 0.37f;
	for (size_t r = 0; r < q->rows; r++)
		set_scale(scales, q->scale_dtype, r,
			  r % 7 == 3 ? 0 : q->scale * (float)(1 + r % 5) * 0.3f);
	eq_coding_quant(&t->c, unit, q->scale_dtype, n, q->k, q->chunk_units, hist, value,
			q->outliers ? n / q->outliers : 0);
	if (q->pair)
		force_pairs(&t->c, hist);
	coded_plan(t, q->dtype);
	bound = eq_chunk_bound(&t->c, q->chunk_units);
	out = must_alloc(bound);
	scratch = must_alloc(eq_chunk_scratch(&t->c));
	for (size_t i = 0; i < n; i++) {
		if (i % q->k == 0)
			memset(known, 0, sizeof(known));
		if (!known[sym[i]])
			units[sym[i]] = reference_unit(
				q->dtype, value[sym[i]],
				get_scale(scales, q->scale_dtype, i / q->k));
		known[sym[i]] = true;
		memcpy(want + i * unit, &units[sym[i]], unit);
	}
	for (size_t at = 0; at < n; at += q->chunk_units) {
		uint32_t now = n - at < q->chunk_units ? (uint32_t)(n - at) : q->chunk_units;
		size_t first = at / q->k, last = (at + now - 1) / q->k, n_out = 0, len;

		for (size_t i = 0; q->outliers && i < now; i += q->outliers) {
			o[n_out].pos = (uint32_t)i;
			o[n_out].bits = 0x1234;
			memcpy(want + (at + i) * unit, &o[n_out++].bits, unit);
		}
		len = eq_chunk_encode_quant(&t->c, sym + at, now, scales + first * ss,
					    (last - first + 1) * ss, o, n_out, out, scratch);
		assert_in_range(len, 1, bound);
		coded_add(t, out, len, at, now);
	}
	coded_decode(t);
	for (unsigned i = 0; i < t->n; i++)
		assert_int_equal(t->job[i].status, 0);
	assert_memory_equal(t->out, want, t->out_len);
	assert_int_equal(t->out[t->out_len], 0xee);
	free(o);
	free(sym);
	free(scales);
	free(out);
	free(scratch);
	free(want);
	return t;
}

static void test_quant(void **state)
{
	static const struct quant_case cases[] = {
		{ EQ_BF16, EQ_SCALE_BF16, 7, 640, 1280, 40, 0.9, 0, 0.01f, false },
		{ EQ_BF16, EQ_SCALE_F32, 5, 333, 256, 12, 0.5, 100, 1, false },
		{ EQ_F16, EQ_SCALE_BF16, 9, 130, 384, 40, 0.9, 17, 1e-6f, false },
		{ EQ_F16, EQ_SCALE_F32, 3, 1000, 2048, 9, 0.5, 0, 1e-7f, false },
		{ EQ_F32, EQ_SCALE_BF16, 4, 777, 1024, 40, 0.9, 0, 1e-38f, false },
		{ EQ_F32, EQ_SCALE_F32, 50, 1, 128, 9, 0.5, 3, 3, false },
		{ EQ_BF16, EQ_SCALE_BF16, 300, 3, 128, 200, 1, 0, 1e-39f, false },
		{ EQ_BF16, EQ_SCALE_BF16, 3, 2000, 4096, 1, 1, 500, 1, false },
		/* Pairs with escapes; rows in whole blocks, and not. */
		{ EQ_BF16, EQ_SCALE_BF16, 40, 896, 4096, 18, 0.6, 0, 1, true },
		{ EQ_F16, EQ_SCALE_BF16, 3, 16384, 32768, 18, 0.6, 700, 1, true },
		{ EQ_BF16, EQ_SCALE_F32, 40, 900, 4096, 18, 0.6, 0, 1, true },
		{ EQ_BF16, EQ_SCALE_BF16, 300, 128, 3200, 18, 0.6, 9, 1, true },
		{ EQ_F32, EQ_SCALE_BF16, 40, 896, 4096, 18, 0.6, 0, 1, true },
	};
	uint64_t seed = 5;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct coded *t = code_quant(&cases[i], &seed);

		assert_true(!cases[i].pair || t->pairs_escaping);
		coded_free(t);
	}
}

/* ---- damage ---------------------------------------------------------------- */

/* Whatever the bytes, decoding ends, stays in its buffers (for the sanitizers
 * and the bytes behind the output to tell) and harms no other chunk. */
static void damage(struct coded *t, uint64_t *seed, unsigned rounds)
{
	uint8_t *good = must_alloc(t->out_len);
	unsigned refused = 0;

	coded_decode(t);
	memcpy(good, t->out, t->out_len);
	for (unsigned r = 0; r < rounds; r++) {
		unsigned i = (unsigned)(rnd(seed) % t->n);
		struct eq_decode_job *j = &t->job[i];
		/* Half of the time in the heads, where it matters most. */
		size_t at = rnd(seed) % (r & 1 && j->in_len > 64 ? 64 : j->in_len);
		size_t keep_len = j->in_len;
		uint8_t keep = t->in[i][at];

		t->in[i][at] ^= (uint8_t)(1 << rnd(seed) % 8);
		if (r % 16 == 15)
			j->in_len -= j->in_len > 16 ? 16 : 1;
		coded_decode(t);
		assert_int_equal(t->out[t->out_len], 0xee);
		for (unsigned o = 0; o < t->n; o++) {
			const struct eq_decode_job *jo = &t->job[o];
			size_t off = (size_t)jo->first_unit * t->c.unit;

			if (o == i)
				continue;
			assert_int_equal(jo->status, 0);
			assert_memory_equal(t->out + off, good + off,
					    (size_t)jo->n_units * t->c.unit);
		}
		assert_true(j->status == 0 || j->status == EQ_ECORRUPT);
		refused += j->status != 0;
		t->in[i][at] = keep;
		j->in_len = keep_len;
	}
	assert_true(refused > rounds / 4);
	free(good);
	coded_free(t);
}

static void test_damage(void **state)
{
	static const struct quant_case q[] = {
		{ EQ_BF16, EQ_SCALE_BF16, 9, 300, 512, 12, 0.5, 50, 1, false },
		{ EQ_F16, EQ_SCALE_F32, 9, 300, 512, 40, 0.9, 50, 1, false },
		{ EQ_BF16, EQ_SCALE_BF16, 9, 256, 1024, 18, 0.6, 50, 1, true },
	};
	uint16_t *w = must_alloc(2 * 5000);
	uint8_t *b = must_alloc(5000);
	uint64_t seed = 6;

	(void)state;
	fill_bf16(w, 5000, 1, &seed);
	damage(code_planes(w, 2, EQ_TRANSFORM_ROTATED, 5000, 1280), &seed, 3000);
	rnd_symbols(&seed, b, 5000, 12, 0.5);
	for (size_t i = 0; i < 5000; i += 1500)
		b[i] = 255;
	damage(code_planes(b, 1, 0, 5000, 1280), &seed, 3000);
	damage(code_quant(&q[0], &seed), &seed, 3000);
	damage(code_quant(&q[1], &seed), &seed, 3000);
	damage(code_quant(&q[2], &seed), &seed, 3000);
	free(w);
	free(b);
}

/* One rule of the format broken at a time, by name. */
static void expect(struct coded *t, int status)
{
	coded_decode(t);
	assert_int_equal(t->job[0].status, status);
}

static void test_rules(void **state)
{
	static const struct quant_case q = { EQ_BF16, EQ_SCALE_BF16, 2, 512, 1024,
					     12, 0.5, 300, 1, false };
	uint64_t seed = 7;
	struct coded *t = code_quant(&q, &seed);
	uint8_t *in = t->in[0], keep[64];
	struct eq_disk_part *head = (struct eq_disk_part *)(void *)in;
	uint16_t *scale = (uint16_t *)(void *)(in + 48);
	struct eq_disk_outlier *o;
	uint16_t keep16;
	float v;

	(void)state;
	assert_int_equal(head[1].kind, EQ_PART_PAIR);
	assert_int_equal(head[2].n_entries, 4);
	o = (struct eq_disk_outlier *)(void *)(in + t->job[0].in_len - 32);
	memcpy(keep, head, 48);
	/* heads */
	for (unsigned i = 0; i < 3; i++) {
		head[i].zero0 = 1;
		expect(t, EQ_ECORRUPT);
		memcpy(head, keep, 48);
		head[i].zero1 = 1;
		expect(t, EQ_ECORRUPT);
		memcpy(head, keep, 48);
		for (unsigned kind = 0; kind < 256; kind++) {
			if (kind == keep[16 * i])
				continue;
			head[i].kind = (uint8_t)kind;
			expect(t, EQ_ECORRUPT);
		}
		memcpy(head, keep, 48);
	}
	head[1].arg = 1;
	expect(t, EQ_ECORRUPT);
	memcpy(head, keep, 48);
	head[0].n_words = 1;
	expect(t, EQ_ECORRUPT);
	memcpy(head, keep, 48);
	head[1].n_words = UINT32_MAX;
	expect(t, EQ_ECORRUPT);
	memcpy(head, keep, 48);
	/* scales: negative, infinite, NaN */
	keep16 = scale[1];
	scale[1] = 0xbf80;
	expect(t, EQ_ECORRUPT);
	scale[1] = 0x7f80;
	expect(t, EQ_ECORRUPT);
	scale[1] = 0x7fc0;
	expect(t, EQ_ECORRUPT);
	/* so large that a product overflows, though the scale is finite */
	scale[1] = 0x7f7f;
	expect(t, EQ_ECORRUPT);
	scale[1] = keep16;
	expect(t, 0);
	/* outliers: order, range, high bits, infinite */
	o[1].pos = o[0].pos;
	expect(t, EQ_ECORRUPT);
	o[1].pos = 300;
	o[3].pos = 1024;
	expect(t, EQ_ECORRUPT);
	o[3].pos = 1023;
	expect(t, 0);
	o[3].bits = 0x11234;
	expect(t, EQ_ECORRUPT);
	o[3].bits = 0xff80;
	expect(t, EQ_ECORRUPT);
	o[3].bits = 0x7f7f;
	expect(t, 0);
	/* a symbol without a value */
	v = t->plan.value[5];
	t->plan.value[5] = NAN;
	expect(t, EQ_ECORRUPT);
	t->plan.value[5] = v;
	expect(t, 0);
	coded_free(t);
}

/* A unit whose product overflows is allowed where an outlier replaces it. */
static void test_overflow_under_outlier(void **state)
{
	struct coded *t = must_alloc(sizeof(*t));
	uint8_t sym[256] = { 0 }, out[4096], scratch[4096];
	struct eq_disk_outlier o = { 3, 0x3f80 };
	float value[256] = { [1] = 1e38f, [2] = 1 };
	uint16_t scale = 0x4120; /* 10 */
	uint64_t hist[256] = { 254, 1, 1 };
	size_t len;

	(void)state;
	sym[3] = 1;
	sym[4] = 2;
	memset(t, 0, sizeof(*t));
	eq_coding_quant(&t->c, 2, EQ_SCALE_BF16, 256, 256, 256, hist, value, 1);
	assert_in_range(eq_chunk_scratch(&t->c), 0, sizeof(scratch));
	assert_in_range(eq_chunk_bound(&t->c, 1), 0, sizeof(out));
	coded_plan(t, EQ_BF16);
	len = eq_chunk_encode_quant(&t->c, sym, 256, &scale, 2, &o, 1, out, scratch);
	coded_add(t, out, len, 0, 256);
	expect(t, 0);
	assert_int_equal(t->out[6] | t->out[7] << 8, 0x3f80);
	assert_int_equal(t->out[8] | t->out[9] << 8, 0x4120);
	o.pos = 2;
	len = eq_chunk_encode_quant(&t->c, sym, 256, &scale, 2, &o, 1, out, scratch);
	free(t->in[0]);
	t->n = 0;
	coded_add(t, out, len, 0, 256);
	expect(t, EQ_ECORRUPT);
	coded_free(t);
}

/* ---- raw, const, zstd ------------------------------------------------------ */

static void test_simple_codecs(void **state)
{
	const struct eq_backend *be = eq_backend_cpu();
	struct eq_plan plan = { .unit = 4, .n_units = 1000, .chunk_units = 1024 };
	uint8_t *data = must_alloc(4000), *in = must_alloc(9000), out[4001];
	struct eq_decode_job job = { &plan, in, 4000, 0, 1000, out, 1 };
	size_t len, len2;

	(void)state;
	for (unsigned i = 0; i < 4000; i++)
		data[i] = (uint8_t)(i % 16);
	out[4000] = 0xee;
	plan.codec = EQ_CODEC_RAW;
	memcpy(in, data, 4000);
	be->decode(be->ctx, &job, 1);
	assert_int_equal(job.status, 0);
	assert_memory_equal(out, data, 4000);
	job.in_len = 3984;
	be->decode(be->ctx, &job, 1);
	assert_int_equal(job.status, EQ_ECORRUPT);
	plan.codec = EQ_CODEC_CONST;
	plan.const_value = 0x44332211;
	job.in_len = 0;
	be->decode(be->ctx, &job, 1);
	assert_int_equal(job.status, 0);
	for (unsigned i = 0; i < 4000; i++)
		assert_int_equal(out[i], 0x11 * (i % 4 + 1));
	plan.codec = EQ_CODEC_ZSTD;
	len = ZSTD_compress(in, 9000, data, 4000, 1);
	job.in_len = len;
	be->decode(be->ctx, &job, 1);
	assert_int_equal(job.status, 0);
	assert_memory_equal(out, data, 4000);
	/* too short, too long, cut off, followed by another frame */
	job.n_units = 999;
	be->decode(be->ctx, &job, 1);
	assert_int_equal(job.status, EQ_ECORRUPT);
	job.n_units = 1000;
	job.in_len = len - 1;
	be->decode(be->ctx, &job, 1);
	assert_int_equal(job.status, EQ_ECORRUPT);
	len = ZSTD_compress(in, 9000, data, 2000, 1);
	len2 = ZSTD_compress(in + len, 9000 - len, data + 2000, 2000, 1);
	job.in_len = len + len2;
	be->decode(be->ctx, &job, 1);
	assert_int_equal(job.status, EQ_ECORRUPT);
	assert_int_equal(out[4000], 0xee);
	free(data);
	free(in);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bf16),
		cmocka_unit_test(test_f32_of_bf16),
		cmocka_unit_test(test_f64_and_bytes),
		cmocka_unit_test(test_pair_chosen),
		cmocka_unit_test(test_quant),
		cmocka_unit_test(test_damage),
		cmocka_unit_test(test_rules),
		cmocka_unit_test(test_overflow_under_outlier),
		cmocka_unit_test(test_simple_codecs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
