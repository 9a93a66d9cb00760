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

/* Bytes of the new state i when the set of lanes m takes words: bytes 0 to 15
 * are the states before, 16 and up the words. A lane that takes one moves its
 * own 16 bits up and finds its word behind those of the lanes below. */
#define WORD(m, i) (16 + 2 * __builtin_popcount((m) & ((1u << (i)) - 1)))
#define TAKES(m, i, a, b) (uint8_t)((m) >> (i) & 1 ? (a) : (b))
#define LANE(m, i)                                                             \
	TAKES(m, i, WORD(m, i), 4 * (i)), TAKES(m, i, WORD(m, i) + 1, 4 * (i) + 1), \
		TAKES(m, i, 4 * (i), 4 * (i) + 2),                             \
		TAKES(m, i, 4 * (i) + 1, 4 * (i) + 3)
#define MOVES(m) { LANE(m, 0), LANE(m, 1), LANE(m, 2), LANE(m, 3) }
#define MOVES4(m) MOVES(m), MOVES(m + 1), MOVES(m + 2), MOVES(m + 3)

static const uint8_t moves[16][16] __attribute__((aligned(64))) = {
	MOVES4(0u), MOVES4(4u), MOVES4(8u), MOVES4(12u)
};

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

void eq_kernels_init_neon(struct eq_kernels *k)
{
	k->isa = "neon";
	k->streams = 2;
	k->rans_decode = rans_decode_neon;
	eq_split_init_neon(k);
}
