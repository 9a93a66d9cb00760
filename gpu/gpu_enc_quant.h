/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Norms and quantisation (codec/quant.c) by half warps, each of which has a row:
 * its 16 lanes are the 16 in which the CPU keeps its sums, so that every addition
 * of doubles is the same one, in the same order.
 */
#ifndef EQ_GPU_ENC_QUANT_H
#define EQ_GPU_ENC_QUANT_H

#include "gpu_enc_task.h"

/* Rows of a tensor on the device, and where results go. */
struct eq_gpu_rows {
	unsigned char *units;           /* quantising puts the reconstruction there */
	const struct eq_quant_format *format;
	uint64_t rows, k;
	double *sum;                    /* of magnitudes, a row */
	uint32_t *top;                  /* bits of the greatest magnitude, a row */
	uint16_t *scale;
	unsigned char *symbols;
	struct eq_encode_sums *sums;
	struct eq_quant_outlier *outlier;      /* room for max_outliers */
	uint32_t *n_outliers;
	uint32_t max_outliers;
	double nu;
};

/* Unit i of a row, as float32. */
EQ_DEV float eq_unit_at(const unsigned char *row, uint64_t i, const int dtype)
{
	uint16_t h;

	if (dtype == EQ_F32)
		return ((const float *)(const void *)row)[i];
	h = ((const uint16_t *)(const void *)row)[i];
	return eq_float_of(dtype == EQ_BF16 ? (uint32_t)h << 16 : eq_half_widen(h));
}

EQ_DEV uint32_t eq_unit_bits(const unsigned char *row, uint64_t i, const int dtype)
{
	if (dtype == EQ_F32)
		return ((const uint32_t *)(const void *)row)[i];
	return ((const uint16_t *)(const void *)row)[i];
}

EQ_DEV const unsigned char *eq_row_of(const struct eq_gpu_rows *r, uint64_t row, const int dtype)
{
	return r->units + row * r->k * (dtype == EQ_F32 ? 4 : 2);
}

/* The row of a lane: the warp has two. */
#define EQ_HALF_ROW(warp) (2 * (uint64_t)(warp) + lane / 16)

/* Sum and greatest of the magnitudes of two rows. */
EQ_DEV void eq_warp_norm(const struct eq_gpu_rows *r, uint64_t warp, const int dtype)
{
	EQ_PER_LANE(double, sum);
	EQ_PER_LANE(uint32_t, top);

	EQ_EACH_LANE {
		uint64_t row = EQ_HALF_ROW(warp);
		const unsigned char *w = eq_row_of(r, row, dtype);
		uint32_t most = 0, bits;
		double s = 0;

		for (uint64_t i = lane & 15; row < r->rows && i < r->k; i += 16) {
			bits = eq_float_bits(eq_unit_at(w, i, dtype)) & 0x7fffffff;
			most = bits > most ? bits : most;
			s += (double)eq_float_of(bits);
		}
		EQ_AT(sum) = s;
		EQ_AT(top) = most;
	}
	EQ_HALF_SUM(sum);
	EQ_HALF_MAX(top);
	EQ_EACH_LANE {
		uint64_t row = EQ_HALF_ROW(warp);

		if ((lane & 15) == 0 && row < r->rows) {
			r->sum[row] = EQ_AT(sum);
			r->top[row] = EQ_AT(top);
		}
	}
}

/* ---- levels ------------------------------------------------------------------ */

EQ_DEV uint32_t eq_level_of(float t, const bool fp8)
{
	return fp8 ? eq_level_fp8(t) : eq_level_int8(t);
}

/* The level of a magnitude, up to the greatest; is it beyond that? */
EQ_DEV uint32_t eq_level_cap(float magnitude, float inv, const bool fp8, bool *beyond)
{
	uint32_t q = eq_level_of(magnitude * inv, fp8), most = fp8 ? 126 : 127;

	*beyond = q > most;
	return *beyond ? most : q;
}

EQ_DEV float eq_level_value(uint32_t q, const bool fp8)
{
	if (!fp8)
		return (float)q;
	return q < 8 ? (float)q * 0x1p-9f : eq_float_of((q + 960) << 20);
}

/* ---- quantising --------------------------------------------------------------- */

/* v rounded to the dtype; its bits in that to *bits. */
EQ_DEV float eq_round_to(float v, uint32_t *bits, const int dtype)
{
	if (dtype == EQ_F32) {
		*bits = eq_float_bits(v);
		return v;
	}
	if (dtype == EQ_BF16) {
		*bits = eq_bf16_narrow(v);
		return eq_float_of(*bits << 16);
	}
	*bits = eq_half_narrow(v);
	return eq_float_of(eq_half_widen((uint16_t)*bits));
}

/* Note a unit that its symbol does not stand for. */
EQ_DEV void eq_outlier_add(const struct eq_gpu_rows *r, uint64_t unit, uint32_t bits)
{
	uint32_t i = EQ_TAKE(r->n_outliers);

	if (i < r->max_outliers) {
		r->outlier[i].unit = unit;
		r->outlier[i].bits = bits;
	}
}

/* A unit to its symbol and, in its place, what that stands for; returns the latter. */
EQ_DEV float eq_quantise_unit(const struct eq_gpu_rows *r, uint64_t unit, float x, float inv,
			      float scale, const int dtype, const bool fp8)
{
	uint32_t u = eq_float_bits(x), sign = u & 0x80000000, bits, old;
	bool beyond;
	uint32_t q = eq_level_cap(eq_float_of(u & 0x7fffffff), inv, fp8, &beyond);
	float v = eq_level_value(q, fp8) * scale, y;

	if (!q)
		sign = 0;
	r->symbols[unit] = (unsigned char)(fp8 ? q | sign >> 24 : sign ? 0 - q : q);
	y = eq_round_to(eq_float_of(eq_float_bits(v) | sign), &bits, dtype);
	if (beyond || (eq_float_bits(y) & 0x7f800000) == 0x7f800000) {
		old = eq_unit_bits(r->units, unit, dtype);
		eq_outlier_add(r, unit, old);
		return x;
	}
	if (dtype == EQ_F32)
		((uint32_t *)(void *)r->units)[unit] = bits;
	else
		((uint16_t *)(void *)r->units)[unit] = (uint16_t)bits;
	return y;
}

/* Two rows. */
EQ_DEV void eq_warp_quantise(const struct eq_gpu_rows *r, uint64_t warp, const int dtype,
			     const bool fp8)
{
	EQ_PER_LANE(double, mag);
	EQ_PER_LANE(double, err_abs);
	EQ_PER_LANE(double, sq);
	EQ_PER_LANE(double, err_sq);

	EQ_EACH_LANE {
		uint64_t row = EQ_HALF_ROW(warp);
		float scale = row < r->rows ? eq_float_of((uint32_t)r->scale[row] << 16) : 0;
		float inv = scale > 0 ? 1.0f / scale : 0;
		double a = 0, ea = 0, s = 0, es = 0;

		for (uint64_t i = lane & 15; row < r->rows && i < r->k; i += 16) {
			uint64_t unit = row * r->k + i;
			float x = eq_unit_at(r->units, unit, dtype);
			float y = eq_quantise_unit(r, unit, x, inv, scale, dtype, fp8);
			double e = (double)x - (double)y, w = (double)x;

			a += w < 0 ? -w : w;
			ea += e < 0 ? -e : e;
			s += w * w;
			es += e * e;
		}
		EQ_AT(mag) = a;
		EQ_AT(err_abs) = ea;
		EQ_AT(sq) = s;
		EQ_AT(err_sq) = es;
	}
	EQ_HALF_SUM(mag);
	EQ_HALF_SUM(err_abs);
	EQ_HALF_SUM(sq);
	EQ_HALF_SUM(err_sq);
	EQ_EACH_LANE {
		uint64_t row = EQ_HALF_ROW(warp);

		if ((lane & 15) == 0 && row < r->rows) {
			r->sums[row].abs = EQ_AT(mag);
			r->sums[row].err_abs = EQ_AT(err_abs);
			r->sums[row].sq = EQ_AT(sq);
			r->sums[row].err_sq = EQ_AT(err_sq);
		}
	}
}

#endif
