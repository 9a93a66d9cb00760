/* SPDX-License-Identifier: Apache-2.0 */
/* The levels of the quantiser's formats, and to which a weight belongs: shared with
 * gpu/, which must decide the same. */
#ifndef EQ_QUANT_LEVEL_H
#define EQ_QUANT_LEVEL_H

#include <stdbool.h>

#include "floats.h"

#define EQ_QUANT_SLOTS 144      /* levels 0 to 127 and beyond, in whole vectors */

struct eq_quant_outlier {
	uint64_t unit;          /* index in the tensor */
	uint32_t bits;          /* of the unit, zero-extended */
};

/* A format's levels, by magnitude; see quant.c. */
struct eq_quant_format {
	unsigned top;           /* greatest level with a symbol */
	/* mid[j] lies between levels j - 1 and j, j >= 1 */
	float mid[EQ_QUANT_SLOTS] __attribute__((aligned(64)));
	float value[EQ_QUANT_SLOTS] __attribute__((aligned(64)));
	int64_t step[EQ_QUANT_SLOTS];   /* value in units of `unit` */
	int64_t gap[EQ_QUANT_SLOTS];    /* step[j] - step[j - 1], and their sum */
	int64_t pair[EQ_QUANT_SLOTS];
	float unit;             /* 2^-9 or 1; rate(q) = |q| / unit * 2^-7 */
};

/* Level of t = |w| / s >= 0 among the E4M3 magnitudes; above 126 if beyond. */
EQ_BOTH uint32_t eq_level_fp8(float t)
{
	uint32_t u = eq_float_bits(t);
	/* below 2^-6 levels are 2^-9 apart, the last place of 2^14 + t */
	uint32_t sub = eq_float_bits(t + 16384.0f) - 0x46800000;
	uint32_t nor = ((u + 0x7ffff + (u >> 20 & 1)) >> 20) - 960;

	return u < 0x3c800000 ? sub : nor;
}

/* The same for int8; above 127 if beyond. */
EQ_BOTH uint32_t eq_level_int8(float t)
{
	return eq_float_bits((t < 200.0f ? t : 200.0f) + 8388608.0f) - 0x4b000000;
}

#endif
