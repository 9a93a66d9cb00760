/* SPDX-License-Identifier: Apache-2.0 */
/* A warp decodes a chunk of quantised weights; see gpu_warp.h. */
#ifndef EQ_GPU_QUANT_H
#define EQ_GPU_QUANT_H

#include "gpu_warp.h"

/* ---- quantised --------------------------------------------------------------- */

EQ_DEV float eq_row_scale(const struct eq_gpu_task *t, uint32_t row)
{
	const unsigned char *p = t->in + t->part[0].off;

	if (t->scale_f32)
		return eq_float_of(((const uint32_t *)(const void *)p)[row]);
	return eq_float_of((uint32_t)((const uint16_t *)(const void *)p)[row] << 16);
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

				low[i] = eq_float_of(pair ? bits << 16 : bits);
				high[i] = eq_float_of(bits & 0xffff0000);
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
