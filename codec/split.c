/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte planes of floats, pairs of nibbles and histograms, scalar reference.
 * eqar.5, FLOAT PLANES and PAIR MODE.
 */
#include <string.h>

#include "kernels.h"

static uint16_t rotl16(uint16_t x)
{
	return (uint16_t)(x << 1 | x >> 15);
}

static uint16_t rotr16(uint16_t x)
{
	return (uint16_t)(x >> 1 | x << 15);
}

#define INLINE static inline __attribute__((always_inline))

/* Units of any size: the 16 high bits apart, then the bytes below them. */
INLINE void split_units(const void *units, size_t from, size_t n, bool rotate,
			uint8_t *const *plane, const unsigned unit)
{
	const uint8_t *in = (const uint8_t *)units + from * unit;

	for (size_t i = from; i < n; i++, in += unit) {
		uint16_t high;

		memcpy(&high, in + unit - 2, 2);
		if (rotate)
			high = rotl16(high);
		plane[0][i] = (uint8_t)(high >> 8);
		plane[1][i] = (uint8_t)high;
		for (unsigned b = 2; b < unit; b++)
			plane[b][i] = in[unit - 1 - b];
	}
}

INLINE void merge_units(const uint8_t *const *plane, size_t from, size_t n, bool rotate,
			void *units, const unsigned unit)
{
	uint8_t *out = (uint8_t *)units + from * unit;

	for (size_t i = from; i < n; i++, out += unit) {
		uint16_t high = (uint16_t)(plane[0][i] << 8 | plane[1][i]);

		if (rotate)
			high = rotr16(high);
		memcpy(out + unit - 2, &high, 2);
		for (unsigned b = 2; b < unit; b++)
			out[unit - 1 - b] = plane[b][i];
	}
}

void eq_split_c(const void *units, size_t from, size_t n, bool rotate,
		uint8_t *const *plane, unsigned unit)
{
	split_units(units, from, n, rotate, plane, unit);
}

void eq_merge_c(const uint8_t *const *plane, size_t from, size_t n, bool rotate,
		void *units, unsigned unit)
{
	merge_units(plane, from, n, rotate, units, unit);
}

/* A byte may alias the pointers to the planes; these it does not. */
#define EQ_SPLIT_MERGE(bits, unit)                                             \
	static void split##bits##_c(const void *units, size_t n, bool rotate,  \
				    uint8_t *const *plane)                     \
	{                                                                      \
		uint8_t *p[unit];                                              \
                                                                               \
		memcpy(p, plane, sizeof(p));                                   \
		split_units(units, 0, n, rotate, p, unit);                     \
	}                                                                      \
	static void merge##bits##_c(const uint8_t *const *plane, size_t n,     \
				    bool rotate, void *units)                  \
	{                                                                      \
		const uint8_t *p[unit];                                        \
                                                                               \
		memcpy(p, plane, sizeof(p));                                   \
		merge_units(p, 0, n, rotate, units, unit);                     \
	}

EQ_SPLIT_MERGE(16, 2)
EQ_SPLIT_MERGE(32, 4)
EQ_SPLIT_MERGE(64, 8)

static void split8_c(const void *units, size_t n, bool rotate,
		     uint8_t *const *plane)
{
	(void)rotate;
	memcpy(plane[0], units, n);
}

static void merge8_c(const uint8_t *const *plane, size_t n, bool rotate,
		     void *units)
{
	(void)rotate;
	memcpy(units, plane[0], n);
}

/* Eight pairs at once: bytes stored here and there by turns take longer than to put
 * them together (rans.c). */
static size_t pair_expand_c(const uint8_t *pair, size_t blocks,
			    const uint8_t nibble[16], uint8_t *out)
{
	size_t escapes = 0;

	for (; blocks; blocks--, pair += 64, out += 128) {
		for (unsigned j = 0; j < 64; j += 8) {
			uint64_t v, low = 0, high = 0;

			memcpy(&v, pair + j, 8);
			escapes += eq_fifteens(v);
#pragma GCC unroll 8
			for (unsigned b = 0; b < 64; b += 8) {
				low |= (uint64_t)nibble[v >> b & 15] << b;
				high |= (uint64_t)nibble[v >> (b + 4) & 15] << b;
			}
			memcpy(out + j, &low, 8);
			memcpy(out + j + 64, &high, 8);
		}
	}
	return escapes;
}

static size_t pair_merge16_c(const uint8_t *pair, size_t blocks,
			     const uint8_t nibble[16], const uint8_t *low,
			     bool rotate, void *units)
{
	size_t escapes = 0;

	for (size_t b = 0; b < blocks; b++) {
		uint8_t high[128];
		const uint8_t *plane[2] = { high, low + 128 * b };

		escapes += pair_expand_c(pair + 64 * b, 1, nibble, high);
		eq_merge_c(plane, 0, 128, rotate, (uint8_t *)units + 256 * b, 2);
	}
	return escapes;
}

static size_t pair_pack_c(const uint8_t *in, size_t blocks,
			  const uint8_t index[256], uint8_t *pair)
{
	size_t escapes = 0;

	for (; blocks; blocks--, in += 128, pair += 64) {
		for (unsigned j = 0; j < 64; j++) {
			unsigned low = index[in[j]], high = index[in[j + 64]];

			pair[j] = (uint8_t)(high << 4 | low);
			escapes += (low == 15) + (high == 15);
		}
	}
	return escapes;
}

/* Four tables, so that runs of one symbol do not wait for their own store. */
static void histogram_c(const uint8_t *p, size_t n, uint64_t hist[256])
{
	while (n) {
		uint32_t part[4][256] = { { 0 } };
		size_t now = n < (1u << 30) ? n : 1u << 30, i = 0;

		for (; i + 8 <= now; i += 8) {
			uint64_t v;

			memcpy(&v, p + i, 8);
#pragma GCC unroll 8
			for (unsigned b = 0; b < 8; b++)
				part[b % 4][v >> 8 * b & 255]++;
		}
		for (; i < now; i++)
			part[0][p[i]]++;
		for (unsigned s = 0; s < 256; s++)
			hist[s] += (uint64_t)part[0][s] + part[1][s] +
				   part[2][s] + part[3][s];
		p += now;
		n -= now;
	}
}

void eq_split_init_c(struct eq_kernels *k)
{
	k->histogram = histogram_c;
	k->pair_expand = pair_expand_c;
	k->pair_merge16 = pair_merge16_c;
	k->pair_pack = pair_pack_c;
	k->split[0] = split8_c;
	k->split[1] = split16_c;
	k->split[2] = split32_c;
	k->split[3] = split64_c;
	k->merge[0] = merge8_c;
	k->merge[1] = merge16_c;
	k->merge[2] = merge32_c;
	k->merge[3] = merge64_c;
}
