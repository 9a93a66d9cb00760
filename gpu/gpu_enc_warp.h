/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a warp encodes a part of a chunk (eqar.5, ENTROPY CODER), and counts bytes.
 * As gpu_warp.h: the text compiles for the device and, lane by lane, for the host.
 */
#ifndef EQ_GPU_ENC_WARP_H
#define EQ_GPU_ENC_WARP_H

#include "gpu_enc_task.h"

/* ---- units and planes ------------------------------------------------------ */

/* Four units from `at` on, of the n there are, as words; zeros behind them. */
EQ_DEV void eq_enc_load(const unsigned char *units, uint32_t at, uint32_t n, const unsigned unit,
			uint32_t *w)
{
	if (at + 4 <= n) {
		eq_load(units + (size_t)at * unit, w, unit);
		return;
	}
	EQ_UNROLL
	for (unsigned i = 0; i < unit; i++)
		w[i] = 0;
	EQ_UNROLL
	for (unsigned i = 0; i < 4 * unit; i++)
		if (at + i / unit < n)
			w[i / 4] |= (uint32_t)units[(size_t)at * unit + i] << i % 4 * 8;
}

/* Rotate the upper half left by one. */
EQ_DEV uint32_t eq_enc_rotate(uint32_t w)
{
	return (w << 1 & 0xfffe0000) | (w >> 15 & 0x10000) | (w & 0xffff);
}

/* The bytes of a plane of four units. */
EQ_DEV uint32_t eq_enc_plane(const uint32_t *w, const unsigned unit, bool rotate, unsigned plane)
{
	uint32_t a, b, out = 0;

	if (unit == 1)
		return w[0];
	if (unit == 2) {
		a = rotate ? (w[0] << 1 & 0xfffefffe) | (w[0] >> 15 & 0x10001) : w[0];
		b = rotate ? (w[1] << 1 & 0xfffefffe) | (w[1] >> 15 & 0x10001) : w[1];
		return eq_perm(a, b, plane ? 0x6420 : 0x7531);
	}
	EQ_UNROLL
	for (unsigned i = 0; i < 4; i++) {
		a = unit == 4 ? w[i] : plane < 4 ? w[2 * i + 1] : w[2 * i];
		if (rotate && plane < 2)
			a = eq_enc_rotate(a);
		out |= (a >> (24 - plane % 4 * 8) & 255) << 8 * i;
	}
	return out;
}

/* Four bytes that begin at unit `at`, those from unit n on replaced by `fill`. */
EQ_DEV uint32_t eq_enc_fill(uint32_t bytes, uint32_t at, uint32_t n, uint32_t fill)
{
	uint32_t mask;

	if (at + 4 <= n)
		return bytes;
	mask = at < n ? 0xffffffffu >> 8 * (at + 4 - n) : 0;
	return (bytes & mask) | (fill * 0x01010101u & ~mask);
}

/* ---- histogram ------------------------------------------------------------- */

/* Count every n_warps-th 128 of n symbols, from the `warp`-th on; hist has 256
 * counters, shared by all who count. */
EQ_DEV void eq_warp_hist(const unsigned char *symbols, uint64_t n, uint32_t *hist, uint64_t warp,
			 uint64_t n_warps)
{
	for (uint64_t g = warp; g * 128 < n; g += n_warps) {
		EQ_EACH_LANE {
			uint64_t at = g * 128 + 4 * lane;

			for (unsigned i = 0; i < 4; i++)
				if (at + i < n)
					EQ_COUNT(&hist[symbols[at + i]]);
		}
	}
}

/* ---- the entropy coder ------------------------------------------------------ */

struct eq_enc {
	EQ_PER_LANE(uint32_t, x);       /* state */
	EQ_PER_LANE(uint32_t, below);   /* bits of the lanes before this one */
	EQ_PER_LANE(uint32_t, least);   /* the least frequency met: 0 is no symbol */
	EQ_PER_LANE(uint32_t, differ);  /* bits in which bytes differ from the first */
	EQ_PER_LANE_N(uint32_t, ahead, 16);     /* the units that come next */
	uint16_t *words;
	uint32_t at;                    /* lowest word so far */
	/* Pairs: escapes, likewise downwards; those of the last block that has any. */
	uint32_t *escapes;
	uint32_t escape_at, n_escapes, n_last;
};

/* One symbol a lane: byte t of its four. */
EQ_DEV void eq_enc_step(struct eq_enc *s, const uint64_t *entry, EQ_LANES_OF(uint32_t) four,
			unsigned t)
{
	EQ_PER_LANE(uint64_t, e);
	EQ_PER_LANE(bool, due);
	uint32_t mask;

	EQ_EACH_LANE {
		EQ_AT(e) = entry[EQ_AT(four) >> 8 * t & 255];
		EQ_AT(due) = EQ_AT(s->x) >= (uint32_t)(EQ_AT(e) >> 32 & 0xffff) << 20;
	}
	mask = EQ_BALLOT(due);
	s->at -= eq_popc(mask);
	EQ_EACH_LANE {
		uint32_t x = EQ_AT(s->x), f = EQ_AT(e) >> 32 & 0xffff, q, r;

		if (EQ_AT(due)) {
			s->words[s->at + eq_popc(mask & EQ_AT(s->below))] = (uint16_t)x;
			x >>= 16;
		}
		/* The reciprocal is rounded down: right or one too small. */
		q = eq_mulhi(x, (uint32_t)EQ_AT(e));
		r = x - q * f;
		if (r >= f) {
			q++;
			r -= f;
		}
		EQ_AT(s->x) = (q << 12) + r + (uint32_t)(EQ_AT(e) >> 48);
		EQ_AT(s->least) = f < EQ_AT(s->least) ? f : EQ_AT(s->least);
	}
}

EQ_DEV void eq_enc_group(struct eq_enc *s, const uint64_t *entry, EQ_LANES_OF(uint32_t) four)
{
	EQ_UNROLL
	for (unsigned t = 4; t-- > 0;)
		eq_enc_step(s, entry, four, t);
}

EQ_DEV void eq_enc_begin(struct eq_enc *s, const struct eq_gpu_enc_task *t, const bool pair)
{
	uint32_t n = eq_enc_symbols(t->n_units, pair);

	s->words = (uint16_t *)(void *)(t->work + 128);
	s->at = n;
	s->escapes = (uint32_t *)(void *)(t->work + 128 + 2 * (size_t)n);
	s->escape_at = eq_enc_escapes_max(t->n_units);
	s->n_escapes = s->n_last = 0;
	EQ_EACH_LANE {
		EQ_AT(s->x) = EQ_RANS_L;
		EQ_AT(s->below) = EQ_LANES_BELOW;
		EQ_AT(s->least) = EQ_PROB_SIZE;
		EQ_AT(s->differ) = 0;
	}
}

/* Units of a group that a lane codes: four, and in pair mode four that are 64
 * units further on. */
EQ_DEV uint32_t eq_enc_units(uint32_t group, unsigned lane, const bool pair)
{
	return pair ? group * 256 + (lane >> 4) * 128 + (lane & 15) * 4 : group * 128 + lane * 4;
}

/* Device memory answers later than a group is coded: the second cache is told so
 * many groups before. */
#define EQ_ENC_AHEAD 6

/* Have the units of a group on their way. */
EQ_DEV void eq_enc_fetch(struct eq_enc *s, const struct eq_gpu_enc_task *t, uint32_t group,
			 const unsigned unit, const bool pair)
{
	EQ_EACH_LANE {
		uint32_t at = eq_enc_units(group, lane, pair);

		eq_enc_load(t->units, at, t->n_units, unit, EQ_AT(s->ahead));
		if (pair)
			eq_enc_load(t->units, at + 64, t->n_units, unit, EQ_AT(s->ahead) + unit);
		if (group >= EQ_ENC_AHEAD) {
			at -= EQ_ENC_AHEAD * (pair ? 256 : 128);
			eq_prefetch(t->units + (size_t)at * unit);
			if (pair)
				eq_prefetch(t->units + (size_t)(at + 64) * unit);
		}
	}
}

/* ---- pairs ------------------------------------------------------------------- */

/* Nibbles of four bytes. */
EQ_DEV uint32_t eq_enc_nibbles(const uint8_t *index, uint32_t b)
{
	return index[b & 255] | (uint32_t)index[b >> 8 & 255] << 8 |
	       (uint32_t)index[b >> 16 & 255] << 16 | (uint32_t)index[b >> 24] << 24;
}

/* Which of four nibbles are 15, as bits 0 to 3. */
EQ_DEV uint32_t eq_enc_is_15(uint32_t nibbles)
{
	uint32_t m = (nibbles + 0x01010101u) >> 4 & 0x01010101u;

	return (m | m >> 7 | m >> 14 | m >> 21) & 15;
}

/* Lanes of a 128-unit block: 0 to 15, or 16 to 31. */
EQ_DEV uint32_t eq_enc_block(unsigned block)
{
	return block ? 0xffff0000u : 0xffffu;
}

/*
 * The escapes of a group, of which bits 0 to 3 of `flags` are in the lower half of
 * a lane's block and bits 4 to 7 in the upper one, in order of position: block,
 * half, lane, unit. low and high are the bytes.
 */
EQ_DEV void eq_enc_escape(struct eq_enc *s, EQ_LANES_OF(uint32_t) flags, EQ_LANES_OF(uint32_t) low,
			  EQ_LANES_OF(uint32_t) high, uint32_t group, uint32_t max)
{
	uint32_t ballot[8], count[2] = { 0, 0 };

	EQ_UNROLL
	for (unsigned i = 0; i < 8; i++) {
		EQ_PER_LANE(bool, bit);

		EQ_EACH_LANE
			EQ_AT(bit) = EQ_AT(flags) >> i & 1;
		ballot[i] = EQ_BALLOT(bit);
		count[0] += eq_popc(ballot[i] & eq_enc_block(0));
		count[1] += eq_popc(ballot[i] & eq_enc_block(1));
	}
	if (!s->n_escapes)
		s->n_last = count[1] ? count[1] : count[0];
	s->n_escapes += count[0] + count[1];
	if (s->n_escapes > max) /* it will be stored as it is */
		return;
	s->escape_at -= count[0] + count[1];
	EQ_EACH_LANE {
		uint32_t block = eq_enc_block(lane >> 4), at = s->escape_at;
		uint32_t pos = eq_enc_units(group, lane, true);

		if (lane >> 4)
			at += count[0];
		EQ_UNROLL
		for (unsigned half = 0; half < 2; half++) {
			uint32_t to = at, byte = half ? EQ_AT(high) : EQ_AT(low);

			EQ_UNROLL
			for (unsigned t = 0; t < 4; t++) {
				to += eq_popc(ballot[4 * half + t] & block & EQ_AT(s->below));
				at += eq_popc(ballot[4 * half + t] & block);
			}
			EQ_UNROLL
			for (unsigned t = 0; t < 4; t++)
				if (EQ_AT(flags) >> (4 * half + t) & 1)
					s->escapes[to++] = (pos + 64 * half + t) << 8 |
							   (byte >> 8 * t & 255);
		}
	}
}

/* ---- parts -------------------------------------------------------------------- */

/* The byte of a plane of the first unit, four times. */
EQ_DEV uint32_t eq_enc_first(const struct eq_gpu_enc_task *t, const unsigned unit)
{
	uint32_t w[8];

	eq_enc_load(t->units, 0, t->n_units, unit, w);
	return (eq_enc_plane(w, unit, t->rotate, t->plane) & 255) * 0x01010101u;
}

/* A group: its bytes, and how they differ from the first one. Bytes behind the end
 * are `fill`. */
EQ_DEV void eq_enc_bytes(struct eq_enc *s, const struct eq_gpu_enc_task *t, uint32_t group,
			 const unsigned unit, const bool pair, uint32_t first, uint32_t fill,
			 EQ_LANES_REF(uint32_t) low, EQ_LANES_REF(uint32_t) high)
{
	uint32_t n = t->n_units;

	EQ_EACH_LANE {
		uint32_t at = eq_enc_units(group, lane, pair);
		uint32_t b = eq_enc_plane(EQ_AT(s->ahead), unit, t->rotate, t->plane);

		EQ_AT(s->differ) |= eq_enc_fill(b, at, n, first & 255) ^ first;
		EQ_REF_AT(low) = eq_enc_fill(b, at, n, fill);
		if (pair) {
			b = eq_enc_plane(EQ_AT(s->ahead) + unit, unit, t->rotate, t->plane);
			EQ_AT(s->differ) |= eq_enc_fill(b, at + 64, n, first & 255) ^ first;
			EQ_REF_AT(high) = eq_enc_fill(b, at + 64, n, fill);
		}
	}
}

/* A group of pairs to nibbles; its escapes. */
EQ_DEV void eq_enc_pair(struct eq_enc *s, const struct eq_gpu_enc_task *t,
			const struct eq_encode_table *table, uint32_t group,
			EQ_LANES_REF(uint32_t) low, EQ_LANES_REF(uint32_t) high)
{
	uint32_t blocks = (t->n_units + 127) / 128;
	EQ_PER_LANE(uint32_t, flags);
	EQ_PER_LANE(uint32_t, four);
	EQ_PER_LANE(uint32_t, b);
	EQ_PER_LANE(uint32_t, c);
	EQ_PER_LANE(bool, any);

	EQ_EACH_LANE {
		uint32_t l = eq_enc_nibbles(table->index, EQ_REF_AT(low));
		uint32_t h = eq_enc_nibbles(table->index, EQ_REF_AT(high));

		EQ_AT(b) = EQ_REF_AT(low);
		EQ_AT(c) = EQ_REF_AT(high);
		/* The last group may be one block only. */
		EQ_AT(four) = 2 * group + lane / 16 < blocks ? l | h << 4 : table->pad * 0x01010101u;
		EQ_AT(flags) = eq_enc_is_15(l) | eq_enc_is_15(h) << 4;
		EQ_AT(any) = EQ_AT(flags) != 0;
	}
	if (EQ_BALLOT(any))
		eq_enc_escape(s, flags, b, c, group, eq_enc_escapes_max(t->n_units));
	eq_enc_group(s, table->entry, four);
}

/* Does it pay? The kind that the part will have, and its length. */
EQ_DEV void eq_enc_settle(const struct eq_enc *s, const struct eq_gpu_enc_task *t, bool coded,
			  uint8_t arg, const bool pair, bool constant, uint32_t first,
			  struct eq_gpu_enc_done *d)
{
	uint32_t n = t->n_units, words = coded ? eq_enc_symbols(n, pair) - s->at : 0;
	uint32_t size = (128 + 2 * words + 3) / 4 * 4 + 4 * (coded ? s->n_escapes : 0);

	d->zero[0] = d->zero[1] = 0;
	d->at = 0;
	d->n_words = d->n_escapes = 0;
	d->arg = 0;
	if (coded && pair && s->n_escapes &&
	    s->n_escapes - s->n_last + 128 > eq_enc_escapes_max(n))
		coded = false;
	if (constant) {
		d->kind = EQ_PART_CONST;
		d->arg = (uint8_t)first;
		d->n_bytes = 0;
	} else if (coded && size < n) {
		d->kind = pair ? EQ_PART_PAIR : EQ_PART_RANS;
		d->arg = arg;
		d->n_words = words;
		d->n_escapes = s->n_escapes;
		d->n_bytes = size;
	} else {
		d->kind = EQ_PART_RAW;
		d->n_bytes = n;
	}
}

/* A part that is not to be coded: is it constant? */
EQ_DEV void eq_warp_plain(const struct eq_gpu_enc_task *t, const unsigned unit)
{
	uint32_t first = eq_enc_first(t, unit);
	bool same = true;
	struct eq_gpu_enc_done d;

	for (uint32_t at = 0; same && at < t->n_units; at += 128) {
		EQ_PER_LANE(bool, off);

		EQ_EACH_LANE {
			uint32_t w[8], b;

			eq_enc_load(t->units, at + 4 * lane, t->n_units, unit, w);
			b = eq_enc_plane(w, unit, t->rotate, t->plane);
			EQ_AT(off) = eq_enc_fill(b, at + 4 * lane, t->n_units, first & 255) != first;
		}
		same = EQ_BALLOT(off) == 0;
	}
	eq_enc_settle(NULL, t, false, 0, false, same, first & 255, &d);
	EQ_EACH_LANE
		if (lane == 0)
			*t->done = d;
}

/* A table, to memory that the warp shares. */
EQ_DEV void eq_enc_table(struct eq_encode_table *to, const struct eq_encode_table *from)
{
	EQ_WARP_SYNC();
	EQ_EACH_LANE {
		for (unsigned i = lane; i < sizeof(*to) / 8; i += 32)
			((uint64_t *)(void *)to)[i] = ((const uint64_t *)(const void *)from)[i];
	}
	EQ_WARP_SYNC();
}

/* Code all units with a table; false if symbols are missing in it. */
EQ_DEV bool eq_enc_run(struct eq_enc *s, const struct eq_gpu_enc_task *t,
		       const struct eq_encode_table *table, const unsigned unit, const bool pair,
		       uint32_t first)
{
	uint32_t groups = eq_enc_symbols(t->n_units, pair) / 128;
	uint32_t fill = pair ? table->fill : table->pad;
	EQ_PER_LANE(bool, missing);

	eq_enc_begin(s, t, pair);
	eq_enc_fetch(s, t, groups - 1, unit, pair);
	for (uint32_t g = groups; g-- > 0;) {
		EQ_PER_LANE(uint32_t, low);
		EQ_PER_LANE(uint32_t, high);

		eq_enc_bytes(s, t, g, unit, pair, first, fill, EQ_REF(low), EQ_REF(high));
		if (g)
			eq_enc_fetch(s, t, g - 1, unit, pair);
		if (pair)
			eq_enc_pair(s, t, table, g, EQ_REF(low), EQ_REF(high));
		else
			eq_enc_group(s, table->entry, low);
	}
	EQ_EACH_LANE
		EQ_AT(missing) = EQ_AT(s->least) == 0;
	return EQ_BALLOT(missing) == 0;
}

/* A part that is to be coded; `table` is memory for one, shared by the warp. */
EQ_DEV void eq_warp_encode(const struct eq_gpu_enc_task *t, struct eq_encode_table *table,
			   const unsigned unit, const bool pair)
{
	uint32_t first = eq_enc_first(t, unit);
	EQ_PER_LANE(bool, differs);
	struct eq_gpu_enc_done d;
	uint8_t arg = t->arg;
	struct eq_enc s;
	bool coded;

	eq_enc_table(table, t->table);
	coded = eq_enc_run(&s, t, table, unit, pair, first);
	if (!coded && t->spare) {
		arg = t->spare_arg;
		eq_enc_table(table, t->spare);
		coded = eq_enc_run(&s, t, table, unit, pair, first);
	}
	EQ_EACH_LANE
		EQ_AT(differs) = EQ_AT(s.differ) != 0;
	eq_enc_settle(&s, t, coded, arg, pair, EQ_BALLOT(differs) == 0, first & 255, &d);
	EQ_EACH_LANE {
		((uint32_t *)(void *)t->work)[lane] = EQ_AT(s.x);
		if (lane == 0)
			*t->done = d;
	}
}

/* ---- where parts go ------------------------------------------------------------ */

/* Word i of a part that is coded: states, words, escapes, padding. */
EQ_DEV uint32_t eq_enc_word(const struct eq_gpu_enc_task *t, const struct eq_gpu_enc_done *d,
			    uint32_t i)
{
	bool pair = d->kind == EQ_PART_PAIR;
	uint32_t symbols = eq_enc_symbols(t->n_units, pair), n = (d->n_words + 1) / 2, out;
	const uint16_t *words = (const uint16_t *)(const void *)(t->work + 128);

	if (i < 32)
		return ((const uint32_t *)(const void *)t->work)[i];
	i -= 32;
	if (i < n) {
		words += symbols - d->n_words + 2 * i;
		out = words[0];
		return 2 * i + 1 < d->n_words ? out | (uint32_t)words[1] << 16 : out;
	}
	i -= n;
	if (i >= d->n_escapes)
		return 0;
	i += eq_enc_escapes_max(t->n_units) - d->n_escapes;
	return ((const uint32_t *)(const void *)(t->work + 128 + 2 * (size_t)symbols))[i];
}

/* Where the parts of a batch go: the last one first. By one warp. */
EQ_DEV void eq_warp_offsets(struct eq_gpu_enc_done *done, uint32_t n)
{
	int64_t end = 0;

	for (uint32_t i = eq_enc_round(n, 32); i; i -= 32) {
		EQ_PER_LANE(int64_t, size);
		EQ_PER_LANE(int64_t, above);

		EQ_EACH_LANE {
			uint32_t k = i - 32 + lane;

			EQ_AT(size) = k < n ? eq_enc_round(done[k].n_bytes, EQ_PART_ALIGN) : 0;
			EQ_AT(above) = EQ_AT(size);
		}
		EQ_SUM_ABOVE(above);
		EQ_EACH_LANE
			if (i - 32 + lane < n)
				done[i - 32 + lane].at = (uint32_t)(end + EQ_AT(above));
		end += EQ_WARP_SUM64(size);
	}
}

/* Put the part in its place: 16 bytes a lane at a time, of every n_warps-th 512. */
EQ_DEV void eq_warp_place(const struct eq_gpu_enc_task *t, const unsigned unit, uint32_t warp,
			  uint32_t n_warps)
{
	const struct eq_gpu_enc_done d = *t->done;
	unsigned char *out = t->made + d.at;
	uint32_t cells = (d.n_bytes + 15) / 16;

	for (uint32_t c = warp * 32; c < cells; c += n_warps * 32) {
		EQ_EACH_LANE {
			uint32_t cell = c + lane, w[8], four[4];

			if (cell >= cells)
				continue;
			EQ_UNROLL
			for (unsigned i = 0; i < 4; i++) {
				uint32_t at = 16 * cell + 4 * i;

				if (d.kind != EQ_PART_RAW) {
					four[i] = eq_enc_word(t, &d, 4 * cell + i);
					continue;
				}
				eq_enc_load(t->units, at, t->n_units, unit, w);
				four[i] = eq_enc_fill(eq_enc_plane(w, unit, t->rotate, t->plane), at,
						      t->n_units, 0);
			}
			eq_store(out + 16 * (size_t)cell, four, 4);
		}
	}
}

#endif
