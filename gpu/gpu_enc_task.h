/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a chunk to encode to what warps do, and back: each part of a chunk is one
 * task. A warp codes it into working memory, which settles its kind and length;
 * then the parts of a batch are put one behind the other, for one copy to the host,
 * which makes chunks of them: with heads, scales and outliers. Plain C, shared with the emulation in tests/.
 */
#ifndef EQ_GPU_ENC_TASK_H
#define EQ_GPU_ENC_TASK_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "backend_encode.h"

/* What became of a part. */
struct eq_gpu_enc_done {
	uint8_t kind, arg;
	uint8_t zero[2];
	uint32_t n_words, n_escapes;
	uint32_t n_bytes;
	uint32_t at;            /* in what the batch has made */
};

/* Pointers are addresses on the device. */
struct eq_gpu_enc_task {
	const unsigned char *units;     /* of the chunk, 256-byte aligned */
	const struct eq_encode_table *table, *spare;    /* NULL: none */
	unsigned char *work;    /* for RANS and PAIR: states, words, escapes */
	unsigned char *made;    /* by the batch, 16-byte aligned */
	struct eq_gpu_enc_done *done;
	uint32_t n_units;
	uint8_t rotate, plane;
	uint8_t kind, arg;      /* what it tries */
	uint8_t spare_arg;
	uint8_t log2_unit;
	uint8_t zero[6];
};

EQ_BOTH uint32_t eq_enc_round(uint32_t n, uint32_t to)
{
	return (n + to - 1) / to * to;
}

/* Symbols that a part of n units takes, whole groups. */
EQ_BOTH uint32_t eq_enc_symbols(uint32_t n, bool pair)
{
	return pair ? eq_enc_round(eq_enc_round(n, 128) / 2, 128) : eq_enc_round(n, 128);
}

/* More escapes than that, and the part is stored as it is (coding.c). */
EQ_BOTH uint32_t eq_enc_escapes_max(uint32_t n)
{
	return n / 16;
}

/* Working memory of a part: 32 states, a word a symbol, escapes. */
EQ_BOTH uint32_t eq_enc_work(uint32_t n, bool pair)
{
	return eq_enc_round(128 + 2 * eq_enc_symbols(n, pair) +
			    (pair ? 4 * eq_enc_escapes_max(n) : 0), 256);
}

/* Bytes that a batch has made: its first part is the last one. */
EQ_BOTH uint32_t eq_enc_made(const struct eq_gpu_enc_done *done)
{
	return done->at + eq_enc_round(done->n_bytes, EQ_PART_ALIGN);
}

/* ---- on the host ----------------------------------------------------------- */

/* Tasks that a chunk has: its planes, or its symbols. */
static inline unsigned eq_enc_tasks(const struct eq_encode_plan *plan)
{
	return plan->codec == EQ_CODEC_QUANT ? 1 : plan->unit;
}

/* Bytes of a unit of what is coded. */
static inline unsigned eq_enc_unit(const struct eq_encode_plan *plan)
{
	return plan->codec == EQ_CODEC_QUANT ? 1 : plan->unit;
}

static inline unsigned eq_enc_parts(const struct eq_encode_plan *plan)
{
	return plan->codec == EQ_CODEC_QUANT ? 3 : plan->unit;
}

/* Room for what the device makes of a chunk. */
static inline size_t eq_enc_bound(const struct eq_encode_job *job)
{
	return (size_t)eq_enc_tasks(job->plan) * eq_enc_round(job->n_units, EQ_PART_ALIGN);
}

static inline bool eq_enc_coded(uint8_t kind)
{
	return kind == EQ_PART_RANS || kind == EQ_PART_PAIR;
}

/* Working memory of all parts of a chunk. */
static inline size_t eq_enc_work_all(const struct eq_encode_job *job)
{
	size_t size = 0;

	for (unsigned i = 0; i < eq_enc_tasks(job->plan); i++)
		if (eq_enc_coded(job->part[i].kind))
			size += eq_enc_work(job->n_units, job->part[i].kind == EQ_PART_PAIR);
	return size;
}

/* Task i of a chunk, all but its addresses. */
static inline void eq_enc_task(const struct eq_encode_job *job, unsigned i,
			       struct eq_gpu_enc_task *out)
{
	memset(out, 0, sizeof(*out));
	out->n_units = job->n_units;
	out->rotate = job->plan->codec == EQ_CODEC_PLANES &&
		      job->plan->transform == EQ_TRANSFORM_ROTATED;
	out->plane = (uint8_t)i;
	out->kind = job->part[i].kind;
	out->arg = job->part[i].arg;
	out->spare_arg = job->part[i].spare;
	while (1u << out->log2_unit < eq_enc_unit(job->plan))
		out->log2_unit++;
}

static inline uint8_t *eq_enc_head(uint8_t *out, uint8_t kind, uint8_t arg, uint32_t n_words,
				   uint32_t n_entries)
{
	const struct eq_disk_part head = { kind, arg, 0, n_words, n_entries, 0 };

	memcpy(out, &head, sizeof(head));
	return out + sizeof(head);
}

/* Bytes at `at`, padded; returns where the next part begins. */
static inline size_t eq_enc_append(uint8_t *out, size_t at, const void *p, size_t n)
{
	size_t end = (at + n + EQ_PART_ALIGN - 1) / EQ_PART_ALIGN * EQ_PART_ALIGN;

	if (n)
		memcpy(out + at, p, n);
	memset(out + at + n, 0, end - at - n);
	return end;
}

/* The chunk, from what became of its parts, and what the batch made. */
static inline void eq_enc_finish(struct eq_encode_job *job, const struct eq_gpu_enc_done *done,
				 const uint8_t *made)
{
	unsigned n = eq_enc_tasks(job->plan), i;
	bool quant = job->plan->codec == EQ_CODEC_QUANT;
	size_t end = eq_enc_parts(job->plan) * sizeof(struct eq_disk_part);
	uint8_t *head = job->out;

	if (quant) {
		head = eq_enc_head(head, EQ_PART_RAW, 0, 0, 0);
		end = eq_enc_append(job->out, end, job->scales, job->scale_bytes);
	}
	for (i = 0; i < n; i++) {
		head = eq_enc_head(head, done[i].kind, done[i].arg, done[i].n_words,
				   done[i].n_escapes);
		end = eq_enc_append(job->out, end, made + done[i].at, done[i].n_bytes);
	}
	if (quant) {
		eq_enc_head(head, job->n_outliers ? EQ_PART_OUTLIERS : EQ_PART_EMPTY, 0, 0,
			    (uint32_t)job->n_outliers);
		end = eq_enc_append(job->out, end, job->outlier,
				    job->n_outliers * sizeof(*job->outlier));
	}
	job->len = end;
}

#endif
