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

/* A unit's pattern is the bits of its magnitude as float32, times `lift`, without the
 * last `shift`. Of these the first `rest` are told. */
struct eq_quant_bins {
	float lift;
	unsigned shift, rest;
	uint32_t off;           /* pattern of bin 0 */
	uint32_t least;         /* patterns below are counted as if they were this one */
};

/* S and N of the units of a bin and above, which are added side by side. */
typedef uint64_t eq_quant_tail __attribute__((vector_size(16), may_alias));
#define EQ_TAIL_SUM 0
#define EQ_TAIL_COUNT 1

/* What n <= EQ_TALLY units add to the cost of a scale, beside what they weigh. All is
 * exact if the units that are coded and those that are not zero lie within 2^19 of each
 * other. */
#define EQ_TALLY 1024
struct eq_quant_tally {
	double below;           /* sum of those below the value of their level */
	int64_t signs, steps;   /* sum of levels' values in steps, less if not below; of all */
	int64_t outliers;
};

/*
 * Statistics of a row by whose help eight scales next to each other are evaluated at
 * once; see quant_eight.c. Of bins and all above: how many units there are, and what they
 * weigh, in two parts: 11 bits and the 16 above.
 */
#define EQ_PLANE_OCTAVE 128     /* bins: one value of bfloat16 each */
#define EQ_PLANE_WINDOW 12      /* octaves below that of the greatest unit */
#define EQ_PLANE_END ((EQ_PLANE_WINDOW + 2) * EQ_PLANE_OCTAVE)
#define EQ_PLANE_BINS (EQ_PLANE_END + 6 * EQ_PLANE_OCTAVE)      /* levels look beyond */
#define EQ_PLANE_BITS 11
#define EQ_PLANE_FINE ((1u << EQ_PLANE_BITS) - 1)
#define EQ_PLANE_SUMS ((1u << (EQ_PLANE_BITS + 16)) - 1)
struct eq_quant_planes {
	uint16_t count[EQ_PLANE_BINS], fine[EQ_PLANE_BINS], coarse[EQ_PLANE_BINS];
};

/*
 * Eight scales of neighbouring mantissas. Where level j + 1 begins, the first scale looks
 * up a bin that is at[j][0] bytes behind `bin`, and each that of the 16 from there that
 * mask[j][0] picks: as places of bytes in the first half or the second, or 0x80. [1] is
 * where its value lies.
 */
struct eq_quant_eight {
	const struct eq_quant_planes *planes;
	const uint8_t (*mask)[2][32];
	const uint32_t (*at)[2];
	int64_t bin;
	unsigned levels;
	unsigned run;           /* levels whose counts, times 1 to so many, fit in 16 bits */
	unsigned more;          /* octaves in which levels 9 to 16 recur (fp8) */
	double first, width;    /* a step with scale i is (first + i) * width */
	double unit, nu;        /* value of 1 in a sum; price of a step of rate */
};

struct eq_quant_costs {
	double dist[8], rate[8];        /* distortion less S(0), rate times its price */
	int32_t crossed[8];             /* V in steps */
};

struct eq_quant_ops {
	const char *isa;

	/* Magnitude bits (as float32) of the greatest of n units, if above *top. */
	void (*most)(const void *w, int dtype, size_t n, uint32_t *top);

	/* The same and the sum of their magnitudes, added to the lanes. */
	void (*scan)(const void *w, int dtype, size_t n, uint32_t *top,
		     struct eq_quant_lanes *sum);

	/* The bins of n <= EQ_STRIP units, and (if not NULL) what they have below their
	 * pattern. */
	void (*bins)(const struct eq_quant_bins *b, const void *w, int dtype, size_t n,
		     uint32_t bin[EQ_STRIP], uint32_t rest[EQ_STRIP]);

	/* The first n <= EQ_STRIP units of w to symbols and reconstruction. */
	void (*code)(struct eq_quant_strip *s, const void *w, int dtype,
		     enum eq_qformat format, size_t n, float inv, float scale);
	/* Add the n units of a strip. */
	void (*sums)(const struct eq_quant_strip *s, size_t n, struct eq_quant_sums *sum);

	/*
	 * Sum bins' counts, down from `low`, which is done, to `to`. They are uint32_t
	 * if bins are exact; else uint64_t, whose lower half is the sum of what units
	 * have below their pattern. A unit of bin low - 1 is `value` << (octave + rest).
	 */
	void (*tails)(const void *count, bool exact, eq_quant_tail *tail, uint32_t low,
		      uint32_t to, uint32_t value, unsigned octave, unsigned rest);

	/* n <= EQ_TALLY units with a scale and its inverse. */
	void (*tally)(const void *w, int dtype, enum eq_qformat format, size_t n, float inv,
		      float scale, struct eq_quant_tally *t);

	/*
	 * Planes of the bins from `to` up to the end from their counts, which become zero.
	 * Bin i is of pattern off + i; pattern lowest + i weighs 128 + i % 128 times 2 to the
	 * power of i / 128. `to` and `off` are multiples of 16, `lowest` is one of 128. There
	 * are less than 32768 units, which weigh less than 2^27. NULL, as is eight(), where that
	 * is no gain.
	 */
	void (*planes)(struct eq_quant_planes *p, uint16_t *count, uint32_t to, uint32_t off,
		       uint32_t lowest);

	/* Returns the least of eight costs. */
	double (*eight)(const struct eq_quant_eight *e, struct eq_quant_costs *c);
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
