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

/* Bytes low[i] high[i] alternating: 32 numbers of 16 bits in order. */
INLINE void pair_bytes(__m256i low, __m256i high, __m256i out[2])
{
	reorder(_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high), out);
}

/* 32 units' planes p (high) and p + 1 (low) -> 16-bit numbers. */
INLINE void merge_two(const uint8_t *const *p, size_t i, __m256i out[2])
{
	pair_bytes(load(p[1] + i), load(p[0] + i), out);
}

INLINE __m256i broadcast16(const void *p)
{
	return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
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

/* Bytes 3, 2, 1 and 0 of each unit together, then whole planes of 32 bytes. */
static void split32_avx2(const void *units, size_t n, bool rotate,
			 uint8_t *const *plane)
{
	const __m256i by_byte = broadcast16((const uint8_t[16]){
		3, 7, 11, 15, 2, 6, 10, 14, 1, 5, 9, 13, 0, 4, 8, 12 });
	const __m256i order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
	const uint8_t *in = units;
	size_t i = 0;

	for (; i + 32 <= n; i += 32) {
		__m256i v[4], a[2], b[2];

		for (unsigned j = 0; j < 4; j++) {
			v[j] = load(in + 4 * i + 32 * j);
			if (rotate)
				v[j] = _mm256_blend_epi16(v[j], rotl16(v[j]), 0xaa);
			v[j] = _mm256_shuffle_epi8(v[j], by_byte);
		}
		for (unsigned j = 0; j < 2; j++) {
			a[j] = _mm256_unpacklo_epi32(v[2 * j], v[2 * j + 1]);
			b[j] = _mm256_unpackhi_epi32(v[2 * j], v[2 * j + 1]);
		}
		v[0] = _mm256_unpacklo_epi64(a[0], a[1]);
		v[1] = _mm256_unpackhi_epi64(a[0], a[1]);
		v[2] = _mm256_unpacklo_epi64(b[0], b[1]);
		v[3] = _mm256_unpackhi_epi64(b[0], b[1]);
		for (unsigned j = 0; j < 4; j++)
			store(plane[j] + i, _mm256_permutevar8x32_epi32(v[j], order));
	}
	eq_split_c(units, i, n, rotate, plane, 4);
}

/* 16 bytes from p and 16 from p + 8 * 16: units 2i, 2i + 1 and 16 units on. */
INLINE __m256i load_apart(const uint8_t *p)
{
	return _mm256_inserti128_si256(
		_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)p)),
		_mm_loadu_si128((const __m128i *)(const void *)(p + 128)), 1);
}

INLINE void store_apart(uint8_t *p, __m256i v)
{
	_mm_storeu_si128((__m128i *)(void *)p, _mm256_castsi256_si128(v));
	_mm_storeu_si128((__m128i *)(void *)(p + 128), _mm256_extracti128_si256(v, 1));
}

/* In each half a matrix of 8 vectors of 8 numbers of 16 bits: rows to columns. */
INLINE void transpose16(__m256i v[8])
{
	__m256i a[8], b[8];

	for (unsigned i = 0; i < 4; i++) {
		a[i] = _mm256_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
		a[4 + i] = _mm256_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
	}
	for (unsigned i = 0; i < 8; i += 4) {
		b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
		b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
		b[i + 2] = _mm256_unpacklo_epi32(a[i + 2], a[i + 3]);
		b[i + 3] = _mm256_unpackhi_epi32(a[i + 2], a[i + 3]);
	}
	for (unsigned i = 0; i < 8; i += 2) {
		unsigned j = i / 4 * 4 + i / 2 % 2;

		v[i] = _mm256_unpacklo_epi64(b[j], b[j + 2]);
		v[i + 1] = _mm256_unpackhi_epi64(b[j], b[j + 2]);
	}
}

/* Bytes of the same weight of two units together; then 8 such pairs a plane. */
static void split64_avx2(const void *units, size_t n, bool rotate,
			 uint8_t *const *plane)
{
	const __m256i by_byte = broadcast16((const uint8_t[16]){
		7, 15, 6, 14, 5, 13, 4, 12, 3, 11, 2, 10, 1, 9, 0, 8 });
	const uint8_t *in = units;
	size_t i = 0;

	for (; i + 32 <= n; i += 32) {
		__m256i v[8];

		for (unsigned j = 0; j < 8; j++) {
			v[j] = load_apart(in + 8 * i + 16 * j);
			if (rotate)
				v[j] = _mm256_blend_epi16(v[j], rotl16(v[j]), 0x88);
			v[j] = _mm256_shuffle_epi8(v[j], by_byte);
		}
		transpose16(v);
		for (unsigned j = 0; j < 8; j++)
			store(plane[j] + i, v[j]);
	}
	eq_split_c(units, i, n, rotate, plane, 8);
}

static void merge64_avx2(const uint8_t *const *plane, size_t n, bool rotate,
			 void *units)
{
	const __m256i by_unit = broadcast16((const uint8_t[16]){
		14, 12, 10, 8, 6, 4, 2, 0, 15, 13, 11, 9, 7, 5, 3, 1 });
	uint8_t *out = units;
	size_t i = 0;

	for (; i + 32 <= n; i += 32) {
		__m256i v[8];

		for (unsigned j = 0; j < 8; j++)
			v[j] = load(plane[j] + i);
		transpose16(v);
		for (unsigned j = 0; j < 8; j++) {
			v[j] = _mm256_shuffle_epi8(v[j], by_unit);
			if (rotate)
				v[j] = _mm256_blend_epi16(v[j], rotr16(v[j]), 0x88);
			store_apart(out + 8 * i + 16 * j, v[j]);
		}
	}
	eq_merge_c(plane, i, n, rotate, units, 8);
}

/* How many bytes of both are 15. */
INLINE size_t count_15(__m256i a, __m256i b)
{
	const __m256i escape = _mm256_set1_epi8(15);
	uint64_t low = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(a, escape));
	uint64_t high = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(b, escape));

	return (size_t)__builtin_popcountll(high << 32 | low);
}

/* 32 pairs' nibbles: those of the first half of the block, and of the second. */
INLINE size_t load_nibbles(const uint8_t *pair, __m256i n[2])
{
	const __m256i low4 = _mm256_set1_epi8(15);
	__m256i v = load(pair);

	n[0] = _mm256_and_si256(v, low4);
	n[1] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low4);
	return count_15(n[0], n[1]);
}

static size_t pair_expand_avx2(const uint8_t *pair, size_t blocks,
			       const uint8_t nibble[16], uint8_t *out)
{
	const __m256i lut = broadcast16(nibble);
	size_t escapes = 0;
	__m256i n[2];

	for (; blocks; blocks--, pair += 64, out += 128) {
		for (unsigned j = 0; j < 64; j += 32) {
			escapes += load_nibbles(pair + j, n);
			store(out + j, _mm256_shuffle_epi8(lut, n[0]));
			store(out + 64 + j, _mm256_shuffle_epi8(lut, n[1]));
		}
	}
	return escapes;
}

static size_t pair_merge16_avx2(const uint8_t *pair, size_t blocks,
				const uint8_t nibble[16], const uint8_t *low,
				bool rotate, void *units)
{
	const __m256i lut = broadcast16(nibble);
	uint8_t *out = units;
	size_t escapes = 0;
	__m256i n[2], v[2];

	for (; blocks; blocks--, pair += 64, low += 128, out += 256) {
		for (unsigned j = 0; j < 64; j += 32) {
			escapes += load_nibbles(pair + j, n);
			for (unsigned h = 0; h < 2; h++) {
				uint8_t *o = out + 128 * h + 2 * j;

				pair_bytes(load(low + 64 * h + j),
					   _mm256_shuffle_epi8(lut, n[h]), v);
				store(o, rotate ? rotr16(v[0]) : v[0]);
				store(o + 32, rotate ? rotr16(v[1]) : v[1]);
			}
		}
	}
	return escapes;
}

/* 16 numbers of 16 bits -> their low and high bytes, twice each. */
INLINE void table_bytes(const uint16_t lut[16], __m256i *low, __m256i *high)
{
	__m256i v = load(lut);
	__m256i l = _mm256_and_si256(v, _mm256_set1_epi16(255));
	__m256i both = _mm256_packus_epi16(l, _mm256_srli_epi16(v, 8));

	/* Low 0-7, high 0-7, low 8-15, high 8-15. */
	*low = _mm256_permute4x64_epi64(both, 0x88);
	*high = _mm256_permute4x64_epi64(both, 0xdd);
}

static size_t pair_map16_avx2(const uint8_t *pair, size_t blocks,
			      const uint16_t lut[16], void *out)
{
	uint8_t *o = out;
	size_t escapes = 0;
	__m256i n[2], v[2], low, high;

	table_bytes(lut, &low, &high);
	for (; blocks; blocks--, pair += 64, o += 256) {
		for (unsigned j = 0; j < 64; j += 32) {
			escapes += load_nibbles(pair + j, n);
			for (unsigned h = 0; h < 2; h++) {
				pair_bytes(_mm256_shuffle_epi8(low, n[h]),
					   _mm256_shuffle_epi8(high, n[h]), v);
				store(o + 128 * h + 2 * j, v[0]);
				store(o + 128 * h + 2 * j + 32, v[1]);
			}
		}
	}
	return escapes;
}

/*
 * Tables of 256 are looked up in rows of 16, and only in those rows that matter:
 * symbols cluster. Indices into row r: the low four bits of bytes s that are in
 * it; others have the sign bit set and find 0.
 */
INLINE __m256i row_index(__m256i s, unsigned r)
{
	return _mm256_adds_epu8(_mm256_xor_si256(s, _mm256_set1_epi8((char)(16 * r))),
				_mm256_set1_epi8(0x70));
}

/* The rows that have an entry other than 15, less 15 so that those find 0. */
INLINE unsigned index_rows(const uint8_t index[256], __m256i *row, uint8_t *number)
{
	const __m256i escape = _mm256_set1_epi8(15);
	unsigned n = 0;

	for (unsigned r = 0; r < 16; r++) {
		__m256i v = _mm256_xor_si256(broadcast16(index + 16 * r), escape);

		row[n] = v;
		number[n] = (uint8_t)r;
		n += !_mm256_testz_si256(v, v);
	}
	return n;
}

static size_t pair_pack_avx2(const uint8_t *in, size_t blocks,
			     const uint8_t index[256], uint8_t *pair)
{
	const __m256i escape = _mm256_set1_epi8(15);
	__m256i row[16];
	uint8_t number[16];
	unsigned rows = index_rows(index, row, number);
	size_t escapes = 0;

	for (; blocks; blocks--, in += 128, pair += 64) {
		for (unsigned j = 0; j < 64; j += 32) {
			__m256i a = load(in + j), b = load(in + 64 + j);
			__m256i lo = escape, hi = escape;

			for (unsigned r = 0; r < rows; r++) {
				lo = _mm256_xor_si256(lo, _mm256_shuffle_epi8(
						row[r], row_index(a, number[r])));
				hi = _mm256_xor_si256(hi, _mm256_shuffle_epi8(
						row[r], row_index(b, number[r])));
			}
			escapes += count_15(lo, hi);
			store(pair + j, _mm256_or_si256(lo, _mm256_slli_epi16(hi, 4)));
		}
	}
	return escapes;
}

/* The set of rows that n symbols, a multiple of 32, are in. */
INLINE unsigned rows_of(const uint8_t *sym, size_t n)
{
	/* Bit r of rows 0 to 7, bit r - 8 of rows 8 to 15. */
	const __m256i bits = _mm256_broadcastsi128_si256(
		_mm_set_epi64x(0, INT64_C(0x8040201008040201)));
	const __m256i bits8 = _mm256_broadcastsi128_si256(
		_mm_set_epi64x(INT64_C(0x8040201008040201), 0));
	__m256i seen = _mm256_setzero_si256(), seen8 = seen;
	uint64_t v[4], set = 0;

	for (size_t i = 0; i < n; i += 32) {
		__m256i r = _mm256_and_si256(_mm256_srli_epi16(load(sym + i), 4),
					     _mm256_set1_epi8(15));

		seen = _mm256_or_si256(seen, _mm256_shuffle_epi8(bits, r));
		seen8 = _mm256_or_si256(seen8, _mm256_shuffle_epi8(bits8, r));
	}
	/* Pairs of both, and their bits together. */
	seen = _mm256_or_si256(_mm256_unpacklo_epi8(seen, seen8),
			       _mm256_unpackhi_epi8(seen, seen8));
	store(v, seen);
	for (unsigned i = 0; i < 4; i++)
		set |= v[i];
	set |= set >> 32;
	return (uint16_t)(set | set >> 16);
}

/* To look up in more rows takes longer than to load one by one. */
#define MAP_ROWS 8

static void map16_avx2(const uint8_t *sym, size_t n, const uint16_t lut[256], void *out)
{
	__m256i low[MAP_ROWS], high[MAP_ROWS], v[2];
	uint8_t number[MAP_ROWS], *o = out;
	unsigned set = rows_of(sym, n / 32 * 32), rows = 0;
	size_t i = 0;

	if (__builtin_popcount(set) > MAP_ROWS) {
		eq_map16_c(sym, n, lut, out);
		return;
	}
	for (; set; set &= set - 1) {
		unsigned r = (unsigned)__builtin_ctz(set);

		table_bytes(lut + 16 * r, &low[rows], &high[rows]);
		number[rows++] = (uint8_t)r;
	}
	for (; i + 32 <= n; i += 32) {
		__m256i s = load(sym + i);
		__m256i l = _mm256_setzero_si256(), h = l;

		for (unsigned r = 0; r < rows; r++) {
			__m256i index = row_index(s, number[r]);

			l = _mm256_or_si256(l, _mm256_shuffle_epi8(low[r], index));
			h = _mm256_or_si256(h, _mm256_shuffle_epi8(high[r], index));
		}
		pair_bytes(l, h, v);
		store(o + 2 * i, v[0]);
		store(o + 2 * i + 32, v[1]);
	}
	eq_map16_c(sym + i, n - i, lut, o + 2 * i);
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

/* The conversion rounds to nearest even, keeps subnormals and makes a NaN quiet,
 * as the scalar one does. */
static void lut_f16_avx2(const float value[256], float scale, uint16_t lut[256])
{
	for (unsigned i = 0; i < 256; i += 8)
		_mm_storeu_si128((__m128i *)(void *)(lut + i),
				 _mm256_cvtps_ph(_mm256_mul_ps(_mm256_loadu_ps(value + i),
							       _mm256_set1_ps(scale)),
						 _MM_FROUND_TO_NEAREST_INT));
}

void eq_split_init_avx2(struct eq_kernels *k)
{
	k->pair_expand = pair_expand_avx2;
	k->pair_merge16 = pair_merge16_avx2;
	k->pair_map16 = pair_map16_avx2;
	k->pair_pack = pair_pack_avx2;
	k->split[1] = split16_avx2;
	k->split[2] = split32_avx2;
	k->split[3] = split64_avx2;
	k->merge[1] = merge16_avx2;
	k->merge[2] = merge32_avx2;
	k->merge[3] = merge64_avx2;
	k->lut_bf16 = lut_bf16_avx2;
	k->lut_f16 = lut_f16_avx2;
	k->lut_f32 = lut_f32_avx2;
	k->map16 = map16_avx2;
}
