/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scale of a row by a warp: what codec/quant_search.c seeks, by the same
 * arithmetic (see there, and quant_row.c). The statistics are exact, so that the
 * least cost does not depend on the order in which scales are tried: here the lanes
 * share the levels of one scale, and intervals are halved depth first, from the best
 * coarse scale outwards, so that a few points are all that is kept.
 */
#ifndef EQ_GPU_ENC_SEARCH_H
#define EQ_GPU_ENC_SEARCH_H

#include "gpu_enc_row.h"

#define EQ_ROW_COARSE 64
#define EQ_ROW_SCALE_MIN 0x0080u        /* 2^-126 */
#define EQ_ROW_SCALE_MAX 0x7e80u        /* 2^126 */

/* ---- the cost of a scale ---------------------------------------------------------- */

struct eq_row_sums {            /* of distortion, less the units' value; V, rate */
	int64_t ds, dn, v, r;
};

/* Of levels 1 to last, of which a lane has up to `slots`. */
EQ_DEV struct eq_row_sums eq_row_levels(const struct eq_row *c, uint32_t last, float scale,
					float inv, const unsigned slots, const int dtype)
{
	EQ_PER_LANE(int64_t, ds);
	EQ_PER_LANE(int64_t, dn);
	EQ_PER_LANE(int64_t, v);
	EQ_PER_LANE(int64_t, r);
	struct eq_row_sums s;

	EQ_EACH_LANE {
		uint32_t at[8];         /* where levels begin, and where their values lie */

		EQ_UNROLL
		for (unsigned i = 0; i < slots; i++) {
			uint32_t l = lane + 32 * i;
			bool in = l && l <= last;

			at[i] = in ? eq_row_edge(c, l, scale, inv, dtype) : EQ_ROW_BEYOND;
			at[slots + i] = in ? eq_float_bits(c->f->value[l] * scale) : EQ_ROW_BEYOND;
		}
		eq_row_indices(c, at, 2 * slots, dtype);
		EQ_AT(ds) = EQ_AT(dn) = EQ_AT(v) = EQ_AT(r) = 0;
		EQ_UNROLL
		for (unsigned i = 0; i < slots; i++) {
			uint32_t l = lane + 32 * i, n = eq_row_count_from(c, at[i], dtype);

			EQ_AT(ds) += eq_row_sum_from(c, at[slots + i], dtype) -
				     eq_row_sum_from(c, at[i], dtype);
			EQ_AT(dn) += c->f->pair[l] * n;
			EQ_AT(v) += c->f->step[l] * eq_row_count_from(c, at[slots + i], dtype);
			EQ_AT(r) += c->f->gap[l] * n;
		}
	}
	s.ds = EQ_WARP_SUM64(ds);
	s.dn = EQ_WARP_SUM64(dn);
	s.v = EQ_WARP_SUM64(v);
	s.r = EQ_WARP_SUM64(r);
	return s;
}

/* False if the scale is too small for the format, as all smaller ones are. */
EQ_DEV bool eq_row_evaluate(const struct eq_row *c, uint32_t bits, struct eq_row_point *p,
			    const int dtype, const bool fp8)
{
	float scale = eq_float_of(bits << 16), inv = 1.0f / scale;
	uint32_t levels = eq_level_of(c->absmax * inv, fp8), cut;
	bool beyond = levels > c->f->top;
	int64_t s_cut = 0, n_cut = 0;
	struct eq_row_sums s;

	p->dist = p->rate = p->crossed = 0;
	p->bits = bits;
	p->scale = scale;
	p->outliers = 0;
	if (fp8 && scale * 448 < c->absmax)
		return false;
	if (!levels)
		return true;
	if (eq_float_bits(c->f->mid[1] * scale) >> 16 < c->base)
		return false;
	if (beyond) {
		levels = c->f->top;
		cut = eq_row_edge(c, levels + 1, scale, inv, dtype);
		eq_row_indices(c, &cut, 1, dtype);
		n_cut = eq_row_count_from(c, cut, dtype);
		s_cut = eq_row_sum_from(c, cut, dtype);
		if (n_cut > (int64_t)c->outliers)
			return false;
		p->outliers = (uint32_t)n_cut;
	}
	if (levels < 32)
		s = eq_row_levels(c, levels, scale, inv, 1, dtype);
	else
		s = eq_row_levels(c, levels, scale, inv, 4, dtype);
	s.dn += c->f->step[levels] * n_cut;
	p->dist = (2 * (double)s.ds - (double)s_cut) * c->unit +
		  (double)(s.dn - 2 * s.v) * ((double)scale * (double)c->f->unit);
	p->rate = c->nu * (double)s.r;
	p->crossed = (double)s.v * (double)c->f->unit;
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
EQ_DEV unsigned eq_row_coarse(struct eq_row *c, unsigned *best, const int dtype, const bool fp8)
{
	uint32_t bits = eq_row_greatest(c), step = EQ_ROW_COARSE;
	struct eq_row_point p, q;
	double least;
	unsigned n = 1;

	*best = 0;
	if (!eq_row_evaluate(c, bits, &p, dtype, fp8))
		return 0;
	eq_row_keep(c, &p);
	eq_row_put(&c->points->point[0], &p);
	least = p.dist + p.rate;
	while (step && n < EQ_ROW_POINTS && p.rate - c->total <= c->best.cost) {
		if (bits < EQ_ROW_SCALE_MIN + step ||
		    !eq_row_evaluate(c, bits - step, &q, dtype, fp8)) {
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
		eq_row_put(&c->points->point[n++], &p);
	}
	return n;
}

/* Halve what is worth it of the interval between points i and i + 1. */
EQ_DEV void eq_row_refine(struct eq_row *c, unsigned i, const int dtype, const bool fp8)
{
	struct eq_row_point hi = c->points->point[i], lo = c->points->point[i + 1], mid;
	unsigned depth = 0;

	for (;;) {
		uint32_t width = hi.bits - lo.bits;

		if (width >= 2 && eq_row_worth(c, &hi, &lo)) {
			eq_row_evaluate(c, lo.bits + width / 2, &mid, dtype, fp8);
			eq_row_keep(c, &mid);
			if (width >= 4) {
				eq_row_put(&c->points->stack[depth++], &lo);
				lo = mid;
				continue;
			}
		}
		if (!depth)
			return;
		hi = lo;
		lo = c->points->stack[--depth];
	}
}

/* The scale of a row that has been begun and counted. */
EQ_DEV uint32_t eq_row_seek(struct eq_row *c, const int dtype, const bool fp8)
{
	unsigned b, n = eq_row_coarse(c, &b, dtype, fp8);

	for (unsigned d = 0; n && (d < b || b + d + 1 < n); d++) {
		if (d < b)
			eq_row_refine(c, b - 1 - d, dtype, fp8);
		if (b + d + 1 < n)
			eq_row_refine(c, b + d, dtype, fp8);
	}
	return c->best.bits;
}

EQ_DEV void eq_row_answer(const struct eq_gpu_rows *r, uint64_t row, uint32_t bits)
{
	EQ_EACH_LANE
		if (lane == 0)
			r->scale[row] = (uint16_t)bits;
	EQ_WARP_SYNC();
}

/* The scale of one row of bfloat16. */
EQ_DEV void eq_warp_search(const struct eq_gpu_rows *r, uint64_t row, struct eq_row_bins *m,
			   const bool fp8)
{
	uint32_t bits = 0;
	struct eq_row c;

	c.points = &m->points;
	c.sum = m->sum;
	c.count = m->count;
	c.sorted = NULL;
	if (eq_row_begin(&c, r, row, EQ_BF16, fp8)) {
		eq_row_count(&c);
		eq_row_tails(&c);
		bits = eq_row_seek(&c, EQ_BF16, fp8);
	}
	eq_row_answer(r, row, bits);
}

/* Of float16 or float32; memory: eq_row_sorted_bytes() of it, at 8-byte alignment. */
EQ_DEV void eq_warp_search_sorted(const struct eq_gpu_rows *r, uint64_t row,
				  struct eq_row_sorter *m, unsigned char *memory, const int dtype,
				  const bool fp8)
{
	uint32_t bits = 0;
	struct eq_row c;

	c.points = &m->points;
	c.sum = (int64_t *)(void *)memory;
	c.sorted = (uint32_t *)(void *)(memory + 8 * (r->k + 1));
	c.count = NULL;
	if (eq_row_begin(&c, r, row, dtype, fp8)) {
		eq_row_sort(&c, m->place, dtype);
		eq_row_sums(&c, dtype);
		bits = eq_row_seek(&c, dtype, fp8);
	}
	eq_row_answer(r, row, bits);
}

#endif
