/* SPDX-License-Identifier: Apache-2.0 */
/* Widening conversions of the 16-bit float types, exact for every bit pattern. */
#ifndef EQ_FLOATS_H
#define EQ_FLOATS_H

#include <stdint.h>
#include <string.h>

#include "eqcodec.h"

static inline float eq_f32_of_bits(uint32_t u)
{
	float f;

	memcpy(&f, &u, 4);
	return f;
}

static inline float eq_f32_of_bf16(uint16_t h)
{
	return eq_f32_of_bits((uint32_t)h << 16);
}

static inline float eq_f32_of_f16(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023;

	if (e == 31)
		return eq_f32_of_bits(sign | 0x7f800000 | m << 13);
	if (e == 0) /* m * 2^-24; the sign of zero is kept */
		return eq_f32_of_bits(sign) + (sign ? -1.0f : 1.0f) * (float)m * 0x1p-24f;
	return eq_f32_of_bits(sign | (e + 112) << 23 | m << 13);
}

/* Element i of an array of dtype EQ_BF16, EQ_F16 or EQ_F32, at any alignment. */
static inline float eq_f32_at(const void *p, int dtype, size_t i)
{
	uint16_t h;
	float f;

	if (dtype == EQ_F32) {
		memcpy(&f, (const uint8_t *)p + 4 * i, 4);
		return f;
	}
	memcpy(&h, (const uint8_t *)p + 2 * i, 2);
	return dtype == EQ_BF16 ? eq_f32_of_bf16(h) : eq_f32_of_f16(h);
}

#endif
