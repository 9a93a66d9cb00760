/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The entropy coder with NEON: eight vectors of 4 lanes a chunk, two chunks at
 * once to hide the latency of the loads. Table entries are loaded one by one;
 * one table look-up over state and words does the whole renormalisation.
 */
#include <arm_neon.h>

#include "format.h"
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define VECTORS (EQ_LANES / 4)

/* Words of a set m of lanes that come before lane i's, and such things for all 16
 * sets. */
#define RANK(m, i) __builtin_popcount((m) & ((1u << (i)) - 1))
#define SETS4(f, m) f(m), f(m + 1), f(m + 2), f(m + 3)
#define SETS16(f) SETS4(f, 0u), SETS4(f, 4u), SETS4(f, 8u), SETS4(f, 12u)

/* ---- decoding -------------------------------------------------------------- */

/* Bytes of the new state i when the set of lanes m takes words: bytes 0 to 15
 * are the states before, 16 and up the words. A lane that takes one moves its
 * own 16 bits up and finds its word behind those of the lanes below. */
#define WORD(m, i) (16 + 2 * RANK(m, i))
#define TAKES(m, i, a, b) (uint8_t)((m) >> (i) & 1 ? (a) : (b))
#define LANE(m, i)                                                             \
	TAKES(m, i, WORD(m, i), 4 * (i)), TAKES(m, i, WORD(m, i) + 1, 4 * (i) + 1), \
		TAKES(m, i, 4 * (i), 4 * (i) + 2),                             \
		TAKES(m, i, 4 * (i) + 1, 4 * (i) + 3)
#define MOVES(m) { LANE(m, 0), LANE(m, 1), LANE(m, 2), LANE(m, 3) }

static const uint8_t moves[16][16] __attribute__((aligned(64))) = { SETS16(MOVES) };

/* The table entries of four states. */
INLINE uint32x4_t load4(const uint32_t *slot, uint32x4_t index)
{
	uint64x2_t pairs = vreinterpretq_u64_u32(index);
	uint64_t a = vgetq_lane_u64(pairs, 0), b = vgetq_lane_u64(pairs, 1);

	return (uint32x4_t){ slot[(uint32_t)a], slot[a >> 32], slot[(uint32_t)b],
			     slot[b >> 32] };
}

/* One step of the 4 lanes *x: returns the table entries, refills the states. */
INLINE uint32x4_t decode_step(uint32x4_t *x, const uint32_t *slot,
			      const uint16_t **next)
{
	/* Sums to where in `moves` to look, and 256 times the bytes taken. */
	static const uint32_t weights[4] = { 0x210, 0x220, 0x240, 0x280 };
	const uint32x4_t low12 = vdupq_n_u32(4095);
	uint32x4_t e, y, low;
	uint8x16x2_t both;
	uint32_t sum;

	e = load4(slot, vandq_u32(*x, low12));
	y = vmlaq_u32(vandq_u32(e, low12), vandq_u32(vshrq_n_u32(e, 12), low12),
		      vshrq_n_u32(*x, 12));
	low = vcltq_u32(y, vdupq_n_u32(EQ_RANS_L));
	sum = vaddvq_u32(vandq_u32(low, vld1q_u32(weights)));
	both.val[0] = vreinterpretq_u8_u32(y);
	both.val[1] = vreinterpretq_u8_u16(
		vcombine_u16(vld1_u16(*next), vdup_n_u16(0)));
	*x = vreinterpretq_u32_u8(
		vqtbl2q_u8(both, vld1q_u8(moves[0] + (sum & 0xf0))));
	*next = (const uint16_t *)(const void *)((const uint8_t *)*next + (sum >> 8));
	return e;
}

/* k decoders side by side, k a constant. The states of two fill half of the
 * registers, so the symbols gather in memory. */
INLINE void decode_k(struct eq_rans_dec *const *dec, uint8_t *const *out,
		     size_t groups, const unsigned k)
{
	uint32x4_t x[2][VECTORS];
	const uint16_t *next[2];
	const uint32_t *slot[2];
	uint8_t *sym[2];

	for (unsigned i = 0; i < k; i++) {
		sym[i] = out[i];
		next[i] = dec[i]->next;
		slot[i] = dec[i]->table->slot;
		for (unsigned v = 0; v < VECTORS; v++)
			x[i][v] = vld1q_u32(dec[i]->x + 4 * v);
	}
	for (; groups; groups--) {
		for (unsigned t = 0; t < 4; t++) {
#pragma GCC unroll 8
			for (unsigned v = 0; v < VECTORS; v++) {
#pragma GCC unroll 2
				for (unsigned i = 0; i < k; i++) {
					uint8_t *o = sym[i] + 16 * v;
					uint32x4_t e = decode_step(&x[i][v], slot[i],
								   &next[i]);

					/* Step t ends up in byte t; what was
					 * there before is shifted out. */
					e = vsriq_n_u32(e, vreinterpretq_u32_u8(
								   vld1q_u8(o)), 8);
					vst1q_u8(o, vreinterpretq_u8_u32(e));
				}
			}
		}
		for (unsigned i = 0; i < k; i++) {
			sym[i] += EQ_GROUP;
			if (__builtin_expect(next[i] > dec[i]->end, 0)) {
				next[i] = dec[i]->end;
				dec[i]->err = 1;
			}
		}
	}
	for (unsigned i = 0; i < k; i++) {
		dec[i]->next = next[i];
		for (unsigned v = 0; v < VECTORS; v++)
			vst1q_u32(dec[i]->x + 4 * v, x[i][v]);
	}
}

static void rans_decode_neon(struct eq_rans_dec *const *dec, uint8_t *const *out,
			     unsigned k, size_t groups)
{
	for (; k >= 2; k -= 2, dec += 2, out += 2)
		decode_k(dec, out, groups, 2);
	if (k)
		decode_k(dec, out, groups, 1);
}

/* ---- encoding -------------------------------------------------------------- */

/* Shuffle that moves the words of the lanes of a set, in order, to the top of a
 * vector of 4: what is below does not matter. */
#define PLACE(m, i) (4 - RANK(m, 4) + RANK(m, i))
#define GIVE(m, i)                                                             \
	((m) >> (i) & 1 ? (UINT64_C(0x100) + 0x202 * (i)) << 16 * PLACE(m, i) : 0)
#define GIVES(m) GIVE(m, 0) | GIVE(m, 1) | GIVE(m, 2) | GIVE(m, 3)

static const uint64_t gives[16] __attribute__((aligned(64))) = { SETS16(GIVES) };

/* x / f, or one less: the high halves of the products. */
INLINE uint32x4_t divide(uint32x4_t x, uint32x4_t rcp)
{
	uint64x2_t low = vmull_u32(vget_low_u32(x), vget_low_u32(rcp));

	return vuzp2q_u32(vreinterpretq_u32_u64(low),
			  vreinterpretq_u32_u64(vmull_high_u32(x, rcp)));
}

/* One step of 4 lanes, with every fourth symbol from `sym`. The words go below
 * *top. *least: the least of what was found in the table. */
INLINE uint32x4_t encode_step(const struct eq_rans_enc *enc, uint32x4_t x,
			      const uint8_t *sym, uint16_t **top, uint32x4_t *least)
{
	/* Sums to 8 times the set, and 256 times the bytes given. */
	static const uint32_t weights[4] = { 0x208, 0x210, 0x220, 0x240 };
	uint32x4_t a = vreinterpretq_u32_u64(
		(uint64x2_t){ enc->entry[sym[0]], enc->entry[sym[4]] });
	uint32x4_t b = vreinterpretq_u32_u64(
		(uint64x2_t){ enc->entry[sym[8]], enc->entry[sym[12]] });
	uint32x4_t fs = vuzp2q_u32(a, b), f = vandq_u32(fs, vdupq_n_u32(0xffff));
	uint32x4_t due = vcgeq_u32(x, vshlq_n_u32(f, 20)), q, rest;
	uint32_t sum = vaddvq_u32(vandq_u32(due, vld1q_u32(weights)));
	uint8x8_t words = vreinterpret_u8_u16(vmovn_u32(x));

	*least = vminq_u32(*least, fs);
	words = vtbl1_u8(words, vcreate_u8(gives[(sum & 0xff) / 8]));
	vst1_u8((uint8_t *)(*top - 4), words);
	*top -= sum / 512;
	x = vbslq_u32(due, vshrq_n_u32(x, 16), x);
	q = divide(x, vuzp1q_u32(a, b));
	rest = vmlsq_u32(x, q, f);
	x = vaddq_u32(vaddq_u32(vshlq_n_u32(q, 12), rest), vshrq_n_u32(fs, 16));
	return vaddq_u32(x, vandq_u32(vcgeq_u32(rest, f),
				      vsubq_u32(vdupq_n_u32(EQ_PROB_SIZE), f)));
}

static uint16_t *rans_encode_neon(const struct eq_rans_enc *enc, uint32_t x[32],
				  const uint8_t *sym, size_t groups, uint16_t *top)
{
	uint32x4_t v[VECTORS], least = vdupq_n_u32(UINT32_MAX);

	for (unsigned i = 0; i < VECTORS; i++)
		v[i] = vld1q_u32(x + 4 * i);
	for (sym += groups * EQ_GROUP; groups; groups--) {
		sym -= EQ_GROUP;
		for (unsigned t = 4; t-- > 0;) {
#pragma GCC unroll 8
			for (unsigned i = VECTORS; i-- > 0;)
				v[i] = encode_step(enc, v[i], sym + 16 * i + t, &top,
						   &least);
		}
	}
	for (unsigned i = 0; i < VECTORS; i++)
		vst1q_u32(x + 4 * i, v[i]);
	return vminvq_u32(least) ? top : NULL;
}

void eq_kernels_init_neon(struct eq_kernels *k)
{
	k->isa = "neon";
	k->streams = 2;
	k->rans_decode = rans_decode_neon;
	k->rans_encode = rans_encode_neon;
	eq_split_init_neon(k);
}
