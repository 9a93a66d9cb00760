/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cost of a scale for a row.
 *
 * The units of a row enter it by their magnitudes only. These are put into bins by the
 * first bits of their pattern as float32. With N(x) and S(x), the number and the sum of
 * the units that are not below x, a scale s whose levels v_j begin at b_j = s m_j has
 *
 *   distortion  S(0) + 2 sum (S(s v_j) - S(b_j))
 *               + s sum ((v_j + v_j-1) N(b_j) - 2 v_j N(s v_j))
 *   rate        sum (v_j - v_j-1) N(b_j)                 (sums over j >= 1)
 *
 * that is a few look-ups a level. Units are integers times a power of two and so are
 * levels, hence all sums are sums of integers and exact in any order. b_j and s v_j are
 * exact in float32: s has 8 significant bits, v_j and m_j have at most 8.
 *
 * The first 16 levels of fp8 are integers like those of int8; all others are the second
 * eight times a power of two, as are their lower ends.
 *
 * Where a level begins and where its value lies among the bins depends on the bits of
 * the scale's mantissa but for whole octaves, so that is worked out once. Bins have a
 * fixed place below the octave of the greatest unit. Rows that reach below the normal
 * numbers are lifted by 64 octaves, which changes no comparison.
 *
 * bfloat16 and float16 have a bin for each value. Bins of float32 have more than one,
 * and what a level's end cuts such a bin into is not known: the units of a bin that is
 * cut by b_j are taken to be below it, which can make the rate too small, and the
 * distortion too great by no more than twice the bin's width each, which is
 * subtracted. On whichever side of s v_j they are taken to be, their distortion does not
 * become too great. Scales that may be the best, going by this, are then tried on the
 * units themselves (eq_row_ask()).
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant_row.h"

#define WINDOW_F16 21           /* so much, since it has more bins */
#define MANT_F32 9
#define PAD 6                   /* octaves above the window in which levels may lie */
#define LIFT 64
#define EXTEND 32               /* bins summed at a time, part of an octave */
#define BATCH 8                 /* scales that are evaluated with as many levels */

static uint32_t octaves(const struct eq_row *r, uint32_t n)
{
	return n << r->mant;
}

/* 2^e, of a normal double */
static double power(int e)
{
	uint64_t bits = (uint64_t)(1023 + e) << 52;
	double d;

	memcpy(&d, &bits, sizeof(d));
	return d;
}

/* ---- the row's statistics ------------------------------------------------ */

/* Count all units, those below the bin together. Bins that are not exact also have the
 * sum of what is below patterns, the rests; of these the last bits may be left out. */
static void row_count(struct eq_row *r, uint32_t bin)
{
	uint32_t *count = (uint32_t *)(void *)r->count, at[EQ_STRIP], rest[EQ_STRIP];
	size_t size = r->exact ? sizeof(*count) : sizeof(*r->count);
	struct eq_quant_bins b = { .lift = r->lift ? 0x1p64f : 1, .shift = 23 - r->mant,
				   .off = r->off, .rest = r->rest };

	r->counted = bin > r->first ? bin : r->first;
	r->low = r->end;
	b.least = r->off + r->counted - 1;
	memset((uint8_t *)r->count + (r->counted - 1) * size, 0, (r->end - r->counted + 1) * size);
	for (uint64_t k = 0; k < r->k; k += EQ_STRIP) {
		size_t n = r->k - k < EQ_STRIP ? r->k - k : EQ_STRIP;

		r->ops->bins(&b, r->w + k * eq_quant_unit(r->dtype), r->dtype, n, at,
			     r->exact ? NULL : rest);
		if (r->exact)
			for (size_t i = 0; i < n; i++)
				count[at[i]]++;
		else
			for (size_t i = 0; i < n; i++)
				r->count[at[i]] += UINT64_C(1) << 32 | rest[i];
	}
}

/* Sum down to the bin, and somewhat further. */
static void row_extend(struct eq_row *r, uint32_t bin)
{
	uint32_t one = octaves(r, 1), to = bin - bin % EXTEND;

	to = to > r->counted ? to : r->counted;
	while (r->low > to) {
		/* bins of an octave are evenly spaced */
		uint32_t last = r->low - 1 - r->first, octave = last >> r->mant;
		uint32_t least = r->first + octaves(r, octave);

		least = least > to ? least : to;
		r->ops->tails(r->count, r->exact, r->tail, r->low, least, one + last % one, octave,
			      r->rest);
		r->low = least;
	}
}

/* The bin that b_1 is in, or is the first of. */
static int64_t first_bin(const struct eq_row *r, uint32_t bits)
{
	uint32_t octave = bits / EQ_ROW_OCTAVE + r->lift, m = bits % EQ_ROW_OCTAVE;
	int64_t p = ((int64_t)octave - eq_row_first_octave(r)) * octaves(r, 1) +
		    (m << (r->mant - 7));

	return p - r->off;
}

bool eq_row_begin(struct eq_row *r, const void *w, uint32_t hint)
{
	uint32_t top = 0, octave;
	int64_t bin;

	r->w = w;
	r->ops->most(w, r->dtype, r->k, &top);
	if (!top)
		return false;
	r->absmax = eq_float_of(top);
	r->lift = top >> 23 < EQ_ROW_WINDOW ? LIFT : 0;
	octave = r->lift ? eq_float_bits(r->absmax * 0x1p64f) >> 23 : top >> 23;
	r->off = octaves(r, octave + 1) - r->end;
	r->unit = power((int)(octave - ((r->end - r->first) >> r->mant) + 1 - r->lift) - 127 -
			(int)(r->mant + r->rest));
	bin = hint >= EQ_ROW_SCALE_MIN ? first_bin(r, hint) - 5 * (int64_t)octaves(r, 1) / 2 : 0;
	/* a hint of no use would only make the row be counted twice */
	row_count(r, bin > 0 && bin < r->end ? (uint32_t)bin : 0);
	return true;
}

/* Make bins ready from this one on. */
static void row_reach(struct eq_row *r, int64_t bin)
{
	if (bin < r->counted)
		row_count(r, 0);
	if (bin < r->low)
		row_extend(r, (uint32_t)bin);
}

/* ---- places of levels ---------------------------------------------------- */

/* Bits of the least magnitude that is not below level j. Its product with inv decides,
 * and of a tie, which level is even; rounding moves it by two of its last places at
 * most. */
static uint32_t edge_bits(const struct eq_row *r, unsigned j, float scale, float inv)
{
	uint32_t first = eq_float_bits(r->f.mid[j] * scale) - 2, u = first;

	for (uint32_t i = 0; i < 5; i++) {
		float t = eq_float_of(first + i) * inv;

		u += t < r->f.mid[j] || (t == r->f.mid[j] && j % 2);
	}
	return u;
}

/* The bin of a magnitude; if a bin is one value, the first that is not below. */
static uint16_t place_of(const struct eq_row *r, uint32_t u)
{
	uint32_t shift = 23 - r->mant, up = r->exact ? (1u << shift) - 1 : 0;

	return (uint16_t)(2 * (((u + up) >> shift) - octaves(r, 127 - eq_row_first_octave(r))));
}

/* Have a mantissa's first n levels in the table. */
static void place_fill(struct eq_row *r, uint32_t mantissa, unsigned n)
{
	float scale = eq_float_of((127 * EQ_ROW_OCTAVE + mantissa) << 16), inv = 1.0f / scale;
	unsigned levels = eq_row_levels(r);
	uint16_t *place = r->place + 2 * levels * mantissa;

	for (unsigned j = r->filled[mantissa] + 1u; j <= n; j++) {
		place[j - 1] = place_of(r, edge_bits(r, j, scale, inv));
		place[levels + j - 1] = place_of(r, eq_float_bits(r->f.value[j] * scale));
	}
	r->filled[mantissa] = (uint8_t)n;
}

const uint16_t *eq_row_places(struct eq_row *r, uint32_t mantissa, unsigned levels)
{
	if (r->filled[mantissa] < levels)
		place_fill(r, mantissa, levels);
	return r->place + 2 * eq_row_levels(r) * mantissa;
}

/* ---- the cost of a scale ------------------------------------------------- */

struct sums {                   /* of distortion, less the units' value; V, rate */
	uint64_t ds, dn, v, r;  /* modulo 2^64: all of them fit in the end */
};

/* Where a scale's look-ups go. */
struct look {
	const int64_t *tails;
	const uint16_t *edge, *value;
	unsigned levels;        /* 8, 16 and so on */
	unsigned more;          /* octaves of fp8 above those 16 */
	int64_t octave;         /* between tails */
};

/* The sum of tails, and that of each times its level: running sums, and one of these. */
struct run {
	eq_quant_tail sum, weighed;
};

#define INLINE static inline __attribute__((always_inline))

/* Go on with eight more levels, downwards. */
INLINE void run_on(struct run *s, const int64_t *tails, const uint16_t *at)
{
#pragma GCC unroll 8
	for (unsigned m = 8; m; m--) {
		s->sum += *(const eq_quant_tail *)&tails[at[m - 1]];
		s->weighed += s->sum;
	}
}

/* Levels 9 to 16 and those that recur, by their places above 8. */
static struct run run_above(const struct look *l, const int64_t *tails, const uint16_t *at)
{
	const eq_quant_tail twice = { 0, UINT64_MAX };
	struct run all = { { 0, 0 }, { 0, 0 } };

	for (unsigned e = l->more + 1; e--;) {
		struct run s = { { 0, 0 }, { 0, 0 } };

		run_on(&s, tails + e * l->octave, at);
		all.sum += (all.sum & twice) + s.sum;
		all.weighed += (all.weighed & twice) + s.weighed;
	}
	return all;
}

INLINE struct run run_of(const struct look *l, const int64_t *tails, const uint16_t *at)
{
	struct run s = { { 0, 0 }, { 0, 0 } };
	unsigned j = l->levels;

	if (l->more) {
		j -= 8;
		s = run_above(l, tails, at + j);
	}
	while (j) {
		j -= 8;
		run_on(&s, tails, at + j);
	}
	return s;
}

/* By lower ends and by values of levels, which are the integers. */
INLINE struct sums sums_of(const struct look *l, int64_t edges, int64_t values)
{
	struct run e = run_of(l, l->tails + edges, l->edge);
	struct run v = run_of(l, l->tails + values, l->value);

	return (struct sums){
		.ds = v.sum[EQ_TAIL_SUM] - e.sum[EQ_TAIL_SUM],
		.dn = 2 * e.weighed[EQ_TAIL_COUNT] - e.sum[EQ_TAIL_COUNT],
		.v = v.weighed[EQ_TAIL_COUNT], .r = e.sum[EQ_TAIL_COUNT],
	};
}

/* Outliers are exact, and have the symbol of the greatest level: take back what the
 * one behind it has added. */
static eq_quant_tail cut_off(struct sums *s, const struct look *l, int64_t edges, int64_t values)
{
	uint64_t top = l->levels - 1;
	eq_quant_tail edge = *(const eq_quant_tail *)&l->tails[l->edge[top] + edges];
	eq_quant_tail value = *(const eq_quant_tail *)&l->tails[l->value[top] + values];

	s->ds += edge[EQ_TAIL_SUM] - value[EQ_TAIL_SUM];
	s->r -= edge[EQ_TAIL_COUNT];
	s->dn -= (2 * top + 1) * edge[EQ_TAIL_COUNT];
	s->v -= (top + 1) * value[EQ_TAIL_COUNT];
	return edge;
}

bool eq_row_fits(const struct eq_row *r, uint32_t bits)
{
	return first_bin(r, bits) >= r->first &&
	       (r->format != EQ_Q_FP8 || eq_float_of(bits << 16) * 448 >= r->absmax);
}

INLINE void finish(const struct eq_row *r, struct eq_row_point *p, const struct sums *s,
		   uint64_t most, eq_quant_tail cut)
{
	uint64_t dn = s->dn + most * cut[EQ_TAIL_COUNT] - 2 * s->v;

	p->dist = (2 * (double)(int64_t)s->ds - (double)(int64_t)cut[EQ_TAIL_SUM]) * r->unit +
		  (double)(int64_t)dn * ((double)p->scale * (double)r->f.unit);
	p->rate = r->nu * (double)(int64_t)s->r;
}

INLINE void evaluate_exact(const struct eq_row *r, struct eq_row_point *p, const struct look *l,
			   bool beyond)
{
	struct sums s = sums_of(l, 0, 0);
	eq_quant_tail cut = { 0, 0 };

	if (beyond)
		cut = cut_off(&s, l, 0, 0);
	finish(r, p, &s, r->f.top, cut);
	p->crossed[0] = p->crossed[1] = (double)(int64_t)s.v * (double)r->f.unit;
	p->outliers[0] = p->outliers[1] = (int64_t)cut[EQ_TAIL_COUNT];
}

/* Bounds. A place is a bin that is cut: the next one is behind it. */
INLINE void evaluate_bounds(const struct eq_row *r, struct eq_row_point *p, const struct look *l,
			    bool beyond)
{
	struct sums s = sums_of(l, 2, 0), t = sums_of(l, 0, 2);
	eq_quant_tail cut = { 0, 0 };

	p->outliers[0] = p->outliers[1] = 0;
	if (beyond) {
		/* more outliers: less distortion, and no other rate */
		cut = cut_off(&t, l, 0, 2);
		p->outliers[1] = (int64_t)cut[EQ_TAIL_COUNT];
		p->outliers[0] = (int64_t)cut_off(&s, l, 2, 0)[EQ_TAIL_COUNT];
	}
	finish(r, p, &s, r->f.top, cut);
	p->dist -= (double)(int64_t)(t.dn - s.dn) * power(-(int)r->mant) *
		   ((double)p->scale * (double)r->f.unit);
	p->crossed[0] = (double)(int64_t)t.v * (double)r->f.unit;
	p->crossed[1] = (double)(int64_t)s.v * (double)r->f.unit;
}

/* Scales of the same look-ups but for where. */
INLINE void evaluate_all(struct eq_row *r, struct eq_row_point *p, unsigned n, struct look l,
			 bool exact, bool beyond)
{
	int64_t zero = 2 * first_bin(r, 0);
	unsigned levels = eq_row_levels(r);

	for (unsigned i = 0; i < n; i++) {
		uint32_t octave = p[i].bits / EQ_ROW_OCTAVE, mantissa = p[i].bits % EQ_ROW_OCTAVE;

		p[i].scale = eq_float_of(p[i].bits << 16);
		l.tails = (const int64_t *)r->tail + (zero + octave * l.octave);
		l.edge = eq_row_places(r, mantissa, l.levels);
		l.value = l.edge + levels;
		if (exact)
			evaluate_exact(r, &p[i], &l, beyond);
		else
			evaluate_bounds(r, &p[i], &l, beyond);
	}
}

/* Evaluate scales of one octave. */
static void evaluate_near(struct eq_row *r, struct eq_row_point *p, unsigned n)
{
	float inv = 1.0f / eq_float_of(p[n - 1].bits << 16);
	uint32_t most = eq_row_levels(r), top = eq_row_level(r, r->absmax * inv);
	struct look l = { .octave = 2 * (int64_t)octaves(r, 1) };

	l.levels = top <= 8 ? 8 : top <= most ? (top + 7) & ~7u : most;
	if (r->format == EQ_Q_FP8) {
		l.more = top > 16 ? (top - 9) / 8 : 0;
		if (r->exact)
			evaluate_all(r, p, n, l, true, false);
		else
			evaluate_all(r, p, n, l, false, false);
	} else if (r->exact) {
		evaluate_all(r, p, n, l, true, top > r->f.top);
	} else {
		evaluate_all(r, p, n, l, false, top > r->f.top);
	}
}

void eq_row_evaluate(struct eq_row *r, struct eq_row_point *p, unsigned n)
{
	row_reach(r, first_bin(r, p[n - 1].bits));
	/* levels of the least scale of a batch are not too far up for the others */
	for (unsigned m; n; p += m, n -= m) {
		for (m = 1; m < n && m < BATCH && p[0].bits - p[m].bits < EQ_ROW_OCTAVE;)
			m++;
		if (first_bin(r, p[m - 1].bits) < r->end) {
			evaluate_near(r, p, m);
			continue;
		}
		for (unsigned i = 0; i < m; i++)        /* all units zero */
			p[i] = (struct eq_row_point){ .bits = p[i].bits,
						      .scale = eq_float_of(p[i].bits << 16) };
	}
}

double eq_row_weight(const struct eq_row *r, uint32_t bits)
{
	return (double)(int64_t)r->tail[first_bin(r, bits)][EQ_TAIL_SUM] * r->unit;
}

double eq_row_total(const struct eq_row *r)
{
	const eq_quant_tail *t = &r->tail[r->low];
	uint32_t one = octaves(r, 1), bin = r->low - r->first;
	/* of the first value of the bin; what is not in the tail is below */
	uint64_t value = (uint64_t)(one + bin % one) << ((bin >> r->mant) + r->rest);
	double below = (double)(r->k - (*t)[EQ_TAIL_COUNT]) * (double)value;

	return ((double)(int64_t)(*t)[EQ_TAIL_SUM] + below) * r->unit;
}

/* ---- the units themselves ------------------------------------------------ */

/* Exact sum of the outliers among n units: there are few, if it is to count. */
static __int128 outliers_of(const struct eq_row *r, uint64_t first, size_t n, float inv)
{
	__int128 sum = 0;

	for (uint64_t i = first; i < first + n; i++) {
		float x = fabsf(eq_float_at(r->w, r->dtype, i));

		if (eq_row_level(r, x * inv) > r->f.top)
			sum += (__int128)((double)x / r->unit);
	}
	return sum;
}

void eq_row_ask(const struct eq_row *r, struct eq_row_point *p)
{
	size_t unit = eq_quant_unit(r->dtype);
	float inv = 1.0f / p->scale;
	__int128 below = 0, cut = 0;
	int64_t signs = 0, steps = 0, outliers = 0;

	for (uint64_t i = 0; i < r->k; i += EQ_TALLY) {
		size_t n = r->k - i < EQ_TALLY ? r->k - i : EQ_TALLY;
		struct eq_quant_tally t;

		r->ops->tally(r->w + i * unit, r->dtype, r->format, n, inv, p->scale, &t);
		below += (__int128)(t.below / r->unit);
		signs += t.signs;
		steps += t.steps;
		outliers += t.outliers;
		if (t.outliers)
			cut += outliers_of(r, i, n, inv);
	}
	p->dist = (-2 * (double)below - (double)cut) * r->unit +
		  (double)signs * ((double)p->scale * (double)r->f.unit);
	p->rate = r->nu * (double)steps;
	p->outliers[0] = p->outliers[1] = outliers;
}

/* ---- memory -------------------------------------------------------------- */

struct eq_row *eq_row_new(const struct eq_quant_tensor *t, enum eq_qformat format, double nu)
{
	struct eq_row *r = calloc(1, sizeof(*r));
	unsigned bits = 0, levels;
	size_t bins;

	if (!r)
		return NULL;
	r->ops = eq_quant_ops_get();
	eq_quant_format_init(&r->f, format);
	r->format = format;
	r->dtype = t->dtype;
	r->nu = nu;
	r->k = t->k;
	r->exact = t->dtype != EQ_F32;
	r->mant = t->dtype == EQ_BF16 ? 7 : t->dtype == EQ_F16 ? 10 : MANT_F32 - (t->k >> 30 > 0);
	/* the octave before has nothing but what is too small */
	r->first = octaves(r, 1);
	r->end = r->first + octaves(r, t->dtype == EQ_F16 ? WINDOW_F16 : EQ_ROW_WINDOW);
	/* an outlier takes 8 bytes: a 16th of a bit a unit at most */
	r->outliers = format == EQ_Q_INT8 ? (int64_t)(t->k >> 10) : 0;
	while (t->k >> bits)
		bits++;
	/* sums of k fit in 63 bits; of 2^30 units and more with a bit less in the pattern */
	if (!r->exact && bits < 30)
		r->rest = 30 - bits < 23 - r->mant ? 30 - bits : 23 - r->mant;
	r->rounding = 0x1p-40;
	if (!r->exact && r->mant + r->rest < 23)
		r->rounding += 4 * power(-(int)(r->mant + r->rest));
	levels = eq_row_levels(r);
	bins = r->end + octaves(r, PAD) + 2;
	r->count = calloc(r->end, sizeof(*r->count));
	r->tail = calloc(bins, sizeof(*r->tail));
	r->place = calloc(EQ_ROW_OCTAVE, 2 * levels * sizeof(*r->place));
	if (r->count && r->tail && r->place)
		return r;
	eq_row_free(r);
	return NULL;
}

void eq_row_free(struct eq_row *r)
{
	if (!r)
		return;
	free(r->count);
	free(r->tail);
	free(r->place);
	free(r);
}
