/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The quantiser's inner loops, once for each instruction set. There is one
 * source for all of them (quant_vec.h), and no operation whose result depends
 * on the order or width in which lanes are worked on, so they agree in every
 * bit.
 */
#ifndef EQ_QUANT_OPS_H
#define EQ_QUANT_OPS_H

#include <stddef.h>
#include <stdint.h>

#include "quant.h"

#define EQ_STRIP 256            /* units worked on at a time, in the L1 cache */
#define EQ_QUANT_LANES 16

/*
 * Sums are kept in 16 lanes, unit i of a row in lane i % 16, and the lanes of a
 * row are then added up in pairs; rows are added in order within a block, and
 * blocks in order. So the order of every addition is fixed, whatever the width
 * of the vectors and whichever thread does it.
 */
struct eq_quant_lanes {
	double v[EQ_QUANT_LANES] __attribute__((aligned(64)));
};

static inline double eq_quant_lanes_sum(struct eq_quant_lanes *l)
{
	for (int w = EQ_QUANT_LANES / 2; w; w /= 2)
		for (int i = 0; i < w; i++)
			l->v[i] += l->v[i + w];
	return l->v[0];
}

/* A strip on its way. What follows the end of a row is zero up to a multiple of 16,
 * at least. */
struct eq_quant_strip {
	float x[EQ_STRIP] __attribute__((aligned(64)));         /* units */
	float y[EQ_STRIP] __attribute__((aligned(64)));         /* reconstruction */
	uint16_t out[EQ_STRIP] __attribute__((aligned(64)));    /* its 16 bits, if so */
	uint8_t sym[EQ_STRIP] __attribute__((aligned(64)));
	int bad;                /* there are units that the symbols do not stand for */
};

struct eq_quant_sums {
	struct eq_quant_lanes abs, err_abs, sq, err_sq;
};

/*
 * A row's bins: of units with the same pattern, the bits of their magnitude as
 * float32 without the last `shift`. Bin 1 is the base's.
 */
struct eq_quant_bins {
	unsigned shift;
	unsigned extra;         /* bits of sums beyond those that a pattern needs */
	uint32_t base, top;     /* least and greatest pattern */
	const uint32_t *count;  /* units in each bin */
	const int64_t (*tail)[2];       /* sum and number of those in it and above */
	/* If patterns stand for many values (float32): what units have below theirs,
	 * in descending order of bins, and EQ_QUANT_REST_SLACK more of anything. */
	bool rests;
	uint16_t *rest;
};
#define EQ_QUANT_REST_SLACK 32

/* Of a pattern the exponent, as if subnormals were normal, less the base's. */
static inline unsigned eq_bins_exponent(const struct eq_quant_bins *b, uint32_t p)
{
	uint32_t octave = p >> (23 - b->shift), least = b->base >> (23 - b->shift);

	return (octave ? octave : 1) - (least ? least : 1);
}

/* What n units of pattern p add to a sum, whose rests come to `rest`. */
static inline int64_t eq_bins_sum(const struct eq_quant_bins *b, uint32_t p, int64_t n, int64_t rest)
{
	uint32_t one = 1u << (23 - b->shift), up = eq_bins_exponent(b, p) + b->extra;
	int64_t sum = (n * (p < one ? p : p % one + one) << b->shift) + rest;

	return up < b->shift ? sum >> (b->shift - up) : sum << (up - b->shift);
}

/* Where a scale's levels begin and where their values lie: twice the index of the
 * tail of all units that are not below; with rests, the magnitude's bits. */
struct eq_quant_edges {
	uint32_t edge[EQ_QUANT_SLOTS] __attribute__((aligned(64)));
	uint32_t centre[EQ_QUANT_SLOTS] __attribute__((aligned(64)));
	/* with rests: those tails; the first is of nothing */
	int64_t tail[2 * EQ_QUANT_SLOTS][2] __attribute__((aligned(64)));
};

struct eq_quant_ops {
	const char *isa;

	/* Magnitude bits (as float32) of the greatest of n units, if above *top,
	 * and the sum of their magnitudes, added to the lanes. */
	void (*scan)(const void *w, int dtype, size_t n, uint32_t *top,
		     struct eq_quant_lanes *sum);

	/* Magnitudes of n <= EQ_STRIP units, as bits of float32. */
	void (*widen)(uint32_t u[EQ_STRIP], const void *w, int dtype, size_t n);

	/* The first n <= EQ_STRIP units of w to symbols and reconstruction. */
	void (*code)(struct eq_quant_strip *s, const void *w, int dtype,
		     enum eq_qformat format, size_t n, float inv, float scale);
	/* Add the n units of a strip. */
	void (*sums)(const struct eq_quant_strip *s, size_t n, struct eq_quant_sums *sum);

	/* Slots 1 to last of e[i] for the i-th of n scales and its inverse. */
	void (*edges)(const struct eq_quant_format *f, const struct eq_quant_bins *b,
		      unsigned last, unsigned n, const float *scale, const float *inv,
		      struct eq_quant_edges *e);
	/* With rests: the tails of slots 1 to n, and then where those are; those of the
	 * others up to last are empty. */
	void (*tails)(const struct eq_quant_bins *b, struct eq_quant_edges *e, unsigned n,
		      unsigned last);
};

extern const struct eq_quant_ops eq_quant_ops_c;
extern const struct eq_quant_ops eq_quant_ops_avx2;
extern const struct eq_quant_ops eq_quant_ops_avx512;

/* The best for this CPU, less what EQFS_DISABLE_CPU masks. */
const struct eq_quant_ops *eq_quant_ops_get(void);

static inline size_t eq_quant_unit(int dtype)
{
	return dtype == EQ_F32 ? 4 : 2;
}

#endif
