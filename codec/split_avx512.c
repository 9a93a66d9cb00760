/* SPDX-License-Identifier: Apache-2.0 */
/* Byte planes, pairs of nibbles and dequantisation with AVX-512. */
#include <immintrin.h>
#include <string.h>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

/* Load or store up to 64 bytes. */
INLINE __m512i load_n(const uint8_t *p, size_t n)
{
	return n >= 64 ? _mm512_loadu_si512(p) :
			 _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, (unsigned)n), p);
}

INLINE void store_n(uint8_t *p, size_t n, __m512i v)
{
	if (n >= 64)
		_mm512_storeu_si512(p, v);
	else
		_mm512_mask_storeu_epi8(p, _bzhi_u64(~0ull, (unsigned)n), v);
}

/* Bytes of a part (0 to 63) that lie before byte n of the whole. */
INLINE size_t part_of(size_t n, size_t at)
{
	return n <= at ? 0 : n - at;
}

INLINE __m512i rotl16(__m512i v)
{
	return _mm512_shldi_epi16(v, v, 1);
}

INLINE __m512i rotr16(__m512i v)
{
	return _mm512_shldi_epi16(v, v, 15);
}

INLINE __m512i broadcast16(const void *p)
{
	return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p));
}

/* The order in which unpacking bytes, low and high, gives them in order. */
INLINE __m512i to_unpack(__m512i v)
{
	return _mm512_permutexvar_epi64(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), v);
}

/* Bytes a[i] b[i] alternating: 64 pairs in two vectors, in order. */
INLINE void interleave8(__m512i a, __m512i b, __m512i out[2])
{
	a = to_unpack(a);
	b = to_unpack(b);
	out[0] = _mm512_unpacklo_epi8(a, b);
	out[1] = _mm512_unpackhi_epi8(a, b);
}

/* The same for 16-bit and 32-bit elements. */
INLINE void interleave16(__m512i a, __m512i b, __m512i out[2])
{
	const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
	const __m512i second = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
	__m512i lo = _mm512_unpacklo_epi16(a, b), hi = _mm512_unpackhi_epi16(a, b);

	out[0] = _mm512_permutex2var_epi64(lo, first, hi);
	out[1] = _mm512_permutex2var_epi64(lo, second, hi);
}

INLINE void interleave32(__m512i a, __m512i b, __m512i out[2])
{
	const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
	const __m512i second = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
	__m512i lo = _mm512_unpacklo_epi32(a, b), hi = _mm512_unpackhi_epi32(a, b);

	out[0] = _mm512_permutex2var_epi64(lo, first, hi);
	out[1] = _mm512_permutex2var_epi64(lo, second, hi);
}

/* 64 units' two high planes -> 16-bit halves, rotated back. */
INLINE void merge_high(const uint8_t *const *plane, size_t i, size_t n, bool rotate,
		       __m512i out[2])
{
	interleave8(load_n(plane[1] + i, n), load_n(plane[0] + i, n), out);
	if (rotate) {
		out[0] = rotr16(out[0]);
		out[1] = rotr16(out[1]);
	}
}

static void merge16_avx512(const uint8_t *const *plane, size_t n, bool rotate,
			   void *units)
{
	uint8_t *out = units;
	__m512i v[2];

	for (size_t i = 0; i < n; i += 64, out += 128) {
		size_t left = n - i < 64 ? n - i : 64;

		merge_high(plane, i, left, rotate, v);
		store_n(out, 2 * left, v[0]);
		if (left > 32)
			store_n(out + 64, 2 * left - 64, v[1]);
	}
}

static void merge32_avx512(const uint8_t *const *plane, size_t n, bool rotate,
			   void *units)
{
	uint8_t *out = units;
	__m512i high[2], low[2], v[2];

	for (size_t i = 0; i < n; i += 64, out += 256) {
		size_t left = n - i < 64 ? n - i : 64;

		merge_high(plane, i, left, rotate, high);
		interleave8(load_n(plane[3] + i, left),
			    load_n(plane[2] + i, left), low);
		for (unsigned h = 0; h < 2; h++) {
			interleave16(low[h], high[h], v);
			store_n(out + 128 * h, part_of(4 * left, 128 * h), v[0]);
			store_n(out + 128 * h + 64,
				part_of(4 * left, 128 * h + 64), v[1]);
		}
	}
}

static void merge64_avx512(const uint8_t *const *plane, size_t n, bool rotate,
			   void *units)
{
	uint8_t *out = units;
	__m512i p[4][2], a[2], b[2], v[2];

	for (size_t i = 0; i < n; i += 64, out += 512) {
		size_t left = n - i < 64 ? n - i : 64;

		merge_high(plane, i, left, rotate, p[3]);
		for (unsigned j = 0; j < 3; j++)
			interleave8(load_n(plane[7 - 2 * j] + i, left),
				    load_n(plane[6 - 2 * j] + i, left), p[j]);
		for (unsigned h = 0; h < 2; h++) {
			interleave16(p[0][h], p[1][h], a);
			interleave16(p[2][h], p[3][h], b);
			for (unsigned q = 0; q < 2; q++) {
				size_t at = 256 * h + 128 * q;

				interleave32(a[q], b[q], v);
				store_n(out + at, part_of(8 * left, at), v[0]);
				store_n(out + at + 64, part_of(8 * left, at + 64),
					v[1]);
			}
		}
	}
}

static void split16_avx512(const void *units, size_t n, bool rotate,
			   uint8_t *const *plane)
{
	const uint8_t *in = units;

	for (size_t i = 0; i < n; i += 32, in += 64) {
		size_t left = n - i < 32 ? n - i : 32;
		__mmask32 k = _bzhi_u32(~0u, (unsigned)left);
		__m512i v = load_n(in, 2 * left);

		if (rotate)
			v = rotl16(v);
		_mm256_mask_storeu_epi8(plane[1] + i, k, _mm512_cvtepi16_epi8(v));
		_mm256_mask_storeu_epi8(plane[0] + i, k,
					_mm512_cvtepi16_epi8(_mm512_srli_epi16(v, 8)));
	}
}

/* Wider units: 16-bit halves by one permutation a pair of planes. */
static void split32_avx512(const void *units, size_t n, bool rotate,
			   uint8_t *const *plane)
{
	const uint8_t *in = units;

	for (size_t i = 0; i < n; i += 16, in += 64) {
		size_t left = n - i < 16 ? n - i : 16;
		__mmask16 k = (__mmask16)_bzhi_u32(0xffff, (unsigned)left);
		__m512i v = load_n(in, 4 * left);

		if (rotate)
			v = _mm512_mask_mov_epi16(v, 0xaaaaaaaa, rotl16(v));
		for (unsigned b = 0; b < 4; b++) {
			_mm_mask_storeu_epi8(plane[3 - b] + i, k,
					     _mm512_cvtepi32_epi8(v));
			v = _mm512_srli_epi32(v, 8);
		}
	}
}

static void split64_avx512(const void *units, size_t n, bool rotate,
			   uint8_t *const *plane)
{
	const uint8_t *in = units;

	for (size_t i = 0; i < n; i += 8, in += 64) {
		size_t left = n - i < 8 ? n - i : 8;
		__mmask16 k = (__mmask16)_bzhi_u32(0xff, (unsigned)left);
		__m512i v = load_n(in, 8 * left);

		if (rotate)
			v = _mm512_mask_mov_epi16(v, 0x88888888, rotl16(v));
		for (unsigned b = 0; b < 8; b++) {
			_mm_mask_storeu_epi8(plane[7 - b] + i, k,
					     _mm512_cvtepi64_epi8(v));
			v = _mm512_srli_epi64(v, 8);
		}
	}
}

/* How many bytes of both are 15. */
INLINE size_t count_15(__m512i a, __m512i b)
{
	const __m512i escape = _mm512_set1_epi8(15);

	return (size_t)__builtin_popcountll(_mm512_cmpeq_epi8_mask(a, escape)) +
	       (size_t)__builtin_popcountll(_mm512_cmpeq_epi8_mask(b, escape));
}

/* The nibbles of a block's pairs: of the first half of it, and of the second. */
INLINE size_t nibbles(__m512i pair, __m512i n[2])
{
	const __m512i low4 = _mm512_set1_epi8(15);

	n[0] = _mm512_and_si512(pair, low4);
	n[1] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), low4);
	return count_15(n[0], n[1]);
}

static size_t pair_expand_avx512(const uint8_t *pair, size_t blocks,
				 const uint8_t nibble[16], uint8_t *out)
{
	const __m512i lut = broadcast16(nibble);
	size_t escapes = 0;
	__m512i n[2];

	for (; blocks; blocks--, pair += 64, out += 128) {
		escapes += nibbles(_mm512_loadu_si512(pair), n);
		_mm512_storeu_si512(out, _mm512_shuffle_epi8(lut, n[0]));
		_mm512_storeu_si512(out + 64, _mm512_shuffle_epi8(lut, n[1]));
	}
	return escapes;
}

static size_t pair_merge16_avx512(const uint8_t *pair, size_t blocks,
				  const uint8_t nibble[16], const uint8_t *low,
				  bool rotate, void *units)
{
	const __m512i lut = broadcast16(nibble);
	uint8_t *out = units;
	size_t escapes = 0;
	__m512i n[2], v[2];

	for (; blocks; blocks--, pair += 64, low += 128, out += 256) {
		escapes += nibbles(to_unpack(_mm512_loadu_si512(pair)), n);
		for (unsigned h = 0; h < 2; h++) {
			__m512i a = to_unpack(_mm512_loadu_si512(low + 64 * h));
			__m512i b = _mm512_shuffle_epi8(lut, n[h]);

			v[0] = _mm512_unpacklo_epi8(a, b);
			v[1] = _mm512_unpackhi_epi8(a, b);
			for (unsigned i = 0; i < 2; i++)
				_mm512_storeu_si512(out + 128 * h + 64 * i,
						    rotate ? rotr16(v[i]) : v[i]);
		}
	}
	return escapes;
}

static size_t pair_map16_avx512(const uint8_t *pair, size_t blocks,
				const uint16_t lut[16], void *out)
{
	/* Twice, since a permutation looks at five bits. */
	const __m512i table = _mm512_broadcast_i64x4(
		_mm256_loadu_si256((const __m256i *)(const void *)lut));
	size_t escapes = 0;
	uint8_t *o = out;
	__m512i n[2];

	for (; blocks; blocks--, pair += 64, o += 256) {
		escapes += nibbles(_mm512_loadu_si512(pair), n);
		for (unsigned i = 0; i < 2; i++) {
			__m512i w = _mm512_cvtepu8_epi16(_mm256_loadu_si256(
				(const __m256i *)(const void *)(pair + 32 * i)));

			_mm512_storeu_si512(o + 64 * i,
					    _mm512_permutexvar_epi16(w, table));
			w = _mm512_srli_epi16(w, 4);
			_mm512_storeu_si512(o + 128 + 64 * i,
					    _mm512_permutexvar_epi16(w, table));
		}
	}
	return escapes;
}

/* table[v] of each byte; the table in four vectors. */
INLINE __m512i lookup8(const __m512i table[4], __m512i v)
{
	return _mm512_mask_mov_epi8(
		_mm512_permutex2var_epi8(table[0], v, table[1]),
		_mm512_movepi8_mask(v),
		_mm512_permutex2var_epi8(table[2], v, table[3]));
}

static size_t pair_pack_avx512(const uint8_t *in, size_t blocks,
			       const uint8_t index[256], uint8_t *pair)
{
	size_t escapes = 0;
	__m512i table[4];

	for (unsigned i = 0; i < 4; i++)
		table[i] = _mm512_loadu_si512(index + 64 * i);
	for (; blocks; blocks--, in += 128, pair += 64) {
		__m512i lo = lookup8(table, _mm512_loadu_si512(in));
		__m512i hi = lookup8(table, _mm512_loadu_si512(in + 64));

		escapes += count_15(lo, hi);
		_mm512_storeu_si512(
			pair, _mm512_or_si512(lo, _mm512_slli_epi16(hi, 4)));
	}
	return escapes;
}

static void lut_f32_avx512(const float value[256], float scale, uint32_t lut[256])
{
	const __m512 s = _mm512_set1_ps(scale);

	for (unsigned i = 0; i < 256; i += 16)
		_mm512_storeu_ps(lut + i, _mm512_mul_ps(_mm512_loadu_ps(value + i), s));
}

static void lut_bf16_avx512(const float value[256], float scale, uint16_t lut[256])
{
	const __m512i one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7fff);
	const __m512 s = _mm512_set1_ps(scale);

	for (unsigned i = 0; i < 256; i += 16) {
		__m512 p = _mm512_mul_ps(_mm512_loadu_ps(value + i), s);
		__mmask16 nan = _mm512_cmp_ps_mask(p, p, _CMP_UNORD_Q);
		__m512i u = _mm512_castps_si512(p);
		__m512i h = _mm512_srli_epi32(u, 16);
		__m512i r = _mm512_srli_epi32(
			_mm512_add_epi32(_mm512_add_epi32(u, half),
					 _mm512_and_si512(h, one)), 16);

		r = _mm512_mask_or_epi32(r, nan, h, _mm512_set1_epi32(0x40));
		_mm256_storeu_si256((__m256i *)(void *)(lut + i),
				    _mm512_cvtepi32_epi16(r));
	}
}

static void lut_f16_avx512(const float value[256], float scale, uint16_t lut[256])
{
	const __m512 s = _mm512_set1_ps(scale);

	for (unsigned i = 0; i < 256; i += 16)
		_mm256_storeu_si256(
			(__m256i *)(void *)(lut + i),
			_mm512_cvtps_ph(_mm512_mul_ps(_mm512_loadu_ps(value + i), s),
					_MM_FROUND_TO_NEAREST_INT |
						_MM_FROUND_NO_EXC));
}

/* The entries of -32 to 31 of a table in four vectors: found by a byte's low six bits. */
INLINE __m512i near(const __m512i table[4])
{
	return _mm512_mask_mov_epi8(table[0], 0xffffffff00000000, table[3]);
}

/* A look-up a byte of the unit: low bytes and high bytes of the table apart. Most
 * symbols are small numbers. */
static void map16_avx512(const uint8_t *sym, size_t n, const uint16_t lut[256],
			 void *out)
{
	const __m512i half = _mm512_set1_epi8(32), far = _mm512_set1_epi8((char)0xc0);
	__m512i low[4], high[4], near_low, near_high, v[2];
	uint8_t *o = out;

	for (unsigned i = 0; i < 4; i++) {
		__m512i a = _mm512_loadu_si512(lut + 64 * i);
		__m512i b = _mm512_loadu_si512(lut + 64 * i + 32);

		low[i] = _mm512_inserti64x4(
			_mm512_castsi256_si512(_mm512_cvtepi16_epi8(a)),
			_mm512_cvtepi16_epi8(b), 1);
		high[i] = _mm512_inserti64x4(
			_mm512_castsi256_si512(
				_mm512_cvtepi16_epi8(_mm512_srli_epi16(a, 8))),
			_mm512_cvtepi16_epi8(_mm512_srli_epi16(b, 8)), 1);
	}
	near_low = near(low);
	near_high = near(high);
	for (size_t i = 0; i < n; i += 64, o += 128) {
		size_t left = n - i < 64 ? n - i : 64;
		__m512i s = load_n(sym + i, left);

		if (_mm512_test_epi8_mask(_mm512_add_epi8(s, half), far))
			interleave8(lookup8(low, s), lookup8(high, s), v);
		else
			interleave8(_mm512_permutexvar_epi8(s, near_low),
				    _mm512_permutexvar_epi8(s, near_high), v);
		store_n(o, 2 * left, v[0]);
		if (left > 32)
			store_n(o + 64, 2 * left - 64, v[1]);
	}
}

static void map32_avx512(const uint8_t *sym, size_t n, const uint32_t lut[256],
			 void *out)
{
	uint8_t *o = out;

	for (size_t i = 0; i < n; i += 16, o += 64) {
		size_t left = n - i < 16 ? n - i : 16;
		__mmask16 k = (__mmask16)_bzhi_u32(0xffff, (unsigned)left);
		__m512i s = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(k, sym + i));

		_mm512_mask_storeu_epi32(
			o, k, _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), k,
							  s, lut, 4));
	}
}

void eq_split_init_avx512(struct eq_kernels *k)
{
	k->pair_expand = pair_expand_avx512;
	k->pair_merge16 = pair_merge16_avx512;
	k->pair_map16 = pair_map16_avx512;
	k->pair_pack = pair_pack_avx512;
	k->split[1] = split16_avx512;
	k->split[2] = split32_avx512;
	k->split[3] = split64_avx512;
	k->merge[1] = merge16_avx512;
	k->merge[2] = merge32_avx512;
	k->merge[3] = merge64_avx512;
	k->lut_bf16 = lut_bf16_avx512;
	k->lut_f16 = lut_f16_avx512;
	k->lut_f32 = lut_f32_avx512;
	k->map16 = map16_avx512;
	k->map32 = map32_avx512;
}
