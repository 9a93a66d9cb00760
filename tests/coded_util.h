/* SPDX-License-Identifier: Apache-2.0 */
/* An encoded tensor for unit_coding: its chunks with slack behind, and decoding
 * them with every instruction set. Include cmocka first. */
#ifndef EQ_CODED_UTIL_H
#define EQ_CODED_UTIL_H

#include "codec_util.h"
#include "coding.h"
#include "eqcodec.h"
#include "floats.h"
#include "kernels_util.h"

/* A tensor coded chunk by chunk, ready to be decoded. */
struct coded {
	struct eq_coding c;
	struct eq_plan plan;
	uint8_t params[EQ_PARAMS_MAX];
	size_t param_len;
	unsigned n;
	struct eq_decode_job job[64];
	uint8_t *in[64];
	uint8_t *out;
	size_t stored, out_len;
	unsigned pairs_escaping;        /* parts of pairs that have escapes */
};

static inline void coded_plan(struct coded *t, int dtype)
{
	t->param_len = eq_params_write(&t->c, t->params);
	assert_in_range(t->param_len, 8, EQ_PARAMS_MAX);
	assert_int_equal(t->param_len % 8, 0);
	memset(&t->plan, 0, sizeof(t->plan));
	t->plan.codec = t->c.codec;
	t->plan.unit = t->c.unit;
	t->plan.transform = t->c.transform;
	t->plan.scale_dtype = t->c.scale_dtype;
	t->plan.dtype = (uint8_t)dtype;
	t->plan.chunk_units = t->c.chunk_units;
	t->plan.n_units = t->c.n_units;
	t->plan.row_units = t->c.row_units;
	assert_int_equal(eq_plan_init(&t->plan, t->params, t->param_len), 0);
	t->out_len = t->c.n_units * t->c.unit;
	t->out = must_alloc(t->out_len + 64);
	memset(t->out, 0xee, t->out_len + 64);
}

/* Add a chunk of len bytes; takes a copy with slack behind. */
static inline void coded_add(struct coded *t, const uint8_t *chunk, size_t len,
		      uint64_t first, uint32_t n)
{
	struct eq_decode_job *j = &t->job[t->n];
	uint8_t *copy = must_alloc(len + EQ_SLACK);

	assert_in_range(t->n, 0, 63);
	assert_int_equal(len % 16, 0);
	memcpy(copy, chunk, len);
	memset(copy + len, 0x5a, EQ_SLACK);
	for (unsigned i = 0; i < t->c.n_parts; i++) {
		struct eq_disk_part head;

		memcpy(&head, chunk + i * sizeof(head), sizeof(head));
		if (head.kind == EQ_PART_PAIR && head.n_entries)
			t->pairs_escaping++;
	}
	t->in[t->n++] = copy;
	j->plan = &t->plan;
	j->in = copy;
	j->in_len = len;
	j->first_unit = first;
	j->n_units = n;
	j->out = t->out + first * t->c.unit;
	j->status = 1;
	t->stored += len;
}

/* With every instruction set: they must agree on statuses, and on the units of
 * chunks that are right. */
static inline void coded_decode(struct coded *t)
{
	const struct eq_backend *be = eq_backend_cpu();
	struct named_kernels tables[KERNELS_MAX];
	unsigned n = all_kernels(tables);
	uint8_t *want = must_alloc(t->out_len);
	int status[64];

	for (unsigned v = 0; v < n; v++) {
		assert_int_equal(be->decode(&tables[v].k, t->job, t->n), 0);
		for (unsigned i = 0; i < t->n; i++) {
			size_t at = t->job[i].first_unit * t->c.unit;
			size_t len = (size_t)t->job[i].n_units * t->c.unit;

			if (!v)
				status[i] = t->job[i].status;
			assert_int_equal(t->job[i].status, status[i]);
			if (v && !status[i])
				assert_memory_equal(t->out + at, want + at, len);
		}
		memcpy(want, t->out, t->out_len);
	}
	free(want);
}

static inline void coded_free(struct coded *t)
{
	for (unsigned i = 0; i < t->n; i++)
		free(t->in[i]);
	eq_plan_fini(&t->plan);
	free(t->out);
	free(t);
}

/* What eqar.5 says of one unit, by the C library's rounding. */
static inline uint32_t reference_unit(int dtype, float value, float scale)
{
	float p = value * scale;
	uint32_t u;

	memcpy(&u, &p, 4);
	if (dtype == EQ_F32)
		return u;
	/* To nearest even by search among the 65536 candidates' neighbours. */
	for (uint32_t h = 0; h < 0x8000; h++) {
		uint32_t next = h + 1, sign = u >> 16 & 0x8000;
		double lo = fabs((double)(dtype == EQ_BF16 ? eq_float_of(h << 16) :
							     eq_float_of(eq_half_widen((uint16_t)h))));
		double hi = fabs((double)(dtype == EQ_BF16 ? eq_float_of(next << 16) :
							     eq_float_of(eq_half_widen((uint16_t)next))));
		double a = fabs((double)p);

		if (a < lo || a >= hi)
			continue;
		if (a - lo < hi - a || (a - lo == hi - a && !(h & 1)))
			return sign | h;
		return sign | next;
	}
	return 0;
}

static inline void set_scale(void *scales, unsigned scale_dtype, size_t row, float s)
{
	uint32_t u;

	memcpy(&u, &s, 4);
	if (scale_dtype == EQ_SCALE_F32) {
		memcpy((uint8_t *)scales + 4 * row, &u, 4);
	} else {
		uint16_t h = (uint16_t)(u >> 16);

		memcpy((uint8_t *)scales + 2 * row, &h, 2);
	}
}

static inline float get_scale(const void *scales, unsigned scale_dtype, size_t row)
{
	return scale_dtype == EQ_SCALE_F32 ? eq_float_at(scales, EQ_F32, row) :
					     eq_float_at(scales, EQ_BF16, row);
}

#endif
