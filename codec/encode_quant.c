/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantising a tensor (EntQuant, arXiv 2601.22787): the whole tensor is in
 * memory, because the error is weighed against its L1 norm and one table serves
 * all its chunks.
 */
#include "config.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "encode_device.h"
#include "encode_priv.h"
#include "xxh3.h"

/* From this share of the plain size on, lossless coding may be the smaller. */
#define SUSPICIOUS 0.6

struct quant {
	struct eq_encoder *e;
	const struct eq_st_tensor *t;
	struct eq_quant_tensor m;
	uint8_t *data;          /* the tensor; later its reconstruction */
	uint8_t *sym;
	uint16_t *scale;
	struct eq_quant_result r;
	uint64_t n_bytes, chunk_bytes;
	uint32_t n_chunks, group;
	unsigned unit;
	XXH3_state_t *xxh;
	struct eq_disk_outlier *outlier;        /* positions in their chunks */
	atomic_int read_status;
	double l1;
	bool finite;
	int status[2];          /* of the two tasks that prepare quantising */
	struct eq_quantiser *device;    /* has the tensor, and its symbols; or NULL */
	struct eq_encode_plan plan;     /* for it */
};

/* A chunk's place in the tensor, and what goes with its symbols. */
struct place {
	uint64_t first;
	uint32_t n;
	const uint16_t *scales;
	size_t scale_bytes;
	const struct eq_disk_outlier *outlier;
	size_t n_outliers;
};

void eq_matrix_of(const struct eq_st_tensor *t, uint64_t *rows, uint64_t *k)
{
	*k = t->dims[t->ndim - 1];
	*rows = (t->end - t->begin) / eq_dtype_unit(t->dtype) / *k;
}

static uint64_t group_len(const struct quant *q, uint32_t g, uint64_t *at)
{
	uint64_t full = q->group * q->chunk_bytes;

	*at = g * full;
	if (*at >= q->n_bytes)
		return 0;
	return q->n_bytes - *at < full ? q->n_bytes - *at : full;
}

static void read_group(void *arg, size_t g)
{
	struct quant *q = arg;
	uint64_t at, len = group_len(q, (uint32_t)g, &at);
	int rc = eq_input_read(q->e, q->data + at, len, q->e->st->prefix_len + q->t->begin + at);

	if (rc)
		atomic_store_explicit(&q->read_status, rc, memory_order_relaxed);
}

static int hash_content(void *arg, uint32_t g)
{
	struct quant *q = arg;
	uint64_t at, len = group_len(q, g, &at);

	XXH3_64bits_update(q->xxh, q->data + at, len);
	return 0;
}

static int read_whole(struct quant *q)
{
	int rc = eq_buffer_reserve(&q->e->keep, &q->e->keep_size, q->n_bytes, true);

	q->data = q->e->keep;
	q->m.w = q->data;
	if (rc)
		return rc;
	eq_pool_for(q->e->run->pool, (q->n_chunks - 1) / q->group + 1, read_group, q);
	rc = atomic_load(&q->read_status);
	return rc ? rc : eq_encode_progress(q->e);
}

/* The first outlier at or beyond a unit. */
static size_t outlier_at(const struct quant *q, uint64_t unit)
{
	size_t lo = 0, hi = q->r.n_outliers, mid;

	while (lo < hi) {
		mid = lo + (hi - lo) / 2;
		if (q->r.outlier[mid].unit < unit)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static struct place place_of(const struct quant *q, uint32_t chunk)
{
	uint64_t first = (uint64_t)chunk * EQ_CHUNK_UNITS, n = q->m.rows * q->m.k - first;
	uint64_t row = first / q->m.k;
	size_t o = outlier_at(q, first);

	if (n > EQ_CHUNK_UNITS)
		n = EQ_CHUNK_UNITS;
	return (struct place){
		.first = first, .n = (uint32_t)n, .scales = q->scale + row,
		.scale_bytes = ((first + n - 1) / q->m.k - row + 1) * sizeof(q->scale[0]),
		.outlier = q->outlier + o, .n_outliers = outlier_at(q, first + n) - o,
	};
}

static size_t encode_chunk(void *arg, uint32_t chunk, uint8_t *out, uint8_t *scratch)
{
	struct quant *q = arg;
	struct place p = place_of(q, chunk);

	return eq_chunk_encode_quant(q->e->coding, q->sym + p.first, p.n, p.scales, p.scale_bytes,
				     p.outlier, p.n_outliers, out, scratch);
}

/* Make the symbols that only the lost device had. The data is needed as it is, for
 * its hash, so the units are read once more. */
static int make_symbols(struct quant *q)
{
	struct eq_quant_result r = { .outlier = NULL };
	struct eq_quant_tensor t = q->m;
	uint8_t *units = malloc(q->n_bytes);
	int rc = -ENOMEM;

	q->sym = malloc(t.rows * t.k);
	t.w = units;
	if (units && q->sym)
		rc = eq_input_read(q->e, units, q->n_bytes, q->e->st->prefix_len + q->t->begin);
	if (!rc)
		rc = eq_quant_apply(&t, q->e->policy->format, q->scale, q->e->run->pool, q->sym, NULL,
				    &r);
	eq_quant_result_fini(&r);
	free(units);
	return rc;
}

static int encode_group(void *arg, uint32_t first, uint32_t n, uint8_t *out, size_t slot,
			struct eq_built *built)
{
	struct eq_encode_job *job = malloc(n * sizeof(*job));
	struct quant *q = arg;
	bool done;
	uint32_t i;
	int rc;

	if (!job)
		return -ENOMEM;
	for (i = 0; i < n; i++) {
		struct place p = place_of(q, first + i);

		job[i] = (struct eq_encode_job){
			.plan = &q->plan, .n_units = p.n, .first_unit = p.first,
			.scales = p.scales, .scale_bytes = p.scale_bytes,
			.outlier = p.outlier, .n_outliers = p.n_outliers, .out = out + i * slot,
		};
		eq_device_parts(q->e->coding, first + i, job[i].part);
	}
	done = eq_device_symbols(q->e, &q->device, job, n);
	for (i = 0; i < n && done; i++)
		built[i].len = (uint32_t)job[i].len;
	free(job);
	if (done)
		return 0;
	rc = q->sym ? 0 : make_symbols(q);
	return rc ? rc : EQ_ONE_BY_ONE;
}

/* The format wants positions in the chunk. */
static int place_outliers(struct quant *q, size_t *most)
{
	size_t i, run = 0;
	uint64_t last = UINT64_MAX;

	q->outlier = malloc((q->r.n_outliers + 1) * sizeof(q->outlier[0]));
	*most = 0;
	for (i = 0; q->outlier && i < q->r.n_outliers; i++) {
		uint64_t u = q->r.outlier[i].unit;

		run = u / EQ_CHUNK_UNITS == last ? run + 1 : 1;
		last = u / EQ_CHUNK_UNITS;
		if (run > *most)
			*most = run;
		q->outlier[i] = (struct eq_disk_outlier){ (uint32_t)(u % EQ_CHUNK_UNITS),
							  q->r.outlier[i].bits };
	}
	return q->outlier ? 0 : -ENOMEM;
}

static void fill_record(struct quant *q, struct eq_disk_tensor *r, uint8_t *params)
{
	const struct eq_quant_result *s = &q->r;

	memcpy(r->codec, eq_codec_name(EQ_CODEC_QUANT), 8);
	r->chunk_units = EQ_CHUNK_UNITS;
	r->row_units = q->m.k;
	r->qformat = (uint8_t)q->e->policy->format;
	r->scale_dtype = EQ_SCALE_BF16;
	r->flags = EQ_TENSOR_LOSSY;
	r->relative_l1 = s->sum_abs > 0 ? s->err_abs / s->sum_abs : 0;
	r->snr_db = s->err_sq > 0 ? 10 * log10(s->sum_sq / s->err_sq) : INFINITY;
	r->content_xxh3 = XXH3_64bits_digest(q->xxh);
	r->param_len = (uint32_t)eq_params_write(q->e->coding, params);
}

static void add_totals(struct quant *q)
{
	struct eq_encoder *e = q->e;

	e->n_quantised++;
	e->quant_params += q->m.rows * q->m.k;
	e->quant_bytes += eq_build_tensor_cost(e->build);
	e->sum_abs += q->r.sum_abs;
	e->err_abs += q->r.err_abs;
	e->sum_sq += q->r.sum_sq;
	e->err_sq += q->r.err_sq;
}

static int write_quant(struct quant *q)
{
	struct eq_emit m = { .encode = encode_chunk, .serial = { hash_content }, .n_serial = 1,
			     .arg = q, .t = q->t };
	uint8_t params[EQ_PARAMS_MAX];
	size_t most;
	int rc;

	rc = place_outliers(q, &most);
	if (rc)
		return rc;
	eq_build_tensor(q->e->build, q->t);
	m.bound = eq_chunk_bound(q->e->coding, most);
	m.scratch = eq_chunk_scratch(q->e->coding);
	if (q->device) {
		rc = eq_device_plan(q->e->coding, &q->plan);
		if (rc)
			return rc;
		m.encode_group = encode_group;
	}
	XXH3_64bits_reset(q->xxh);
	rc = eq_emit_run(q->e, &m);
	if (rc)
		return rc;
	fill_record(q, eq_build_record(q->e->build), params);
	rc = eq_build_tensor_end(q->e->build, params);
	if (!rc)
		add_totals(q);
	return rc;
}

/* Would the tensor, whose plain data is there, be smaller as it is? */
static int lossless_is_smaller(struct quant *q, uint64_t size, bool *smaller)
{
	struct eq_coding *plain = malloc(sizeof(*plain));
	enum eq_codec_id codec;
	struct eq_sample s;
	uint64_t lossless;
	int rc = -ENOMEM;

	if (plain)
		rc = eq_sample_tensor(q->e, q->t, q->data, EQ_SAMPLE_FEW, &s);
	if (!rc) {
		rc = eq_choose_lossless(q->e, q->t, &s, plain, &codec, &lossless);
		*smaller = !rc && lossless <= size;
		eq_sample_fini(&s);
	}
	free(plain);
	return rc;
}

/* By the device, if it has the tensor; else by the CPU. */
static int norm(struct quant *q)
{
	eq_device_open(q->e, &q->m, &q->device);
	if (eq_device_l1(q->e, &q->device, &q->m, &q->l1, &q->finite))
		return 0;
	return eq_quant_l1(&q->m, q->e->run->pool, &q->l1, &q->finite);
}

static int search(struct quant *q)
{
	uint64_t n = q->m.rows * q->m.k;

	q->scale = malloc(q->m.rows * sizeof(q->scale[0]));
	if (!q->scale)
		return -ENOMEM;
	/* the order of a device's search differs, and does not count */
	if (eq_device_search(q->e, &q->device, eq_quant_price(q->e->lambda, q->l1, n), q->scale))
		return 0;
	return eq_quant_search(&q->m, q->e->policy->format, q->e->lambda, q->l1, n, q->e->run->pool,
			       q->scale);
}

/* Hash the tensor and find its scales side by side: the one is as fast as a core,
 * the other has the rest. Neither changes the data. */
static void prepare(void *arg, size_t i)
{
	struct quant *q = arg;

	if (i == 0) {
		SHA256_Update(&q->e->sha, q->data, q->n_bytes);
		return;
	}
	q->status[i] = norm(q);
	if (!q->status[i] && q->finite && q->l1 > 0)
		q->status[i] = search(q);
}

static int read_again(struct quant *q)
{
	return eq_input_read(q->e, q->data, q->n_bytes, q->e->st->prefix_len + q->t->begin);
}

/* Symbols, and the reconstruction in place of the data. */
static int quantise(struct quant *q)
{
	int rc = 0;

	eq_quant_result_fini(&q->r);
	if (q->device) {
		if (eq_device_apply(q->e, &q->device, &q->m, q->scale, q->data, &q->r))
			return 0;
		rc = read_again(q); /* it may have written some of it */
	}
	q->sym = malloc(q->m.rows * q->m.k);
	if (!rc && !q->sym)
		rc = -ENOMEM;
	if (rc)
		return rc;
	return eq_quant_apply(&q->m, q->e->policy->format, q->scale, q->e->run->pool, q->sym, q->data,
			      &q->r);
}

static int quant_run(struct quant *q)
{
	struct eq_encoder *e = q->e;
	uint64_t n = q->m.rows * q->m.k;
	float value[256];
	bool lost;
	int rc;

	rc = read_whole(q);
	if (rc)
		return rc;
	eq_input_ahead(e, e->st->prefix_len + q->t->end);
	eq_pool_for(e->run->pool, 2, prepare, q);
	rc = q->status[0] ? q->status[0] : q->status[1];
	if (rc)
		return rc;
	if (!q->finite || !(q->l1 > 0))
		return eq_encode_lossless(e, q->t, q->data, q->finite ? 0 : EQ_TENSOR_NONFINITE);
	rc = quantise(q);
	if (rc)
		return rc;
	eq_quant_values(e->policy->format, value);
	eq_coding_quant(e->coding, q->unit, EQ_SCALE_BF16, n, q->m.k, EQ_CHUNK_UNITS, q->r.hist, value,
			q->r.n_outliers);
	/* Nothing left of it (float32 subnormals): that is no quantisation. */
	lost = q->r.err_abs >= q->r.sum_abs;
	/* Rare (high rates, very short rows), so worth a second look only then. */
	if (lost || (double)e->coding->size > SUSPICIOUS * (double)q->n_bytes) {
		rc = read_again(q);
		if (!rc && !lost)
			rc = lossless_is_smaller(q, e->coding->size, &lost);
		if (rc)
			return rc;
		if (lost)
			return eq_encode_lossless(e, q->t, q->data, 0);
		eq_device_close(&q->device); /* it quantises once */
		free(q->sym);
		rc = quantise(q);
	}
	return rc ? rc : write_quant(q);
}

int eq_encode_quant(struct eq_encoder *e, const struct eq_st_tensor *t)
{
	struct quant q = { .e = e, .t = t, .n_bytes = t->end - t->begin };
	int rc;

	eq_matrix_of(t, &q.m.rows, &q.m.k);
	q.m.dtype = t->dtype;
	q.unit = eq_dtype_unit(t->dtype);
	q.chunk_bytes = eq_chunk_bytes_of(t);
	q.n_chunks = (uint32_t)((q.n_bytes + q.chunk_bytes - 1) / q.chunk_bytes);
	q.group = (uint32_t)(EQ_GROUP_BYTES / q.chunk_bytes);
	q.xxh = XXH3_createState();
	rc = q.xxh ? quant_run(&q) : -ENOMEM;
	XXH3_freeState(q.xxh);
	eq_device_close(&q.device);
	free((void *)(uintptr_t)q.plan.table);
	eq_quant_result_fini(&q.r);
	free(q.outlier);
	free(q.scale);
	free(q.sym);
	return rc ? eq_encode_fail(e, rc) : 0;
}
