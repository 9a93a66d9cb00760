/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every kernel of every instruction set this machine has against the scalar
 * one: output, words used, final states, error. All buffers lie between pages
 * that must not be touched, once against the lower one, once the upper one.
 */
#ifdef HAVE_CONFIG_H
#include <config.h>
#endif

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "codec_util.h"
#include "eqcodec.h"
#include "kernels_util.h"
#include "model.h"
#include "rans.h"

#define PAGE 4096u
#define AREA (64 * PAGE)

static struct eq_kernels scalar;
/* Scalar against itself as well: what is said of guard pages holds for it too. */
static struct named_kernels tested[KERNELS_MAX];
static unsigned n_tested;

/* ---- guarded buffers ------------------------------------------------------- */

struct guarded {
	uint8_t *map;
};

static void guarded_init(struct guarded *g)
{
	g->map = mmap(NULL, AREA + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(g->map != MAP_FAILED);
	assert_int_equal(mprotect(g->map + PAGE, AREA, PROT_READ | PROT_WRITE), 0);
}

static void guarded_fini(struct guarded *g)
{
	munmap(g->map, AREA + 2 * PAGE);
}

/* n bytes that end (or begin) at a guard page; what is around them is filled
 * with a pattern. */
static uint8_t *guarded_get(struct guarded *g, size_t n, bool at_end)
{
	assert_in_range(n, 0, AREA);
	memset(g->map + PAGE, 0xa7, AREA);
	return g->map + PAGE + (at_end ? AREA - n : 0);
}

static void check_pattern(const uint8_t *from, const uint8_t *to)
{
	/* Each byte is like the next one: memcmp is fast, also in an emulator. */
	if (from < to && (*from != 0xa7 || memcmp(from, from + 1, (size_t)(to - from) - 1)))
		fail_msg("something in the %td bytes beside the buffer was written",
			 to - from);
}

/* Nothing but p[0..n) was written. */
static void guarded_check(const struct guarded *g, const uint8_t *p, size_t n)
{
	check_pattern(g->map + PAGE, p);
	check_pattern(p + n, g->map + PAGE + AREA);
}

/* ---- decoding -------------------------------------------------------------- */

#define STREAMS 5
#define GROUPS_MAX 7

static const struct {
	unsigned alphabet;
	double ratio;
} kinds[] = {
	{ 2, 1 }, { 2, 0.0001 }, { 3, 0.5 }, { 15, 0.6 }, { 16, 1 }, { 17, 0.9 },
	{ 31, 0.9 }, { 32, 1 }, { 33, 0.95 }, { 63, 0.97 }, { 64, 1 }, { 65, 0.9 },
	{ 129, 0.99 }, { 255, 1 }, { 256, 0.97 },
};
#define KINDS (sizeof(kinds) / sizeof(*kinds))

static void make_freq(struct eq_freq *freq, const uint8_t *sym, size_t n)
{
	uint64_t hist[256] = { 0 };

	scalar.histogram(sym, n, hist);
	hist[1]++;
	hist[2]++;
	memset(freq, 0, sizeof(*freq));
	freq->mode = 1;
	eq_freq_fit(hist, freq->f);
}

static void compare_dec(const struct eq_rans_dec *a, const struct eq_rans_dec *b,
			const uint16_t *base_a, const uint16_t *base_b)
{
	assert_memory_equal(a->x, b->x, sizeof(a->x));
	assert_int_equal(a->next - base_a, b->next - base_b);
	assert_int_equal(a->err, b->err);
}

/* k parts, decoded in two goes; damage 0: none, 1: words, 2: states, 3: too
 * few words. */
static void decode_case(const struct eq_kernels *k, unsigned n_streams, size_t groups,
			unsigned kind, unsigned damage, uint64_t *seed)
{
	static struct guarded in[STREAMS], out[STREAMS], ref[STREAMS];
	struct eq_rans_dec da[STREAMS], db[STREAMS], *pa[STREAMS], *pb[STREAMS];
	uint8_t *oa[STREAMS], *ob[STREAMS], *part[STREAMS];
	struct eq_table *tables = must_alloc(2 * sizeof(*tables));
	struct eq_freq freqs[2];
	size_t first = groups / 2;

	if (!in[0].map) {
		for (unsigned i = 0; i < STREAMS; i++) {
			guarded_init(&in[i]);
			guarded_init(&out[i]);
			guarded_init(&ref[i]);
		}
	}
	for (unsigned i = 0; i < n_streams; i++) {
		uint8_t sym[128 * GROUPS_MAX], *tmp = must_alloc(eq_rans_bound(sizeof(sym)));
		/* Now and then a second table among the streams. */
		unsigned t = (*seed >> 13) % 4 == 0 && i == n_streams / 2;
		const struct eq_freq *freq = &freqs[t];
		struct eq_rans_enc enc;
		uint32_t n_words;
		size_t size;

		rnd_symbols(seed, sym, sizeof(sym), kinds[kind].alphabet, kinds[kind].ratio);
		if (i == 0 || t) {
			make_freq(&freqs[t], sym, sizeof(sym));
			eq_freq_dec(freq, &tables[t]);
		}
		/* Only symbols that the table was made for. */
		for (unsigned j = 0; j < sizeof(sym); j++)
			if (!freq->f[sym[j]])
				sym[j] = tables[t].sym[0];
		eq_freq_enc(freq->f, &enc);
		size = eq_rans_write(&scalar, &enc, sym, groups * 128, tmp, &n_words);
		assert_int_not_equal(size, 0);
		if (damage == 3 && n_words)
			n_words -= 1 + (uint32_t)(rnd(seed) % n_words);
		size = eq_rans_size(n_words);
		part[i] = guarded_get(&in[i], size + EQ_SLACK, true);
		memcpy(part[i], tmp, size);
		if (damage == 1)
			for (unsigned j = 0; j < 2 * n_words; j += 1 + (unsigned)(rnd(seed) % 64))
				part[i][128 + j] = (uint8_t)rnd(seed);
		if (damage == 2)
			for (unsigned j = 0; j < 128; j += 1 + (unsigned)(rnd(seed) % 16))
				part[i][j] = (uint8_t)rnd(seed);
		free(tmp);
		/* Also states that eq_rans_dec_init would refuse. */
		eq_rans_dec_init(&da[i], part[i], n_words, &tables[t]);
		eq_rans_dec_init(&db[i], part[i], n_words, &tables[t]);
		pa[i] = &da[i];
		pb[i] = &db[i];
		ob[i] = guarded_get(&ref[i], groups * 128, true);
		oa[i] = guarded_get(&out[i], groups * 128, (*seed >> 7) & 1);
	}
	for (unsigned go = 0; go < 2; go++) {
		uint8_t *qa[STREAMS], *qb[STREAMS];

		for (unsigned i = 0; i < n_streams; i++) {
			qa[i] = oa[i] + (go ? first * 128 : 0);
			qb[i] = ob[i] + (go ? first * 128 : 0);
		}
		k->rans_decode(pa, qa, n_streams, go ? groups - first : first);
		scalar.rans_decode(pb, qb, n_streams, go ? groups - first : first);
		for (unsigned i = 0; i < n_streams; i++) {
			const uint16_t *base = (const uint16_t *)(void *)(part[i] + 128);

			compare_dec(&da[i], &db[i], base, base);
			assert_memory_equal(oa[i], ob[i], (go ? groups : first) * 128);
		}
	}
	for (unsigned i = 0; i < n_streams; i++) {
		assert_int_equal(eq_rans_dec_finish(&da[i]), eq_rans_dec_finish(&db[i]));
		if (!damage)
			assert_int_equal(eq_rans_dec_finish(&da[i]), 0);
		guarded_check(&out[i], oa[i], groups * 128);
	}
	free(tables);
}

static void test_decode(void **state)
{
	uint64_t seed = 1;

	(void)state;
	for (unsigned v = 0; v < n_tested; v++)
		for (unsigned kind = 0; kind < KINDS; kind++)
			for (unsigned n = 1; n <= STREAMS; n++)
				for (unsigned damage = 0; damage < 4; damage++)
					for (size_t g = 1; g <= GROUPS_MAX; g += 3)
						decode_case(&tested[v].k, n, g, kind, damage,
							    &seed);
}

/* ---- encoding -------------------------------------------------------------- */

static void test_encode(void **state)
{
	uint8_t *sym = must_alloc(128 * GROUPS_MAX);
	uint16_t *wa, *wb;
	struct guarded a, b, in;
	uint64_t seed = 2;
	size_t room = 2 * (128 * GROUPS_MAX + 16);

	(void)state;
	guarded_init(&a);
	guarded_init(&b);
	guarded_init(&in);
	for (unsigned round = 0; round < 40 * KINDS * n_tested; round++) {
		const struct eq_kernels *k = &tested[round % n_tested].k;
		unsigned kind = round / n_tested % KINDS;
		size_t groups = 1 + rnd(&seed) % GROUPS_MAX;
		bool absent = rnd(&seed) % 8 == 0;
		uint32_t xa[32], xb[32];
		struct eq_rans_enc enc;
		struct eq_freq freq;
		uint16_t *ra, *rb;
		uint8_t *s;

		rnd_symbols(&seed, sym, groups * 128, kinds[kind].alphabet,
			    kinds[kind].ratio);
		make_freq(&freq, sym, groups * 128);
		eq_freq_enc(freq.f, &enc);
		s = guarded_get(&in, groups * 128, rnd(&seed) & 1);
		memcpy(s, sym, groups * 128);
		if (absent) {
			unsigned missing = 0;

			while (missing < 256 && freq.f[missing])
				missing++;
			absent = missing < 256;
			if (absent)
				s[rnd(&seed) % (groups * 128)] = (uint8_t)missing;
		}
		wa = (uint16_t *)(void *)guarded_get(&a, room, true);
		wb = (uint16_t *)(void *)guarded_get(&b, room, true);
		for (unsigned l = 0; l < 32; l++)
			xa[l] = xb[l] = 65536 + (uint32_t)(rnd(&seed) >> 33);
		ra = k->rans_encode(&enc, xa, s, groups, wa + room / 2);
		rb = scalar.rans_encode(&enc, xb, s, groups, wb + room / 2);
		assert_int_equal(ra == NULL, rb == NULL);
		assert_int_equal(ra == NULL, absent);
		if (absent)
			continue;
		assert_memory_equal(xa, xb, sizeof(xa));
		assert_int_equal(ra - wa, rb - wb);
		assert_memory_equal(ra, rb, room - (size_t)(ra - wa) * 2);
	}
	guarded_fini(&a);
	guarded_fini(&b);
	guarded_fini(&in);
	free(sym);
}

/* The division by reciprocal, near every multiple that could go wrong. */
static void test_encode_division(void **state)
{
	static const unsigned freqs[] = { 1, 2, 3, 5, 7, 255, 256, 257, 1023, 2047, 2048,
					  2049, 4093, 4094, 4095 };
	uint64_t seed = 3;

	(void)state;
	for (size_t i = 0; i < sizeof(freqs) / sizeof(*freqs); i++) {
		uint16_t f[256] = { 0 }, wa[256], wb[256];
		uint8_t sym[128] = { 0 };
		struct eq_rans_enc enc;

		f[0] = (uint16_t)freqs[i];
		f[9] = (uint16_t)(4096 - freqs[i]);
		eq_freq_enc(f, &enc);
		for (unsigned round = 0; round < 2000; round++) {
			for (unsigned v = 0; v < n_tested; v++) {
				uint32_t xa[32], xb[32];
				uint16_t *ra, *rb;

				for (unsigned l = 0; l < 32; l++) {
					/* a multiple of f, and one less or more */
					uint32_t x = (uint32_t)(rnd(&seed) >> 32) / freqs[i] *
						     freqs[i] + (uint32_t)(rnd(&seed) % 3) - 1;

					xa[l] = xb[l] = x < 65536 ? 65536 : x;
				}
				ra = tested[v].k.rans_encode(&enc, xa, sym, 1, wa + 256);
				rb = scalar.rans_encode(&enc, xb, sym, 1, wb + 256);
				assert_memory_equal(xa, xb, sizeof(xa));
				assert_int_equal(ra - wa, rb - wb);
			}
		}
	}
}

/* ---- planes, pairs, tables ------------------------------------------------- */

static void test_planes(void **state)
{
	struct guarded units, out, plane[8];
	uint64_t seed = 4;

	(void)state;
	guarded_init(&units);
	guarded_init(&out);
	for (unsigned i = 0; i < 8; i++)
		guarded_init(&plane[i]);
	for (unsigned round = 0; round < 2400; round++) {
		const struct eq_kernels *k = &tested[round % n_tested].k;
		unsigned l2 = (unsigned)(rnd(&seed) % 4), unit = 1u << l2;
		size_t n = round < 1200 ? round % 200 : rnd(&seed) % 3000;
		bool rotate = l2 && rnd(&seed) & 1, at_end = rnd(&seed) & 1;
		uint8_t *u = guarded_get(&units, n * unit, at_end), *o;
		uint8_t *pa[8], *want = must_alloc(8 * n + 8), *pb[8];
		const uint8_t *pc[8];

		for (size_t i = 0; i < n * unit; i++)
			u[i] = (uint8_t)rnd(&seed);
		for (unsigned i = 0; i < unit; i++) {
			pa[i] = guarded_get(&plane[i], n, at_end);
			pb[i] = want + i * n;
			pc[i] = pa[i];
		}
		k->split[l2](u, n, rotate, pa);
		scalar.split[l2](u, n, rotate, pb);
		for (unsigned i = 0; i < unit; i++) {
			assert_memory_equal(pa[i], pb[i], n);
			guarded_check(&plane[i], pa[i], n);
		}
		o = guarded_get(&out, n * unit, at_end);
		k->merge[l2](pc, n, rotate, o);
		assert_memory_equal(o, u, n * unit);
		guarded_check(&out, o, n * unit);
		free(want);
	}
	guarded_fini(&units);
	guarded_fini(&out);
	for (unsigned i = 0; i < 8; i++)
		guarded_fini(&plane[i]);
}

static void test_pairs(void **state)
{
	struct guarded a, b;
	uint64_t seed = 5;

	(void)state;
	guarded_init(&a);
	guarded_init(&b);
	for (unsigned round = 0; round < 600; round++) {
		const struct eq_kernels *k = &tested[round % n_tested].k;
		size_t blocks = rnd(&seed) % 20, ca, cb;
		bool at_end = rnd(&seed) & 1;
		uint8_t *in = guarded_get(&a, blocks * 128, at_end), *out;
		uint8_t *want = must_alloc(blocks * 128 + 1), nibble[16], index[256];

		for (size_t i = 0; i < blocks * 128; i++)
			in[i] = (uint8_t)rnd(&seed);
		for (unsigned i = 0; i < 256; i++)
			index[i] = round & 4 || i / 16 % 7 == round % 7 ?
				   (uint8_t)(rnd(&seed) % 16) : 15;
		for (unsigned i = 0; i < 16; i++)
			nibble[i] = (uint8_t)rnd(&seed);
		out = guarded_get(&b, blocks * 64, at_end);
		ca = k->pair_pack(in, blocks, index, out);
		cb = scalar.pair_pack(in, blocks, index, want);
		assert_int_equal(ca, cb);
		assert_memory_equal(out, want, blocks * 64);
		guarded_check(&b, out, blocks * 64);
		in = guarded_get(&a, blocks * 64, at_end);
		for (size_t i = 0; i < blocks * 64; i++)
			in[i] = (uint8_t)rnd(&seed);
		out = guarded_get(&b, blocks * 128, at_end);
		ca = k->pair_expand(in, blocks, nibble, out);
		cb = scalar.pair_expand(in, blocks, nibble, want);
		assert_int_equal(ca, cb);
		assert_memory_equal(out, want, blocks * 128);
		guarded_check(&b, out, blocks * 128);
		free(want);
	}
	guarded_fini(&a);
	guarded_fini(&b);
}

/* Pairs straight to units. */
static void test_pair_units(void **state)
{
	struct guarded pairs, plane, out;
	uint64_t seed = 9;

	(void)state;
	guarded_init(&pairs);
	guarded_init(&plane);
	guarded_init(&out);
	for (unsigned round = 0; round < 600; round++) {
		const struct eq_kernels *k = &tested[round % n_tested].k;
		size_t blocks = rnd(&seed) % 20, ca, cb;
		bool at_end = rnd(&seed) & 1, rotate = rnd(&seed) & 1;
		uint8_t *pair = guarded_get(&pairs, blocks * 64, at_end);
		uint8_t *low = guarded_get(&plane, blocks * 128, at_end), *o;
		uint8_t *want = must_alloc(blocks * 256 + 1), nibble[16];
		uint16_t lut[16];

		for (size_t i = 0; i < blocks * 64; i++)
			pair[i] = (uint8_t)(rnd(&seed) % (round & 2 ? 256 : 255));
		for (size_t i = 0; i < blocks * 128; i++)
			low[i] = (uint8_t)rnd(&seed);
		for (unsigned i = 0; i < 16; i++) {
			nibble[i] = (uint8_t)rnd(&seed);
			lut[i] = (uint16_t)rnd(&seed);
		}
		o = guarded_get(&out, blocks * 256, at_end);
		ca = k->pair_merge16(pair, blocks, nibble, low, rotate, o);
		cb = scalar.pair_merge16(pair, blocks, nibble, low, rotate, want);
		assert_int_equal(ca, cb);
		assert_memory_equal(o, want, blocks * 256);
		guarded_check(&out, o, blocks * 256);
		o = guarded_get(&out, blocks * 256, at_end);
		ca = k->pair_map16(pair, blocks, lut, o);
		cb = scalar.pair_map16(pair, blocks, lut, want);
		assert_int_equal(ca, cb);
		assert_memory_equal(o, want, blocks * 256);
		guarded_check(&out, o, blocks * 256);
		free(want);
	}
	guarded_fini(&pairs);
	guarded_fini(&plane);
	guarded_fini(&out);
}

static void test_histogram(void **state)
{
	struct guarded a;
	uint64_t seed = 6;

	(void)state;
	guarded_init(&a);
	for (unsigned round = 0; round < 500; round++) {
		const struct eq_kernels *k = &tested[round % n_tested].k;
		size_t n = round < 300 ? round : rnd(&seed) % 50000;
		uint8_t *p = guarded_get(&a, n, rnd(&seed) & 1);
		uint64_t ha[256], hb[256];

		rnd_symbols(&seed, p, n, 1 + (unsigned)(rnd(&seed) % 256), 0.9);
		for (unsigned s = 0; s < 256; s++)
			ha[s] = hb[s] = s;
		k->histogram(p, n, ha);
		for (size_t i = 0; i < n; i++)
			hb[p[i]]++;
		assert_memory_equal(ha, hb, sizeof(ha));
	}
	guarded_fini(&a);
}

/* Random values and scales from the whole range, subnormal, huge, NaN. */
static void test_lut(void **state)
{
	uint64_t seed = 7;

	(void)state;
	for (unsigned round = 0; round < 20000; round++) {
		const struct eq_kernels *k = &tested[round % n_tested].k;
		float value[256], scale;
		uint16_t a16[256], b16[256];
		uint32_t a32[256], b32[256], u;

		u = (uint32_t)(rnd(&seed) >> 33);
		if (round & 1) /* products near the range of float16 */
			u = (u & 0x7fffff) | (100 + (uint32_t)(rnd(&seed) % 30)) << 23;
		memcpy(&scale, &u, 4);
		if (!(scale <= 3e38f))
			scale = 1;
		for (unsigned s = 0; s < 256; s++) {
			u = (uint32_t)rnd(&seed);
			if (round & 2)
				u = (u & 0x807fffff) | (110 + u % 30) << 23;
			if (round & 4) /* few bits: ties */
				u &= 0xffffe000;
			memcpy(&value[s], &u, 4);
			if (!(fabsf(value[s]) <= 3e38f))
				value[s] = NAN;
		}
		k->lut_bf16(value, scale, a16);
		scalar.lut_bf16(value, scale, b16);
		assert_memory_equal(a16, b16, sizeof(a16));
		k->lut_f16(value, scale, a16);
		scalar.lut_f16(value, scale, b16);
		assert_memory_equal(a16, b16, sizeof(a16));
		k->lut_f32(value, scale, a32);
		scalar.lut_f32(value, scale, b32);
		assert_memory_equal(a32, b32, sizeof(a32));
	}
}

static void test_map(void **state)
{
	struct guarded a, b;
	uint64_t seed = 8;

	(void)state;
	guarded_init(&a);
	guarded_init(&b);
	for (unsigned round = 0; round < 600; round++) {
		const struct eq_kernels *k = &tested[round % n_tested].k;
		size_t n = round < 300 ? round : rnd(&seed) % 4000;
		bool at_end = rnd(&seed) & 1;
		uint8_t *in = guarded_get(&a, n, at_end), *out;
		uint8_t *want = must_alloc(4 * n + 4);
		uint16_t l16[256];
		uint32_t l32[256];

		/* Of the whole range, or of some of it. */
		for (size_t i = 0; i < n; i++)
			in[i] = (uint8_t)(rnd(&seed) % (round & 4 ? 256 : 20) + round);
		for (unsigned s = 0; s < 256; s++) {
			l32[s] = (uint32_t)rnd(&seed);
			l16[s] = (uint16_t)l32[s];
		}
		out = guarded_get(&b, 2 * n, at_end);
		k->map16(in, n, l16, out);
		scalar.map16(in, n, l16, want);
		assert_memory_equal(out, want, 2 * n);
		guarded_check(&b, out, 2 * n);
		out = guarded_get(&b, 4 * n, at_end);
		k->map32(in, n, l32, out);
		scalar.map32(in, n, l32, want);
		assert_memory_equal(out, want, 4 * n);
		guarded_check(&b, out, 4 * n);
		free(want);
	}
	guarded_fini(&a);
	guarded_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_decode),
		cmocka_unit_test(test_encode),
		cmocka_unit_test(test_encode_division),
		cmocka_unit_test(test_planes),
		cmocka_unit_test(test_pairs),
		cmocka_unit_test(test_pair_units),
		cmocka_unit_test(test_histogram),
		cmocka_unit_test(test_lut),
		cmocka_unit_test(test_map),
	};

	n_tested = all_kernels(tested);
	scalar = tested[0].k;
	for (unsigned i = 0; i < n_tested; i++)
		printf("# testing %s\n", tested[i].name);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
