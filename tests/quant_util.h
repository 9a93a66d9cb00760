/* SPDX-License-Identifier: Apache-2.0 */
/* What the quantiser's unit tests share: matrices of weights. Include cmocka.h
 * first. */
#ifndef EQ_QUANT_UTIL_H
#define EQ_QUANT_UTIL_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "floats.h"
#include "quant_ops.h"

static const int dtypes[] = { EQ_BF16, EQ_F16, EQ_F32 };
static const enum eq_qformat formats[] = { EQ_Q_FP8, EQ_Q_INT8 };

static uint64_t uniform_state;       /* of uniform() */

static inline double uniform(void)
{
	uniform_state ^= uniform_state << 13;
	uniform_state ^= uniform_state >> 7;
	uniform_state ^= uniform_state << 17;
	return ((double)(uniform_state >> 11) + 0.5) * 0x1p-53;
}

static inline double gauss(void)
{
	return sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
}

enum kind { GAUSS, LAPLACE, SPARSE, OUTLIERS, WIDE, KINDS };
static inline double weight(enum kind kind)
{
	double u = uniform();

	switch (kind) {
	case LAPLACE:
		return u < 0.5 ? log(2 * u) : -log(2 - 2 * u);
	case SPARSE:
		return u < 0.1 ? gauss() : 0;
	case OUTLIERS:
		return gauss() * (u < 0.0005 ? 50 : 1);
	case WIDE:
		return gauss() * exp(2 * gauss());
	default:
		return gauss();
	}
}

struct matrix {
	struct eq_quant_tensor t;
	void *w;
	float *x;               /* the same as float32 */
	uint16_t *scale;
};

static inline void matrix_set(struct matrix *m, uint64_t i, float x)
{
	uint16_t h;

	if (m->t.dtype == EQ_F32) {
		memcpy((uint8_t *)m->w + 4 * i, &x, 4);
	} else {
		h = m->t.dtype == EQ_F16 ? eq_half_narrow(x) : eq_bf16_narrow(x);
		memcpy((uint8_t *)m->w + 2 * i, &h, 2);
	}
	m->x[i] = eq_float_at(m->w, m->t.dtype, i);
}

static inline void matrix_make(struct matrix *m, int dtype, uint64_t rows, uint64_t k,
			enum kind kind, double scale)
{
	m->w = malloc(rows * k * 4);
	m->x = malloc(rows * k * sizeof(*m->x));
	m->scale = malloc(rows * sizeof(*m->scale));
	assert_non_null(m->w);
	assert_non_null(m->x);
	assert_non_null(m->scale);
	m->t = (struct eq_quant_tensor){ m->w, dtype, rows, k };
	uniform_state = 88172645463325252u + kind;
	for (uint64_t i = 0; i < rows * k; i++)
		matrix_set(m, i, (float)(scale * weight(kind)));
}

static inline void matrix_free(struct matrix *m)
{
	free(m->w);
	free(m->x);
	free(m->scale);
}

static inline double matrix_norm(const struct matrix *m)
{
	double sum;
	bool finite;

	assert_int_equal(eq_quant_l1(&m->t, NULL, &sum, &finite), 0);
	assert_true(finite);
	return sum;
}

static inline float scale_of(uint16_t bits)
{
	return eq_float_of((uint32_t)bits << 16);
}

#endif
