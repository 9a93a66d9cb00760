/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the search for a row's scale asks of the row: the cost of scales, all of them
 * or at least. See quant_row.c.
 */
#ifndef EQ_QUANT_ROW_H
#define EQ_QUANT_ROW_H

#include "quant_ops.h"

#define EQ_ROW_OCTAVE 128       /* scales in an octave */
#define EQ_ROW_WINDOW 24        /* octaves below the greatest unit that are told apart */
#define EQ_ROW_SCALE_MIN 0x0080 /* 2^-126 */
#define EQ_ROW_SCALE_MAX 0x7e80 /* 2^126 */

/*
 * A scale that has been tried. If patterns stand for many values (float32), distortion
 * and rate are lower bounds until the units themselves have been asked, and what
 * depends on where in a bin a unit is lies between [0] and [1].
 */
struct eq_row_point {
	uint32_t bits;          /* bfloat16 */
	float scale;
	double dist, rate;      /* distortion less S(0), rate times its price */
	double crossed[2];      /* V */
	int64_t outliers[2];
};

struct eq_row {
	const struct eq_quant_ops *ops;
	struct eq_quant_format f;
	enum eq_qformat format;
	int dtype;
	double nu;              /* price of a step of rate */
	uint64_t k;
	bool exact;             /* a pattern is one value */
	unsigned mant;          /* bits of the mantissa in a pattern */
	unsigned rest;          /* bits of sums beyond those */
	double rounding;        /* of sums, as a part of what all units weigh */
	uint32_t first, end;    /* bins of the window, and the one behind it */

	/* of the row */
	const uint8_t *w;
	float absmax;
	uint32_t lift;          /* octaves by which patterns are higher */
	uint32_t off;           /* pattern of bin 0 */
	uint32_t counted;       /* least bin that has its own count; those below are in
				   the one below */
	uint32_t low;           /* least bin whose tail is ready */
	double unit;            /* value of 1 in a sum */
	int64_t outliers;       /* most that are allowed */

	uint64_t *count;        /* of bins; uint32_t if exact; else with the rests' sums */
	eq_quant_tail *tail;
	uint16_t *place;        /* see eq_row_places() */
	uint8_t filled[EQ_ROW_OCTAVE];
};

/* For rows of t; NULL if there is no memory. */
struct eq_row *eq_row_new(const struct eq_quant_tensor *t, enum eq_qformat format, double nu);
void eq_row_free(struct eq_row *r);

/* Take up a row. `hint` is a scale near those that will be tried, or 0, and changes
 * nothing but the time it takes. False if all units are zero. */
bool eq_row_begin(struct eq_row *r, const void *w, uint32_t hint);

/* False if the scale is too small for the format or the window, as all smaller ones
 * are. */
bool eq_row_fits(const struct eq_row *r, uint32_t bits);

/* Evaluate n scales, which fit and fall, from their `bits`. */
void eq_row_evaluate(struct eq_row *r, struct eq_row_point *p, unsigned n);

/* How many octaves below a scale its first level begins. */
static inline unsigned eq_row_first_octave(const struct eq_row *r)
{
	return r->format == EQ_Q_FP8 ? 10 : 1;
}

/* Levels that have a place of their own: of fp8 the others are the second eight again,
 * octaves above. */
static inline unsigned eq_row_levels(const struct eq_row *r)
{
	return r->format == EQ_Q_FP8 ? 16 : 128;
}

/* The level of t = |w| / s. */
static inline uint32_t eq_row_level(const struct eq_row *r, float t)
{
	return r->format == EQ_Q_FP8 ? eq_level_fp8(t) : eq_level_int8(t);
}

/*
 * Where levels begin among the bins, of scales with this mantissa, and eq_row_levels()
 * behind that where their values lie. Levels 1 to `levels` are ready. They are twice the
 * distances from the bin of b_1 with the same octave and the mantissa zero.
 */
const uint16_t *eq_row_places(struct eq_row *r, uint32_t mantissa, unsigned levels);

/* A point's distortion, rate and outliers from the units themselves. */
void eq_row_ask(const struct eq_row *r, struct eq_row_point *p);

/* With a scale that has been evaluated, or a greater one: what the units weigh that
 * are not zero. */
double eq_row_weight(const struct eq_row *r, uint32_t bits);

/* No less than what all units weigh. Some scale has been evaluated. */
double eq_row_total(const struct eq_row *r);

#endif
