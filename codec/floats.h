/* SPDX-License-Identifier: Apache-2.0 */
/* Bits of floats, and conversions of the 16-bit types; for the device as well. */
#ifndef EQ_FLOATS_H
#define EQ_FLOATS_H

#include <stdint.h>
#include <string.h>

#include "eqcodec.h"

#ifdef __CUDACC__
#define EQ_BOTH static inline __host__ __device__
#else
#define EQ_BOTH static inline
#endif

EQ_BOTH float eq_float_of(uint32_t u)
{
	float f;

	memcpy(&f, &u, sizeof(f));
	return f;
}

EQ_BOTH uint32_t eq_float_bits(float f)
{
	uint32_t u;

	memcpy(&u, &f, sizeof(u));
	return u;
}

/* float32 bits of binary16 bits: exact. The product with 2^112 also turns
 * subnormal halves into normal floats. */
EQ_BOTH uint32_t eq_half_widen(uint16_t h)
{
	uint32_t m = (uint32_t)(h & 0x7fff) << 13;
	uint32_t u = eq_float_bits(eq_float_of(m) * 0x1p112f);

	if ((h & 0x7c00) == 0x7c00)
		u = m | 0x7f800000;
	return u | (uint32_t)(h & 0x8000) << 16;
}

/* binary16 bits of float32, to nearest, ties to even; NaN is not expected. */
EQ_BOTH uint16_t eq_half_narrow(float f)
{
	uint32_t u = eq_float_bits(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
	/* below 2^-14 the sum with 1/2 leaves the half's 2^-24 as last place */
	uint32_t sub = eq_float_bits(eq_float_of(a) + 0.5f) - 0x3f000000;
	uint32_t nor = (a + 0xfff + (a >> 13 & 1) - (112u << 23)) >> 13;

	if (a >= 0x477ff000)
		nor = 0x7c00;
	return (uint16_t)(sign | (a < 0x38800000 ? sub : nor));
}

EQ_BOTH uint16_t eq_bf16_narrow(float f)
{
	uint32_t u = eq_float_bits(f);

	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Element i of an array of dtype EQ_BF16, EQ_F16 or EQ_F32, at any alignment. */
EQ_BOTH float eq_float_at(const void *p, int dtype, size_t i)
{
	uint16_t h;
	uint32_t u;

	if (dtype == EQ_F32) {
		memcpy(&u, (const uint8_t *)p + 4 * i, 4);
		return eq_float_of(u);
	}
	memcpy(&h, (const uint8_t *)p + 2 * i, 2);
	return eq_float_of(dtype == EQ_BF16 ? (uint32_t)h << 16 : eq_half_widen(h));
}

#endif
