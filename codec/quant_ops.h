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

/* A strip on its way. Units past the end of a row are zero throughout. */
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

/* Where a scale's levels begin and where their values lie, as indices of the
 * row's statistics (see quant_search.c). */
struct eq_quant_edges {
	uint32_t edge[EQ_QUANT_SLOTS] __attribute__((aligned(64)));
	uint32_t centre[EQ_QUANT_SLOTS] __attribute__((aligned(64)));
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
	/* Add a whole strip. */
	void (*sums)(const struct eq_quant_strip *s, struct eq_quant_sums *sum);

	/* Distortion and the sum of |q| of n units at a scale; outliers have
	 * none, and the greatest level. */
	void (*measure)(const void *w, int dtype, enum eq_qformat format, size_t n,
			float inv, float scale, struct eq_quant_lanes *dist,
			struct eq_quant_lanes *rate);

	/* Slots 0 to n of *e. */
	void (*edges)(const struct eq_quant_format *f, unsigned n, bool exact,
		      float inv, float scale, uint32_t base, uint32_t top,
		      struct eq_quant_edges *e);
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
