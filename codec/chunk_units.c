/* SPDX-License-Identifier: Apache-2.0 */
/* From the bytes that a tile's parts hold to the units of the tensor. */
#include <string.h>

#include "chunk_dec.h"

int eq_escapes_take(struct eq_part *p, const uint8_t *pair, size_t n_15, uint32_t pos,
		    uint32_t n, uint32_t *first)
{
	*first = p->next_escape;
	for (; p->next_escape < p->head.n_entries; p->next_escape++, n_15--) {
		uint32_t e = p->escapes[p->next_escape];
		uint32_t at = (e >> 8) - pos, nibbles;

		if (e >> 8 < pos)
			return EQ_ECORRUPT;
		if (at >= n)
			break;
		if (p->next_escape && p->escapes[p->next_escape - 1] >> 8 >= e >> 8)
			return EQ_ECORRUPT;
		nibbles = pair[at / 128 * 64 + at % 64];
		if ((at % 128 < 64 ? nibbles & 15 : nibbles >> 4) != 15)
			return EQ_ECORRUPT;
	}
	return n_15 ? EQ_ECORRUPT : 0;
}

bool eq_pairs_to_units(const struct eq_member *m, unsigned i, uint32_t pos)
{
	const struct eq_plan *plan = m->job->plan;
	uint32_t n = eq_tile_units(m, pos);

	if (m->part[i].head.kind != EQ_PART_PAIR || plan->unit != 2 || n % 128)
		return false;
	if (plan->codec == EQ_CODEC_PLANES)
		return i == 0 && m->part[1].head.kind != EQ_PART_PAIR;
	return m->exact && (m->row_left >= n ||
			    (m->row_left % 128 == 0 && plan->row_units % 128 == 0));
}

static uint8_t *unit_at(const struct eq_member *m, uint32_t pos)
{
	return (uint8_t *)m->job->out + (size_t)pos * m->job->plan->unit;
}

/* The bytes of part i in the tile at pos. */
static const uint8_t *tile_bytes(struct eq_member *m, unsigned i, uint32_t pos)
{
	const struct eq_part *p = &m->part[i];

	return p->head.kind == EQ_PART_RAW ? p->data + pos :
	       p->table ? eq_tile_dest(m, i, pos) : eq_tile(m, i);
}

/* Pairs and a plane of bytes straight to units. */
static int merge_pairs(const struct eq_kernels *k, struct eq_member *m, uint32_t pos)
{
	struct eq_part *p = &m->part[0];
	bool rotate = m->job->plan->transform == EQ_TRANSFORM_ROTATED;
	const uint8_t *low = tile_bytes(m, 1, pos);
	uint32_t n = eq_tile_units(m, pos), i;
	size_t n_15 = k->pair_merge16(m->pair, n / 128, p->table->nibble, low,
				      rotate, unit_at(m, pos));

	if (eq_escapes_take(p, m->pair, n_15, pos, n, &i))
		return EQ_ECORRUPT;
	for (; i < p->next_escape; i++) {
		uint32_t at = p->escapes[i] >> 8;
		uint8_t high = (uint8_t)p->escapes[i];
		const uint8_t *plane[2] = { &high, low + (at - pos) };

		eq_merge_c(plane, 0, 1, rotate, unit_at(m, at), 2);
	}
	return 0;
}

static void merge_tile(const struct eq_kernels *k, struct eq_member *m, uint32_t pos)
{
	const struct eq_plan *plan = m->job->plan;
	const uint8_t *plane[EQ_PARTS_MAX];
	unsigned log2_unit = (unsigned)__builtin_ctz(plan->unit);

	if (eq_pairs_to_units(m, 0, pos)) {
		if (merge_pairs(k, m, pos))
			eq_member_fail(m);
		return;
	}
	for (unsigned i = 0; i < plan->unit; i++)
		plane[i] = tile_bytes(m, i, pos);
	if (plane[0] != unit_at(m, pos))
		k->merge[log2_unit](plane, eq_tile_units(m, pos),
				    plan->transform == EQ_TRANSFORM_ROTATED,
				    unit_at(m, pos));
}

static bool unit_finite(int dtype, uint32_t bits)
{
	uint32_t exponent = dtype == EQ_BF16 ? 0x7f80 :
			    dtype == EQ_F16  ? 0x7c00 : 0x7f800000;

	return (bits & exponent) != exponent;
}

/* Is there an outlier at this position of the chunk? */
static bool is_outlier(const struct eq_member *m, uint32_t pos)
{
	const struct eq_part *p = &m->part[2];
	uint32_t lo = 0, hi = p->head.n_entries;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;
		struct eq_disk_outlier o;

		memcpy(&o, p->data + 8 * (size_t)mid, sizeof(o));
		if (o.pos == pos)
			return true;
		if (o.pos < pos)
			lo = mid + 1;
		else
			hi = mid;
	}
	return false;
}

/* The slow check, for symbols that may lack a value or overflow. */
static int check_symbols(const struct eq_member *m, const uint8_t *sym, uint32_t n,
			 uint32_t pos)
{
	const struct eq_plan *plan = m->job->plan;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t bits = plan->unit == 4 ? m->lut.u32[sym[i]] :
						  m->lut.u16[sym[i]];

		if (!eq_has_value(plan, sym[i]) ||
		    (!unit_finite(plan->dtype, bits) && !is_outlier(m, pos + i)))
			return EQ_ECORRUPT;
	}
	return 0;
}

/* Escapes name any byte, so they are looked at one by one. */
static int check_escapes(const struct eq_member *m)
{
	const struct eq_part *p = &m->part[1];

	for (uint32_t i = 0; i < p->head.n_entries; i++)
		if (!eq_has_value(m->job->plan, (uint8_t)p->escapes[i]))
			return EQ_ECORRUPT;
	return 0;
}

/* Go to the next row: make its table. */
static void next_row(const struct eq_kernels *k, struct eq_member *m)
{
	const struct eq_plan *plan = m->job->plan;
	uint64_t first = m->job->first_unit / plan->row_units;
	float scale;

	if (m->row == UINT64_MAX) {
		m->row = first;
		m->row_left = plan->row_units -
			      m->job->first_unit % plan->row_units;
	} else {
		m->row++;
		m->row_left = plan->row_units;
	}
	scale = eq_scale_at(m, m->row - first);
	if (plan->dtype == EQ_BF16)
		k->lut_bf16(plan->value, scale, m->lut.u16);
	else if (plan->dtype == EQ_F16)
		k->lut_f16(plan->value, scale, m->lut.u16);
	else
		k->lut_f32(plan->value, scale, m->lut.u32);
}

/* n units of one row of pairs, all of which have a value. */
static int map_pairs(const struct eq_kernels *k, struct eq_member *m, const uint8_t *pair,
		     uint32_t pos, uint32_t n)
{
	struct eq_part *p = &m->part[1];
	uint16_t lut[16];
	uint32_t first;
	size_t n_15;

	for (unsigned i = 0; i < 16; i++)
		lut[i] = m->lut.u16[p->table->nibble[i]];
	n_15 = k->pair_map16(pair, n / 128, lut, unit_at(m, pos));
	if (eq_escapes_take(p, pair, n_15, pos, n, &first))
		return EQ_ECORRUPT;
	for (; first < p->next_escape; first++)
		memcpy(unit_at(m, p->escapes[first] >> 8),
		       &m->lut.u16[(uint8_t)p->escapes[first]], 2);
	return 0;
}

/* n units of one row of symbols. */
static int map_symbols(const struct eq_kernels *k, const struct eq_member *m,
		       const uint8_t *sym, uint32_t pos, uint32_t n)
{
	if (!m->exact && check_symbols(m, sym, n, pos))
		return EQ_ECORRUPT;
	if (m->job->plan->unit == 4)
		k->map32(sym, n, m->lut.u32, unit_at(m, pos));
	else
		k->map16(sym, n, m->lut.u16, unit_at(m, pos));
	return 0;
}

static void quant_tile(const struct eq_kernels *k, struct eq_member *m, uint32_t pos)
{
	bool pairs = eq_pairs_to_units(m, 1, pos);
	const uint8_t *sym = tile_bytes(m, 1, pos);
	uint32_t left = eq_tile_units(m, pos), done = 0, n;

	for (; left; left -= n, done += n) {
		if (!m->row_left)
			next_row(k, m);
		n = m->row_left < left ? (uint32_t)m->row_left : left;
		if (pairs ? map_pairs(k, m, m->pair + done / 2, pos + done, n) :
			    map_symbols(k, m, sym + done, pos + done, n)) {
			eq_member_fail(m);
			return;
		}
		m->row_left -= n;
	}
}

static int put_outliers(struct eq_member *m)
{
	const struct eq_part *p = &m->part[2];
	const struct eq_plan *plan = m->job->plan;
	uint8_t *out = m->job->out;
	struct eq_disk_outlier o;
	uint64_t least = 0;

	for (uint32_t i = 0; i < p->head.n_entries; i++) {
		memcpy(&o, p->data + 8 * (size_t)i, sizeof(o));
		if (o.pos < least || o.pos >= m->job->n_units ||
		    (plan->unit == 2 && o.bits >> 16) ||
		    !unit_finite(plan->dtype, o.bits))
			return EQ_ECORRUPT;
		least = (uint64_t)o.pos + 1;
		memcpy(out + (size_t)o.pos * plan->unit, &o.bits, plan->unit);
	}
	return 0;
}

void eq_chunk_units(const struct eq_kernels *k, struct eq_member *m, uint32_t pos)
{
	if (m->job->plan->codec == EQ_CODEC_QUANT)
		quant_tile(k, m, pos);
	else
		merge_tile(k, m, pos);
}

void eq_chunk_finish(struct eq_member *m)
{
	if (m->job->status)
		return;
	for (unsigned i = 0; i < m->n_parts; i++) {
		const struct eq_part *p = &m->part[i];

		if (p->table && (eq_rans_dec_finish(&p->dec) ||
				 (p->head.kind == EQ_PART_PAIR &&
				  p->next_escape != p->head.n_entries)))
			eq_member_fail(m);
	}
	if (!m->job->status && m->job->plan->codec == EQ_CODEC_QUANT &&
	    (check_escapes(m) || put_outliers(m)))
		eq_member_fail(m);
}
