/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dequantisation, scalar reference: a table symbol -> unit for each row, then a
 * look-up a symbol (eqar.5, QUANTISED TENSORS). All the arithmetic is in making
 * the table, so the look-up cannot differ between instruction sets.
 */
#include <string.h>

#include "kernels.h"

static uint32_t float_bits(float f)
{
	uint32_t u;

	memcpy(&u, &f, sizeof(u));
	return u;
}

/* A NaN must not round up to an infinity or beyond; it becomes a quiet NaN. */
static uint16_t to_bf16(uint32_t u)
{
	if ((u & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(u >> 16 | 0x40);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* binary32 -> binary16, to nearest even, subnormals kept; too large becomes
 * infinity. */
static uint16_t to_f16(uint32_t u)
{
	uint32_t sign = u >> 16 & 0x8000, a = u & 0x7fffffff, m, shift, half;

	if (a > 0x7f800000)
		return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
	if (a >= 0x47800000) /* 65536 */
		return (uint16_t)(sign | 0x7c00);
	if (a >= 0x38800000) { /* 2^-14: normal; a carry runs into the exponent */
		a -= 112u << 23;
		return (uint16_t)(sign | (a + 0xfff + (a >> 13 & 1)) >> 13);
	}
	if (a < 0x33000000) /* less than half of 2^-24 */
		return (uint16_t)sign;
	shift = 126 - (a >> 23);
	m = (a & 0x7fffff) | 0x800000;
	half = 1u << (shift - 1);
	return (uint16_t)(sign | (m + half - 1 + (m >> shift & 1)) >> shift);
}

static void lut_bf16_c(const float value[256], float scale, uint16_t lut[256])
{
	for (unsigned s = 0; s < 256; s++)
		lut[s] = to_bf16(float_bits(value[s] * scale));
}

static void lut_f16_c(const float value[256], float scale, uint16_t lut[256])
{
	for (unsigned s = 0; s < 256; s++)
		lut[s] = to_f16(float_bits(value[s] * scale));
}

static void lut_f32_c(const float value[256], float scale, uint32_t lut[256])
{
	for (unsigned s = 0; s < 256; s++)
		lut[s] = float_bits(value[s] * scale);
}

/* Symbols are loaded eight at once: each look-up is a load, a store as well. */
#define EQ_MAP(name, type)                                                     \
	void name(const uint8_t *sym, size_t n, const type lut[256], void *out) \
	{                                                                      \
		uint8_t *o = out;                                              \
		size_t i = 0;                                                  \
                                                                               \
		for (; i + 8 <= n; i += 8) {                                   \
			uint64_t v;                                            \
                                                                               \
			memcpy(&v, sym + i, 8);                                \
			_Pragma("GCC unroll 8")                                \
			for (unsigned b = 0; b < 8; b++, v >>= 8)              \
				memcpy(o + sizeof(type) * (i + b),             \
				       &lut[(uint8_t)v], sizeof(type));        \
		}                                                              \
		for (; i < n; i++)                                             \
			memcpy(o + sizeof(type) * i, &lut[sym[i]], sizeof(type)); \
	}

EQ_MAP(eq_map16_c, uint16_t)
static EQ_MAP(map32_c, uint32_t)

static size_t pair_map16_c(const uint8_t *pair, size_t blocks,
			   const uint16_t lut[16], void *out)
{
	size_t escapes = 0;
	uint8_t *o = out;

	for (; blocks; blocks--, pair += 64, o += 256) {
		for (unsigned j = 0; j < 64; j += 8) { /* as in pair_expand_c */
			uint64_t v, low[2] = { 0 }, high[2] = { 0 };

			memcpy(&v, pair + j, 8);
			escapes += eq_fifteens(v);
#pragma GCC unroll 8
			for (unsigned i = 0; i < 8; i++, v >>= 8) {
				low[i / 4] |= (uint64_t)lut[v & 15] << i % 4 * 16;
				high[i / 4] |= (uint64_t)lut[v >> 4 & 15] << i % 4 * 16;
			}
			memcpy(o + 2 * j, low, 16);
			memcpy(o + 2 * j + 128, high, 16);
		}
	}
	return escapes;
}

void eq_dequant_init_c(struct eq_kernels *k)
{
	k->lut_bf16 = lut_bf16_c;
	k->lut_f16 = lut_f16_c;
	k->lut_f32 = lut_f32_c;
	k->map16 = eq_map16_c;
	k->map32 = map32_c;
	k->pair_map16 = pair_map16_c;
}
