/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A few frequency tables for a plane whose statistics change along the tensor (a
 * vocabulary's rare words, experts that lie one behind the other). Runs of chunks
 * choose among them: neighbours share a table, because decoders work on several
 * chunks at once and want the same one for all.
 */
#include <string.h>

#include "coding_tables.h"

#define ROUNDS 3
/* A table more must save this share of the bits, and twice what it takes. */
#define MUST_SAVE 500
#define TABLE_BITS 2000

struct runs {
	const struct eq_run_hist *h;
	unsigned n;
	const bool *also;       /* symbols that every table has */
	uint64_t must_save;     /* bits */
};

static const uint64_t *run_hist(const struct runs *r, unsigned run)
{
	return r->h->hist[run * r->h->stride];
}

/* The table of the runs that have chosen t, and how many these are. */
static unsigned fit(const struct runs *r, const uint8_t *table, unsigned t, uint16_t f[256])
{
	uint64_t sum[256];
	unsigned n = 0;

	for (unsigned s = 0; s < 256; s++)
		sum[s] = r->also[s];
	for (unsigned i = 0; i < r->n; i++) {
		if (table[i] != t)
			continue;
		n++;
		for (unsigned s = 0; s < 256; s++)
			sum[s] += run_hist(r, i)[s];
	}
	if (n)
		eq_freq_fit(sum, f);
	return n;
}

/* The mean symbol of the runs that have chosen t, or of one run; times 256. */
static uint64_t mean_symbol(const struct runs *r, const uint8_t *table, unsigned t, unsigned from,
			    unsigned to)
{
	uint64_t sum = 0, n = 0;

	for (unsigned i = from; i < to; i++) {
		if (table[i] != t)
			continue;
		for (unsigned s = 0; s < 256; s++) {
			n += run_hist(r, i)[s];
			sum += run_hist(r, i)[s] * s;
		}
	}
	return n ? sum * 256 / n : 0;
}

/* Let each run of tables a and b have the cheaper one; returns their bits. */
static uint64_t assign(const struct runs *r, uint8_t *table, unsigned a, unsigned b,
		       const uint16_t fa[256], const uint16_t fb[256])
{
	uint64_t bits = 0;

	for (unsigned i = 0; i < r->n; i++) {
		uint64_t in_a, in_b;

		if (table[i] != a && table[i] != b)
			continue;
		in_a = eq_freq_bits(run_hist(r, i), fa);
		in_b = eq_freq_bits(run_hist(r, i), fb);
		table[i] = (uint8_t)(in_a <= in_b ? a : b);
		bits += in_a <= in_b ? in_a : in_b;
	}
	return bits;
}

static uint64_t bits_of(const struct runs *r, const uint8_t *table, unsigned t,
			const uint16_t f[256])
{
	uint64_t bits = 0;

	for (unsigned i = 0; i < r->n; i++)
		if (table[i] == t)
			bits += eq_freq_bits(run_hist(r, i), f);
	return bits;
}

/*
 * Give some of the runs that have table t table b instead: first those with the
 * greater symbols, then by turns better tables and the better choice. All is as
 * it was, and the result false, when that does not pay.
 */
static bool split(const struct runs *r, uint8_t *table, unsigned t, unsigned b,
		  struct eq_freq *freq)
{
	uint64_t mean = mean_symbol(r, table, t, 0, r->n), before, after = 0;
	uint16_t fa[256], fb[256];
	uint8_t now[EQ_RUNS_MAX];

	memcpy(now, table, r->n);
	for (unsigned i = 0; i < r->n; i++)
		if (table[i] == t && mean_symbol(r, table, t, i, i + 1) > mean)
			now[i] = (uint8_t)b;
	before = bits_of(r, table, t, freq[t].f);
	for (unsigned round = 0; round < ROUNDS; round++) {
		if (!fit(r, now, t, fa) || !fit(r, now, b, fb))
			return false;
		after = assign(r, now, t, b, fa, fb);
		if (after + r->must_save / 2 > before)
			return false;
	}
	if (after + r->must_save > before || !fit(r, now, t, fa) || !fit(r, now, b, fb))
		return false;
	memcpy(table, now, r->n);
	memcpy(freq[t].f, fa, sizeof(fa));
	memcpy(freq[b].f, fb, sizeof(fb));
	freq[b].mode = EQ_TABLE_SINGLE;
	return true;
}

unsigned eq_tables_choose(const struct eq_run_hist *h, const bool also[256], double share,
			  struct eq_freq *freq, uint8_t *table, uint64_t *bits)
{
	struct runs r = { .h = h, .n = h->n, .also = also };
	unsigned n = 1, t = 0;

	memset(table, 0, r.n);
	fit(&r, table, 0, freq[0].f);
	freq[0].mode = EQ_TABLE_SINGLE;
	*bits = bits_of(&r, table, 0, freq[0].f);
	r.must_save = *bits / MUST_SAVE + (uint64_t)(TABLE_BITS * share);
	while (t < n && n < EQ_TABLES_MAX) {
		if (split(&r, table, t, n, freq))
			n++;
		else
			t++;
	}
	*bits = 0;
	for (t = 0; t < n; t++)
		*bits += bits_of(&r, table, t, freq[t].f);
	return n;
}
