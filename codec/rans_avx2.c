/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The entropy coder with AVX2: four vectors of 8 lanes a chunk, two chunks at
 * once, since one alone waits for its own results.
 *
 * There are two decoders, and cpu.c measures which is the faster one here: one
 * loads table entries one by one, the other gathers, which depends on the
 * processor and on its microcode (against gather data sampling) like nothing
 * else.
 */
#include <immintrin.h>

#include "format.h"
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

/* Functions of a set m of lanes, for all 256 sets. */
#define RANK(m, i) (unsigned)__builtin_popcount((m) & ((1u << (i)) - 1))
#define SETS4(f, m) f(m), f((m) + 1), f((m) + 2), f((m) + 3)
#define SETS16(f, m) SETS4(f, m), SETS4(f, m + 4), SETS4(f, m + 8), SETS4(f, m + 12)
#define SETS64(f, m) SETS16(f, m), SETS16(f, m + 16), SETS16(f, m + 32), SETS16(f, m + 48)
#define SETS256(f) SETS64(f, 0u), SETS64(f, 64u), SETS64(f, 128u), SETS64(f, 192u)

INLINE __m256i load(const void *p)
{
	return _mm256_load_si256((const __m256i *)p);
}

INLINE void store(void *p, __m256i v)
{
	_mm256_store_si256((__m256i *)p, v);
}

/* ---- decoding -------------------------------------------------------------- */

/* Shuffle that hands out words, in order, to the lanes of a set; the bytes that
 * have the sign bit become 0. */
#define TAKE(m, i)                                                             \
	((m) >> (i) & 1 ? 0x80800100u + 0x202u * RANK(m, i) : 0x80808080u)
#define TAKES(m)                                                               \
	{ TAKE(m, 0), TAKE(m, 1), TAKE(m, 2), TAKE(m, 3),                      \
	  TAKE(m, 4), TAKE(m, 5), TAKE(m, 6), TAKE(m, 7) }

static const uint32_t takes[256][8] __attribute__((aligned(64))) = { SETS256(TAKES) };

INLINE __m128i load4(const uint32_t *slot, __m128i index)
{
	uint64_t a = (uint64_t)_mm_cvtsi128_si64(index);
	uint64_t b = (uint64_t)_mm_extract_epi64(index, 1);
	__m128i e;

	/* Indices in general registers: clang would look for other ways. */
	__asm__("" : "+r"(a), "+r"(b));
	e = _mm_cvtsi32_si128((int)slot[(uint32_t)a]);
	e = _mm_insert_epi32(e, (int)slot[a >> 32], 1);
	e = _mm_insert_epi32(e, (int)slot[(uint32_t)b], 2);
	return _mm_insert_epi32(e, (int)slot[b >> 32], 3);
}

/* The table entries of the states x. */
INLINE __m256i entries(const uint32_t *slot, __m256i x, const bool gather)
{
	__m256i i = _mm256_and_si256(x, _mm256_set1_epi32(4095));
	__m256i all = _mm256_set1_epi32(-1);

	if (gather) {
		/* Into zeros, or it waits for what was there before; gcc, if it knew
		 * that the mask is full, would leave them out. */
		__asm__("" : "+x"(all));
		return _mm256_mask_i32gather_epi32(_mm256_setzero_si256(),
						   (const int *)slot, i, all, 4);
	}
	return _mm256_set_m128i(load4(slot, _mm256_extracti128_si256(i, 1)),
				load4(slot, _mm256_castsi256_si128(i)));
}

/* States that lack their words: moved up where one is due, in the lanes m. */
struct hungry {
	__m256i y;
	unsigned m;
};

INLINE struct hungry advance(__m256i x, __m256i e)
{
	const __m256i low12 = _mm256_set1_epi32(4095);
	__m256i f = _mm256_and_si256(_mm256_srli_epi32(e, 12), low12);
	__m256i y = _mm256_add_epi32(_mm256_mullo_epi32(f, _mm256_srli_epi32(x, 12)),
				     _mm256_and_si256(e, low12));
	__m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(y, 16),
					 _mm256_setzero_si256());

	return (struct hungry){ _mm256_blendv_epi8(y, _mm256_slli_epi32(y, 16), low),
				(unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(low)) };
}

INLINE __m256i feed(struct hungry h, const uint16_t **next)
{
	__m256i words = _mm256_broadcastsi128_si256(
		_mm_loadu_si128((const __m128i *)(const void *)*next));

	*next += __builtin_popcount(h.m);
	return _mm256_or_si256(h.y, _mm256_shuffle_epi8(words, load(takes[h.m])));
}

/* Put the symbols of step t, the top bytes of the entries, to byte t. */
INLINE void put_symbols(__m256i *out, __m256i e, const unsigned t)
{
	/* Byte t of each lane comes from its byte 3, the others are 0. */
	const __m256i only = _mm256_set1_epi32((int)(0x80808080 ^ 0x83u << 8 * t));
	const __m256i lane = _mm256_broadcastsi128_si256(_mm_set_epi32(
		0x0c0c0c0c, 0x08080808, 0x04040404, 0));

	e = _mm256_shuffle_epi8(e, _mm256_or_si256(only, lane));
	if (t)
		e = _mm256_or_si256(e, _mm256_loadu_si256(out));
	_mm256_storeu_si256(out, e);
}

/* How many vectors a stage is ahead of the next one: processors do not look far
 * enough to find by themselves what they could do while they wait. */
#define LAG_ENTRIES 2
#define LAG_WORDS 1
#define STAGES (2 * EQ_LANES / 8 * 4 + LAG_ENTRIES + LAG_WORDS) /* of two decoders */

/* k decoders side by side, k a constant. There are not registers enough for the
 * states of two, let alone for the symbols, which gather in memory. */
INLINE void decode_k(struct eq_rans_dec *const *dec, uint8_t *const *out,
		     size_t groups, const unsigned k, const bool gather)
{
	const unsigned vectors = 4 * k, all = 4 * vectors; /* of a step, of a group */
	const uint16_t *next[2];
	const uint32_t *slot[2];
	__m256i x[8], e[8];     /* decoder i has every k-th from i on */
	struct hungry h[8];

	for (unsigned i = 0; i < k; i++) {
		next[i] = dec[i]->next;
		slot[i] = dec[i]->table->slot;
		for (unsigned v = 0; v < 4; v++)
			x[v * k + i] = load(dec[i]->x + 8 * v);
	}
	for (size_t g = 0; g < groups; g++) {
#pragma GCC unroll 64
		for (unsigned n = 0; n < STAGES; n++) { /* clang wants a constant */
			unsigned a = n - LAG_ENTRIES, w = a - LAG_WORDS;

			if (n < all)
				e[n % vectors] = entries(slot[n % k], x[n % vectors],
							 gather);
			if (a < all) {
				uint8_t *o = out[a % k] + g * EQ_GROUP +
					     a % vectors / k * 32;

				h[a % vectors] = advance(x[a % vectors], e[a % vectors]);
				put_symbols((__m256i *)(void *)o, e[a % vectors],
					    a / vectors);
			}
			if (w < all)
				x[w % vectors] = feed(h[w % vectors], &next[w % k]);
		}
		for (unsigned i = 0; i < k; i++) {
			if (__builtin_expect(next[i] > dec[i]->end, 0)) {
				next[i] = dec[i]->end;
				dec[i]->err = 1;
			}
		}
	}
	for (unsigned i = 0; i < k; i++) {
		dec[i]->next = next[i];
		for (unsigned v = 0; v < 4; v++)
			store(dec[i]->x + 8 * v, x[v * k + i]);
	}
}

#define EQ_DECODE(name, gather)                                                \
	static void name(struct eq_rans_dec *const *dec, uint8_t *const *out,  \
			 unsigned k, size_t groups)                            \
	{                                                                      \
		for (; k >= 2; k -= 2, dec += 2, out += 2)                     \
			decode_k(dec, out, groups, 2, gather);                 \
		if (k)                                                         \
			decode_k(dec, out, groups, 1, gather);                 \
	}

EQ_DECODE(rans_decode_avx2, false)
EQ_DECODE(rans_decode_avx2_gather, true)

/* ---- encoding -------------------------------------------------------------- */

/* Shuffle that moves the words of the lanes of a set, in order, to the top of a
 * vector of 8: what is below does not matter. In two halves. */
#define PLACE(m, i) (8 - RANK(m, 8) + RANK(m, i))
#define GIVE(m, i, half)                                                       \
	((m) >> (i) & 1 && PLACE(m, i) / 4 == (half) ?                         \
		 (UINT64_C(0x100) + 0x202 * (i)) << PLACE(m, i) % 4 * 16 : 0)
#define GIVES_HALF(m, h)                                                       \
	GIVE(m, 0, h) | GIVE(m, 1, h) | GIVE(m, 2, h) | GIVE(m, 3, h) |        \
		GIVE(m, 4, h) | GIVE(m, 5, h) | GIVE(m, 6, h) | GIVE(m, 7, h)
#define GIVES(kept) { GIVES_HALF(255 ^ (kept), 0), GIVES_HALF(255 ^ (kept), 1) }

/* By the set of the other lanes, those that keep theirs. */
static const uint64_t gives[256][2] __attribute__((aligned(64))) = { SETS256(GIVES) };

/* The entries of 8 lanes, where the multiplication wants them. */
struct found {
	__m256i even, odd;
};

INLINE __m256i load_entries(const struct eq_rans_enc *enc, const uint8_t *sym)
{
	const double *entry = (const double *)(const void *)enc->entry;
	__m128d low = _mm_loadh_pd(_mm_load_sd(entry + sym[0]), entry + sym[8]);
	__m128d high = _mm_loadh_pd(_mm_load_sd(entry + sym[16]), entry + sym[24]);

	return _mm256_castpd_si256(_mm256_set_m128d(high, low));
}

/* Of every fourth symbol from `sym`. */
INLINE struct found find_symbols(const struct eq_rans_enc *enc, const uint8_t *sym)
{
	return (struct found){ load_entries(enc, sym), load_entries(enc, sym + 4) };
}

/* x / f, or one less: high halves of products with the low halves of entries. */
INLINE __m256i divide(__m256i x, struct found e)
{
	__m256i even = _mm256_mul_epu32(x, e.even);
	__m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), e.odd);

	return _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}

/* One step of 8 lanes. The words go below `top`. *least: the least of what was
 * found in the table. */
INLINE __m256i encode_step(__m256i x, struct found e, uint16_t **top, __m256i *least)
{
	__m256i fs = _mm256_blend_epi32(_mm256_srli_epi64(e.even, 32), e.odd, 0xaa);
	__m256i f = _mm256_and_si256(fs, _mm256_set1_epi32(0xffff));
	__m256i keep = _mm256_cmpgt_epi32(f, _mm256_srli_epi32(x, 20)), words, q, r;
	unsigned kept = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(keep));

	*least = _mm256_min_epu32(*least, fs);
	words = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
	_mm_storeu_si128(
		(__m128i *)(void *)(*top - 8),
		_mm_shuffle_epi8(_mm_packus_epi32(_mm256_castsi256_si128(words),
						  _mm256_extracti128_si256(words, 1)),
				 _mm_load_si128((const __m128i *)(const void *)gives[kept])));
	*top = *top + __builtin_popcount(kept) - 8;
	x = _mm256_blendv_epi8(_mm256_srli_epi32(x, 16), x, keep);
	q = divide(x, e);
	r = _mm256_sub_epi32(x, _mm256_mullo_epi32(q, f));
	x = _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(q, 12), r),
			     _mm256_srli_epi32(fs, 16));
	return _mm256_add_epi32(
		x, _mm256_andnot_si256(_mm256_cmpgt_epi32(f, r),
				       _mm256_sub_epi32(_mm256_set1_epi32(4096), f)));
}

static uint16_t *rans_encode_avx2(const struct eq_rans_enc *enc, uint32_t x[32],
				  const uint8_t *sym, size_t groups, uint16_t *top)
{
	__m256i v[4], least = _mm256_set1_epi32(-1);

	for (unsigned i = 0; i < 4; i++)
		v[i] = _mm256_loadu_si256((const __m256i *)(const void *)(x + 8 * i));
	for (sym += groups * EQ_GROUP; groups; groups--) {
		struct found next;

		sym -= EQ_GROUP;
		next = find_symbols(enc, sym + 3 * 32 + 3);
#pragma GCC unroll 16
		for (unsigned n = 16; n-- > 0;) { /* step n / 4, vector n % 4 */
			struct found e = next;

			/* One ahead of their use, as in the decoder. */
			if (n)
				next = find_symbols(enc, sym + (n - 1) % 4 * 32 + (n - 1) / 4);
			v[n % 4] = encode_step(v[n % 4], e, &top, &least);
		}
	}
	for (unsigned i = 0; i < 4; i++)
		_mm256_storeu_si256((__m256i *)(void *)(x + 8 * i), v[i]);
	least = _mm256_cmpeq_epi32(least, _mm256_setzero_si256());
	return _mm256_testz_si256(least, least) ? top : NULL;
}

void eq_kernels_init_avx2(struct eq_kernels *k)
{
	k->isa = "avx2";
	k->streams = 2;
	k->rans_decode = rans_decode_avx2;
	k->rans_encode = rans_encode_avx2;
	eq_split_init_avx2(k);
}

void eq_kernels_init_avx2_gather(struct eq_kernels *k)
{
	eq_kernels_init_avx2(k);
	k->rans_decode = rans_decode_avx2_gather;
}
