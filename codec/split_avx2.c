/* SPDX-License-Identifier: Apache-2.0 */
/* Byte planes, pairs of nibbles and tables of values with AVX2. */
#include <immintrin.h>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i load(const void *p)
{
	return _mm256_loadu_si256((const __m256i *)p);
}

INLINE void store(void *p, __m256i v)
{
	_mm256_storeu_si256((__m256i *)p, v);
}

INLINE __m256i rotl16(__m256i v)
{
	return _mm256_or_si256(_mm256_slli_epi16(v, 1), _mm256_srli_epi16(v, 15));
}

INLINE __m256i rotr16(__m256i v)
{
	return _mm256_or_si256(_mm256_srli_epi16(v, 1), _mm256_slli_epi16(v, 15));
}

/* Halves of the 128-bit lanes in order: what unpacking left apart. */
INLINE void reorder(__m256i lo, __m256i hi, __m256i out[2])
{
	out[0] = _mm256_permute2x128_si256(lo, hi, 0x20);
	out[1] = _mm256_permute2x128_si256(lo, hi, 0x31);
}

/* 32 units' planes p (high) and p + 1 (low) -> 16-bit numbers. */
INLINE void merge_two(const uint8_t *const *p, size_t i, __m256i out[2])
{
	__m256i high = load(p[0] + i), low = load(p[1] + i);

	reorder(_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high), out);
}

static void merge16_avx2(const uint8_t *const *plane, size_t n, bool rotate,
			 void *units)
{
	uint8_t *out = units;
	__m256i v[2];
	size_t i = 0;

	for (; i + 32 <= n; i += 32) {
		merge_two(plane, i, v);
		store(out + 2 * i, rotate ? rotr16(v[0]) : v[0]);
		store(out + 2 * i + 32, rotate ? rotr16(v[1]) : v[1]);
	}
	eq_merge_c(plane, i, n, rotate, units, 2);
}

static void merge32_avx2(const uint8_t *const *plane, size_t n, bool rotate,
			 void *units)
{
	uint8_t *out = units;
	__m256i high[2], low[2], v[2];
	size_t i = 0;

	for (; i + 32 <= n; i += 32) {
		merge_two(plane, i, high);
		merge_two(plane + 2, i, low);
		for (unsigned h = 0; h < 2; h++) {
			__m256i top = rotate ? rotr16(high[h]) : high[h];

			reorder(_mm256_unpacklo_epi16(low[h], top),
				_mm256_unpackhi_epi16(low[h], top), v);
			store(out + 4 * i + 64 * h, v[0]);
			store(out + 4 * i + 64 * h + 32, v[1]);
		}
	}
	eq_merge_c(plane, i, n, rotate, units, 4);
}

static void split16_avx2(const void *units, size_t n, bool rotate,
			 uint8_t *const *plane)
{
	const __m256i low8 = _mm256_set1_epi16(255);
	const uint8_t *in = units;
	size_t i = 0;

	for (; i + 32 <= n; i += 32) {
		__m256i a = load(in + 2 * i), b = load(in + 2 * i + 32), high, low;

		if (rotate) {
			a = rotl16(a);
			b = rotl16(b);
		}
		high = _mm256_packus_epi16(_mm256_srli_epi16(a, 8),
					   _mm256_srli_epi16(b, 8));
		low = _mm256_packus_epi16(_mm256_and_si256(a, low8),
					  _mm256_and_si256(b, low8));
		store(plane[0] + i, _mm256_permute4x64_epi64(high, 0xd8));
		store(plane[1] + i, _mm256_permute4x64_epi64(low, 0xd8));
	}
	eq_split_c(units, i, n, rotate, plane, 2);
}

static size_t pair_expand_avx2(const uint8_t *pair, size_t blocks,
			       const uint8_t nibble[16], uint8_t *out)
{
	const __m256i lut = _mm256_broadcastsi128_si256(
		_mm_loadu_si128((const __m128i *)(const void *)nibble));
	const __m256i low4 = _mm256_set1_epi8(15);
	size_t escapes = 0;

	for (; blocks; blocks--, pair += 64, out += 128) {
		for (unsigned h = 0; h < 64; h += 32) {
			__m256i v = load(pair + h);
			__m256i lo = _mm256_and_si256(v, low4);
			__m256i hi = _mm256_and_si256(_mm256_srli_epi16(v, 4), low4);

			escapes += (size_t)__builtin_popcount((unsigned)
				_mm256_movemask_epi8(_mm256_cmpeq_epi8(lo, low4)));
			escapes += (size_t)__builtin_popcount((unsigned)
				_mm256_movemask_epi8(_mm256_cmpeq_epi8(hi, low4)));
			store(out + h, _mm256_shuffle_epi8(lut, lo));
			store(out + 64 + h, _mm256_shuffle_epi8(lut, hi));
		}
	}
	return escapes;
}

static void lut_f32_avx2(const float value[256], float scale, uint32_t lut[256])
{
	for (unsigned i = 0; i < 256; i += 8)
		store(lut + i, _mm256_castps_si256(_mm256_mul_ps(
				       _mm256_loadu_ps(value + i), _mm256_set1_ps(scale))));
}

/* 8 float32 -> bfloat16 in the low halves. */
INLINE __m256i to_bf16(__m256 p)
{
	__m256i u = _mm256_castps_si256(p), h = _mm256_srli_epi32(u, 16);
	__m256i nan = _mm256_castps_si256(_mm256_cmp_ps(p, p, _CMP_UNORD_Q));
	__m256i r = _mm256_add_epi32(
		_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)),
		_mm256_and_si256(h, _mm256_set1_epi32(1)));

	return _mm256_blendv_epi8(_mm256_srli_epi32(r, 16),
				  _mm256_or_si256(h, _mm256_set1_epi32(0x40)), nan);
}

static void lut_bf16_avx2(const float value[256], float scale, uint16_t lut[256])
{
	const __m256 s = _mm256_set1_ps(scale);

	for (unsigned i = 0; i < 256; i += 16) {
		__m256i a = to_bf16(_mm256_mul_ps(_mm256_loadu_ps(value + i), s));
		__m256i b = to_bf16(_mm256_mul_ps(_mm256_loadu_ps(value + i + 8), s));

		store(lut + i, _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8));
	}
}

void eq_split_init_avx2(struct eq_kernels *k)
{
	k->pair_expand = pair_expand_avx2;
	k->split[1] = split16_avx2;
	k->merge[1] = merge16_avx2;
	k->merge[2] = merge32_avx2;
	k->lut_bf16 = lut_bf16_avx2;
	k->lut_f32 = lut_f32_avx2;
}
