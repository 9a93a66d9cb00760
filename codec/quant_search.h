/* SPDX-License-Identifier: Apache-2.0 */
/* What searches for a row's scale have in common; see quant_search.c. */
#ifndef EQ_QUANT_SEARCH_H
#define EQ_QUANT_SEARCH_H

#include <math.h>

#include "quant_row.h"

struct eq_row_best {
	double cost;            /* less that of coding all units as zero */
	uint32_t bits;          /* 0: all units zero */
};

/* Keep the best scale; among equals the greater is better. */
static inline void eq_row_keep(struct eq_row_best *b, double cost, uint32_t bits)
{
	if (cost < b->cost || (cost == b->cost && cost < 0 && bits > b->bits))
		*b = (struct eq_row_best){ cost, bits };
}

/*
 * May one of the scales between cost as little as `cost`? With the line between the ends
 * rising by `rise` from the lesser, the bound is
 *
 *   least + y rise - bend y (1 - y)
 *
 * which is least at half of 1 - rise / bend; but nearer than a step there is nothing.
 * Where no unit changes its level or its side of it, and both ends cost the same, so
 * does all between, and the greater end is kept.
 */
static inline bool eq_row_worth(const struct eq_row_point *hi, const struct eq_row_point *lo,
				double cost)
{
	double least = hi->dist < lo->dist ? hi->dist : lo->dist, rise = fabs(hi->dist - lo->dist);
	double width = (double)hi->scale - (double)lo->scale;
	double bend = 2 * width * (lo->crossed[1] - hi->crossed[0]), more = bend - rise;
	double step = (double)eq_float_of((lo->bits + 1) << 16) - (double)lo->scale;
	/* an outlier may be half a step off once it is one no more (int8) */
	double off = (double)(lo->outliers[1] - hi->outliers[0]) * (double)hi->scale / 2;
	double room = least - off + hi->rate - cost;

	bool inner = more * width > 2 * bend * step;
	bool far = 4 * bend * room <= more * more;
	bool near = room * width * width <= step * (bend * (width - step) - rise * width);
	bool flat = (bend == 0) & (rise == 0) & (off == 0) & (hi->rate == lo->rate);

	return ((inner & far) | (!inner & near)) & !flat;
}

/* Least bfloat16 scale with which all units are certainly zero, in the range. */
static inline uint32_t eq_row_greatest(const struct eq_row *r, float absmax)
{
	double s = (double)absmax / (double)r->f.mid[1];
	uint32_t bits;

	if (s >= 0x1p126)
		return EQ_ROW_SCALE_MAX;
	bits = (eq_float_bits((float)s) >> 16) + 1;
	return bits < EQ_ROW_SCALE_MIN ? EQ_ROW_SCALE_MIN : bits;
}

#endif
