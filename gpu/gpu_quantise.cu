/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantising a tensor in device memory: it is brought in once, and then its norm,
 * the scales, the symbols and their chunks are made there. Streams and memory are
 * kept for the next tensor.
 */
#include <cerrno>
#include <cstdlib>
#include <pthread.h>

#include "gpu_encode.cuh"
#include "gpu_lane.cuh"
#include "gpu_enc_quant.h"
#include "gpu_module.cuh"

struct quantiser {
	struct eq_quantiser pub;        /* the first */
	struct eq_gpu_quantisers *pool;
	struct quantiser *link;
	cudaStream_t stream;
	cudaEvent_t ready;
	unsigned char *memory;          /* of the device, all that `r` points to */
	uint64_t size;
	struct eq_quant_format *format; /* pinned, and on the device */
	struct eq_quantiser_tensor t;
	struct eq_gpu_rows r;
	struct eq_quant_format *dev_format;
	uint32_t *counts;               /* of symbols, and of outliers */
	uint32_t *top;                  /* on the host */
};

struct eq_gpu_quantisers {
	const struct eq_backend *be;
	pthread_mutex_t lock;
	struct quantiser *kept;         /* this and `used`: under the lock */
	uint64_t used, limit;           /* bytes of device memory */
};

static size_t unit_of(int dtype)
{
	return dtype == EQ_F32 ? 4 : 2;
}

/* ---- memory ------------------------------------------------------------------- */

/* Take n bytes at 256-byte alignment; NULL while only the size is asked for. */
static void *take(unsigned char *memory, uint64_t *at, uint64_t n)
{
	unsigned char *p = memory ? memory + *at : NULL;

	*at += (n + 255) / 256 * 256;
	return p;
}

/* Where everything of a tensor lies; returns the size. */
static uint64_t layout(struct quantiser *q, const struct eq_quantiser_tensor *t,
		       unsigned char *memory)
{
	struct eq_gpu_rows *r = &q->r;
	uint64_t n = t->rows * t->k, at = 0;

	memset(r, 0, sizeof(*r));
	r->rows = t->rows;
	r->k = t->k;
	r->max_outliers = (uint32_t)t->max_outliers;
	r->units = (unsigned char *)take(memory, &at, n * unit_of(t->dtype));
	r->symbols = (unsigned char *)take(memory, &at, n);
	r->sum = (double *)take(memory, &at, t->rows * sizeof(r->sum[0]));
	r->top = (uint32_t *)take(memory, &at, t->rows * sizeof(r->top[0]));
	r->scale = (uint16_t *)take(memory, &at, t->rows * sizeof(r->scale[0]));
	r->sums = (struct eq_encode_sums *)take(memory, &at, t->rows * sizeof(r->sums[0]));
	r->outlier = (struct eq_quant_outlier *)take(memory, &at,
						      r->max_outliers * sizeof(r->outlier[0]));
	q->dev_format = (struct eq_quant_format *)take(memory, &at, sizeof(*q->format));
	q->counts = (uint32_t *)take(memory, &at, 257 * sizeof(q->counts[0]));
	r->format = q->dev_format;
	r->n_outliers = q->counts + 256;
	return at;
}

static void quantiser_free(struct quantiser *q)
{
	if (!q)
		return;
	cudaFree(q->memory);
	cudaFreeHost(q->format);
	if (q->ready)
		cudaEventDestroy(q->ready);
	if (q->stream)
		cudaStreamDestroy(q->stream);
	free(q->top);
	free(q);
}

static cudaError_t quantiser_create(struct eq_gpu_quantisers *p, struct quantiser **out)
{
	struct quantiser *q = (struct quantiser *)calloc(1, sizeof(*q));
	cudaError_t rc;

	*out = NULL;
	if (!q)
		return cudaErrorMemoryAllocation;
	q->pool = p;
	rc = cudaStreamCreateWithFlags(&q->stream, cudaStreamNonBlocking);
	if (!rc)
		rc = cudaEventCreateWithFlags(&q->ready, cudaEventBlockingSync |
							 cudaEventDisableTiming);
	if (!rc)
		rc = cudaHostAlloc((void **)&q->format, sizeof(*q->format), cudaHostAllocDefault);
	if (rc)
		quantiser_free(q);
	else
		*out = q;
	return rc;
}

/* One that was kept, which has memory enough if any has; may be NULL. What the
 * limit does not allow beside `need` is let go of. False if that is too much. */
static bool pool_take(struct eq_gpu_quantisers *p, uint64_t need, struct quantiser **out)
{
	struct quantiser **at, *q = NULL;
	bool fits;

	pthread_mutex_lock(&p->lock);
	for (at = &p->kept; *at && (*at)->size < need;)
		at = &(*at)->link;
	if (!*at)
		at = &p->kept;
	q = *at;
	if (q)
		*at = q->link;
	if (q && q->size < need) { /* it gets other memory */
		cudaFree(q->memory);
		q->memory = NULL;
		p->used -= q->size;
		q->size = 0;
	}
	while ((!q || !q->size) && p->used + need > p->limit && p->kept) {
		struct quantiser *old = p->kept;

		p->kept = old->link;
		p->used -= old->size;
		quantiser_free(old);
	}
	fits = (q && q->size) || p->used + need <= p->limit;
	if (fits && !(q && q->size))
		p->used += need;
	pthread_mutex_unlock(&p->lock);
	*out = q;
	return fits;
}

static void pool_return(struct eq_gpu_quantisers *p, struct quantiser *q)
{
	pthread_mutex_lock(&p->lock);
	q->link = p->kept;
	p->kept = q;
	pthread_mutex_unlock(&p->lock);
}

/* ---- the tensor's way ----------------------------------------------------------- */

static int begin(struct quantiser *q)
{
	return eq_gpu_is_dead(q->pool->be) ? -EIO : 0;
}

/* Wait for all that was queued, unless it could not be; the result of the function. */
static int end(struct quantiser *q, cudaError_t rc)
{
	if (!rc)
		rc = cudaEventRecord(q->ready, q->stream);
	if (!rc)
		rc = cudaEventSynchronize(q->ready);
	if (!rc)
		return 0;
	cudaStreamSynchronize(q->stream);
	return eq_gpu_give_up(q->pool->be, rc);
}

static cudaError_t copy(struct quantiser *q, void *to, const void *from, size_t n)
{
	return cudaMemcpyAsync(to, from, n, cudaMemcpyDefault, q->stream);
}

static int q_norm(struct eq_quantiser *pub, double *sum, bool *finite)
{
	struct quantiser *q = (struct quantiser *)pub;
	uint64_t rows = q->t.rows;
	struct eq_gpu_scope scope(eq_gpu_context(q->pool->be));
	cudaError_t rc = scope.rc;
	int err = begin(q);

	if (err)
		return err;
	if (!rc)
		rc = copy(q, q->r.units, q->t.units, rows * q->t.k * unit_of(q->t.dtype));
	if (!rc)
		rc = eq_norm_launch(&q->r, q->t.dtype, q->stream);
	if (!rc)
		rc = copy(q, sum, q->r.sum, rows * sizeof(sum[0]));
	if (!rc)
		rc = copy(q, q->top, q->r.top, rows * sizeof(q->top[0]));
	err = end(q, rc);
	*finite = true;
	for (uint64_t i = 0; i < rows && !err; i++)
		*finite &= q->top[i] < 0x7f800000;
	return err;
}

static cudaError_t put_format(struct quantiser *q, const struct eq_quant_format *f)
{
	*q->format = *f;
	return copy(q, q->dev_format, q->format, sizeof(*f));
}

static bool is_fp8(const struct eq_quant_format *f)
{
	return f->unit < 1;
}

static int q_search(struct eq_quantiser *pub, const struct eq_quant_format *f, double nu,
		    uint16_t *scale)
{
	struct quantiser *q = (struct quantiser *)pub;
	struct eq_gpu_scope scope(eq_gpu_context(q->pool->be));
	cudaError_t rc = scope.rc;
	int err = begin(q);

	if (err)
		return err;
	q->r.nu = nu;
	if (!rc)
		rc = put_format(q, f);
	if (!rc)
		rc = eq_search_launch(&q->r, q->t.dtype, is_fp8(f), q->stream);
	if (rc == cudaErrorNotSupported) {
		err = end(q, cudaSuccess);
		return err ? err : -ENOSPC;
	}
	if (!rc)
		rc = copy(q, scale, q->r.scale, q->t.rows * sizeof(scale[0]));
	return end(q, rc);
}

static int q_apply(struct eq_quantiser *pub, const struct eq_quant_format *f,
		   const uint16_t *scale, struct eq_quantised *out)
{
	struct quantiser *q = (struct quantiser *)pub;
	uint64_t rows = q->t.rows;
	uint32_t counts[257];
	struct eq_gpu_scope scope(eq_gpu_context(q->pool->be));
	cudaError_t rc = scope.rc;
	int err = begin(q);

	if (err)
		return err;
	if (!rc)
		rc = put_format(q, f);
	if (!rc)
		rc = copy(q, q->r.scale, scale, rows * sizeof(scale[0]));
	if (!rc)
		rc = cudaMemsetAsync(q->counts, 0, sizeof(counts), q->stream);
	if (!rc)
		rc = eq_quantise_launch(&q->r, q->t.dtype, is_fp8(f), q->counts, q->stream);
	if (!rc)
		rc = copy(q, counts, q->counts, sizeof(counts));
	if (!rc)
		rc = copy(q, out->sums, q->r.sums, rows * sizeof(out->sums[0]));
	if (!rc && out->recon)
		rc = copy(q, out->recon, q->r.units, rows * q->t.k * unit_of(q->t.dtype));
	err = end(q, rc);
	if (err)
		return err;
	for (unsigned s = 0; s < 256; s++)
		out->hist[s] = counts[s];
	out->n_outliers = counts[256];
	if (out->n_outliers > q->r.max_outliers)
		return -ENOSPC;
	if (!out->n_outliers)
		return 0;
	return end(q, copy(q, out->outlier, q->r.outlier, out->n_outliers * sizeof(out->outlier[0])));
}

static int q_encode(struct eq_quantiser *pub, struct eq_encode_job *jobs, size_t n)
{
	struct quantiser *q = (struct quantiser *)pub;

	return eq_gpu_encode_jobs(eq_gpu_encoder_of(q->pool->be), jobs, n, q->r.symbols);
}

static void q_close(struct eq_quantiser *pub)
{
	struct quantiser *q = (struct quantiser *)pub;

	free(q->top);
	q->top = NULL;
	pool_return(q->pool, q);
}

static const struct eq_quantiser_ops ops = { q_close, q_norm, q_search, q_apply, q_encode };

/* ---- opening ---------------------------------------------------------------- */

/* Memory for the tensor, unless q has it. */
static cudaError_t open_memory(struct eq_gpu_quantisers *p, struct quantiser *q, uint64_t need)
{
	cudaError_t rc = cudaSuccess;

	if (!q->size) {
		rc = cudaMalloc((void **)&q->memory, need);
		if (!rc)
			q->size = need;
	}
	if (!rc)
		return rc;
	pthread_mutex_lock(&p->lock);
	p->used -= need;
	pthread_mutex_unlock(&p->lock);
	return rc;
}

int eq_gpu_quantiser_open(struct eq_gpu_quantisers *p, const struct eq_quantiser_tensor *t,
			  struct eq_quantiser **out)
{
	struct eq_gpu_scope scope(eq_gpu_context(p->be));
	struct quantiser sized, *q = NULL;
	cudaError_t rc = scope.rc;
	uint64_t need;

	*out = NULL;
	if (eq_gpu_is_dead(p->be))
		return -EIO;
	/* counters have 32 bits */
	if (t->rows > UINT32_MAX / t->k || t->k >= (uint64_t)1 << 31 ||
	    t->rows >= (uint64_t)1 << 31 || t->max_outliers > UINT32_MAX)
		return -ENOSPC;
	need = layout(&sized, t, NULL);
	if (need > p->limit)
		return -ENOSPC;
	if (rc)
		return eq_gpu_give_up(p->be, rc);
	if (!pool_take(p, need, &q)) {
		if (q)
			pool_return(p, q);
		return -ENOSPC;
	}
	if (!q)
		rc = quantiser_create(p, &q);
	if (!rc)
		rc = open_memory(p, q, need);
	if (!rc) {
		q->top = (uint32_t *)malloc(t->rows * sizeof(q->top[0]));
		rc = q->top ? cudaSuccess : cudaErrorMemoryAllocation;
	}
	if (rc) {
		if (q)
			pool_return(p, q);
		return eq_gpu_give_up(p->be, rc);
	}
	q->pub.ops = &ops;
	q->t = *t;
	layout(q, t, q->memory);
	*out = &q->pub;
	return 0;
}

struct eq_gpu_quantisers *eq_gpu_quantisers_create(const struct eq_backend *be, uint64_t mem_limit)
{
	struct eq_gpu_quantisers *p = (struct eq_gpu_quantisers *)calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->be = be;
	p->limit = mem_limit;
	pthread_mutex_init(&p->lock, NULL);
	return p;
}

void eq_gpu_quantisers_free(struct eq_gpu_quantisers *p)
{
	struct quantiser *q;

	while ((q = p->kept) != NULL) {
		p->kept = q->link;
		quantiser_free(q);
	}
	pthread_mutex_destroy(&p->lock);
	free(p);
}
