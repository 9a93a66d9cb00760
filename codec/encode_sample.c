/* SPDX-License-Identifier: Apache-2.0 */
/* Rows sampled from the tensors to be quantised: for rate control (one lambda
 * for the whole file), and for estimates. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "encode_priv.h"

/* Units sampled of a file: enough for 0.01 bit, little beside the file. */
#define SAMPLE_UNITS (UINT64_C(4) << 20)

static size_t count_selected(const struct eq_encoder *e)
{
	size_t i, n = 0;

	for (i = 0; i < e->st->n_tensors; i++)
		n += e->st->tensors[i].begin < e->st->tensors[i].end &&
		     eq_policy_selects(e->policy, &e->st->tensors[i]);
	return n;
}

static int read_rows(struct eq_encoder *e, const struct eq_st_tensor *t, uint64_t rows,
		     uint64_t take, size_t row_bytes, uint8_t *out)
{
	uint64_t base = e->st->prefix_len + t->begin, i;
	int rc = 0;

	if (take == rows)
		return eq_input_read(e, out, rows * row_bytes, base);
	for (i = 0; i < take && !rc; i++)
		rc = eq_input_read(e, out + i * row_bytes, row_bytes,
				   base + (uint64_t)((__uint128_t)i * rows / take) * row_bytes);
	return rc;
}

static int fill(struct eq_encoder *e, struct eq_samples *s, const uint64_t *rows, const uint64_t *k,
		const uint64_t *take)
{
	size_t total = 0, i;
	uint8_t *at;
	int rc = 0;

	for (i = 0; i < s->n; i++)
		total += eq_align(take[i] * k[i] * eq_dtype_unit(e->st->tensors[s->index[i]].dtype), 64);
	s->data = at = aligned_alloc(64, total);
	if (!at)
		return -ENOMEM;
	for (i = 0; i < s->n && !rc; i++) {
		const struct eq_st_tensor *t = &e->st->tensors[s->index[i]];
		size_t row_bytes = k[i] * eq_dtype_unit(t->dtype);

		s->rate[i] = (struct eq_rate_tensor){
			.sample = { at, t->dtype, take[i], k[i] }, .rows = rows[i],
			.overhead = sizeof(struct eq_disk_tensor) + 8u * t->ndim + eq_align(t->name_len, 8),
			.chunk_units = EQ_CHUNK_UNITS,
		};
		rc = read_rows(e, t, rows[i], take[i], row_bytes, at);
		at += eq_align(take[i] * row_bytes, 64);
	}
	return rc;
}

int eq_samples_load(struct eq_encoder *e, struct eq_samples *s)
{
	uint64_t *rows = NULL, *k, *take;
	size_t i, j = 0, n = count_selected(e);
	int rc = -ENOMEM;

	*s = (struct eq_samples){ .n = n };
	if (!n)
		return 0;
	s->index = calloc(n, sizeof(s->index[0]));
	s->rate = calloc(n, sizeof(s->rate[0]));
	rows = calloc(3 * n, sizeof(rows[0]));
	if (!s->index || !s->rate || !rows)
		goto out;
	k = rows + n;
	take = k + n;
	for (i = 0; i < e->st->n_tensors; i++) {
		const struct eq_st_tensor *t = &e->st->tensors[i];

		if (t->begin == t->end || !eq_policy_selects(e->policy, t))
			continue;
		s->index[j] = i;
		eq_matrix_of(t, &rows[j], &k[j]);
		j++;
	}
	eq_rate_sample_rows(n, rows, k, SAMPLE_UNITS, take);
	rc = fill(e, s, rows, k, take);
out:
	free(rows);
	if (rc)
		eq_samples_free(s);
	return rc ? eq_encode_fail(e, rc) : 0;
}

void eq_samples_free(struct eq_samples *s)
{
	free(s->index);
	free(s->rate);
	free(s->data);
	*s = (struct eq_samples){ .n = 0 };
}

int eq_encode_lambda(struct eq_encoder *e, const struct eq_samples *s)
{
	struct eq_rate_result r;
	int rc;

	e->lambda = e->policy->lambda;
	if (!s->n || !(e->policy->bits > 0))
		return 0;
	rc = eq_rate_find(s->rate, s->n, e->policy->format, e->policy->bits, e->run->pool, &r);
	if (rc == -EINVAL) { /* nothing finite: nothing will be quantised */
		e->lambda = 1;
		return 0;
	}
	if (rc)
		return eq_encode_fail(e, rc);
	if (r.status == EQ_RATE_ABOVE)
		return eq_fail(e->err, -ERANGE, "%s: %g bits cannot be reached: the coarsest coding needs %.3f",
			       e->name, e->policy->bits, r.bits);
	e->lambda = r.lambda;
	return 0;
}
