/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The entropy coder with AVX2: four vectors of 8 lanes a chunk. Table entries
 * are loaded one by one: on processors with microcode against gather data
 * sampling that is several times as fast as a gather, and elsewhere not slower
 * by much.
 */
#include <immintrin.h>

#include "format.h"
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

/* For each set of lanes that take a word, which word each takes: nibble i is
 * the number of lanes in the set below lane i. */
#define RANK(m, i) ((uint32_t)__builtin_popcount((m) & ((1u << (i)) - 1)) << 4 * (i))
#define RANKS(m)                                                               \
	RANK(m, 1) | RANK(m, 2) | RANK(m, 3) | RANK(m, 4) | RANK(m, 5) |       \
		RANK(m, 6) | RANK(m, 7)
#define RANKS4(m) RANKS(m), RANKS(m + 1), RANKS(m + 2), RANKS(m + 3)
#define RANKS16(m) RANKS4(m), RANKS4(m + 4), RANKS4(m + 8), RANKS4(m + 12)
#define RANKS64(m) RANKS16(m), RANKS16(m + 16), RANKS16(m + 32), RANKS16(m + 48)

static const uint32_t ranks[256] = { RANKS64(0u), RANKS64(64u), RANKS64(128u),
				     RANKS64(192u) };

INLINE __m128i load4(const uint32_t *slot, const uint32_t *index)
{
	__m128i e = _mm_cvtsi32_si128((int)slot[index[0]]);

	e = _mm_insert_epi32(e, (int)slot[index[1]], 1);
	e = _mm_insert_epi32(e, (int)slot[index[2]], 2);
	return _mm_insert_epi32(e, (int)slot[index[3]], 3);
}

/* One step of the 8 lanes at x: returns the table entries, refills the states. */
INLINE __m256i decode_step(uint32_t *x, const uint32_t *slot, const uint16_t **next)
{
	const __m256i low12 = _mm256_set1_epi32(4095);
	const __m256i shifts = _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0);
	__m256i v = _mm256_load_si256((const __m256i *)(const void *)x);
	uint32_t index[8] __attribute__((aligned(32)));
	__m256i e, f, y, words, rank, low;
	unsigned m;

	_mm256_store_si256((__m256i *)(void *)index, _mm256_and_si256(v, low12));
	/* Through memory indeed: gcc would extract lane by lane, on the one port
	 * that is busy with the insertions. */
	__asm__("" : "+m"(index));
	e = _mm256_set_m128i(load4(slot, index + 4), load4(slot, index));
	f = _mm256_and_si256(_mm256_srli_epi32(e, 12), low12);
	y = _mm256_add_epi32(_mm256_mullo_epi32(f, _mm256_srli_epi32(v, 12)),
			     _mm256_and_si256(e, low12));
	low = _mm256_cmpeq_epi32(_mm256_srli_epi32(y, 16), _mm256_setzero_si256());
	m = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(low));
	words = _mm256_cvtepu16_epi32(
		_mm_loadu_si128((const __m128i *)(const void *)*next));
	/* The permutation looks at the low three bits only. */
	rank = _mm256_srlv_epi32(_mm256_set1_epi32((int)ranks[m]), shifts);
	words = _mm256_permutevar8x32_epi32(words, rank);
	y = _mm256_blendv_epi8(
		y, _mm256_or_si256(_mm256_slli_epi32(y, 16), words), low);
	_mm256_store_si256((__m256i *)(void *)x, y);
	*next += __builtin_popcount(m);
	return e;
}

/* k decoders side by side, k a constant. There are not registers enough for the
 * states of two, so they stay in memory, and so do the symbols. */
INLINE void decode_k(struct eq_rans_dec *const *dec, uint8_t *const *out,
		     size_t groups, const unsigned k)
{
	const __m256i top8 = _mm256_set1_epi32((int)0xff000000);
	const uint16_t *next[2];
	const uint32_t *slot[2];

	for (unsigned i = 0; i < k; i++) {
		next[i] = dec[i]->next;
		slot[i] = dec[i]->table->slot;
	}
	for (size_t g = 0; g < groups; g++) {
		for (unsigned t = 0; t < 4; t++) {
#pragma GCC unroll 4
			for (unsigned v = 0; v < 4; v++) {
#pragma GCC unroll 2
				for (unsigned i = 0; i < k; i++) {
					__m256i *o = (__m256i *)(void *)(
						out[i] + g * EQ_GROUP + 32 * v);
					__m256i s, e = decode_step(dec[i]->x + 8 * v,
								   slot[i], &next[i]);

					/* Step t ends up in byte t; what was
					 * there before is shifted out. */
					s = _mm256_srli_epi32(_mm256_loadu_si256(o), 8);
					e = _mm256_and_si256(e, top8);
					_mm256_storeu_si256(o, _mm256_or_si256(s, e));
				}
			}
		}
		for (unsigned i = 0; i < k; i++) {
			if (__builtin_expect(next[i] > dec[i]->end, 0)) {
				next[i] = dec[i]->end;
				dec[i]->err = 1;
			}
		}
	}
	for (unsigned i = 0; i < k; i++)
		dec[i]->next = next[i];
}

static void rans_decode_avx2(struct eq_rans_dec *const *dec, uint8_t *const *out,
			     unsigned k, size_t groups)
{
	for (; k >= 2; k -= 2, dec += 2, out += 2)
		decode_k(dec, out, groups, 2);
	if (k)
		decode_k(dec, out, groups, 1);
}

void eq_kernels_init_avx2(struct eq_kernels *k)
{
	k->isa = "avx2";
	k->streams = 2;
	k->rans_decode = rans_decode_avx2;
	eq_split_init_avx2(k);
}
