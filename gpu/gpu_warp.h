/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a warp decodes a chunk (eqar.5, ENTROPY CODER and on). The text compiles
 * twice: for the device, where each thread is one lane and a per-lane variable
 * is a register, and for the host, where a loop goes through the lanes and such a
 * variable is an array of 32. gpu_lane.cuh and tests/gpu_lane_host.h have the
 * primitives of either side. So CI, which has no GPU, runs this very arithmetic:
 * which lane takes which word, where a symbol goes, what is in bounds.
 *
 * Outside of EQ_EACH_LANE all values are the same in all lanes, and lanes see
 * what others wrote to memory only after EQ_WARP_SYNC.
 *
 * Shared memory of a block: a table at 0, then EQ_RING bytes a warp.
 */
#ifndef EQ_GPU_WARP_H
#define EQ_GPU_WARP_H

#include "gpu_task.h"

/* Words of a stream pass through a ring of two blocks of 128 words, the first of
 * which is there once more behind the second: a group takes at most 128 words,
 * so its reads never wrap. */
#define EQ_RING 1024
#define EQ_RING_BLOCK 256

/* Wide tables have 8 bytes a slot: frequency << 20 | flags | slot - start, and
 * what the symbol stands for. Flags, of pair tables: nibbles that are 15 (2 bits
 * at 14), low one is (18), high one is (19). Four words can be added up without
 * the count at 14 running over, or the sum below running into it. */
#define EQ_WIDE_COUNT 14
#define EQ_WIDE_LOW15 (1u << 18)
#define EQ_WIDE_HIGH15 (1u << 19)
#define EQ_NARROW_BYTES 16384u
#define EQ_WIDE_BYTES 32768u

struct eq_stream {
	EQ_PER_LANE(uint32_t, x);       /* state */
	EQ_PER_LANE(uint32_t, below);   /* bits of the lanes before this one */
	EQ_PER_LANE(uint64_t, ahead);   /* of the block that comes next, 4 words */
	const unsigned char *words;
	uint32_t n_words;
	uint32_t n_blocks;              /* fetched so far, `ahead` included */
	uint32_t at;                    /* next word, in shared memory */
};

struct eq_four {                        /* of four neighbouring symbols */
	EQ_PER_LANE_N(uint32_t, v, 4);
};

/* ---- words ----------------------------------------------------------------- */

/* A block that begins before the last word may end up to 254 bytes behind it:
 * readable slack. Blocks beyond are not there; whoever uses them is told so by
 * eq_stream_end. */
EQ_DEV void eq_stream_fetch(struct eq_stream *s)
{
	if (s->n_blocks * 128 < s->n_words) {
		EQ_EACH_LANE
			EQ_AT(s->ahead) = eq_load64(s->words + s->n_blocks * EQ_RING_BLOCK +
						    8 * lane);
	}
	s->n_blocks++;
}

/* Put the block that was fetched into half (0 or EQ_RING_BLOCK) of the ring. */
EQ_DEV void eq_stream_put(struct eq_stream *s, unsigned char *shared,
			  uint32_t ring, uint32_t half)
{
	EQ_WARP_SYNC();
	EQ_EACH_LANE {
		unsigned char *p = shared + ring + 8 * lane;

		*(uint64_t *)(void *)(p + half) = EQ_AT(s->ahead);
		if (!half)
			*(uint64_t *)(void *)(p + 2 * EQ_RING_BLOCK) = EQ_AT(s->ahead);
	}
	EQ_WARP_SYNC();
	eq_stream_fetch(s);
}

/* Begin with the part at p; false when a state is too small. `ring` is a multiple
 * of EQ_RING. */
EQ_DEV bool eq_stream_begin(struct eq_stream *s, unsigned char *shared,
			    uint32_t ring, const unsigned char *p, uint32_t n_words)
{
	s->words = p + 128;
	s->n_words = n_words;
	s->n_blocks = 0;
	s->at = ring;
	EQ_EACH_LANE {
		EQ_AT(s->below) = EQ_LANES_BELOW;
		EQ_AT(s->x) = ((const uint32_t *)(const void *)p)[lane];
		EQ_AT(s->ahead) = 0;
	}
	eq_stream_fetch(s);
	eq_stream_put(s, shared, ring, 0);
	eq_stream_put(s, shared, ring, EQ_RING_BLOCK);
	return EQ_BALLOT_SMALL(s->x) == 0;
}

/* After a group that began at `begin`: take a new block in if one was left. */
EQ_DEV void eq_stream_turn(struct eq_stream *s, unsigned char *shared, uint32_t begin)
{
	if (!((begin ^ s->at) & (3 * EQ_RING_BLOCK)))
		return;
	s->at &= ~(2u * EQ_RING_BLOCK);
	eq_stream_put(s, shared, begin & ~(EQ_RING - 1u), begin & EQ_RING_BLOCK);
}

/* All words used, all states back at the start? */
EQ_DEV bool eq_stream_end(const struct eq_stream *s)
{
	uint32_t used = (s->n_blocks - 3) * 128 + (s->at & (EQ_RING_BLOCK - 1)) / 2;
	EQ_PER_LANE(bool, off);

	EQ_EACH_LANE
		EQ_AT(off) = EQ_AT(s->x) != EQ_RANS_L;
	return EQ_BALLOT(off) == 0 && used == s->n_words;
}

/* ---- symbols --------------------------------------------------------------- */

/* Lanes whose state became too small take the next words, in order of lanes. */
EQ_DEV void eq_stream_refill(struct eq_stream *s, const unsigned char *shared)
{
	uint32_t mask = EQ_BALLOT_SMALL(s->x);

	EQ_EACH_LANE {
		uint32_t rank = eq_popc(mask & EQ_AT(s->below));

		EQ_AT(s->x) = eq_refill(EQ_AT(s->x), *(const uint16_t *)(const void *)
							     (shared + s->at + 2 * rank));
	}
	s->at += 2 * eq_popc(mask);
}

/* Decode a group with a table as in struct eq_table: four entries a lane. */
EQ_DEV void eq_group_narrow(struct eq_stream *s, unsigned char *shared,
			    const uint32_t *table, struct eq_four *out)
{
	uint32_t begin = s->at;

	EQ_UNROLL
	for (unsigned t = 0; t < 4; t++) {
		EQ_EACH_LANE {
			uint32_t x = EQ_AT(s->x), e = table[x & 4095];

			EQ_AT(s->x) = (e >> 12 & 4095) * (x >> 12) + (e & 4095);
			EQ_AT(out->v)[t] = e;
		}
		eq_stream_refill(s, shared);
	}
	eq_stream_turn(s, shared, begin);
}

/*
 * The same with a wide table at the beginning of shared memory: `out` gets what
 * the symbols stand for, and `flags` (pair only) the entries. Without flags below
 * it, f << 20 is taken off again by a factor with 20 high bits set:
 * f * (x >> 12 | 0xfff00000) + (f << 20 | d) = f * (x >> 12) + d, modulo 2^32.
 */
EQ_DEV void eq_group_wide(struct eq_stream *s, unsigned char *shared, const bool pair,
			  struct eq_four *out, struct eq_four *flags)
{
	uint32_t begin = s->at;

	EQ_UNROLL
	for (unsigned t = 0; t < 4; t++) {
		EQ_EACH_LANE {
			uint32_t x = EQ_AT(s->x);
			uint64_t e = *(const uint64_t *)(const void *)
				(shared + (x << 3 & (4095 << 3)));
			uint32_t w = (uint32_t)e, f = w >> 20;

			if (pair)
				x = f * (x >> 12) + (w & 4095);
			else
				x = f * eq_funnel(x, 0xffffffffu, 12) + w;
			EQ_AT(s->x) = x;
			EQ_AT(out->v)[t] = (uint32_t)(e >> 32);
			if (pair)
				EQ_AT(flags->v)[t] = w;
		}
		eq_stream_refill(s, shared);
	}
	eq_stream_turn(s, shared, begin);
}

/* Where the symbols of a lane go: four neighbours, in a group or, in pair mode,
 * four low nibbles there and four high ones 64 units on. */
EQ_DEV uint32_t eq_lane_units(uint32_t group, unsigned lane, const bool pair)
{
	return pair ? group * 256 + (lane >> 4) * 128 + (lane & 15) * 4 :
		      group * 128 + lane * 4;
}

/* How many nibbles of this group are 15, up to n units. */
EQ_DEV uint32_t eq_count_15(const uint32_t w[4], uint32_t low_at, uint32_t n)
{
	uint32_t sum = 0;

	if (low_at + 68 <= n)
		return (w[0] + w[1] + w[2] + w[3]) >> EQ_WIDE_COUNT & 15;
	EQ_UNROLL
	for (unsigned t = 0; t < 4; t++) {
		sum += (w[t] & EQ_WIDE_LOW15) && low_at + t < n;
		sum += (w[t] & EQ_WIDE_HIGH15) && low_at + 64 + t < n;
	}
	return sum;
}

/* The wide table's entry of a slot, low word first. */
EQ_DEV uint64_t eq_wide_entry(const struct eq_gpu_table *t, uint32_t slot,
			      const bool pair, const bool quant)
{
	uint32_t e = t->slot[slot], w = (e & 0xfff000) << 8 | (e & 4095), v;
	uint32_t low = e >> 24 & 15, high = e >> 28;

	if (!pair) {
		v = eq_float_bits(t->value[e >> 24]);
		return (uint64_t)v << 32 | w;
	}
	w |= ((low == 15) + (high == 15u)) << EQ_WIDE_COUNT;
	w |= (low == 15 ? EQ_WIDE_LOW15 : 0) | (high == 15 ? EQ_WIDE_HIGH15 : 0);
	if (!quant)
		v = t->nibble[low] | (uint32_t)t->nibble[high] << 8;
	else
		v = (low == 15 ? 0x7fff : eq_float_bits(t->value[t->nibble[low]]) >> 16) |
		    (high == 15 ? 0x7fff0000 :
				  eq_float_bits(t->value[t->nibble[high]]) & 0xffff0000);
	return (uint64_t)v << 32 | w;
}

/* ---- units ----------------------------------------------------------------- */

/* Four units at position `at` of the n that there are; words has them. */
EQ_DEV void eq_put_four(unsigned char *out, uint32_t at, uint32_t n,
			const unsigned unit, const uint32_t *words)
{
	unsigned char *p = out + (size_t)at * unit;

	if (at + 4 <= n) {
		eq_store(p, words, unit);
		return;
	}
	EQ_UNROLL
	for (unsigned i = 0; i < 4 * unit; i++)
		if (at + i / unit < n)
			p[i] = (unsigned char)(words[i / 4] >> i % 4 * 8);
}

/* Rotate both halves of a word right by one. */
EQ_DEV uint32_t eq_rotate_halves(uint32_t w)
{
	return (w >> 1 & 0x7fff7fff) | (w << 15 & 0x80008000);
}

/* Rotate only the upper half. */
EQ_DEV uint32_t eq_rotate_upper(uint32_t w)
{
	return (w >> 1 & 0x7fff0000) | (w << 15 & 0x80000000) | (w & 0xffff);
}

/* Bytes of four planes, most significant first -> four 32-bit words. */
EQ_DEV void eq_transpose(const uint32_t p[4], uint32_t w[4])
{
	uint32_t a = eq_perm(p[3], p[2], 0x5140), b = eq_perm(p[1], p[0], 0x5140);
	uint32_t c = eq_perm(p[3], p[2], 0x7362), d = eq_perm(p[1], p[0], 0x7362);

	w[0] = eq_perm(a, b, 0x5410);
	w[1] = eq_perm(a, b, 0x7632);
	w[2] = eq_perm(c, d, 0x5410);
	w[3] = eq_perm(c, d, 0x7632);
}

/* Four bytes of each plane -> four units, little-endian. */
EQ_DEV void eq_merge_four(const uint32_t *p, const unsigned unit, bool rotate,
			  uint32_t *words)
{
	uint32_t high[4], low[4];

	if (unit == 1) {
		words[0] = p[0];
	} else if (unit == 2) {
		words[0] = eq_perm(p[1], p[0], 0x5140);
		words[1] = eq_perm(p[1], p[0], 0x7362);
		if (rotate) {
			words[0] = eq_rotate_halves(words[0]);
			words[1] = eq_rotate_halves(words[1]);
		}
	} else {
		eq_transpose(p, high);
		if (unit == 8)
			eq_transpose(p + 4, low);
		EQ_UNROLL
		for (unsigned i = 0; i < 4; i++) {
			if (rotate)
				high[i] = eq_rotate_upper(high[i]);
			if (unit == 8) {
				words[2 * i] = low[i];
				words[2 * i + 1] = high[i];
			} else {
				words[i] = high[i];
			}
		}
	}
}

/* Byte of plane `plane` of the unit at p; replaced by `byte`. */
EQ_DEV uint32_t eq_swap_plane(unsigned char *p, const unsigned unit, unsigned plane,
			      bool rotate, uint32_t byte)
{
	uint32_t high, old;

	if (!rotate || plane > 1) {
		old = p[unit - 1 - plane];
		p[unit - 1 - plane] = (unsigned char)byte;
		return old;
	}
	high = (uint32_t)p[unit - 1] << 8 | p[unit - 2];
	high = (high << 1 | high >> 15) & 0xffff;
	old = plane ? high & 255 : high >> 8;
	high = plane ? (high & 0xff00) | byte : (high & 255) | byte << 8;
	high = (high >> 1 | high << 15) & 0xffff;
	p[unit - 1] = (unsigned char)(high >> 8);
	p[unit - 2] = (unsigned char)high;
	return old;
}

EQ_DEV uint32_t eq_escape(const struct eq_gpu_task *t, const struct eq_gpu_part *p,
			  uint32_t i)
{
	return ((const uint32_t *)(const void *)
		(t->in + p->off + (uint32_t)eq_gpu_rans_size(p->n_words)))[i];
}

#endif
