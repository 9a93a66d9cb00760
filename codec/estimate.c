/* SPDX-License-Identifier: Apache-2.0 */
/* What encoding would give, from samples: a few chunks of each tensor to be kept
 * as it is, some rows of each one to be quantised. */
#include "config.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "encode_priv.h"

/* Trailer, FILE and section heads. */
#define FIXED_BYTES 320

struct estimate {
	struct eq_encoder e;
	struct eq_summary sum;
	uint64_t pos;           /* end of the payloads in the archive */
	uint64_t records;
};

/* Each payload begins aligned; behind the last one is no gap. */
static void add_payload(struct estimate *x, uint64_t payload)
{
	if (payload)
		x->pos = eq_align(x->pos, EQ_PAYLOAD_ALIGN) + payload;
}

static void add_tensor(struct estimate *x, const struct eq_st_tensor *t, uint64_t payload)
{
	uint64_t chunks = (t->end - t->begin) / eq_chunk_bytes_of(t) + 1;

	add_payload(x, payload);
	x->records += sizeof(struct eq_disk_tensor) + t->name_len + 8u * t->ndim;
	if (payload)
		x->records += chunks * sizeof(struct eq_disk_chunk);
}

static int lossless_tensor(struct estimate *x, const struct eq_st_tensor *t)
{
	enum eq_codec_id codec;
	struct eq_sample s;
	uint64_t size = 0;
	int rc;

	if (t->begin == t->end) {
		add_tensor(x, t, 0);
		return 0;
	}
	rc = eq_sample_tensor(&x->e, t, NULL, EQ_SAMPLE_FEW, &s);
	if (rc)
		return rc;
	if (s.varies) /* or else it is one unit, which the record holds */
		rc = eq_choose_lossless(&x->e, t, &s, x->e.coding, &codec, &size);
	if (!rc)
		add_tensor(x, t, size);
	eq_sample_fini(&s);
	return rc;
}

static int quant_tensor(struct estimate *x, const struct eq_st_tensor *t,
			const struct eq_rate_tensor *r)
{
	struct eq_encoder *e = &x->e;
	uint64_t n = r->rows * r->sample.k, taken = r->sample.rows * r->sample.k;
	double part = (double)taken / (double)n, bytes, l1;
	struct eq_quant_result q;
	uint16_t *scale;
	bool finite;
	int rc;

	rc = eq_quant_l1(&r->sample, e->run->pool, &l1, &finite);
	if (rc)
		return rc;
	if (!finite || !(l1 > 0))
		return lossless_tensor(x, t);
	scale = malloc(r->sample.rows * sizeof(scale[0]));
	if (!scale)
		return -ENOMEM;
	memset(&q, 0, sizeof(q));
	rc = eq_quant_search(&r->sample, e->policy->format, e->lambda, l1 / part, n, e->run->pool, scale);
	if (!rc)
		rc = eq_quant_apply(&r->sample, e->policy->format, scale, e->run->pool, NULL, NULL, &q);
	free(scale);
	if (!rc) {
		bytes = eq_rate_bytes(r, q.hist, q.n_outliers);
		add_payload(x, (uint64_t)bytes); /* the record counts in there */
		x->sum.n_quantised++;
		x->sum.quant_params += n;
		x->sum.quant_bytes += (uint64_t)bytes;
		e->sum_abs += q.sum_abs / part;
		e->err_abs += q.err_abs / part;
		e->sum_sq += q.sum_sq / part;
		e->err_sq += q.err_sq / part;
	}
	eq_quant_result_fini(&q);
	return rc;
}

static int all_tensors(struct estimate *x, const struct eq_samples *s)
{
	struct eq_encoder *e = &x->e;
	size_t i, j = 0;
	int rc = 0;

	for (i = 0; i < e->st->n_tensors && !rc; i++) {
		const struct eq_st_tensor *t = &e->st->tensors[i];

		if (j < s->n && s->index[j] == i)
			rc = quant_tensor(x, t, &s->rate[j++]);
		else
			rc = lossless_tensor(x, t);
		e->done += t->end - t->begin;
		if (rc)
			return eq_encode_fail(e, rc);
		rc = eq_encode_progress(e);
	}
	return rc;
}

int eq_estimate(int in_fd, const char *in_name, const struct eq_policy *policy,
		const struct eq_run *run, struct eq_summary *out, struct eq_error *err)
{
	struct eq_samples s = { .n = 0 };
	struct eq_error own;
	struct estimate x = { .pos = sizeof(struct eq_disk_header) };
	int rc;

	*out = (struct eq_summary){ .size = 0 };
	rc = eq_encoder_init(&x.e, in_fd, in_name, policy, run, err ? err : &own);
	if (!rc && eq_policy_lossy(policy)) {
		rc = eq_samples_load(&x.e, &s);
		if (!rc)
			rc = eq_encode_lambda(&x.e, &s);
	}
	if (!rc)
		rc = all_tensors(&x, &s);
	if (!rc) {
		*out = x.sum;
		out->size = x.e.st->file_size;
		out->n_tensors = x.e.st->n_tensors;
		/* Headers of real models shrink about eightfold. */
		out->stored = x.pos + x.records + FIXED_BYTES + x.e.st->prefix_len / 8;
		out->lambda = x.sum.n_quantised ? x.e.lambda : 0;
		out->relative_l1 = x.e.sum_abs > 0 ? x.e.err_abs / x.e.sum_abs : 0;
		out->snr_db = x.e.err_sq > 0 ? 10 * log10(x.e.sum_sq / x.e.err_sq) : INFINITY;
	}
	eq_samples_free(&s);
	eq_encoder_fini(&x.e);
	return rc;
}
