/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The entropy coder with AVX-512. The 32 states of a chunk are two vectors of
 * 16-bit halves, high and low, in the order of the lanes: renormalisation then
 * is one 16-bit expansion, and the multiplications are 16 bits wide.
 *
 * There are two of each, and cpu.c measures which is the faster one here: one
 * gathers table entries. The other one, for processors whose microcode against
 * gather data sampling has made gathers slow, loads the encoder's entries one by
 * one, and searches decoding tables of at most 64 symbols in registers: a binary
 * search for the slot among the starts, all 32 lanes at once.
 */
#include <immintrin.h>
#include <string.h>

#include "format.h"
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define LEVELS_MAX 6

/* gcc gives a gather whose mask it knows to be full any destination, on which the
 * processor then waits: hence the zero, and a mask that it does not know. */
INLINE __mmask16 all_lanes(void)
{
	__mmask16 all = 0xffff;

	__asm__("" : "+Yk"(all));
	return all;
}

/* A macro, since clang takes nothing but a literal for `size`. */
#define GATHER(table, index, size) \
	_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), all_lanes(), index, table, size)

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

struct lanes {
	__m512i high, low;
	const uint16_t *next;
};

/* What the slots of 32 lanes say: frequency * 16, slot - start, and symbols. */
struct found {
	__m512i freq16, offset;
	__m512i sym;            /* in the high bytes; the path, when it was a search */
};

INLINE __m512i leaf(const __m512i table[2], __m512i path, const unsigned levels)
{
	return levels <= 5 ? _mm512_permutexvar_epi16(path, table[0]) :
			     _mm512_permutex2var_epi16(table[0], path, table[1]);
}

/* Paths of the slots. Each decision is the sign of a difference, shifted into the
 * path: comparing into a mask would take three times as long. */
INLINE struct found search(const struct tree *tree, __m512i low, const unsigned levels)
{
	__m512i slot = _mm512_and_si512(low, _mm512_set1_epi16(4095));
	__m512i path = _mm512_srli_epi16(_mm512_sub_epi16(tree->root, slot), 15);

#pragma GCC unroll 5
	for (unsigned d = 1; d < levels; d++) {
		__m512i at = _mm512_permutexvar_epi16(path, tree->level[d - 1]);

		path = _mm512_shldi_epi16(path, _mm512_sub_epi16(at, slot), 1);
	}
	return (struct found){ leaf(tree->freq16, path, levels),
			       _mm512_sub_epi16(slot, leaf(tree->start, path, levels)),
			       path };
}

/* Even lanes and odd lanes apart, then the halves of their entries together. */
INLINE struct found look_up(const uint32_t *slot, __m512i low)
{
	const __m512i low12 = _mm512_set1_epi32(4095);
	__m512i even = GATHER(slot, _mm512_and_si512(low, low12), 4);
	__m512i odd = GATHER(slot, _mm512_and_si512(_mm512_srli_epi32(low, 16), low12), 4);
	__m512i sym, rest, freq16;

	/* symbol << 8 | frequency >> 4, frequency << 12 | offset */
	odd = _mm512_rol_epi32(odd, 16);
	sym = _mm512_shrdi_epi32(even, odd, 16);
	rest = _mm512_mask_mov_epi16(even, 0xaaaaaaaa, odd);
	freq16 = _mm512_and_si512(_mm512_shldi_epi16(sym, rest, 8),
				  _mm512_set1_epi16((short)0xfff0));
	return (struct found){ freq16, _mm512_and_si512(rest, _mm512_set1_epi16(4095)),
			       sym };
}

/*
 * After the look-up: with x >> 12 = 16 high + (low >> 12) the new state is
 * freq * 16 * high + freq * (low >> 12) + slot - start, whose last three terms
 * fit 16 bits.
 */
INLINE void advance(struct lanes *x, struct found f)
{
	const __m512i top4 = _mm512_set1_epi16((short)0xf000);
	__m512i small = _mm512_add_epi16(
		_mm512_mulhi_epu16(f.freq16, _mm512_and_si512(x->low, top4)), f.offset);
	__m512i sum = _mm512_add_epi16(_mm512_mullo_epi16(f.freq16, x->high), small);
	__m512i high = _mm512_mulhi_epu16(f.freq16, x->high);
	__m512i words = _mm512_loadu_si512(x->next);
	__mmask32 carry = _mm512_cmplt_epu16_mask(sum, small);
	__mmask32 low = _kandn_mask32(carry, _mm512_testn_epi16_mask(high, high));

	/* Loaded here, not by the expansion that waits for the mask. */
	__asm__("" : "+v"(words));
	high = _mm512_mask_add_epi16(high, carry, high, _mm512_set1_epi16(1));
	x->high = _mm512_mask_mov_epi16(high, low, sum);
	x->low = _mm512_mask_expand_epi16(sum, low, words);
	x->next += __builtin_popcount(low);
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

/* The symbols of two steps, or paths to them, in a pair of bytes. */
INLINE __m512i pair_of(__m512i first, __m512i second, const unsigned levels)
{
	if (levels)
		return _mm512_or_si512(first, _mm512_slli_epi16(second, 8));
	return _mm512_mask_mov_epi8(_mm512_srli_epi16(first, 8), 0xaaaaaaaaaaaaaaaa,
				    second);
}

/*
 * k decoders of one table side by side, k and levels constants; levels 0: by
 * gathering. Each waits for its own results most of the time, so they take turns,
 * by whole steps: if each operation is written down for all of them before the
 * next one, they all want the same port or the loads at the same time.
 */
#define EACH _Pragma("GCC unroll 4") for (unsigned i = 0; i < k; i++)

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
		__m512i sym[4][4], o[2];

#pragma GCC unroll 4
		for (unsigned t = 0; t < 4; t++) {
			EACH {
				struct found f = levels ? search(&tree, x[i].low, levels) :
							  look_up(slot, x[i].low);

				sym[t][i] = f.sym;
				if (t % 2)
					sym[t][i] = pair_of(sym[t - 1][i], f.sym, levels);
				advance(&x[i], f);
			}
		}
		EACH {
			uint8_t *to = out[i] + g * EQ_GROUP;

			collect(sym[1][i], sym[3][i], o);
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

/* How many decoders from the first on have its table. */
static unsigned same_table(struct eq_rans_dec *const *dec, unsigned k)
{
	unsigned n = 1;

	while (n < k && dec[n]->table == dec[0]->table)
		n++;
	return n;
}

static void rans_decode_avx512(struct eq_rans_dec *const *dec,
			       uint8_t *const *out, unsigned k, size_t groups)
{
	while (k) {
		unsigned n = same_table(dec, k);

		if (dec[0]->table->n_syms <= 16)
			decode4(dec, out, n, groups);
		else if (dec[0]->table->n_syms <= 32)
			decode5(dec, out, n, groups);
		else if (dec[0]->table->n_syms <= 64)
			decode6(dec, out, n, groups);
		else
			decode0(dec, out, n, groups);
		dec += n;
		out += n;
		k -= n;
	}
}

static void rans_decode_avx512_gather(struct eq_rans_dec *const *dec,
				      uint8_t *const *out, unsigned k, size_t groups)
{
	while (k) {
		unsigned n = same_table(dec, k);

		decode0(dec, out, n, groups);
		dec += n;
		out += n;
		k -= n;
	}
}

/* ---- encoding -------------------------------------------------------------- */

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

/* 16 lanes without the words that they had to give away, and the symbols: floor((2^32 -
 * 1) / frequency), and frequency | start << 16. */
INLINE __m512i encode_16(__m512i x, __m512i rcp, __m512i fs)
{
	__m512i f = _mm512_and_si512(fs, _mm512_set1_epi32(0xffff));
	/* The quotients, or one less: high halves of products. */
	__m512i even = _mm512_mul_epu32(x, rcp);
	__m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), _mm512_srli_epi64(rcp, 32));
	__m512i q = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
	__m512i product = _mm512_mullo_epi32(q, f), y;
	__mmask16 more;

	/* x / f * 4096 + x % f + start; once more 4096 - f where q was one less. */
	y = _mm512_add_epi32(_mm512_add_epi32(x, _mm512_srli_epi32(fs, 16)),
			     _mm512_slli_epi32(q, 12));
	y = _mm512_sub_epi32(y, product);
	more = _mm512_cmpge_epu32_mask(_mm512_sub_epi32(x, product), f);
	return _mm512_mask_add_epi32(y, more, y,
				     _mm512_sub_epi32(_mm512_set1_epi32(4096), f));
}

/* Which of 16 lanes have a word to give away: x >= f << 20. */
INLINE __mmask16 due(__m512i x, __m512i fs)
{
	return _mm512_cmpge_epu32_mask(x, _mm512_slli_epi32(fs, 20));
}

/* One step of 32 lanes. The words go below `top`, in the order of the lanes. */
INLINE uint16_t *encode_step(__m512i x[2], const __m512i rcp[2], const __m512i fs[2],
			     uint16_t *top)
{
	const __m512i low = _mm512_set_epi64(
		0x3e003c003a0038, 0x36003400320030, 0x2e002c002a0028, 0x26002400220020,
		0x1e001c001a0018, 0x16001400120010, 0x0e000c000a0008, 0x06000400020000);
	__mmask16 due0 = due(x[0], fs[0]), due1 = due(x[1], fs[1]);
	__mmask32 both = _mm512_kunpackw(due1, due0);
	unsigned n = (unsigned)__builtin_popcount(both);

	_mm512_mask_storeu_epi16(top - n, _bzhi_u32(~0u, n),
				 _mm512_maskz_compress_epi16(
					 both, _mm512_permutex2var_epi16(x[0], low, x[1])));
	x[0] = encode_16(_mm512_mask_srli_epi32(x[0], due0, x[0], 16), rcp[0], fs[0]);
	x[1] = encode_16(_mm512_mask_srli_epi32(x[1], due1, x[1], 16), rcp[1], fs[1]);
	return top - n;
}

static uint16_t *encode_load(const struct eq_rans_enc *enc, uint32_t state[32],
			    const uint8_t *sym, size_t groups, uint16_t *top)
{
	const __m512i evens = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14,
					       12, 10, 8, 6, 4, 2, 0);
	const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
	/* Two groups' worth: entries are read a while after they are written. */
	uint64_t entry[2][4][EQ_LANES] __attribute__((aligned(64)));
	__m512i x[2] = { _mm512_loadu_si512(state), _mm512_loadu_si512(state + 16) };
	__m512i least = _mm512_set1_epi32(-1);

	if (groups)
		group_entries(enc, sym + (groups - 1) * EQ_GROUP, entry[groups & 1]);
	for (; groups; groups--) {
		uint64_t(*e)[EQ_LANES] = entry[groups & 1];

		if (groups > 1)
			group_entries(enc, sym + (groups - 2) * EQ_GROUP,
				      entry[~groups & 1]);
#pragma GCC unroll 4
		for (unsigned t = 4; t-- > 0;) {
			__m512i rcp[2], fs[2];

			for (unsigned i = 0; i < 2; i++) {
				__m512i a = _mm512_load_si512(e[t] + 16 * i);
				__m512i b = _mm512_load_si512(e[t] + 16 * i + 8);

				rcp[i] = _mm512_permutex2var_epi32(a, evens, b);
				fs[i] = _mm512_permutex2var_epi32(a, odds, b);
				least = _mm512_min_epu32(least, fs[i]);
			}
			top = encode_step(x, rcp, fs, top);
		}
	}
	_mm512_storeu_si512(state, x[0]);
	_mm512_storeu_si512(state + 16, x[1]);
	return _mm512_testn_epi32_mask(least, least) ? NULL : top;
}

static uint16_t *encode_gather(const struct eq_rans_enc *enc, uint32_t state[32],
			    const uint8_t *sym, size_t groups, uint16_t *top)
{
	__m512i x[2] = { _mm512_loadu_si512(state), _mm512_loadu_si512(state + 16) };
	__m512i least = _mm512_set1_epi32(-1);
	const char *high = (const char *)enc->entry + 4;

	for (sym += groups * EQ_GROUP; groups; groups--) {
		sym -= EQ_GROUP;
#pragma GCC unroll 4
		for (unsigned t = 4; t-- > 0;) {
			__m512i rcp[2], fs[2];

			for (unsigned i = 0; i < 2; i++) {
				__m512i s = _mm512_srli_epi32(
					_mm512_loadu_si512(sym + 64 * i), 8 * t);

				s = _mm512_and_si512(s, _mm512_set1_epi32(255));
				rcp[i] = GATHER(enc->entry, s, 8);
				fs[i] = GATHER(high, s, 8);
				least = _mm512_min_epu32(least, fs[i]);
			}
			top = encode_step(x, rcp, fs, top);
		}
	}
	_mm512_storeu_si512(state, x[0]);
	_mm512_storeu_si512(state + 16, x[1]);
	return _mm512_testn_epi32_mask(least, least) ? NULL : top;
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

static uint16_t *encode_small(const struct small_enc *enc, uint32_t state[32],
			      const uint8_t *sym, size_t groups, uint16_t *top)
{
	__m512i x[2] = { _mm512_loadu_si512(state), _mm512_loadu_si512(state + 16) };
	__m512i table[4], rcp[2], fs[2], seen = _mm512_setzero_si512();

	for (unsigned i = 0; i < 4; i++)
		table[i] = _mm512_loadu_si512(enc->index + 64 * i);
	for (unsigned i = 0; i < 2; i++) {
		rcp[i] = _mm512_loadu_si512(enc->rcp + 16 * i);
		fs[i] = _mm512_loadu_si512(enc->fs + 16 * i);
	}
	for (sym += groups * EQ_GROUP; groups; groups--) {
		__m512i s[2];

		sym -= EQ_GROUP;
		for (unsigned i = 0; i < 2; i++) {
			s[i] = lookup8(table, _mm512_loadu_si512(sym + 64 * i));
			seen = _mm512_or_si512(seen, s[i]);
		}
#pragma GCC unroll 4
		for (unsigned t = 4; t-- > 0;) {
			__m512i r[2], e[2];

			for (unsigned i = 0; i < 2; i++) {
				/* The permutations look at five bits only. */
				__m512i at = _mm512_srli_epi32(s[i], 8 * t);

				r[i] = _mm512_permutex2var_epi32(rcp[0], at, rcp[1]);
				e[i] = _mm512_permutex2var_epi32(fs[0], at, fs[1]);
			}
			top = encode_step(x, r, e, top);
		}
	}
	_mm512_storeu_si512(state, x[0]);
	_mm512_storeu_si512(state + 16, x[1]);
	return _mm512_movepi8_mask(seen) ? NULL : top;
}

typedef uint16_t *encode_fn(const struct eq_rans_enc *enc, uint32_t x[32], const uint8_t *sym,
			    size_t groups, uint16_t *top);

/* By registers if the table is small, else by `large`. */
INLINE uint16_t *encode(const struct eq_rans_enc *enc, uint32_t x[32], const uint8_t *sym,
			size_t groups, uint16_t *top, encode_fn *large)
{
	struct small_enc small;

	return small_init(&small, enc) ? encode_small(&small, x, sym, groups, top) :
					 large(enc, x, sym, groups, top);
}

static uint16_t *rans_encode_avx512(const struct eq_rans_enc *enc, uint32_t x[32],
				    const uint8_t *sym, size_t groups, uint16_t *top)
{
	return encode(enc, x, sym, groups, top, encode_load);
}

static uint16_t *rans_encode_avx512_gather(const struct eq_rans_enc *enc, uint32_t x[32],
					   const uint8_t *sym, size_t groups, uint16_t *top)
{
	return encode(enc, x, sym, groups, top, encode_gather);
}

void eq_kernels_init_avx512(struct eq_kernels *k)
{
	k->isa = "avx512";
	k->streams = 4;
	k->rans_decode = rans_decode_avx512;
	k->rans_encode = rans_encode_avx512;
	eq_split_init_avx512(k);
}

void eq_kernels_init_avx512_gather(struct eq_kernels *k)
{
	eq_kernels_init_avx512(k);
	k->rans_decode = rans_decode_avx512_gather;
	k->rans_encode = rans_encode_avx512_gather;
}
