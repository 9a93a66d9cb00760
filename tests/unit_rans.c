/* SPDX-License-Identifier: Apache-2.0 */
/* The entropy coder against a plain transcription of eqar.5, and round trips. */
#include <config.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "codec_util.h"
#include "eqcodec.h"
#include "model.h"
#include "rans.h"

/* A decoder written from the page, a symbol at a time: looks for the symbol of
 * each slot, knows no tables. Returns whether the part is intact. */
static bool page_decode(const uint16_t f[256], const uint8_t *part, uint32_t n_words,
			size_t m, uint8_t *out)
{
	uint32_t x[32], used = 0;
	size_t groups = (m + 127) / 128;

	memcpy(x, part, 128);
	for (unsigned l = 0; l < 32; l++)
		if (x[l] < 65536)
			return false;
	for (size_t g = 0; g < groups; g++) {
		for (unsigned t = 0; t < 4; t++) {
			for (unsigned l = 0; l < 32; l++) {
				uint32_t slot = x[l] & 4095, c = 0, s = 0;
				uint16_t word;

				while (slot >= c + f[s])
					c += f[s++];
				x[l] = f[s] * (x[l] >> 12) + slot - c;
				if (x[l] < 65536) {
					if (used == n_words)
						return false;
					memcpy(&word, part + 128 + 2 * used++, 2);
					x[l] = x[l] << 16 | word;
				}
				if (g * 128 + 4 * l + t < m)
					out[g * 128 + 4 * l + t] = (uint8_t)s;
			}
		}
	}
	for (unsigned l = 0; l < 32; l++)
		if (x[l] != 65536)
			return false;
	return used == n_words;
}

static void count(const uint8_t *p, size_t n, uint64_t hist[256])
{
	memset(hist, 0, 256 * sizeof(*hist));
	for (size_t i = 0; i < n; i++)
		hist[p[i]]++;
}

/* Encode with the kernels, decode with the page and with the kernels. */
static void round_trip(const uint8_t *sym, size_t n, const uint16_t f[256])
{
	struct eq_freq freq = { .mode = 1 };
	struct eq_rans_enc enc;
	struct eq_table *table = must_alloc(sizeof(*table));
	uint8_t *part = must_alloc(eq_rans_bound(n) + EQ_SLACK);
	uint8_t *got = must_alloc(n + 128), *page = must_alloc(n + 128);
	const struct eq_kernels *k = eq_kernels_get();
	struct eq_rans_dec dec, *decs[1] = { &dec };
	uint32_t n_words;
	size_t size;

	memcpy(freq.f, f, sizeof(freq.f));
	eq_freq_enc(f, &enc);
	eq_freq_dec(&freq, table);
	memset(part, 0xa5, eq_rans_bound(n) + EQ_SLACK);
	size = eq_rans_write(k, &enc, sym, n, part, &n_words);
	assert_int_equal(size, eq_rans_size(n_words));
	assert_in_range(size, 128, eq_rans_bound(n));
	assert_true(page_decode(f, part, n_words, n, page));
	assert_memory_equal(page, sym, n);
	assert_int_equal(eq_rans_dec_init(&dec, part, n_words, table), 0);
	k->rans_decode(decs, &got, 1, (n + 127) / 128);
	assert_int_equal(eq_rans_dec_finish(&dec), 0);
	assert_memory_equal(got, sym, n);
	free(table);
	free(part);
	free(got);
	free(page);
}

static void test_round_trips(void **state)
{
	static const size_t lengths[] = { 1, 2, 31, 32, 33, 127, 128, 129, 255, 256,
					  257, 1000, 4096, 65536 + 77 };
	static const struct {
		unsigned alphabet;
		double ratio;
	} kinds[] = { { 2, 1 }, { 2, 0.001 }, { 3, 0.5 }, { 16, 0.6 },
		      { 40, 0.8 }, { 255, 1 }, { 256, 0.99 }, { 256, 1 } };
	uint8_t *sym = must_alloc(70000);
	uint64_t seed = 1, hist[256];
	uint16_t f[256];

	(void)state;
	for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
		for (size_t j = 0; j < sizeof(kinds) / sizeof(*kinds); j++) {
			rnd_symbols(&seed, sym, lengths[i], kinds[j].alphabet,
				    kinds[j].ratio);
			count(sym, lengths[i], hist);
			/* At least two symbols make a table. */
			hist[0]++;
			hist[255]++;
			eq_freq_fit(hist, f);
			round_trip(sym, lengths[i], f);
		}
	}
	free(sym);
}

static void test_degenerate_tables(void **state)
{
	uint8_t *sym = must_alloc(10000);
	uint16_t f[256];
	uint64_t seed = 2;

	(void)state;
	/* 4095 : 1, both ways round, all of one, all of the other, mixed. */
	for (unsigned way = 0; way < 6; way++) {
		memset(f, 0, sizeof(f));
		f[way & 1 ? 0 : 255] = 4095;
		f[way & 1 ? 255 : 0] = 1;
		for (unsigned i = 0; i < 10000; i++)
			sym[i] = way < 2 ? 0 : way < 4 ? 255 :
				 rnd(&seed) & 64 ? 255 : 0;
		round_trip(sym, 10000, f);
	}
	/* Every symbol once, the rest to one of them. */
	for (unsigned s = 0; s < 256; s++)
		f[s] = s == 77 ? 4096 - 255 : 1;
	for (unsigned i = 0; i < 10000; i++)
		sym[i] = (uint8_t)rnd(&seed);
	round_trip(sym, 10000, f);
	free(sym);
}

/* Bytes worked out by hand from the page: 128 symbols 0 under f = {2048, 2048}.
 * An encoder step doubles a state: 65536 -> 131072 ... 1048576 after four, no
 * word is due (x < f << 20). With a 1 among them the start of 2048 is added. */
static void test_known_answer(void **state)
{
	const struct eq_kernels *k = eq_kernels_get();
	uint8_t sym[128] = { 0 }, part[128 + 2 * 272 + EQ_SLACK];
	uint16_t f[256] = { 2048, 2048 };
	struct eq_rans_enc enc;
	uint32_t n_words, x[32];

	(void)state;
	eq_freq_enc(f, &enc);
	sym[4 * 5 + 3] = 1; /* lane 5, its last step: coded first */
	sym[4 * 7 + 0] = 1; /* lane 7, its first step: coded last */
	assert_int_equal(eq_rans_write(k, &enc, sym, 128, part, &n_words), 128);
	assert_int_equal(n_words, 0);
	memcpy(x, part, 128);
	for (unsigned l = 0; l < 32; l++) {
		uint32_t want = 1048576;

		if (l == 5) /* 65536 -> 131072 + 2048 = 133120, then doubled */
			want = 133120 * 8;
		if (l == 7)
			want = 1048576 + 2048;
		assert_int_equal(x[l], want);
	}
	/* f = 1: 65536 >= 1 << 20 is false, so the first step gives 65536 << 12
	 * = 2^28 + start; the second must emit its low word first. */
	memset(f, 0, sizeof(f));
	f[9] = 4095;
	f[200] = 1;
	eq_freq_enc(f, &enc);
	memset(sym, 9, sizeof(sym));
	sym[3] = sym[2] = 200;
	eq_rans_write(k, &enc, sym, 128, part, &n_words);
	memcpy(x, part, 128);
	assert_int_equal(n_words, 1);
	/* Step 3: 2^28 + 4095. Step 2: word 4095 out, x = 4096, then
	 * (4096 << 12) + 4095. Steps 1 and 0 by 4095/4096:
	 * 16781311 / 4095 = 4098 rest 1 -> 16785409,
	 * 16785409 / 4095 = 4099 rest 4 -> 16789508. */
	assert_int_equal(part[128] | part[129] << 8, 4095);
	assert_int_equal(x[0], 16789508);
}

static void test_absent_symbol(void **state)
{
	const struct eq_kernels *k = eq_kernels_get();
	uint16_t f[256] = { 2048, 2048 };
	uint8_t sym[300] = { 0 }, *part = must_alloc(eq_rans_bound(300));
	struct eq_rans_enc enc;
	uint32_t n_words;

	(void)state;
	eq_freq_enc(f, &enc);
	for (unsigned at = 0; at < 300; at++) {
		sym[at] = 2;
		assert_int_equal(eq_rans_write(k, &enc, sym, 300, part, &n_words), 0);
		sym[at] = 0;
	}
	assert_int_not_equal(eq_rans_write(k, &enc, sym, 300, part, &n_words), 0);
	free(part);
}

/* Change one bit of a part at a time: the decoder must agree with the page on
 * whether the part is intact, and end whatever happens. */
static void test_corrupt(void **state)
{
	const struct eq_kernels *k = eq_kernels_get();
	struct eq_freq freq = { .mode = 1 };
	uint64_t seed = 3, hist[256];
	uint8_t sym[500], got[512], page[512];
	uint8_t *part = must_alloc(eq_rans_bound(500) + EQ_SLACK);
	struct eq_table *table = must_alloc(sizeof(*table));
	struct eq_rans_enc enc;
	uint32_t n_words;
	size_t size;
	unsigned refused = 0;

	(void)state;
	rnd_symbols(&seed, sym, 500, 30, 0.8);
	count(sym, 500, hist);
	eq_freq_fit(hist, freq.f);
	eq_freq_enc(freq.f, &enc);
	eq_freq_dec(&freq, table);
	memset(part, 0, eq_rans_bound(500) + EQ_SLACK);
	size = eq_rans_write(k, &enc, sym, 500, part, &n_words);
	for (size_t bit = 0; bit < 8 * (size + 4); bit++) {
		/* The last rounds leave the bytes and change the length. */
		uint32_t words = bit < 8 * size ? n_words :
				 n_words - 16 + (uint32_t)(bit - 8 * size);
		struct eq_rans_dec dec, *decs[1] = { &dec };
		uint8_t *out = got;
		int rc;

		if (bit < 8 * size)
			part[bit / 8] ^= (uint8_t)(1 << bit % 8);
		rc = eq_rans_dec_init(&dec, part, words, table);
		if (!rc) {
			k->rans_decode(decs, &out, 1, 4);
			rc = eq_rans_dec_finish(&dec);
		}
		assert_int_equal(rc == 0,
				 page_decode(freq.f, part, words, 500, page));
		assert_true(rc == 0 || rc == EQ_ECORRUPT);
		refused += rc != 0;
		if (bit < 8 * size)
			part[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	assert_true(refused > 8 * size * 9 / 10);
	free(part);
	free(table);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_known_answer),
		cmocka_unit_test(test_round_trips),
		cmocka_unit_test(test_degenerate_tables),
		cmocka_unit_test(test_absent_symbol),
		cmocka_unit_test(test_corrupt),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
