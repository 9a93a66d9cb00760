/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The entropy coder with AVX-512. The 32 states of a chunk are two vectors of
 * 16-bit halves, high and low, in the order of the lanes: renormalisation then
 * is one 16-bit expansion, and the multiplications are 16 bits wide.
 *
 * Tables of at most 64 symbols are searched in registers: a binary search for
 * the slot among the starts, all 32 lanes at once. That is as fast as loading
 * table entries where gathers are fast, faster for few symbols, and by far where
 * microcode against gather data sampling has made gathers slow. Larger tables
 * gather.
 */
#include <immintrin.h>
#include <string.h>

#include "format.h"
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define LEVELS_MAX 6

/* ---- decoding -------------------------------------------------------------- */

/* A search tree of 2^levels leaves, which are symbols in ascending order. */
struct tree {
	__m512i root;                   /* the first level's threshold, less 1 */
	__m512i level[LEVELS_MAX - 1];  /* the next levels' thresholds, less 1 */
	__m512i freq16[2], start[2];    /* of leaves: frequency * 16, start */
	__m512i sym;                    /* bytes */
};

/* On level d, path p (d bits) is asked about start number
 * (2 p + 1) * 2^(levels - 1 - d). */
INLINE void tree_init(struct tree *tree, const struct eq_table *t, const unsigned levels)
{
	static const uint16_t count[32] = { 0,  1,  2,  3,  4,	5,  6,	7,  8,	9,  10,
					    11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
					    22, 23, 24, 25, 26, 27, 28, 29, 30, 31 };
	const __m512i one = _mm512_set1_epi16(1);
	/* Starts of 64 symbols, and of the ones behind: 4096 beyond the last. */
	__m512i a = _mm512_loadu_si512(t->start), b = _mm512_loadu_si512(t->start + 32);
	__m512i odd = _mm512_loadu_si512(count), level;

	odd = _mm512_add_epi16(_mm512_add_epi16(odd, odd), one);
	for (unsigned d = 0; d < levels; d++) {
		level = _mm512_permutex2var_epi16(
			a, _mm512_slli_epi16(odd, levels - 1 - d), b);
		level = _mm512_sub_epi16(level, one);
		if (d)
			tree->level[d - 1] = level;
		else
			tree->root = _mm512_broadcastw_epi16(_mm512_castsi512_si128(level));
	}
	for (unsigned i = 0; i < 2; i++) {
		const uint16_t *start = t->start + 32 * i;

		tree->start[i] = _mm512_loadu_si512(start);
		tree->freq16[i] = _mm512_slli_epi16(
			_mm512_sub_epi16(_mm512_loadu_si512(start + 1), tree->start[i]), 4);
	}
	tree->sym = _mm512_loadu_si512(t->sym);
}

/* gcc gives a gather without a mask an undefined destination, on which the
 * processor then waits: hence the zero. */
INLINE __m512i gather(const uint32_t *table, __m512i index)
{
	return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), 0xffff, index,
					   table, 4);
}

struct lanes {
	__m512i high, low;
	const uint16_t *next;
};

/*
 * The functions below make one step of 32 lanes in each of k decoders. Each
 * decoder waits for its own results most of the time, so every instruction is
 * written down for all of them before the next one.
 */
#define EACH _Pragma("GCC unroll 4") for (unsigned i = 0; i < k; i++)

/* Paths of the slots. Each decision is the sign of a difference, shifted into the
 * path: comparing into a mask would take three times as long. */
INLINE void tree_find(const struct tree *tree, const __m512i *slot, __m512i *path,
		      const unsigned levels, const unsigned k)
{
	__m512i at[4];

	EACH path[i] = _mm512_srli_epi16(_mm512_sub_epi16(tree->root, slot[i]), 15);
#pragma GCC unroll 5
	for (unsigned d = 1; d < levels; d++) {
		EACH at[i] = _mm512_permutexvar_epi16(path[i], tree->level[d - 1]);
		EACH at[i] = _mm512_sub_epi16(at[i], slot[i]);
		EACH path[i] = _mm512_shldi_epi16(path[i], at[i], 1);
	}
}

INLINE __m512i leaf(const __m512i table[2], __m512i path, const unsigned levels)
{
	return levels <= 5 ? _mm512_permutexvar_epi16(path, table[0]) :
			     _mm512_permutex2var_epi16(table[0], path, table[1]);
}

/*
 * After the look-up: with x >> 12 = 16 high + (low >> 12) the new state is
 * freq * 16 * high + freq * (low >> 12) + slot - start, whose last three terms
 * fit 16 bits.
 */
INLINE void advance(struct lanes *x, const __m512i *freq16, const __m512i *offset,
		    const unsigned k)
{
	const __m512i top4 = _mm512_set1_epi16((short)0xf000);
	__m512i small[4], sum[4], high[4], words[4];
	__mmask32 carry[4], low[4];

	EACH small[i] = _mm512_mulhi_epu16(freq16[i],
					   _mm512_and_si512(x[i].low, top4));
	EACH sum[i] = _mm512_mullo_epi16(freq16[i], x[i].high);
	EACH high[i] = _mm512_mulhi_epu16(freq16[i], x[i].high);
	EACH small[i] = _mm512_add_epi16(small[i], offset[i]);
	EACH sum[i] = _mm512_add_epi16(sum[i], small[i]);
	EACH carry[i] = _mm512_cmplt_epu16_mask(sum[i], small[i]);
	EACH low[i] = _mm512_testn_epi16_mask(high[i], high[i]);
	EACH high[i] = _mm512_mask_add_epi16(high[i], carry[i], high[i],
					     _mm512_set1_epi16(1));
	EACH {
		words[i] = _mm512_loadu_si512(x[i].next);
		/* Loaded here, not by the expansion that waits for the mask. */
		__asm__("" : "+v"(words[i]));
	}
	EACH low[i] = _kandn_mask32(carry[i], low[i]); /* < 65536 */
	EACH x[i].high = _mm512_mask_mov_epi16(high[i], low[i], sum[i]);
	EACH x[i].low = _mm512_mask_expand_epi16(sum[i], low[i], words[i]);
	EACH x[i].next += __builtin_popcount(low[i]);
}

/* A step by searching; gives the paths. */
INLINE void step_search(struct lanes *x, const struct tree *tree, __m512i *path,
			const unsigned levels, const unsigned k)
{
	__m512i slot[4], freq16[4], offset[4];

	EACH slot[i] = _mm512_and_si512(x[i].low, _mm512_set1_epi16(4095));
	tree_find(tree, slot, path, levels, k);
	EACH freq16[i] = leaf(tree->freq16, path[i], levels);
	EACH offset[i] = _mm512_sub_epi16(slot[i], leaf(tree->start, path[i], levels));
	advance(x, freq16, offset, k);
}

/* A step by gathering; gives the symbols in the high bytes. Even lanes and odd
 * ones apart, then the halves of their entries together. */
INLINE void step_gather(struct lanes *x, const uint32_t *slot, __m512i *sym,
			const unsigned k)
{
	const __m512i low12 = _mm512_set1_epi32(4095);
	const __m512i even = _mm512_set1_epi32(0xffff);
	__m512i a[4], b[4], freq16[4], offset[4];

	EACH a[i] = gather(slot, _mm512_and_si512(x[i].low, low12));
	EACH b[i] = gather(slot, _mm512_and_si512(_mm512_srli_epi32(x[i].low, 16),
						  low12));
	/* even ? a : b; symbol << 8 | frequency >> 4, frequency << 12 | offset */
	EACH sym[i] = _mm512_ternarylogic_epi32(even, _mm512_srli_epi32(a[i], 16), b[i],
						0xca);
	EACH offset[i] = _mm512_ternarylogic_epi32(even, a[i], _mm512_slli_epi32(b[i], 16),
						   0xca);
	EACH freq16[i] = _mm512_and_si512(_mm512_shldi_epi16(sym[i], offset[i], 8),
					  _mm512_set1_epi16((short)0xfff0));
	EACH offset[i] = _mm512_and_si512(offset[i], _mm512_set1_epi16(4095));
	advance(x, freq16, offset, k);
}

/* Two pairs of steps' symbols, in the order of the lanes -> 128 bytes. */
INLINE void collect(__m512i a, __m512i b, __m512i out[2])
{
	const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
	const __m512i second = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
	__m512i lo = _mm512_unpacklo_epi16(a, b), hi = _mm512_unpackhi_epi16(a, b);

	out[0] = _mm512_permutex2var_epi64(lo, first, hi);
	out[1] = _mm512_permutex2var_epi64(lo, second, hi);
}

INLINE void lanes_load(struct lanes *x, const struct eq_rans_dec *d)
{
	__m512i a = _mm512_load_si512(d->x), b = _mm512_load_si512(d->x + 16);

	x->low = _mm512_inserti64x4(
		_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a)),
		_mm512_cvtepi32_epi16(b), 1);
	x->high = _mm512_inserti64x4(
		_mm512_castsi256_si512(
			_mm512_cvtepi32_epi16(_mm512_srli_epi32(a, 16))),
		_mm512_cvtepi32_epi16(_mm512_srli_epi32(b, 16)), 1);
	x->next = d->next;
}

INLINE __m512i widen(__m256i high, __m256i low)
{
	return _mm512_or_si512(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16),
			       _mm512_cvtepu16_epi32(low));
}

INLINE void lanes_store(const struct lanes *x, struct eq_rans_dec *d)
{
	_mm512_store_si512(d->x, widen(_mm512_castsi512_si256(x->high),
				       _mm512_castsi512_si256(x->low)));
	_mm512_store_si512(d->x + 16,
			   widen(_mm512_extracti64x4_epi64(x->high, 1),
				 _mm512_extracti64x4_epi64(x->low, 1)));
	d->next = x->next;
}

/* k decoders of one table side by side, k and levels constants; levels 0: by
 * gathering. */
INLINE void decode_k(struct eq_rans_dec *const *dec, uint8_t *const *out,
		     size_t groups, const unsigned k, const unsigned levels)
{
	const uint32_t *slot = dec[0]->table->slot;
	struct lanes x[4];
	struct tree tree;

	if (levels)
		tree_init(&tree, dec[0]->table, levels);
	EACH lanes_load(&x[i], dec[i]);
	for (size_t g = 0; g < groups; g++) {
		__m512i pair[2][4], o[2];

#pragma GCC unroll 4
		for (unsigned t = 0; t < 4; t++) {
			__m512i s[4];

			if (levels)
				step_search(x, &tree, s, levels, k);
			else
				step_gather(x, slot, s, k);
			/* The symbols of two steps in a pair of bytes. */
			if (t % 2 == 0)
				EACH pair[t / 2][i] = levels ? s[i] :
					_mm512_srli_epi16(s[i], 8);
			else if (levels)
				EACH pair[t / 2][i] = _mm512_or_si512(
					pair[t / 2][i], _mm512_slli_epi16(s[i], 8));
			else
				EACH pair[t / 2][i] = _mm512_mask_mov_epi8(
					pair[t / 2][i], 0xaaaaaaaaaaaaaaaa, s[i]);
		}
		EACH {
			uint8_t *to = out[i] + g * EQ_GROUP;

			collect(pair[0][i], pair[1][i], o);
			if (levels) {
				o[0] = _mm512_permutexvar_epi8(o[0], tree.sym);
				o[1] = _mm512_permutexvar_epi8(o[1], tree.sym);
			}
			_mm512_storeu_si512(to, o[0]);
			_mm512_storeu_si512(to + 64, o[1]);
			if (__builtin_expect(x[i].next > dec[i]->end, 0)) {
				x[i].next = dec[i]->end;
				dec[i]->err = 1;
			}
		}
	}
	EACH lanes_store(&x[i], dec[i]);
}

#define EQ_DECODE(levels)                                                      \
	static void decode##levels(struct eq_rans_dec *const *dec,             \
				   uint8_t *const *out, unsigned k,            \
				   size_t groups)                              \
	{                                                                      \
		for (; k >= 4; k -= 4, dec += 4, out += 4)                     \
			decode_k(dec, out, groups, 4, levels);                 \
		for (; k >= 2; k -= 2, dec += 2, out += 2)                     \
			decode_k(dec, out, groups, 2, levels);                 \
		if (k)                                                         \
			decode_k(dec, out, groups, 1, levels);                 \
	}

EQ_DECODE(0)
EQ_DECODE(4)
EQ_DECODE(5)
EQ_DECODE(6)

static void rans_decode_avx512(struct eq_rans_dec *const *dec,
			       uint8_t *const *out, unsigned k, size_t groups)
{
	while (k) {
		const struct eq_table *table = dec[0]->table;
		unsigned n = 1;

		while (n < k && dec[n]->table == table)
			n++;
		if (table->n_syms <= 16)
			decode4(dec, out, n, groups);
		else if (table->n_syms <= 32)
			decode5(dec, out, n, groups);
		else if (table->n_syms <= 64)
			decode6(dec, out, n, groups);
		else
			decode0(dec, out, n, groups);
		dec += n;
		out += n;
		k -= n;
	}
}

/* ---- encoding -------------------------------------------------------------- */

/* High 32 bits of the products of 32-bit lanes. */
INLINE __m512i mulhi(__m512i a, __m512i b)
{
	__m512i even = _mm512_mul_epu32(a, b);
	__m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32),
				       _mm512_srli_epi64(b, 32));

	return _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
}

/* The table entries of a group, step after step. Two lanes at a time, since
 * stores go in pairs to a cache line; no gather for the same reason as above. */
INLINE void group_entries(const struct eq_rans_enc *enc, const uint8_t *sym,
			  uint64_t entry[4][32])
{
#pragma GCC unroll 4
	for (unsigned l = 0; l < EQ_LANES; l += 2) {
		uint32_t a, b;

		memcpy(&a, sym + 4 * l, 4);
		memcpy(&b, sym + 4 * l + 4, 4);
#pragma GCC unroll 4
		for (unsigned t = 0; t < 4; t++, a >>= 8, b >>= 8) {
			uint64_t ea = enc->entry[(uint8_t)a];
			uint64_t eb = enc->entry[(uint8_t)b];

			/* clang would make gathers of this. */
			__asm__("" : "+r"(ea), "+r"(eb));
			entry[t][l] = ea;
			entry[t][l + 1] = eb;
		}
	}
}

/* One step of 16 lanes. The words go below `top`, in the order of the lanes. */
INLINE __m512i encode_step(__m512i x, __m512i rcp, __m512i fs, uint16_t **top)
{
	__m512i f = _mm512_and_si512(fs, _mm512_set1_epi32(0xffff));
	__mmask16 emit = _mm512_cmpge_epu32_mask(x, _mm512_slli_epi32(f, 20));
	unsigned n = (unsigned)__builtin_popcount(emit);
	__m512i q, r;
	__mmask16 more;

	*top -= n;
	_mm256_mask_storeu_epi16(
		*top, (__mmask16)_bzhi_u32(0xffff, n),
		_mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(emit, x)));
	x = _mm512_mask_srli_epi32(x, emit, x, 16);
	q = mulhi(x, rcp);
	r = _mm512_sub_epi32(x, _mm512_mullo_epi32(q, f));
	more = _mm512_cmpge_epu32_mask(r, f);
	q = _mm512_mask_add_epi32(q, more, q, _mm512_set1_epi32(1));
	r = _mm512_mask_sub_epi32(r, more, r, f);
	return _mm512_add_epi32(
		_mm512_add_epi32(_mm512_slli_epi32(q, 12), r),
		_mm512_srli_epi32(fs, 16));
}

/* The same with 16 entries of the table as they are in memory. */
INLINE __m512i encode_entries(__m512i x, const uint64_t *entry, uint16_t **top,
			      __mmask16 *absent)
{
	const __m512i evens = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14,
					       12, 10, 8, 6, 4, 2, 0);
	const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
	__m512i a = _mm512_load_si512(entry), b = _mm512_load_si512(entry + 8);
	__m512i fs = _mm512_permutex2var_epi32(a, odds, b);

	*absent |= _mm512_testn_epi32_mask(fs, fs);
	return encode_step(x, _mm512_permutex2var_epi32(a, evens, b), fs, top);
}

static uint16_t *encode_any(const struct eq_rans_enc *enc, uint32_t x[32],
			    const uint8_t *sym, size_t groups, uint16_t *top)
{
	/* Two groups' worth: entries are read a while after they are written. */
	uint64_t entry[2][4][EQ_LANES] __attribute__((aligned(64)));
	__m512i x0 = _mm512_loadu_si512(x), x1 = _mm512_loadu_si512(x + 16);
	__mmask16 absent = 0;

	if (groups)
		group_entries(enc, sym + (groups - 1) * EQ_GROUP, entry[groups & 1]);
	for (; groups; groups--) {
		uint64_t(*e)[EQ_LANES] = entry[groups & 1];

		if (groups > 1)
			group_entries(enc, sym + (groups - 2) * EQ_GROUP,
				      entry[~groups & 1]);
#pragma GCC unroll 4
		for (unsigned t = 4; t-- > 0;) {
			x1 = encode_entries(x1, e[t] + 16, &top, &absent);
			x0 = encode_entries(x0, e[t], &top, &absent);
		}
	}
	_mm512_storeu_si512(x, x0);
	_mm512_storeu_si512(x + 16, x1);
	return absent ? NULL : top;
}

/* A table of at most 32 symbols fits registers. */
struct small_enc {
	uint8_t index[256];     /* bit 7: not in the table */
	uint32_t rcp[32], fs[32];
};

/* Whether it is that small. */
static bool small_init(struct small_enc *s, const struct eq_rans_enc *enc)
{
	unsigned n = 0;

	memset(s, 0, sizeof(*s));
	memset(s->index, 0x80, sizeof(s->index));
	for (unsigned i = 0; i < 256; i++) {
		if (!enc->entry[i])
			continue;
		if (n == 32)
			return false;
		s->index[i] = (uint8_t)n;
		s->rcp[n] = (uint32_t)enc->entry[i];
		s->fs[n++] = (uint32_t)(enc->entry[i] >> 32);
	}
	return true;
}

/* Look 64 bytes up in a table of 256. */
INLINE __m512i lookup8(const __m512i table[4], __m512i v)
{
	return _mm512_mask_mov_epi8(_mm512_permutex2var_epi8(table[0], v, table[1]),
				    _mm512_movepi8_mask(v),
				    _mm512_permutex2var_epi8(table[2], v, table[3]));
}

static uint16_t *encode_small(const struct small_enc *enc, uint32_t x[32],
			      const uint8_t *sym, size_t groups, uint16_t *top)
{
	__m512i x0 = _mm512_loadu_si512(x), x1 = _mm512_loadu_si512(x + 16);
	__m512i table[4], rcp[2], fs[2], seen = _mm512_setzero_si512();

	for (unsigned i = 0; i < 4; i++)
		table[i] = _mm512_loadu_si512(enc->index + 64 * i);
	for (unsigned i = 0; i < 2; i++) {
		rcp[i] = _mm512_loadu_si512(enc->rcp + 16 * i);
		fs[i] = _mm512_loadu_si512(enc->fs + 16 * i);
	}
	for (sym += groups * EQ_GROUP; groups; groups--) {
		__m512i s0, s1;

		sym -= EQ_GROUP;
		s0 = lookup8(table, _mm512_loadu_si512(sym));
		s1 = lookup8(table, _mm512_loadu_si512(sym + 64));
		seen = _mm512_or_si512(seen, _mm512_or_si512(s0, s1));
#pragma GCC unroll 4
		for (unsigned t = 4; t-- > 0;) {
			/* The permutations look at five bits only. */
			__m512i i0 = _mm512_srli_epi32(s0, 8 * t);
			__m512i i1 = _mm512_srli_epi32(s1, 8 * t);

			x1 = encode_step(x1, _mm512_permutex2var_epi32(rcp[0], i1, rcp[1]),
					 _mm512_permutex2var_epi32(fs[0], i1, fs[1]), &top);
			x0 = encode_step(x0, _mm512_permutex2var_epi32(rcp[0], i0, rcp[1]),
					 _mm512_permutex2var_epi32(fs[0], i0, fs[1]), &top);
		}
	}
	_mm512_storeu_si512(x, x0);
	_mm512_storeu_si512(x + 16, x1);
	return _mm512_movepi8_mask(seen) ? NULL : top;
}

static uint16_t *rans_encode_avx512(const struct eq_rans_enc *enc, uint32_t x[32],
				    const uint8_t *sym, size_t groups,
				    uint16_t *top)
{
	struct small_enc small;

	return small_init(&small, enc) ? encode_small(&small, x, sym, groups, top) :
					 encode_any(enc, x, sym, groups, top);
}

void eq_kernels_init_avx512(struct eq_kernels *k)
{
	k->isa = "avx512";
	k->streams = 4;
	k->rans_decode = rans_decode_avx512;
	k->rans_encode = rans_encode_avx512;
	eq_split_init_avx512(k);
}
