/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A back end that encodes with the text of the kernels, lane by lane on the host:
 * what CI has in place of a GPU. Memory that the kernels get has its exact size, so
 * that a build with AddressSanitizer finds what they would touch out of bounds.
 */
#ifndef EQ_GPU_ENC_HOST_H
#define EQ_GPU_ENC_HOST_H

#include <errno.h>

#include "gpu_lane_host.h"
#include "codec_util.h"
#include "gpu_enc_search.h"
#include "gpu_enc_warp.h"

struct emulated {
	struct eq_backend be;
	unsigned calls, fail_at;        /* the call from which on all fail; 0: none */
	bool no_room;                   /* for tensors to be quantised */
	unsigned n_chunks;              /* that were encoded */
};

static inline void *gpu_memory(size_t n)
{
	void *p = aligned_alloc(256, (n + 255) / 256 * 256);

	if (!p)
		abort();
	memset(p, 0xa5, (n + 255) / 256 * 256);
	return p;
}

static inline int emulated_call(struct emulated *x)
{
	x->calls++;
	return x->fail_at && x->calls >= x->fail_at ? -EIO : 0;
}

/* A copy of device memory, of exactly the size that kernels may touch. */
static inline void *exact_copy(const void *from, size_t n)
{
	void *p = malloc(n);

	if (!p)
		abort();
	memcpy(p, from, n);
	return p;
}

/* What the kernels do with a part. */
static inline void emulate_part(struct eq_gpu_enc_task *t, const struct eq_encode_job *job,
				const struct eq_encode_part *p)
{
	struct eq_encode_table shared;
	unsigned unit = eq_enc_unit(job->plan);

	if (!eq_enc_coded(p->kind)) {
		eq_warp_plain(t, unit);
		return;
	}
	t->table = &job->plan->table[p->arg];
	t->spare = p->spare == EQ_NO_TABLE ? NULL : &job->plan->table[p->spare];
	t->work = must_alloc(eq_enc_work(job->n_units, p->kind == EQ_PART_PAIR));
	eq_warp_encode(t, &shared, unit, p->kind == EQ_PART_PAIR);
}

/* A batch of jobs, which bring their units, or have symbols. */
static inline void emulate(struct eq_encode_job *jobs, size_t n, const unsigned char *symbols)
{
	struct eq_gpu_enc_task *task = calloc(8 * n, sizeof(*task)), *t = task;
	struct eq_gpu_enc_done *done = gpu_memory(8 * n * sizeof(*done)), *d = done;
	size_t bound = 0, i;
	unsigned char *made;

	for (i = 0; task && i < n; i++) {
		size_t len = (size_t)jobs[i].n_units * eq_enc_unit(jobs[i].plan);
		void *units = exact_copy(symbols ? symbols + jobs[i].first_unit : jobs[i].units, len);

		for (unsigned k = 0; k < eq_enc_tasks(jobs[i].plan); k++, t++) {
			eq_enc_task(&jobs[i], k, t);
			t->units = units;
			t->done = d++;
			emulate_part(t, &jobs[i], &jobs[i].part[k]);
		}
		bound += eq_enc_bound(&jobs[i]);
	}
	eq_warp_offsets(done, (uint32_t)(d - done));
	made = gpu_memory(bound);
	for (i = 0, t = task, d = done; i < n; i++) {
		const unsigned char *units = t->units;
		unsigned tasks = eq_enc_tasks(jobs[i].plan);

		for (unsigned k = 0; k < tasks; k++, t++) {
			t->made = made;
			for (unsigned warp = 3; warp-- > 0;)
				eq_warp_place(t, eq_enc_unit(jobs[i].plan), warp, 3);
			free(t->work);
		}
		eq_enc_finish(&jobs[i], d, made);
		d += tasks;
		free((void *)(uintptr_t)units);
	}
	free(task);
	free(done);
	free(made);
}

static inline int emulated_encode(void *ctx, struct eq_encode_job *jobs, size_t n)
{
	struct emulated *x = ctx;
	int rc = emulated_call(x);

	if (rc)
		return rc;
	emulate(jobs, n, NULL);
	x->n_chunks += (unsigned)n;
	return 0;
}

/* ---- quantising ---------------------------------------------------------------- */

struct emulated_quantiser {
	struct eq_quantiser pub;        /* the first */
	struct emulated *x;
	const void *units;
	int dtype;
	struct eq_gpu_rows r;
	uint32_t n_outliers;
};

static inline void emulated_close(struct eq_quantiser *q)
{
	struct emulated_quantiser *e = (void *)q;

	free(e->r.units);
	free(e->r.symbols);
	free(e->r.sum);
	free(e->r.top);
	free(e->r.scale);
	free(e);
}

static inline int emulated_norm(struct eq_quantiser *q, double *sum, bool *finite)
{
	struct emulated_quantiser *e = (void *)q;

	memcpy(e->r.units, e->units, e->r.rows * e->r.k * (e->dtype == EQ_F32 ? 4 : 2));
	for (uint64_t w = 0; 2 * w < e->r.rows; w++)
		eq_warp_norm(&e->r, w, e->dtype);
	*finite = true;
	for (uint64_t i = 0; i < e->r.rows; i++) {
		sum[i] = e->r.sum[i];
		*finite &= e->r.top[i] < 0x7f800000;
	}
	return emulated_call(e->x);
}

static inline void emulated_row(struct emulated_quantiser *e, uint64_t row, bool fp8)
{
	struct eq_row_sorter *m;
	struct eq_row_bins *bins;
	unsigned char *memory;

	if (e->dtype == EQ_BF16) {
		bins = gpu_memory(sizeof(*bins));
		eq_warp_search(&e->r, row, bins, fp8);
		free(bins);
		return;
	}
	m = must_alloc(sizeof(*m));
	memory = must_alloc(eq_row_sorted_bytes(e->r.k));
	eq_warp_search_sorted(&e->r, row, m, memory, e->dtype, fp8);
	free(memory);
	free(m);
}

static inline int emulated_search(struct eq_quantiser *q, const struct eq_quant_format *f, double nu,
				  uint16_t *scale)
{
	struct emulated_quantiser *e = (void *)q;

	if (!eq_row_has_sums(e->dtype, e->r.k))
		return -ENOSPC;
	e->r.format = f;
	e->r.nu = nu;
	for (uint64_t i = 0; i < e->r.rows; i++)
		emulated_row(e, i, f->top == 126);
	memcpy(scale, e->r.scale, e->r.rows * sizeof(*scale));
	return emulated_call(e->x);
}

static inline int emulated_apply(struct eq_quantiser *q, const struct eq_quant_format *f,
				 const uint16_t *scale, struct eq_quantised *out)
{
	struct emulated_quantiser *e = (void *)q;
	uint64_t n = e->r.rows * e->r.k;
	uint32_t hist[256] = { 0 };
	int rc;

	e->r.n_outliers = &e->n_outliers;
	e->r.outlier = out->outlier;
	e->r.sums = out->sums;
	memcpy(e->r.scale, scale, e->r.rows * sizeof(*scale));
	for (uint64_t w = 0; 2 * w < e->r.rows; w++)
		eq_warp_quantise(&e->r, w, e->dtype, f->top == 126);
	if (e->n_outliers > e->r.max_outliers)
		return -ENOSPC;
	for (unsigned w = 0; w < 2; w++)
		eq_warp_hist(e->r.symbols, n, hist, w, 2);
	for (unsigned s = 0; s < 256; s++)
		out->hist[s] = hist[s];
	out->n_outliers = e->n_outliers;
	rc = emulated_call(e->x);
	/* A device that fails may have written some of it. */
	memcpy(out->recon, e->r.units, n * (e->dtype == EQ_F32 ? 4 : 2) / (rc ? 2 : 1));
	return rc;
}

static inline int emulated_symbols(struct eq_quantiser *q, struct eq_encode_job *jobs, size_t n)
{
	struct emulated_quantiser *e = (void *)q;
	int rc = emulated_call(e->x);

	if (rc)
		return rc;
	emulate(jobs, n, e->r.symbols);
	e->x->n_chunks += (unsigned)n;
	return 0;
}

static inline int emulated_quantiser(void *ctx, const struct eq_quantiser_tensor *t,
				     struct eq_quantiser **out)
{
	static const struct eq_quantiser_ops ops = {
		.close = emulated_close, .norm = emulated_norm, .search = emulated_search,
		.apply = emulated_apply, .encode = emulated_symbols,
	};
	struct emulated *x = ctx;
	struct emulated_quantiser *e;
	size_t n = t->rows * t->k;

	*out = NULL;
	if (x->no_room)
		return -ENOSPC;
	e = must_alloc(sizeof(*e));
	memset(e, 0, sizeof(*e));
	e->pub.ops = &ops;
	e->x = x;
	e->units = t->units;
	e->dtype = t->dtype;
	e->r.rows = t->rows;
	e->r.k = t->k;
	e->r.max_outliers = (uint32_t)t->max_outliers;
	e->r.units = must_alloc(n * (t->dtype == EQ_F32 ? 4 : 2));
	e->r.symbols = must_alloc(n);
	e->r.sum = must_alloc(t->rows * sizeof(double));
	e->r.top = must_alloc(t->rows * sizeof(uint32_t));
	e->r.scale = must_alloc(t->rows * sizeof(uint16_t));
	*out = &e->pub;
	return 0;
}

static const struct eq_backend_encoder emulated_encoder = { emulated_encode, emulated_quantiser };

/* It decodes as the CPU does. */
static inline void emulated_init(struct emulated *x, unsigned fail_at)
{
	*x = (struct emulated){ .be = *eq_backend_cpu(), .fail_at = fail_at };
	x->be.name = "emulated";
	x->be.ctx = x;
	x->be.encoder = &emulated_encoder;
}

#endif
