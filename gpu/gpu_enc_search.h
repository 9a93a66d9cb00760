/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scale of a row by a warp: what codec/quant_search.c seeks, by the same
 * arithmetic (which see), for bfloat16. There the statistics are exact, so that the
 * least cost does not depend on the order in which scales are tried: here the lanes
 * share the levels of one scale, and intervals are halved depth first, from the best
 * coarse scale outwards, so that a few points are all that is kept. (For float16 and
 * float32 it is the CPU that seeks the scales.)
 */
#ifndef EQ_GPU_ENC_SEARCH_H
#define EQ_GPU_ENC_SEARCH_H

#include "gpu_enc_quant.h"

#define EQ_ROW_OCTAVE 128
#define EQ_ROW_WINDOW 24
#define EQ_ROW_BINS (EQ_ROW_WINDOW * EQ_ROW_OCTAVE)
#define EQ_ROW_COARSE 64
#define EQ_ROW_POINTS 64        /* coarse ones: half octaves of the range, and its end */
#define EQ_ROW_DEPTH 8          /* halvings of a coarse interval */
#define EQ_ROW_SCALE_MIN 0x0080u        /* 2^-126 */
#define EQ_ROW_SCALE_MAX 0x7e80u        /* 2^126 */
/* Bins a lane adds up, an odd number: then lanes are in different banks. */
#define EQ_ROW_RUN (EQ_ROW_BINS / 32 + 1)

struct eq_row_point {
	double dist, rate, crossed;
	float scale;
	uint32_t bits, outliers, zero;
};

/*
 * Memory that a warp shares. Bin 0 is of magnitudes below the base, bin 1 + i of
 * pattern base + i. First each has what is in it, then count and sum have what is
 * in it and all above.
 */
struct eq_row_shared {
	int64_t sum[32 * EQ_ROW_RUN];
	uint32_t count[32 * EQ_ROW_RUN];
	struct eq_row_point point[EQ_ROW_POINTS], stack[EQ_ROW_DEPTH];
};

struct eq_row_best {
	double cost;
	uint32_t bits;
};

struct eq_row {
	struct eq_row_shared *m;
	const struct eq_quant_format *f;
	const unsigned char *w;
	uint64_t k;
	double nu, total, unit;
	float absmax;
	uint32_t top, base, end;        /* end: index behind that of top */
	uint32_t outliers;
	struct eq_row_best best;        /* bits 0: all units zero */
};

/* ---- statistics ------------------------------------------------------------------- */

EQ_DEV int64_t eq_row_fixed(uint32_t p, uint32_t base)
{
	uint32_t octave = p / EQ_ROW_OCTAVE, unit = base ? base / EQ_ROW_OCTAVE : 1;

	if (!octave)
		return p;
	return (int64_t)(EQ_ROW_OCTAVE + p % EQ_ROW_OCTAVE) << (octave - unit);
}

/* 2^e, of a normal double */
EQ_DEV double eq_row_power(int e)
{
	uint64_t bits = (uint64_t)(1023 + e) << 52;
	double d;

	memcpy(&d, &bits, sizeof(d));
	return d;
}

EQ_DEV void eq_row_count(const struct eq_row *c)
{
	EQ_EACH_LANE {
		for (uint32_t i = lane; i <= c->end; i += 32)
			c->m->count[i] = 0;
	}
	EQ_WARP_SYNC();
	EQ_EACH_LANE {
		for (uint64_t i = lane; i < c->k; i += 32) {
			uint32_t p = eq_unit_bits(c->w, i, EQ_BF16) & 0x7fff;

			EQ_COUNT(&c->m->count[p < c->base ? 0 : p - c->base + 1]);
		}
	}
	EQ_WARP_SYNC();
}

/* From what is in the bins to what is in them and above: each lane has a run. */
EQ_DEV void eq_row_tails(const struct eq_row *c)
{
	uint32_t run = (c->end + 32) / 32 | 1;
	EQ_PER_LANE(int64_t, sum);
	EQ_PER_LANE(int64_t, count);

	EQ_EACH_LANE {
		uint32_t first = lane * run, i = first + run;
		int64_t s = 0, n = 0;

		i = i < c->end + 1 ? i : c->end + 1;
		while (i > first && i-- > 1) {
			s += eq_row_fixed(c->base + i - 1, c->base) * c->m->count[i];
			n += c->m->count[i];
			c->m->sum[i] = s;
			c->m->count[i] = (uint32_t)n;
		}
		EQ_AT(sum) = s;
		EQ_AT(count) = n;
	}
	EQ_SUM_ABOVE(sum);
	EQ_SUM_ABOVE(count);
	EQ_EACH_LANE {
		uint32_t first = lane * run, i = first ? first : 1;

		for (; i < first + run && i <= c->end; i++) {
			c->m->sum[i] += EQ_AT(sum);
			c->m->count[i] += (uint32_t)EQ_AT(count);
		}
	}
	EQ_WARP_SYNC();
}

/* False if all units are zero. */
EQ_DEV bool eq_row_begin(struct eq_row *c, const struct eq_gpu_rows *r, uint64_t row,
			 const bool fp8)
{
	uint32_t octave;

	c->f = r->format;
	c->nu = r->nu;
	c->k = r->k;
	c->w = eq_row_of(r, row, EQ_BF16);
	c->total = r->sum[row];
	c->absmax = eq_float_of(r->top[row]);
	c->top = r->top[row] >> 16;
	octave = c->top / EQ_ROW_OCTAVE;
	c->base = octave < EQ_ROW_WINDOW ? 0 : (octave - EQ_ROW_WINDOW + 1) * EQ_ROW_OCTAVE;
	c->end = c->top + 1 - c->base;
	c->unit = eq_row_power((int)(c->base ? c->base / EQ_ROW_OCTAVE : 1) - 134);
	c->outliers = fp8 ? 0 : (uint32_t)(c->k >> 10);
	c->best.cost = 0;
	c->best.bits = 0;
	return c->top != 0;
}

/* ---- the cost of a scale ---------------------------------------------------------- */

/* The bin of the first pattern that is not below b. */
EQ_DEV uint32_t eq_row_index(const struct eq_row *c, float b, bool below)
{
	uint32_t u = eq_float_bits(b), p = (u + 0xffff) >> 16;

	p += (u & 0xffff) == 0 && below;
	return (p <= c->top ? p : c->top + 1) - c->base + 1;
}

/* Of units at or above the lower end of level j. A unit right on it is below when
 * its product with inv is, or is the tie and the level above is odd. */
EQ_DEV uint32_t eq_row_edge(const struct eq_row *c, uint32_t j, float scale, float inv)
{
	float m = c->f->mid[j], b = m * scale, t = b * inv;

	return eq_row_index(c, b, t < m || (t == m && (j & 1)));
}

EQ_DEV int64_t eq_row_sum_from(const struct eq_row *c, uint32_t bin)
{
	return bin <= c->end ? c->m->sum[bin] : 0;
}

EQ_DEV uint32_t eq_row_count_from(const struct eq_row *c, uint32_t bin)
{
	return bin <= c->end ? c->m->count[bin] : 0;
}

/* False if the scale is too small for the format, as all smaller ones are. */
EQ_DEV bool eq_row_evaluate(const struct eq_row *c, uint32_t bits, struct eq_row_point *p,
			    const bool fp8)
{
	float scale = eq_float_of(bits << 16), inv = 1.0f / scale;
	uint32_t levels = eq_level_of(c->absmax * inv, fp8), last, bin;
	bool beyond = levels > c->f->top;
	int64_t s_cut = 0, n_cut = 0, ds, dn, v, r;
	EQ_PER_LANE(int64_t, l_ds);
	EQ_PER_LANE(int64_t, l_dn);
	EQ_PER_LANE(int64_t, l_v);
	EQ_PER_LANE(int64_t, l_r);

	p->dist = p->rate = p->crossed = 0;
	p->bits = bits;
	p->scale = scale;
	p->outliers = p->zero = 0;
	if (fp8 && scale * 448 < c->absmax)
		return false;
	if (!levels)
		return true;
	if (eq_float_bits(c->f->mid[1] * scale) >> 16 < c->base)
		return false;
	if (beyond) {
		levels = c->f->top;
		bin = eq_row_edge(c, levels + 1, scale, inv);
		n_cut = eq_row_count_from(c, bin);
		s_cut = eq_row_sum_from(c, bin);
		if (n_cut > (int64_t)c->outliers)
			return false;
		p->outliers = (uint32_t)n_cut;
	}
	/* the CPU goes by fours, and levels that do not occur add little or nothing */
	last = levels | 3;
	EQ_EACH_LANE {
		int64_t a = 0, b = 0, d = 0, e = 0;

		for (uint32_t l = lane ? lane : 32; l <= last; l += 32) {
			uint32_t edge = eq_row_edge(c, l, scale, inv);
			uint32_t centre = eq_row_index(c, c->f->value[l] * scale, false);
			int64_t n_edge = eq_row_count_from(c, edge);
			int64_t n_centre = eq_row_count_from(c, centre);

			a += eq_row_sum_from(c, centre) - eq_row_sum_from(c, edge);
			b += c->f->step[l] * n_centre;
			d += c->f->pair[l] * n_edge;
			e += c->f->gap[l] * n_edge;
		}
		EQ_AT(l_ds) = a;
		EQ_AT(l_v) = b;
		EQ_AT(l_dn) = d;
		EQ_AT(l_r) = e;
	}
	ds = EQ_WARP_SUM64(l_ds);
	v = EQ_WARP_SUM64(l_v);
	dn = EQ_WARP_SUM64(l_dn) + c->f->step[levels] * n_cut;
	r = EQ_WARP_SUM64(l_r);
	p->dist = (2 * (double)ds - (double)s_cut) * c->unit +
		  (double)(dn - 2 * v) * ((double)scale * (double)c->f->unit);
	p->rate = c->nu * (double)r;
	p->crossed = (double)v * (double)c->f->unit;
	return true;
}

/* ---- the search ------------------------------------------------------------------- */

/* Among equals the greater scale is better. */
EQ_DEV void eq_row_keep(struct eq_row *c, const struct eq_row_point *p)
{
	double cost = p->dist + p->rate;

	if (cost < c->best.cost || (cost == c->best.cost && cost < 0 && p->bits > c->best.bits)) {
		c->best.cost = cost;
		c->best.bits = p->bits;
	}
}

/* May one of the scales between be the best? */
EQ_DEV bool eq_row_worth(const struct eq_row *c, const struct eq_row_point *hi,
			 const struct eq_row_point *lo)
{
	double least = hi->dist < lo->dist ? hi->dist : lo->dist;
	double dip = ((double)hi->scale - (double)lo->scale) * (lo->crossed - hi->crossed) / 2;

	dip += ((double)lo->outliers - (double)hi->outliers) * (double)hi->scale / 2;
	return least - dip + hi->rate - c->total * 0x1p-40 <= c->best.cost;
}

/* Least bfloat16 scale with which all units are certainly zero, in the range. */
EQ_DEV uint32_t eq_row_greatest(const struct eq_row *c)
{
	double s = (double)c->absmax / (double)c->f->mid[1];
	uint32_t bits;

	if (s >= 0x1p126)
		return EQ_ROW_SCALE_MAX;
	bits = (eq_float_bits((float)s) >> 16) + 1;
	return bits < EQ_ROW_SCALE_MIN ? EQ_ROW_SCALE_MIN : bits;
}

/* All lanes have the same point: each may put it down. */
EQ_DEV void eq_row_put(struct eq_row_point *to, const struct eq_row_point *p)
{
	EQ_WARP_SYNC();
	EQ_EACH_LANE
		if (lane == 0)
			*to = *p;
	EQ_WARP_SYNC();
}

/* Evaluate in coarse steps downwards; returns the number of points, and which one
 * costs the least. */
EQ_DEV unsigned eq_row_coarse(struct eq_row *c, unsigned *best, const bool fp8)
{
	uint32_t bits = eq_row_greatest(c), step = EQ_ROW_COARSE;
	struct eq_row_point p, q;
	double least;
	unsigned n = 1;

	*best = 0;
	if (!eq_row_evaluate(c, bits, &p, fp8))
		return 0;
	eq_row_keep(c, &p);
	eq_row_put(&c->m->point[0], &p);
	least = p.dist + p.rate;
	while (step && n < EQ_ROW_POINTS && p.rate - c->total <= c->best.cost) {
		if (bits < EQ_ROW_SCALE_MIN + step ||
		    !eq_row_evaluate(c, bits - step, &q, fp8)) {
			step /= 2;
			continue;
		}
		p = q;
		bits -= step;
		eq_row_keep(c, &p);
		if (p.dist + p.rate < least) {
			least = p.dist + p.rate;
			*best = n;
		}
		eq_row_put(&c->m->point[n++], &p);
	}
	return n;
}

/* Halve what is worth it of the interval between points i and i + 1. */
EQ_DEV void eq_row_refine(struct eq_row *c, unsigned i, const bool fp8)
{
	struct eq_row_point hi = c->m->point[i], lo = c->m->point[i + 1], mid;
	unsigned depth = 0;

	for (;;) {
		uint32_t width = hi.bits - lo.bits;

		if (width >= 2 && eq_row_worth(c, &hi, &lo)) {
			eq_row_evaluate(c, lo.bits + width / 2, &mid, fp8);
			eq_row_keep(c, &mid);
			if (width >= 4) {
				eq_row_put(&c->m->stack[depth++], &lo);
				lo = mid;
				continue;
			}
		}
		if (!depth)
			return;
		hi = lo;
		lo = c->m->stack[--depth];
	}
}

/* The scale of one row. */
EQ_DEV void eq_warp_search(const struct eq_gpu_rows *r, uint64_t row, struct eq_row_shared *m,
			   const bool fp8)
{
	uint32_t bits = 0;
	unsigned n, b;
	struct eq_row c;

	c.m = m;
	if (eq_row_begin(&c, r, row, fp8)) {
		eq_row_count(&c);
		eq_row_tails(&c);
		n = eq_row_coarse(&c, &b, fp8);
		for (unsigned d = 0; n && (d < b || b + d + 1 < n); d++) {
			if (d < b)
				eq_row_refine(&c, b - 1 - d, fp8);
			if (b + d + 1 < n)
				eq_row_refine(&c, b + d, fp8);
		}
		bits = c.best.bits;
	}
	EQ_EACH_LANE
		if (lane == 0)
			r->scale[row] = (uint16_t)bits;
	EQ_WARP_SYNC();
}

#endif
