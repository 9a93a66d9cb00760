/* SPDX-License-Identifier: Apache-2.0 */
/* Where the parts of a chunk are, and whether they can be right; eq_chunk_start
 * settles all lengths before anything is read. */
#include <string.h>

#include "chunk_dec.h"

/* Length of a part, or UINT64_MAX when its head is not right; n is the number
 * of symbols, raw_len the bytes of a part RAW. */
static uint64_t part_length(const struct eq_disk_part *h, uint32_t n,
			    uint64_t raw_len)
{
	switch (h->kind) {
	case EQ_PART_EMPTY:
		return h->arg || h->n_words || h->n_entries ? UINT64_MAX : 0;
	case EQ_PART_RAW:
		return h->arg || h->n_words || h->n_entries ? UINT64_MAX : raw_len;
	case EQ_PART_CONST:
		return h->n_words || h->n_entries ? UINT64_MAX : 0;
	case EQ_PART_RANS:
		return h->n_entries ? UINT64_MAX : eq_rans_size(h->n_words);
	case EQ_PART_PAIR:
		return h->n_entries > n ? UINT64_MAX :
		       eq_rans_size(h->n_words) + UINT64_C(4) * h->n_entries;
	case EQ_PART_OUTLIERS:
		return h->arg || h->n_words || !h->n_entries || h->n_entries > n ?
		       UINT64_MAX : UINT64_C(8) * h->n_entries;
	default:
		return UINT64_MAX;
	}
}

/* A part of symbols: find its table and start its decoder. */
static int part_start(struct eq_part *p, const struct eq_plan *plan)
{
	bool pair = p->head.kind == EQ_PART_PAIR;

	if (p->head.kind == EQ_PART_RAW || p->head.kind == EQ_PART_CONST)
		return 0;
	if (p->head.kind != EQ_PART_RANS && !pair)
		return EQ_ECORRUPT;
	if (p->head.arg >= plan->n_tables)
		return EQ_ECORRUPT;
	p->table = &plan->tables[p->head.arg];
	if (p->table->mode != (pair ? EQ_TABLE_PAIR : EQ_TABLE_SINGLE))
		return EQ_ECORRUPT;
	p->escapes = (const uint32_t *)(const void *)
		(p->data + eq_rans_size(p->head.n_words));
	p->next_escape = 0;
	return eq_rans_dec_init(&p->dec, p->data, p->head.n_words,
				p->table);
}

/* Read the heads, check that the parts fill the chunk exactly. raw_len[i] is
 * the length of part i when it is RAW. */
static int part_layout(struct eq_member *m, const uint64_t *raw_len)
{
	const struct eq_decode_job *job = m->job;
	uint64_t pos = sizeof(struct eq_disk_part) * m->n_parts, len;

	if (pos > job->in_len)
		return EQ_ECORRUPT;
	for (unsigned i = 0; i < m->n_parts; i++) {
		struct eq_part *p = &m->part[i];

		memcpy(&p->head, job->in + i * sizeof(p->head), sizeof(p->head));
		if (p->head.zero0 || p->head.zero1)
			return EQ_ECORRUPT;
		len = part_length(&p->head, job->n_units, raw_len[i]);
		if (len > job->in_len - pos)
			return EQ_ECORRUPT;
		p->data = job->in + pos;
		pos = eq_align(pos + len, EQ_PART_ALIGN);
		if (pos > job->in_len)
			return EQ_ECORRUPT;
	}
	return pos == job->in_len ? 0 : EQ_ECORRUPT;
}

static void start_planes(struct eq_member *m)
{
	const struct eq_plan *plan = m->job->plan;
	uint64_t raw_len[EQ_PARTS_MAX];

	m->n_parts = plan->unit;
	for (unsigned i = 0; i < m->n_parts; i++)
		raw_len[i] = m->job->n_units;
	if (part_layout(m, raw_len)) {
		eq_member_fail(m);
		return;
	}
	for (unsigned i = 0; i < m->n_parts; i++) {
		if (part_start(&m->part[i], plan))
			eq_member_fail(m);
		if (m->part[i].head.kind == EQ_PART_CONST)
			memset(eq_tile(m, i), m->part[i].head.arg, m->tile_len);
	}
}

float eq_scale_at(const struct eq_member *m, uint64_t i)
{
	const uint8_t *p = m->part[0].data;
	uint32_t bits;
	uint16_t half;
	float scale;

	if (m->job->plan->scale_dtype == EQ_SCALE_BF16) {
		memcpy(&half, p + 2 * i, 2);
		bits = (uint32_t)half << 16;
	} else {
		memcpy(&bits, p + 4 * i, 4);
	}
	memcpy(&scale, &bits, 4);
	return scale;
}

/* Can the symbols of this part, escapes aside, only be such as have a value? */
static bool table_exact(const struct eq_plan *plan, const struct eq_part *p)
{
	bool used[16] = { false };

	if (p->head.kind == EQ_PART_CONST)
		return eq_has_value(plan, p->head.arg);
	if (p->head.kind == EQ_PART_RAW)
		return false;
	if (p->head.kind == EQ_PART_RANS) {
		for (unsigned s = 0; s < 256; s++)
			if (p->table->present[s >> 3] >> (s & 7) & 1 &&
			    !eq_has_value(plan, (uint8_t)s))
				return false;
		return true;
	}
	for (unsigned i = 0; i < EQ_PROB_SIZE;) {
		uint32_t e = p->table->slot[i];

		used[e >> 24 & 15] = used[e >> 28] = true;
		i += e >> 12 & 4095;
	}
	for (unsigned i = 0; i < 15; i++)
		if (used[i] && !eq_has_value(plan, p->table->nibble[i]))
			return false;
	return true;
}

/* Does a product stay finite when it is converted? (Half a unit in the last
 * place below infinity, it rounds up.) */
static bool product_finite(int dtype, float product)
{
	float a = fabsf(product);

	return dtype == EQ_BF16 ? a < 0x1.ffp127f :
	       dtype == EQ_F16	? a < 65520.0f : isfinite(a);
}

static void start_quant(struct eq_member *m)
{
	const struct eq_decode_job *job = m->job;
	const struct eq_plan *plan = job->plan;
	uint64_t first = job->first_unit / plan->row_units;
	uint64_t last = (job->first_unit + job->n_units - 1) / plan->row_units;
	uint64_t rows = last - first + 1;
	uint64_t raw_len[3] = {
		rows * (plan->scale_dtype == EQ_SCALE_BF16 ? 2 : 4),
		job->n_units, 0,
	};
	float value_max = 0, scale_max = 0;

	m->n_parts = 3;
	if (part_layout(m, raw_len) || m->part[0].head.kind != EQ_PART_RAW ||
	    part_start(&m->part[1], plan) ||
	    (m->part[2].head.kind != EQ_PART_EMPTY &&
	     m->part[2].head.kind != EQ_PART_OUTLIERS)) {
		eq_member_fail(m);
		return;
	}
	for (uint64_t i = 0; i < rows; i++) {
		float scale = eq_scale_at(m, i);

		if (!isfinite(scale) || scale < 0) {
			eq_member_fail(m);
			return;
		}
		scale_max = fmaxf(scale_max, scale);
	}
	if (m->part[1].head.kind == EQ_PART_CONST)
		memset(eq_tile(m, 1), m->part[1].head.arg, m->tile_len);
	for (unsigned s = 0; s < 256; s++)
		if (eq_has_value(plan, (uint8_t)s))
			value_max = fmaxf(value_max, fabsf(plan->value[s]));
	m->exact = table_exact(plan, &m->part[1]) &&
		   product_finite(plan->dtype, value_max * scale_max);
	m->row = UINT64_MAX; /* so that the first row is the next one */
	m->row_left = 0;
}

void eq_chunk_start(struct eq_member *m)
{
	for (unsigned i = 0; i < EQ_PARTS_MAX; i++)
		m->part[i].table = NULL;
	if (m->job->plan->codec == EQ_CODEC_QUANT)
		start_quant(m);
	else
		start_planes(m);
}
