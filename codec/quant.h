/* SPDX-License-Identifier: Apache-2.0 */
/*
 * EntQuant quantisation (arXiv 2601.22787) to float8 E4M3 and int8, internal to
 * codec/. For each row of a matrix w, with L = sum |w| and N units in the whole
 * tensor, a scale s is sought that minimises
 *
 *     sum |w - s q| / L  +  lambda / N * sum rate(q),    q = cast(w * (1 / s))
 *
 * with rate(q) = 4 |q| (fp8) or |q| / 128 (int8). The tensor's objective is the
 * sum over its rows, so rows are searched one by one and in any order.
 *
 * cast rounds the float32 product to the nearest level, ties to even; -0 becomes
 * +0. Levels beyond the format are not clipped: such units are outliers that
 * keep their own bits (int8 only: fp8 scales are at least absmax / 448). So are
 * units whose reconstruction would not be finite.
 *
 * All results are the same for any instruction set and number of threads.
 */
#ifndef EQ_QUANT_H
#define EQ_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "eqcodec.h"
#include "quant_level.h"

/* A matrix of rows * k units of BF16, F16 or F32, row after row; k < 2^31. */
struct eq_quant_tensor {
	const void *w;
	int dtype;
	uint64_t rows, k;
};

struct eq_quant_result {
	uint64_t hist[256];
	struct eq_quant_outlier *outlier; /* ascending; malloc'ed, may be NULL */
	size_t n_outliers;
	double sum_abs, err_abs;        /* sum |w|, sum |w - w'| */
	double sum_sq, err_sq;          /* sum w^2, sum (w - w')^2 */
};

/*
 * Reconstruction table of a format: the E4M3 value, or the symbol in two's
 * complement. NaN for symbols that no encoder writes (fp8: 7f, 80, ff; int8: 80).
 */
void eq_quant_values(enum eq_qformat format, float value[256]);

/* *sum_abs = sum |w|; *finite = false if any unit is NaN or infinite (and then
 * the sum means nothing). Errors: -ENOMEM. */
int eq_quant_l1(const struct eq_quant_tensor *t, struct eq_pool *pool,
		double *sum_abs, bool *finite);

/* The price of a step of rate, by which a row weighs its own against its error. */
double eq_quant_price(double lambda, double l1_total, uint64_t n_total);

/*
 * Find the scale of each row (bfloat16 bits; 0 where the whole row is best
 * coded as zeros). All units must be finite. l1_total is the sum |w| of the
 * tensor that the rate is weighed against, n_total its number of units: those
 * of t itself, or of the tensor that t is a sample of.
 * Errors: -ENOMEM, EQ_ELIMIT (k).
 */
int eq_quant_search(const struct eq_quant_tensor *t, enum eq_qformat format,
		    double lambda, double l1_total, uint64_t n_total,
		    struct eq_pool *pool, uint16_t *scale);

/*
 * Quantise with given scales. sym takes rows * k symbols, recon rows * k units
 * of the dtype as a decoder will produce them; recon may be t->w, and either may
 * be NULL. *r is filled; release it with eq_quant_result_fini (also after a
 * failure). Errors: -ENOMEM.
 */
int eq_quant_apply(const struct eq_quant_tensor *t, enum eq_qformat format,
		   const uint16_t *scale, struct eq_pool *pool, uint8_t *sym,
		   void *recon, struct eq_quant_result *r);
void eq_quant_result_fini(struct eq_quant_result *r);

/* ---- rate control -------------------------------------------------------- */

struct eq_rate_tensor {
	struct eq_quant_tensor sample;  /* some of its rows, evenly spaced */
	uint64_t rows;                  /* of the whole tensor */
	uint64_t overhead;              /* bytes of the record without parameters
	                                   and chunk entries: 128 + dims + name */
	uint32_t chunk_units;
};

enum eq_rate_status {
	EQ_RATE_MET,            /* within the resolution of the search */
	EQ_RATE_BELOW,          /* even the finest coding needs fewer bits */
	EQ_RATE_ABOVE,          /* even the coarsest coding needs more bits */
};

struct eq_rate_result {
	double lambda;          /* the closest that can be had */
	double bits;            /* bits per parameter expected with it */
	enum eq_rate_status status;
};

/*
 * How many evenly spaced rows to sample of each of n tensors, so that about
 * `budget` units are sampled in all (every row if there are no more). Each
 * tensor gives at least one row.
 */
void eq_rate_sample_rows(size_t n, const uint64_t *rows, const uint64_t *k,
			 uint64_t budget, uint64_t *sample);

/*
 * Bytes that a quantised tensor will take, payload without its alignment and
 * record, from the histogram and outliers of a sample of n units of it.
 */
double eq_rate_bytes(const struct eq_rate_tensor *t, const uint64_t hist[256],
		     uint64_t n_outliers);

/*
 * Find the lambda that codes all tensors together at `bits` per parameter, of
 * what is stored: symbols, scales, tables, headers. Tensors whose
 * sample is not finite are left out. Errors: -ENOMEM, EQ_ELIMIT, -EINVAL (no
 * tensor to go by).
 */
int eq_rate_find(const struct eq_rate_tensor *t, size_t n,
		 enum eq_qformat format, double bits, struct eq_pool *pool,
		 struct eq_rate_result *out);

/* ---- shared by the parts of the quantiser -------------------------------- */

void eq_quant_format_init(struct eq_quant_format *f, enum eq_qformat format);

/* Rows are dealt out in blocks, whose size depends on k alone. */
static inline uint64_t eq_quant_block_rows(uint64_t k)
{
	return k >= 1 << 19 ? 1 : (1 << 19) / k;
}

#endif
