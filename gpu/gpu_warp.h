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

/* ---- planes ---------------------------------------------------------------- */

/* Put the escapes of part p, plane i, in their places; false unless each finds the
 * marker there. With as many nibbles 15 as escapes, and escapes that ascend, that says
 * that the two are at the same positions. */
EQ_DEV bool eq_escape_planes(const struct eq_gpu_task *t, const struct eq_gpu_part *p,
			     unsigned i, const unsigned unit)
{
	uint32_t marker = t->tables[p->table].nibble[15];
	EQ_PER_LANE(bool, bad);

	EQ_WARP_SYNC();
	EQ_EACH_LANE {
		EQ_AT(bad) = false;
		for (uint32_t k = lane; k < p->n_escapes; k += EQ_LANES) {
			uint32_t e = eq_escape(t, p, k);

			EQ_AT(bad) |= eq_swap_plane(t->out + (size_t)(e >> 8) * unit, unit, i,
						    t->rotate, e & 255) != marker;
		}
	}
	return EQ_BALLOT(bad) == 0;
}

/* The planes that are not coded, at the units of a lane: where the bytes are, or
 * the one that all of them are. Up to 255 bytes behind a part RAW may be read,
 * which is within the slack. */
struct eq_plain {
	EQ_PER_LANE_N(const unsigned char *, p, 8);
	bool raw[8];
	uint32_t fill4[8];
};

EQ_DEV void eq_plain_begin(const struct eq_gpu_task *t, struct eq_plain *plain,
			   const unsigned unit, const bool pair)
{
	EQ_UNROLL
	for (unsigned i = 0; i < unit; i++) {
		plain->raw[i] = t->part[i].kind == EQ_PART_RAW;
		plain->fill4[i] = t->part[i].fill4;
		EQ_EACH_LANE
			EQ_AT(plain->p)[i] = t->in + t->part[i].off +
					     eq_lane_units(0, lane, pair);
	}
}

/* Bytes of those planes for a lane's units, and in pair mode 64 units on. */
struct eq_bytes {
	EQ_PER_LANE_N(uint32_t, low, 8);
	EQ_PER_LANE_N(uint32_t, high, 8);
};

/* Device memory takes as long to answer as a group takes to decode, or longer: the
 * second cache is told that many groups ahead what will be wanted. Eight groups
 * ahead, some of it is gone again when its time comes. */
#define EQ_AHEAD 2

/* Take the bytes of a group, and move on to the next one; `more` says that there
 * is a group EQ_AHEAD further on. */
EQ_DEV void eq_plain_fetch(struct eq_plain *plain, struct eq_bytes *out, bool more,
			   const unsigned unit, const bool pair)
{
	const unsigned step = pair ? 256 : 128;

	EQ_EACH_LANE {
		EQ_UNROLL
		for (unsigned i = 0; i < unit; i++) {
			const unsigned char *p = EQ_AT(plain->p)[i];

			EQ_AT(out->low)[i] = EQ_AT(out->high)[i] = plain->fill4[i];
			if (plain->raw[i]) {
				EQ_AT(out->low)[i] = eq_load32(p);
				if (pair)
					EQ_AT(out->high)[i] = eq_load32(p + 64);
				if (more)
					eq_prefetch(p + EQ_AHEAD * step);
				if (more && pair)
					eq_prefetch(p + EQ_AHEAD * step + 64);
			}
			EQ_AT(plain->p)[i] = p + step;
		}
	}
}

/* Units at `at`, one plane of which is `coded`, the others `plain`. */
EQ_DEV void eq_put_planes(const struct eq_gpu_task *t, uint32_t coded, uint32_t at,
			  const uint32_t *plain, const unsigned unit)
{
	uint32_t plane[8], words[8];

	EQ_UNROLL
	for (unsigned i = 0; i < unit; i++)
		plane[i] = i == t->coded ? coded : plain[i];
	eq_merge_four(plane, unit, t->rotate, words);
	eq_put_four(t->out, at, t->n_units, unit, words);
}

/* A chunk of planes of which exactly one is coded. Returns 0 or EQ_ECORRUPT. */
EQ_DEV int eq_warp_planes(const struct eq_gpu_task *t, unsigned char *shared,
			  uint32_t ring, const unsigned unit, const bool pair)
{
	const struct eq_gpu_part *p = &t->main;
	const uint32_t step = pair ? 256 : 128;
	uint32_t groups = (t->n_units + step - 1) / step;
	EQ_PER_LANE(uint32_t, n_15);
	struct eq_plain plain;
	struct eq_stream s;

	if (!eq_stream_begin(&s, shared, ring, t->in + p->off, p->n_words))
		return EQ_ECORRUPT;
	eq_plain_begin(t, &plain, unit, pair);
	EQ_EACH_LANE
		EQ_AT(n_15) = 0;
	for (uint32_t g = 0; g < groups; g++) {
		struct eq_bytes now;
		struct eq_four v, w;

		/* Asked for before the group, so that they come meanwhile. */
		eq_plain_fetch(&plain, &now, g + EQ_AHEAD < groups, unit, pair);
		if (pair)
			eq_group_wide(&s, shared, true, &v, &w);
		else
			eq_group_narrow(&s, shared, (const uint32_t *)(const void *)shared, &v);
		EQ_EACH_LANE {
			/* Single: the symbols are the high bytes. Pair: a has the low and
			 * high nibbles' bytes of the first two, b of the others. */
			const unsigned sel = pair ? 0x5140 : 0x0073;
			uint32_t at = eq_lane_units(g, lane, pair);
			uint32_t a = eq_perm(EQ_AT(v.v)[0], EQ_AT(v.v)[1], sel);
			uint32_t b = eq_perm(EQ_AT(v.v)[2], EQ_AT(v.v)[3], sel);

			eq_put_planes(t, eq_perm(a, b, 0x5410), at, EQ_AT(now.low), unit);
			if (pair) {
				eq_put_planes(t, eq_perm(a, b, 0x7632), at + 64, EQ_AT(now.high),
					      unit);
				EQ_AT(n_15) += eq_count_15(EQ_AT(w.v), at, t->n_units);
			}
		}
	}
	if (!eq_stream_end(&s))
		return EQ_ECORRUPT;
	if (pair && (EQ_WARP_SUM(n_15) != p->n_escapes ||
		     !eq_escape_planes(t, p, t->coded, unit)))
		return EQ_ECORRUPT;
	return 0;
}

/* ---- planes of which any number is coded ------------------------------------- */

struct eq_any {                         /* 256 units of a plane */
	EQ_PER_LANE_N(uint32_t, v, 2);  /* units 128 i + 4 lane and on */
};

/* Four symbols in each of two places, 64 units apart, of half a warp a block
 * -> four neighbours a lane. */
EQ_DEV void eq_spread_pair(EQ_LANES_OF(uint32_t) low, EQ_LANES_OF(uint32_t) high,
			   struct eq_any *out)
{
	EQ_EACH_LANE {
		EQ_UNROLL
		for (unsigned i = 0; i < 2; i++) {
			unsigned from = 16 * i + (lane & 15);
			uint32_t a = EQ_FROM(low, from), b = EQ_FROM(high, from);

			EQ_AT(out->v)[i] = lane < 16 ? a : b;
		}
	}
}

EQ_DEV uint32_t eq_nibbles_15(uint32_t sym, uint32_t at, uint32_t n)
{
	return ((sym & 15) == 15 && at < n) + (sym >> 4 == 15 && at + 64 < n);
}

/* 256 units of part p from unit 256 * block on. */
EQ_DEV void eq_any_part(const struct eq_gpu_task *t, const struct eq_gpu_part *p,
			struct eq_stream *s, unsigned char *shared, uint32_t block,
			EQ_LANES_REF(uint32_t) n_15, struct eq_any *out)
{
	const struct eq_gpu_table *table = &t->tables[p->table];
	EQ_PER_LANE(uint32_t, low);
	EQ_PER_LANE(uint32_t, high);
	struct eq_four e;

	if (p->kind == EQ_PART_PAIR) {
		eq_group_narrow(s, shared, table->slot, &e);
		EQ_EACH_LANE {
			EQ_AT(low) = EQ_AT(high) = 0;
			EQ_UNROLL
			for (unsigned i = 0; i < 4; i++) {
				uint32_t sym = EQ_AT(e.v)[i] >> 24;

				EQ_AT(low) |= (uint32_t)table->nibble[sym & 15] << 8 * i;
				EQ_AT(high) |= (uint32_t)table->nibble[sym >> 4] << 8 * i;
				EQ_REF_AT(n_15) += eq_nibbles_15(
					sym, eq_lane_units(block, lane, true) + i, t->n_units);
			}
		}
		eq_spread_pair(low, high, out);
		return;
	}
	EQ_UNROLL
	for (unsigned i = 0; i < 2; i++) {
		uint32_t begin = 256 * block + 128 * i;

		if (begin >= t->n_units) {
			EQ_EACH_LANE
				EQ_AT(out->v)[i] = 0;
			continue;
		}
		if (p->kind == EQ_PART_RANS)
			eq_group_narrow(s, shared, table->slot, &e);
		EQ_EACH_LANE {
			if (p->kind == EQ_PART_RANS)
				EQ_AT(out->v)[i] = eq_perm(
					eq_perm(EQ_AT(e.v)[0], EQ_AT(e.v)[1], 0x0073),
					eq_perm(EQ_AT(e.v)[2], EQ_AT(e.v)[3], 0x0073), 0x5410);
			else
				EQ_AT(out->v)[i] =
					p->kind == EQ_PART_CONST ? p->fill4 :
					eq_load32(t->in + p->off + begin + 4 * lane);
		}
	}
}

EQ_DEV bool eq_is_coded(const struct eq_gpu_part *p)
{
	return p->kind == EQ_PART_RANS || p->kind == EQ_PART_PAIR;
}

/* A chunk of planes with any mixture of parts; tables in device memory, since
 * there may be more than shared memory holds. `unit` rings a warp. */
EQ_DEV int eq_warp_any(const struct eq_gpu_task *t, unsigned char *shared,
		       uint32_t ring, const unsigned unit)
{
	EQ_PER_LANE_N(uint32_t, n_15, 8);
	struct eq_stream s[8];
	bool fine = true;

	EQ_UNROLL
	for (unsigned i = 0; i < unit; i++) {
		EQ_EACH_LANE
			EQ_AT(n_15)[i] = 0;
		if (eq_is_coded(&t->part[i]))
			fine &= eq_stream_begin(&s[i], shared, ring + i * EQ_RING,
						t->in + t->part[i].off, t->part[i].n_words);
	}
	if (!fine)
		return EQ_ECORRUPT;
	for (uint32_t block = 0; block < (t->n_units + 255) / 256; block++) {
		struct eq_any plane[8];

		EQ_UNROLL
		for (unsigned i = 0; i < unit; i++) {
			EQ_PER_LANE(uint32_t, more);

			EQ_EACH_LANE
				EQ_AT(more) = 0;
			eq_any_part(t, &t->part[i], &s[i], shared, block, EQ_REF(more),
				    &plane[i]);
			EQ_EACH_LANE
				EQ_AT(n_15)[i] += EQ_AT(more);
		}
		EQ_EACH_LANE {
			EQ_UNROLL
			for (unsigned k = 0; k < 2; k++) {
				uint32_t p[8], words[8];

				EQ_UNROLL
				for (unsigned i = 0; i < unit; i++)
					p[i] = EQ_AT(plane[i].v)[k];
				eq_merge_four(p, unit, t->rotate, words);
				eq_put_four(t->out, 256 * block + 128 * k + 4 * lane,
					    t->n_units, unit, words);
			}
		}
	}
	EQ_UNROLL
	for (unsigned i = 0; i < unit; i++) {
		EQ_PER_LANE(uint32_t, n);

		EQ_EACH_LANE
			EQ_AT(n) = EQ_AT(n_15)[i];
		if (eq_is_coded(&t->part[i]))
			fine &= eq_stream_end(&s[i]);
		if (fine && t->part[i].kind == EQ_PART_PAIR)
			fine = EQ_WARP_SUM(n) == t->part[i].n_escapes &&
			       eq_escape_planes(t, &t->part[i], i, unit);
	}
	return fine ? 0 : EQ_ECORRUPT;
}

/* ---- quantised --------------------------------------------------------------- */

EQ_DEV float eq_row_scale(const struct eq_gpu_task *t, uint32_t row)
{
	const unsigned char *p = t->in + t->part[0].off;

	if (t->scale_f32)
		return eq_bits_float(((const uint32_t *)(const void *)p)[row]);
	return eq_bits_float((uint32_t)((const uint16_t *)(const void *)p)[row] << 16);
}

struct eq_row {                 /* the row of the units that a lane is at */
	EQ_PER_LANE(float, scale);
	EQ_PER_LANE(int32_t, left);     /* units of the row from there on */
	EQ_PER_LANE(uint32_t, i);
};

/* The row of unit `at` of the chunk, counted from the chunk's first. */
EQ_DEV uint32_t eq_row_of(const struct eq_gpu_task *t, uint32_t at)
{
	return at < t->row_left ? 0 : (at - t->row_left) / t->row_units + 1;
}

/* To the units at `at`; those beyond the chunk's end count as the last one. */
EQ_DEV void eq_row_begin(const struct eq_gpu_task *t, struct eq_row *r, unsigned offset,
			 const bool pair)
{
	EQ_EACH_LANE {
		uint32_t at = eq_lane_units(0, lane, pair) + offset, i = eq_row_of(t, at);

		EQ_AT(r->i) = i;
		EQ_AT(r->left) = (int32_t)(t->row_left + i * t->row_units - at);
		EQ_AT(r->scale) = at < t->n_units ? eq_row_scale(t, i) : 0;
	}
}

/* 128 or 256 units on, where the lane is at `at`. */
EQ_DEV void eq_row_next(const struct eq_gpu_task *t, struct eq_row *r, unsigned lane,
			uint32_t at, uint32_t by)
{
	(void)lane;
	EQ_AT(r->left) -= (int32_t)by;
	if (EQ_AT(r->left) > 0 || at >= t->n_units)
		return;
	do {
		EQ_AT(r->i)++;
		EQ_AT(r->left) += (int32_t)t->row_units;
	} while (EQ_AT(r->left) <= 0);
	EQ_AT(r->scale) = eq_row_scale(t, EQ_AT(r->i));
}

/* Four products as units of the dtype, at position `at`. */
EQ_DEV void eq_put_quant(const struct eq_gpu_task *t, uint32_t at, const float v[4],
			 float scale, const int dtype)
{
	uint32_t words[4];
	float p[4];

	EQ_UNROLL
	for (unsigned i = 0; i < 4; i++)
		p[i] = eq_mul(v[i], scale);
	if (dtype == EQ_F32) {
		EQ_UNROLL
		for (unsigned i = 0; i < 4; i++)
			words[i] = eq_float_bits(p[i]);
		eq_put_four(t->out, at, t->n_units, 4, words);
		return;
	}
	words[0] = dtype == EQ_BF16 ? eq_pack_bf16(p[0], p[1]) : eq_pack_f16(p[0], p[1]);
	words[1] = dtype == EQ_BF16 ? eq_pack_bf16(p[2], p[3]) : eq_pack_f16(p[2], p[3]);
	eq_put_four(t->out, at, t->n_units, 2, words);
}

/* The unit at `at`, and a new one there. */
EQ_DEV uint32_t eq_swap_unit(const struct eq_gpu_task *t, uint32_t at, uint32_t bits,
			     const int dtype)
{
	uint32_t *p32 = (uint32_t *)(void *)t->out + at, old;
	uint16_t *p16 = (uint16_t *)(void *)t->out + at;

	if (dtype == EQ_F32) {
		old = *p32;
		*p32 = bits;
	} else {
		old = *p16;
		*p16 = (uint16_t)bits;
	}
	return old;
}

EQ_DEV bool eq_unit_is_nan(uint32_t bits, const int dtype)
{
	return dtype == EQ_F32	? (bits & 0x7fffffff) > 0x7f800000 :
	       dtype == EQ_BF16 ? (bits & 0x7fff) > 0x7f80 : (bits & 0x7fff) > 0x7c00;
}

/* As eq_escape_planes; the marker is NaN, which no unit is. */
EQ_DEV bool eq_escape_quant(const struct eq_gpu_task *t, const int dtype)
{
	const struct eq_gpu_part *p = &t->main;
	const float *value = t->tables[p->table].value;
	EQ_PER_LANE(bool, bad);

	EQ_WARP_SYNC();
	EQ_EACH_LANE {
		EQ_AT(bad) = false;
		for (uint32_t k = lane; k < p->n_escapes; k += EQ_LANES) {
			uint32_t e = eq_escape(t, p, k), at = e >> 8, bits;
			float v = eq_mul(value[e & 255], eq_row_scale(t, eq_row_of(t, at)));

			bits = dtype == EQ_F32 ? eq_float_bits(v) :
			       dtype == EQ_BF16 ? eq_pack_bf16(v, 0) : eq_pack_f16(v, 0);
			EQ_AT(bad) |= !eq_unit_is_nan(eq_swap_unit(t, at, bits, dtype), dtype);
		}
	}
	return EQ_BALLOT(bad) == 0;
}

EQ_DEV void eq_put_outliers(const struct eq_gpu_task *t, const int dtype)
{
	const struct eq_gpu_part *p = &t->part[2];

	EQ_WARP_SYNC();
	EQ_EACH_LANE {
		for (uint32_t k = lane; k < p->n_escapes; k += EQ_LANES) {
			const uint32_t *o = (const uint32_t *)(const void *)(t->in + p->off) +
					    2 * (size_t)k;

			eq_swap_unit(t, o[0], o[1], dtype);
		}
	}
}

/* A chunk of quantised weights. Returns 0 or EQ_ECORRUPT. */
EQ_DEV int eq_warp_quant(const struct eq_gpu_task *t, unsigned char *shared,
			 uint32_t ring, const int dtype, const bool pair)
{
	const struct eq_gpu_part *p = &t->main;
	const uint32_t step = pair ? 256 : 128;
	uint32_t groups = (t->n_units + step - 1) / step;
	EQ_PER_LANE(uint32_t, n_15);
	struct eq_row row, row_high;
	struct eq_stream s;

	if (!eq_stream_begin(&s, shared, ring, t->in + p->off, p->n_words))
		return EQ_ECORRUPT;
	eq_row_begin(t, &row, 0, pair);
	if (pair)
		eq_row_begin(t, &row_high, 64, pair);
	EQ_EACH_LANE
		EQ_AT(n_15) = 0;
	for (uint32_t g = 0; g < groups; g++) {
		struct eq_four v, w;

		eq_group_wide(&s, shared, pair, &v, &w);
		EQ_EACH_LANE {
			uint32_t at = eq_lane_units(g, lane, pair);
			float low[4], high[4];

			EQ_UNROLL
			for (unsigned i = 0; i < 4; i++) {
				uint32_t bits = EQ_AT(v.v)[i];

				low[i] = eq_bits_float(pair ? bits << 16 : bits);
				high[i] = eq_bits_float(bits & 0xffff0000);
			}
			eq_put_quant(t, at, low, EQ_AT(row.scale), dtype);
			eq_row_next(t, &row, lane, at + step, step);
			if (pair) {
				eq_put_quant(t, at + 64, high, EQ_AT(row_high.scale), dtype);
				eq_row_next(t, &row_high, lane, at + 64 + step, step);
				EQ_AT(n_15) += eq_count_15(EQ_AT(w.v), at, t->n_units);
			}
		}
	}
	if (!eq_stream_end(&s))
		return EQ_ECORRUPT;
	if (pair && (EQ_WARP_SUM(n_15) != p->n_escapes || !eq_escape_quant(t, dtype)))
		return EQ_ECORRUPT;
	eq_put_outliers(t, dtype);
	return 0;
}

#endif
