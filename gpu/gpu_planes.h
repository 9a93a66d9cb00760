/* SPDX-License-Identifier: Apache-2.0 */
/* A warp decodes a chunk of byte planes; see gpu_warp.h. */
#ifndef EQ_GPU_PLANES_H
#define EQ_GPU_PLANES_H

#include "gpu_warp.h"

/* ---- planes of which one is coded ------------------------------------------- */

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

#endif
