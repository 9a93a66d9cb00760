/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a job of the back end to what a warp decodes. Everything that can be
 * settled before decoding is settled here, on the host: the layout of the chunk,
 * the order of escapes and outliers, whether all values are finite. A chunk that
 * fails a check, or needs one that the device does not make, goes to the CPU,
 * whose verdict then counts; so the device has only the entropy coder's own
 * checks left, and its kernels never see an offset that was not checked.
 *
 * Plain C, shared with the emulation of the kernels in tests/.
 */
#ifndef EQ_GPU_TASK_H
#define EQ_GPU_TASK_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "backend.h"
#include "eqcodec.h"
#include "format.h"

#ifdef __CUDACC__
#define EQ_GPU_BOTH __host__ __device__
#else
#define EQ_GPU_BOTH
#endif

#define EQ_GPU_PARTS 8

/* A decoding table as the device gets it. */
struct eq_gpu_table {
	uint32_t slot[EQ_PROB_SIZE];    /* as in struct eq_table */
	uint8_t nibble[16];             /* pair tables; [15] is the marker */
	float value[256];               /* quantised tensors */
};

struct eq_gpu_part {
	uint32_t off;           /* of the part, in the chunk */
	uint32_t n_words, n_escapes;
	uint32_t table;         /* index, for RANS and PAIR */
	uint32_t fill4;         /* CONST: the byte, four times */
	uint8_t kind, arg;
	uint8_t zero[2];
};

/* One chunk for one warp. Pointers are addresses on the device. */
struct eq_gpu_task {
	const unsigned char *in;        /* 16-byte aligned, EQ_SLACK behind */
	unsigned char *out;             /* 32-byte aligned */
	const struct eq_gpu_table *tables;
	int32_t *status;
	uint32_t n_units;
	uint8_t unit, rotate;
	uint8_t coded;          /* the part that is entropy-coded; the last of them */
	uint8_t scale_f32;
	/* Quantised only; rows are those of the chunk, row_left the units of the
	 * first one that are in it. All less than 2^30. */
	uint32_t row_units, row_left;
	struct eq_gpu_part main;        /* part[coded] */
	struct eq_gpu_part part[EQ_GPU_PARTS];
};

/* Which kernel a task is for. */
enum eq_gpu_class {
	EQ_GPU_CPU = -1,        /* none: leave it to the CPU */
	EQ_GPU_QUANT,           /* + 2 * (0 bf16, 1 f16, 2 f32) + pair */
	EQ_GPU_PLANES = EQ_GPU_QUANT + 6,       /* + 2 * log2(unit) + pair */
	EQ_GPU_ANY = EQ_GPU_PLANES + 8,         /* + log2(unit) */
	EQ_GPU_CLASSES = EQ_GPU_ANY + 4
};

/* How a part's table travels: the device keeps those of a batch in an array. */
struct eq_gpu_tables {
	const struct eq_plan *plan[EQ_GPU_PARTS];       /* of the last few, */
	uint32_t arg[EQ_GPU_PARTS], index[EQ_GPU_PARTS];
	bool exact[EQ_GPU_PARTS];
	unsigned n, turn;
	struct eq_gpu_table *array;     /* staging memory for max tables */
	uint32_t used, max;
};

static inline bool eq_gpu_is_nan(float f)
{
	uint32_t u;

	memcpy(&u, &f, 4);
	return (u & 0x7fffffff) > 0x7f800000;
}

static inline uint32_t eq_gpu_float_bits(float f)
{
	uint32_t u;

	memcpy(&u, &f, 4);
	return u;
}

/*
 * May the kernels use this table without looking at every symbol? For quantised
 * tensors every symbol that can come out must have a value; pair tables hold
 * values as bfloat16, which is exact for those of all formats there are.
 */
static inline bool eq_gpu_table_exact(const struct eq_plan *plan,
				      const struct eq_table *t)
{
	bool used[16] = { false };

	if (plan->codec != EQ_CODEC_QUANT)
		return true;
	if (t->mode == EQ_TABLE_SINGLE) {
		for (unsigned s = 0; s < 256; s++)
			if (t->present[s >> 3] >> (s & 7) & 1 &&
			    eq_gpu_is_nan(plan->value[s]))
				return false;
		return true;
	}
	for (unsigned i = 0; i < EQ_PROB_SIZE;) {
		uint32_t e = t->slot[i];

		used[e >> 24 & 15] = used[e >> 28] = true;
		i += e >> 12 & 4095;
	}
	for (unsigned i = 0; i < 15; i++) {
		float v = plan->value[t->nibble[i]];

		if (used[i] && (eq_gpu_is_nan(v) || eq_gpu_float_bits(v) & 0xffff))
			return false;
	}
	return true;
}

static inline void eq_gpu_table_fill(const struct eq_plan *plan,
				     const struct eq_table *t,
				     struct eq_gpu_table *out)
{
	bool taken[256] = { false };
	unsigned marker = 0;

	memcpy(out->slot, t->slot, sizeof(out->slot));
	memcpy(out->nibble, t->nibble, sizeof(out->nibble));
	/* Nibble 15 becomes a byte that no other nibble stands for, by which the
	 * kernels find that an escape is where it should be. */
	for (unsigned i = 0; i < 15; i++)
		taken[t->nibble[i]] = true;
	while (taken[marker])
		marker++;
	out->nibble[15] = (uint8_t)marker;
	if (plan->codec == EQ_CODEC_QUANT)
		memcpy(out->value, plan->value, sizeof(out->value));
}

/* Index of a table in the batch, put there if need be; UINT32_MAX when it does
 * not fit or is not for the device. */
static inline uint32_t eq_gpu_table_index(struct eq_gpu_tables *b,
					  const struct eq_plan *plan, uint32_t arg)
{
	unsigned i;

	for (i = 0; i < b->n; i++)
		if (b->plan[i] == plan && b->arg[i] == arg)
			return b->exact[i] ? b->index[i] : UINT32_MAX;
	if (b->used == b->max)
		return UINT32_MAX;
	i = b->turn++ % EQ_GPU_PARTS;
	if (b->n < EQ_GPU_PARTS)
		b->n++;
	b->plan[i] = plan;
	b->arg[i] = arg;
	b->index[i] = b->used;
	b->exact[i] = eq_gpu_table_exact(plan, &plan->tables[arg]);
	if (!b->exact[i])
		return UINT32_MAX;
	eq_gpu_table_fill(plan, &plan->tables[arg], &b->array[b->used]);
	return b->used++;
}

/* Bytes of the states and words of a part. */
static inline EQ_GPU_BOTH uint64_t eq_gpu_rans_size(uint32_t n_words)
{
	return (128 + 2 * (uint64_t)n_words + 3) / 4 * 4;
}

/* Bytes of a part, UINT64_MAX when the kernels should not see it. */
static inline uint64_t eq_gpu_part_len(const struct eq_disk_part *h, uint64_t n,
				       uint64_t raw_len)
{
	bool words = h->kind == EQ_PART_RANS || h->kind == EQ_PART_PAIR;
	bool entries = h->kind == EQ_PART_PAIR || h->kind == EQ_PART_OUTLIERS;

	if (h->zero0 || h->zero1 || h->n_entries > n ||
	    (h->n_words && !words) || (h->n_entries && !entries) ||
	    (h->arg && !words && h->kind != EQ_PART_CONST))
		return UINT64_MAX;
	switch (h->kind) {
	case EQ_PART_EMPTY:
	case EQ_PART_CONST:
		return 0;
	case EQ_PART_RAW:
		return raw_len;
	case EQ_PART_RANS:
	case EQ_PART_PAIR:
		return eq_gpu_rans_size(h->n_words) + UINT64_C(4) * h->n_entries;
	case EQ_PART_OUTLIERS:
		return h->n_entries ? UINT64_C(8) * h->n_entries : UINT64_MAX;
	default:
		return UINT64_MAX;
	}
}

/* Parse the heads; raw_len[i] is the length of part i if it is RAW. */
static inline bool eq_gpu_layout(const struct eq_decode_job *job, unsigned n_parts,
				 const uint64_t *raw_len, struct eq_gpu_task *t)
{
	uint64_t pos = sizeof(struct eq_disk_part) * n_parts, len;

	if (pos > job->in_len || job->in_len > UINT32_MAX)
		return false;
	for (unsigned i = 0; i < n_parts; i++) {
		struct eq_gpu_part *p = &t->part[i];
		struct eq_disk_part h;

		memcpy(&h, job->in + i * sizeof(h), sizeof(h));
		len = eq_gpu_part_len(&h, job->n_units, raw_len[i]);
		if (len > job->in_len - pos)
			return false;
		p->off = (uint32_t)pos;
		p->kind = h.kind;
		p->arg = h.arg;
		p->fill4 = h.arg * 0x01010101u;
		p->n_words = h.n_words;
		p->n_escapes = h.n_entries;
		pos = eq_align(pos + len, EQ_PART_ALIGN);
		if (pos > job->in_len)
			return false;
	}
	return pos == job->in_len;
}

/* Find the table of a part RANS or PAIR, and look at the order of its escapes. */
static inline bool eq_gpu_coded(const struct eq_decode_job *job,
				struct eq_gpu_part *p, struct eq_gpu_tables *b)
{
	const struct eq_plan *plan = job->plan;
	bool pair = p->kind == EQ_PART_PAIR;
	uint64_t at = p->off + eq_gpu_rans_size(p->n_words), least = 0;

	if (p->arg >= plan->n_tables ||
	    plan->tables[p->arg].mode != (pair ? EQ_TABLE_PAIR : EQ_TABLE_SINGLE))
		return false;
	for (uint32_t i = 0; i < p->n_escapes; i++) {
		uint32_t e;

		memcpy(&e, job->in + at + UINT64_C(4) * i, 4);
		if (e >> 8 < least || e >> 8 >= job->n_units ||
		    (plan->codec == EQ_CODEC_QUANT && eq_gpu_is_nan(plan->value[e & 255])))
			return false;
		least = (uint64_t)(e >> 8) + 1;
	}
	p->table = eq_gpu_table_index(b, plan, p->arg);
	return p->table != UINT32_MAX;
}

static inline int eq_gpu_planes(const struct eq_decode_job *job,
				struct eq_gpu_task *t, struct eq_gpu_tables *b)
{
	const struct eq_plan *plan = job->plan;
	unsigned coded = 0, log2_unit = plan->unit == 8 ? 3u : plan->unit / 2u;
	uint64_t raw_len[EQ_GPU_PARTS];

	for (unsigned i = 0; i < EQ_GPU_PARTS; i++)
		raw_len[i] = job->n_units;
	if (!eq_gpu_layout(job, plan->unit, raw_len, t))
		return EQ_GPU_CPU;
	for (unsigned i = 0; i < plan->unit; i++) {
		struct eq_gpu_part *p = &t->part[i];

		if (p->kind == EQ_PART_RAW || p->kind == EQ_PART_CONST)
			continue;
		if ((p->kind != EQ_PART_RANS && p->kind != EQ_PART_PAIR) ||
		    !eq_gpu_coded(job, p, b))
			return EQ_GPU_CPU;
		t->coded = (uint8_t)i;
		coded++;
	}
	t->rotate = plan->transform == EQ_TRANSFORM_ROTATED;
	if (coded == 0)
		return EQ_GPU_CPU;      /* a copy: the link would cost more */
	t->main = t->part[t->coded];
	if (coded > 1)
		return EQ_GPU_ANY + (int)log2_unit;
	return EQ_GPU_PLANES + 2 * (int)log2_unit +
	       (t->part[t->coded].kind == EQ_PART_PAIR);
}

static inline float eq_gpu_scale(const uint8_t *p, bool f32, uint64_t i)
{
	uint32_t bits;
	uint16_t half;
	float scale;

	if (f32) {
		memcpy(&bits, p + 4 * i, 4);
	} else {
		memcpy(&half, p + 2 * i, 2);
		bits = (uint32_t)half << 16;
	}
	memcpy(&scale, &bits, 4);
	return scale;
}

/* All scales are good, and no value overflows under any of them; close to the
 * limit of float32 the CPU decides. */
static inline bool eq_gpu_scales_fine(const struct eq_plan *plan, const uint8_t *p,
				      uint64_t rows)
{
	const float limit = plan->dtype == EQ_F16 ? 65504.0f : 3.3895314e38f;
	bool f32 = plan->scale_dtype == EQ_SCALE_F32;
	float top = 0, most = 0;

	for (uint64_t i = 0; i < rows; i++) {
		float s = eq_gpu_scale(p, f32, i);

		if (!(s >= 0)) /* NaN as well */
			return false;
		if (s > top)
			top = s;
	}
	for (unsigned i = 0; i < 256; i++) {
		float v = plan->value[i] < 0 ? -plan->value[i] : plan->value[i];

		if (v > most) /* not for NaN */
			most = v;
	}
	return most * top <= limit;
}

static inline bool eq_gpu_outliers_fine(const struct eq_decode_job *job,
					const struct eq_gpu_part *p, uint32_t exponent)
{
	uint64_t least = 0;

	for (uint32_t i = 0; i < p->n_escapes; i++) {
		struct eq_disk_outlier o;

		memcpy(&o, job->in + p->off + sizeof(o) * (size_t)i, sizeof(o));
		if (o.pos < least || o.pos >= job->n_units ||
		    (job->plan->unit == 2 && o.bits >> 16) ||
		    (o.bits & exponent) == exponent)
			return false;
		least = (uint64_t)o.pos + 1;
	}
	return true;
}

static inline uint32_t eq_gpu_clamp(uint64_t units)
{
	return units < (1u << 29) ? (uint32_t)units : 1u << 29;
}

static inline int eq_gpu_quant(const struct eq_decode_job *job,
			       struct eq_gpu_task *t, struct eq_gpu_tables *b)
{
	const struct eq_plan *plan = job->plan;
	uint64_t k = plan->row_units, first = job->first_unit / k;
	uint64_t rows = (job->first_unit + job->n_units - 1) / k - first + 1;
	bool is_f16 = plan->dtype == EQ_F16, is_f32 = plan->dtype == EQ_F32;
	uint64_t raw_len[3] = { rows * (plan->scale_dtype == EQ_SCALE_BF16 ? 2 : 4),
				job->n_units, 0 };
	uint32_t exponent = is_f32 ? 0x7f800000 : is_f16 ? 0x7c00 : 0x7f80;

	/* A lane makes four units at a time, with one scale. */
	if (k % 4 || job->first_unit % 4 || !eq_gpu_layout(job, 3, raw_len, t))
		return EQ_GPU_CPU;
	if (t->part[0].kind != EQ_PART_RAW ||
	    (t->part[1].kind != EQ_PART_RANS && t->part[1].kind != EQ_PART_PAIR) ||
	    (t->part[2].kind != EQ_PART_EMPTY && t->part[2].kind != EQ_PART_OUTLIERS) ||
	    !eq_gpu_scales_fine(plan, job->in + t->part[0].off, rows) ||
	    !eq_gpu_outliers_fine(job, &t->part[2], exponent) ||
	    !eq_gpu_coded(job, &t->part[1], b))
		return EQ_GPU_CPU;
	t->coded = 1;
	t->main = t->part[1];
	t->scale_f32 = plan->scale_dtype == EQ_SCALE_F32;
	t->row_units = eq_gpu_clamp(k);
	t->row_left = eq_gpu_clamp(k - job->first_unit % k);
	return EQ_GPU_QUANT + 2 * (is_f32 ? 2 : is_f16) +
	       (t->part[1].kind == EQ_PART_PAIR);
}

/*
 * Settle what the device needs to know of a job: fills what t has of parts and
 * units (the caller sets the addresses) and takes its tables into the batch.
 * Returns the class of kernel, or EQ_GPU_CPU.
 */
static inline int eq_gpu_prepare(const struct eq_decode_job *job,
				 struct eq_gpu_task *t, struct eq_gpu_tables *b)
{
	if (!job->n_units || job->n_units > EQ_MAX_CHUNK_UNITS)
		return EQ_GPU_CPU;
	memset(t, 0, sizeof(*t));
	t->n_units = job->n_units;
	t->unit = job->plan->unit;
	if (job->plan->codec == EQ_CODEC_PLANES)
		return eq_gpu_planes(job, t, b);
	if (job->plan->codec == EQ_CODEC_QUANT)
		return eq_gpu_quant(job, t, b);
	return EQ_GPU_CPU;
}

#endif
