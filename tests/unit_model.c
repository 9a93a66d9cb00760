/* SPDX-License-Identifier: Apache-2.0 */
/* Frequency tables: optimality, serialisation, and the parser on any bytes. */
#include <config.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "codec_util.h"
#include "coding.h"
#include "eqcodec.h"
#include "model.h"

static unsigned sum_of(const uint16_t f[256])
{
	unsigned sum = 0;

	for (unsigned s = 0; s < 256; s++)
		sum += f[s];
	return sum;
}

static double cost(const uint64_t hist[256], const uint16_t f[256])
{
	double bits = 0;

	for (unsigned s = 0; s < 256; s++)
		if (hist[s])
			bits += (double)hist[s] * (12 - log2(f[s]));
	return bits;
}

/* Three symbols: all 8 million divisions of 4096 are few enough to try. */
static void test_fit_is_optimal(void **state)
{
	static const uint64_t cases[][3] = {
		{ 1, 1, 1 }, { 1000, 10, 1 }, { 5, 300, 100000 },
		{ UINT64_C(1) << 45, 3, 1 }, { 123456789, 987654321, 55555 },
	};
	static double lg[4097];

	(void)state;
	for (unsigned i = 1; i < 4097; i++)
		lg[i] = 12 - log2(i);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		const uint64_t *n = cases[i];
		uint64_t hist[256] = { [0] = n[0], [50] = n[1], [100] = n[2] };
		double best = INFINITY;
		uint16_t f[256];

		eq_freq_fit(hist, f);
		for (unsigned a = 1; a < 4095; a++) {
			for (unsigned b = 1; a + b < 4096; b++) {
				double c = (double)n[0] * lg[a] + (double)n[1] * lg[b] +
					   (double)n[2] * lg[4096 - a - b];

				best = c < best ? c : best;
			}
		}
		assert_true(cost(hist, f) <= best * (1 + 1e-6));
	}
}

static void test_fit_properties(void **state)
{
	uint64_t seed = 1;

	(void)state;
	for (unsigned round = 0; round < 300; round++) {
		uint64_t hist[256] = { 0 };
		unsigned present = 2 + (unsigned)(rnd(&seed) % 255);
		uint16_t f[256];
		double bits, total = 0;

		for (unsigned i = 0; i < present; i++)
			hist[rnd(&seed) % 256] = 1 + (rnd(&seed) >> rnd(&seed) % 50 >> 12);
		hist[3]++;
		hist[4]++;
		eq_freq_fit(hist, f);
		assert_int_equal(sum_of(f), 4096);
		for (unsigned s = 0; s < 256; s++) {
			assert_int_equal(!hist[s], !f[s]);
			total += (double)hist[s];
		}
		bits = cost(hist, f);
		/* Logarithms have 24 bits behind the point. */
		assert_true(fabs((double)eq_freq_bits(hist, f) - bits) <
			    2 + total * 0x1p-23);
		/* No exchange of one unit helps. */
		for (unsigned k = 0; k < 200; k++) {
			unsigned a = (unsigned)(rnd(&seed) % 256);
			unsigned b = (unsigned)(rnd(&seed) % 256);

			if (a == b || f[a] < 2 || !f[b])
				continue;
			f[a]--;
			f[b]++;
			assert_true(cost(hist, f) >= bits - 2 - total * 0x1p-23);
			f[a]++;
			f[b]--;
		}
	}
	{
		uint64_t hist[256] = { [7] = 5, [9] = 1 };
		uint16_t f[256] = { [7] = 4096 };

		assert_true(eq_freq_bits(hist, f) == UINT64_MAX);
	}
}

static void test_pair_table(void **state)
{
	uint64_t hist[256] = { 0 }, bits, single;
	uint16_t f[256];
	struct eq_freq pair;

	(void)state;
	/* Not where 15 symbols do not cover it, nor for one symbol. */
	for (unsigned s = 0; s < 17; s++)
		hist[s] = 1000;
	assert_int_equal(eq_freq_fit_pair(hist, &pair, &bits), -1);
	memset(hist, 0, sizeof(hist));
	hist[8] = 1000;
	assert_int_equal(eq_freq_fit_pair(hist, &pair, &bits), -1);
	/* Geometric, with a few strays. */
	for (unsigned s = 0; s < 12; s++)
		hist[100 + s] = 1u << (24 - 2 * s);
	hist[3] = 100;
	hist[250] = 1;
	assert_int_equal(eq_freq_fit_pair(hist, &pair, &bits), 0);
	assert_int_equal(pair.mode, EQ_TABLE_PAIR);
	assert_int_equal(pair.nibble[0], 100);
	assert_int_equal(pair.nibble[1], 101);
	assert_int_equal(pair.nibble[15], 0);
	assert_int_equal(sum_of(pair.f), 4096);
	eq_freq_fit(hist, f);
	single = eq_freq_bits(hist, f);
	assert_in_range(bits, single * 9 / 10, single * 11 / 10);
}

/* ---- parameters ------------------------------------------------------------ */

static size_t make_params(uint8_t *out, struct eq_plan *plan, bool quant, uint64_t *seed)
{
	struct eq_coding *c = must_alloc(sizeof(*c));
	uint64_t hist[8][256] = { { 0 } };
	float value[256];
	size_t len;

	for (unsigned s = 0; s < 40; s++) {
		hist[0][s * 5] = 1 + rnd(seed) % 1000;
		hist[1][s < 9 ? s : 3] += UINT64_C(100000) >> s;
	}
	for (unsigned s = 0; s < 256; s++)
		value[s] = (float)s - 77;
	if (quant)
		eq_coding_quant(c, 2, EQ_SCALE_BF16, 4096, 64, 1024, hist[0], value, 0);
	else
		eq_coding_planes(c, 2, EQ_TRANSFORM_ROTATED, 4096, 1024,
				 (const uint64_t(*)[256])hist);
	assert_int_equal(c->n_freq, quant ? 1 : 2);
	len = eq_params_write(c, out);
	memset(plan, 0, sizeof(*plan));
	plan->codec = quant ? EQ_CODEC_QUANT : EQ_CODEC_PLANES;
	plan->unit = 2;
	plan->transform = c->transform;
	plan->dtype = EQ_BF16;
	plan->scale_dtype = c->scale_dtype;
	plan->n_units = 4096;
	plan->chunk_units = 1024;
	plan->row_units = c->row_units;
	free(c);
	return len;
}

static void test_params(void **state)
{
	uint8_t *p = must_alloc(EQ_PARAMS_MAX);
	struct eq_plan plan;
	uint64_t seed = 2;
	size_t len;

	(void)state;
	len = make_params(p, &plan, false, &seed);
	assert_int_equal(eq_plan_init(&plan, p, len), 0);
	assert_int_equal(plan.n_tables, 2);
	assert_int_equal(plan.tables[0].mode, EQ_TABLE_SINGLE);
	assert_int_equal(plan.tables[1].mode, EQ_TABLE_PAIR);
	assert_null(plan.value);
	for (unsigned t = 0; t < 2; t++) {
		const uint32_t *slot = plan.tables[t].slot;

		for (unsigned i = 0; i < 4096;) {
			unsigned f = slot[i] >> 12 & 4095;

			assert_in_range(f, 1, 4095);
			for (unsigned j = 0; j < f; j++)
				assert_int_equal(slot[i + j], (slot[i] & 0xfffff000) | j);
			i += f;
		}
	}
	eq_plan_fini(&plan);
	len = make_params(p, &plan, true, &seed);
	assert_int_equal(eq_plan_init(&plan, p, len), 0);
	assert_int_equal(plan.n_tables, 1);
	for (unsigned s = 0; s < 256; s++) {
		bool there = s % 5 == 0 && s < 200;

		assert_int_equal(plan.tables[0].present[s / 8] >> s % 8 & 1, there);
		assert_int_equal(!isnan(plan.value[s]), there);
		if (there)
			assert_true(plan.value[s] == (float)s - 77);
	}
	eq_plan_fini(&plan);
	free(p);
}

static int check(const struct eq_plan *plan, const uint8_t *p, size_t len)
{
	struct eq_plan copy = *plan;
	int rc = eq_plan_check(plan, p, len), rc2 = eq_plan_init(&copy, p, len);

	assert_int_equal(rc, rc2);
	if (rc) {
		assert_null(copy.tables);
		assert_null(copy.value);
	}
	eq_plan_fini(&copy);
	return rc;
}

static void test_params_refused(void **state)
{
	uint8_t *p = must_alloc(EQ_PARAMS_MAX), *q;
	struct eq_plan plan, bad;
	uint64_t seed = 3;
	size_t len = make_params(p, &plan, true, &seed);

	(void)state;
	assert_int_equal(check(&plan, p, len), 0);
	/* Every length but the right one; an exact copy lets ASan see a read
	 * beyond the end. */
	for (size_t cut = 0; cut < len; cut++) {
		q = malloc(cut ? cut : 1);
		assert_non_null(q);
		memcpy(q, p, cut);
		assert_int_equal(check(&plan, q, cut), EQ_ECORRUPT);
		free(q);
	}
	memset(p + len, 0, 8);
	assert_int_equal(check(&plan, p, len + 8), EQ_ECORRUPT);
	/* Every bit: fine or refused, and nearly always refused. */
	for (size_t bit = 0; bit < 8 * len; bit++) {
		int rc;

		p[bit / 8] ^= (uint8_t)(1 << bit % 8);
		rc = check(&plan, p, len);
		if (bit < 8 * 8)
			assert_true(rc == EQ_ECORRUPT || rc == EQ_ELIMIT);
		p[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	p[0] = 65;
	assert_int_equal(check(&plan, p, len), EQ_ELIMIT);
	p[0] = 1;
#define REFUSE(field, with)                                                    \
	do {                                                                   \
		bad = plan;                                                    \
		bad.field = with;                                              \
		assert_int_equal(check(&bad, p, len), EQ_ECORRUPT);            \
	} while (0)
	REFUSE(unit, 0);
	REFUSE(unit, 3);
	REFUSE(unit, 4);
	REFUSE(unit, 16);
	REFUSE(transform, 1);
	REFUSE(dtype, EQ_F32);
	REFUSE(dtype, EQ_I16);
	REFUSE(scale_dtype, 0);
	REFUSE(scale_dtype, 3);
	REFUSE(row_units, 0);
	REFUSE(row_units, 63);
	REFUSE(codec, EQ_CODEC_PLANES);
	REFUSE(codec, EQ_CODEC_RAW);
	len = make_params(p, &plan, false, &seed);
	REFUSE(codec, EQ_CODEC_QUANT);
	REFUSE(transform, 2);
	REFUSE(scale_dtype, 1);
	REFUSE(row_units, 64);
	free(p);
}

/* Symbols as of a tensor at 2 bits, for which pairs take between 0.5 and 1% more. */
static void test_pairs_of_quantised(void **state)
{
	static const uint64_t hist[256] = { 171600, 98500, 98500, 19000, 19000, 1300, 1300, 90,
					    90,	    10,	   10 };
	static const float value[256];
	uint64_t single, pair, n = 0;
	struct eq_freq freq;
	struct eq_coding c;
	uint16_t f[256];

	(void)state;
	for (unsigned s = 0; s < 11; s++)
		n += hist[s];
	eq_freq_fit(hist, f);
	single = eq_freq_bits(hist, f);
	pair = eq_freq_fit_quant(hist, &freq);
	assert_in_range(pair, single + single / 200 + 1, single + single / 100);
	assert_int_equal(freq.mode, EQ_TABLE_PAIR);
	eq_coding_planes(&c, 1, EQ_TRANSFORM_NONE, n, 131072, &hist);
	assert_int_equal(c.part[0].kind, EQ_PART_RANS);
	eq_coding_quant(&c, 2, EQ_SCALE_BF16, n, 2048, 131072, hist, value, 0);
	assert_int_equal(c.part[1].kind, EQ_PART_PAIR);
	assert_memory_equal(&c.freq[0], &freq, sizeof(freq));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fit_is_optimal),
		cmocka_unit_test(test_fit_properties),
		cmocka_unit_test(test_pair_table),
		cmocka_unit_test(test_pairs_of_quantised),
		cmocka_unit_test(test_params),
		cmocka_unit_test(test_params_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
