/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoding on the CPU. Chunks of the same tensor go in teams: one rANS chunk
 * alone waits for its own results, several together keep the core busy. A team
 * advances tile by tile, so that planes and symbols stay in the first-level
 * cache between the decoder and the loop that makes units of them.
 *
 * Nothing here trusts the bytes of a chunk: part_layout() settles all lengths
 * before anything is read, tables are complete by construction (every slot has
 * an entry), and the rest is checked while decoding.
 */
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "backend.h"
#include "backend_simple.h"
#include "eqcodec.h"
#include "format.h"
#include "rans.h"

#define TEAM 4                  /* chunks at once, at most */
#define TILE 2048u              /* units, a multiple of 256 */
#define PARTS_MAX 8

struct part {
	struct eq_disk_part head;
	const uint8_t *data;
	const uint32_t *escapes;        /* PAIR, n_entries */
	uint32_t next_escape;
	const struct eq_table *table;
	struct eq_rans_dec dec;
};

/* One chunk of the team. */
struct member {
	struct eq_decode_job *job;
	unsigned n_parts;
	struct part part[PARTS_MAX];
	/* Quantised only: row of the unit that comes next, units left of it, and
	 * the table of that row. */
	uint64_t row;
	uint64_t row_left;
	bool lut_exact;         /* all symbols that can occur have a value */
	float value_max;        /* greatest magnitude of a value */
	bool row_finite;        /* and all values are finite in this row */
	union {
		uint16_t u16[256];
		uint32_t u32[256];
	} lut __attribute__((aligned(64)));
	uint8_t tile[PARTS_MAX][TILE] __attribute__((aligned(64)));
};

static void fail(struct member *m)
{
	m->job->status = EQ_ECORRUPT;
}

/* ---- layout of a chunk ----------------------------------------------------- */

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
static int part_start(struct part *p, const struct eq_plan *plan)
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
static int part_layout(struct member *m, const uint64_t *raw_len)
{
	const struct eq_decode_job *job = m->job;
	uint64_t pos = sizeof(struct eq_disk_part) * m->n_parts, len;

	if (pos > job->in_len)
		return EQ_ECORRUPT;
	for (unsigned i = 0; i < m->n_parts; i++) {
		struct part *p = &m->part[i];

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

static void start_planes(struct member *m)
{
	const struct eq_plan *plan = m->job->plan;
	uint64_t raw_len[PARTS_MAX];

	m->n_parts = plan->unit;
	for (unsigned i = 0; i < m->n_parts; i++)
		raw_len[i] = m->job->n_units;
	if (part_layout(m, raw_len)) {
		fail(m);
		return;
	}
	for (unsigned i = 0; i < m->n_parts; i++) {
		if (part_start(&m->part[i], plan))
			fail(m);
		if (m->part[i].head.kind == EQ_PART_CONST)
			memset(m->tile[i], m->part[i].head.arg, TILE);
	}
}

static float scale_at(const struct member *m, uint64_t i)
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

static bool has_value(const struct eq_plan *plan, uint8_t sym)
{
	return !isnan(plan->value[sym]);
}

/* Can the symbols of this part, escapes aside, only be such as have a value? */
static bool table_exact(const struct eq_plan *plan, const struct part *p)
{
	bool used[16] = { false };

	if (p->head.kind == EQ_PART_CONST)
		return has_value(plan, p->head.arg);
	if (p->head.kind == EQ_PART_RAW)
		return false;
	if (p->head.kind == EQ_PART_RANS) {
		for (unsigned s = 0; s < 256; s++)
			if (p->table->present[s >> 3] >> (s & 7) & 1 &&
			    !has_value(plan, (uint8_t)s))
				return false;
		return true;
	}
	for (unsigned i = 0; i < EQ_PROB_SIZE;) {
		uint32_t e = p->table->slot[i];

		used[e >> 24 & 15] = used[e >> 28] = true;
		i += e >> 12 & 4095;
	}
	for (unsigned i = 0; i < 15; i++)
		if (used[i] && !has_value(plan, p->table->nibble[i]))
			return false;
	return true;
}

static void start_quant(struct member *m)
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

	m->n_parts = 3;
	if (part_layout(m, raw_len) || m->part[0].head.kind != EQ_PART_RAW ||
	    part_start(&m->part[1], plan) ||
	    (m->part[2].head.kind != EQ_PART_EMPTY &&
	     m->part[2].head.kind != EQ_PART_OUTLIERS)) {
		fail(m);
		return;
	}
	for (uint64_t i = 0; i < rows; i++) {
		float scale = scale_at(m, i);

		if (!isfinite(scale) || scale < 0) {
			fail(m);
			return;
		}
	}
	if (m->part[1].head.kind == EQ_PART_CONST)
		memset(m->tile[1], m->part[1].head.arg, TILE);
	m->value_max = 0;
	for (unsigned s = 0; s < 256; s++)
		if (has_value(plan, (uint8_t)s))
			m->value_max = fmaxf(m->value_max, fabsf(plan->value[s]));
	m->lut_exact = table_exact(plan, &m->part[1]);
	m->row = UINT64_MAX; /* so that the first row is the next one */
	m->row_left = 0;
}

/* ---- symbols --------------------------------------------------------------- */

/* Units of the tile at `pos` that the member has. */
static uint32_t tile_units(const struct member *m, uint32_t pos)
{
	uint32_t n = m->job->n_units;

	return pos >= n ? 0 : n - pos < TILE ? n - pos : TILE;
}

/* Put the escapes of this tile in their places, given its pair symbols;
 * n_15 nibbles of the n bytes are 15. */
static int put_escapes(struct part *p, const uint8_t *pair, size_t n_15,
		       uint32_t pos, uint32_t n, uint8_t *tile)
{
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
		tile[at] = (uint8_t)e;
	}
	return n_15 ? EQ_ECORRUPT : 0;
}

/* Pair symbols -> n bytes of the tile; what the last block has beyond n bytes
 * is padding, and its escapes do not count. */
static int expand_tile(const struct eq_kernels *k, struct part *p,
		       const uint8_t *pair, uint32_t pos, uint32_t n,
		       uint8_t *tile)
{
	size_t blocks = (n + 127) / 128, n_15;

	n_15 = k->pair_expand(pair, blocks, p->table->nibble, tile);
	for (size_t i = n; i < blocks * 128; i++) {
		unsigned nibbles = pair[i / 128 * 64 + i % 64];

		n_15 -= (i % 128 < 64 ? nibbles & 15 : nibbles >> 4) == 15;
	}
	return put_escapes(p, pair, n_15, pos, n, tile);
}

/* Run decoders that want different numbers of groups. */
static void run_decoders(const struct eq_kernels *k, struct eq_rans_dec **dec,
			 uint8_t **out, size_t *groups, unsigned n)
{
	while (n) {
		size_t now = groups[0];
		unsigned left = 0;

		for (unsigned i = 1; i < n; i++)
			now = groups[i] < now ? groups[i] : now;
		k->rans_decode(dec, out, n, now);
		for (unsigned i = 0; i < n; i++) {
			if (groups[i] == now)
				continue;
			dec[left] = dec[i];
			out[left] = out[i] + now * EQ_GROUP;
			groups[left++] = groups[i] - now;
		}
		n = left;
	}
}

/* Decode part i of all members as far as the tile at pos goes. */
static void decode_tile(const struct eq_kernels *k, struct member *const *team,
			unsigned n_team, unsigned i, uint32_t pos)
{
	uint8_t pair[TEAM][TILE / 2] __attribute__((aligned(64)));
	struct eq_rans_dec *dec[TEAM];
	uint8_t *out[TEAM];
	size_t groups[TEAM];
	unsigned n = 0;

	for (unsigned j = 0; j < n_team; j++) {
		struct member *m = team[j];
		uint32_t units = tile_units(m, pos);

		if (!units || m->job->status || !m->part[i].table)
			continue;
		dec[n] = &m->part[i].dec;
		if (m->part[i].head.kind == EQ_PART_PAIR) {
			out[n] = pair[j];
			groups[n++] = (units + 255) / 256;
		} else {
			out[n] = m->tile[i];
			groups[n++] = (units + 127) / 128;
		}
	}
	run_decoders(k, dec, out, groups, n);
	for (unsigned j = 0; j < n_team; j++) {
		struct member *m = team[j];
		uint32_t units = tile_units(m, pos);

		if (units && !m->job->status &&
		    m->part[i].head.kind == EQ_PART_PAIR &&
		    expand_tile(k, &m->part[i], pair[j], pos, units, m->tile[i]))
			fail(m);
	}
}

/* The bytes of part i in the tile at pos. */
static const uint8_t *tile_bytes(const struct member *m, unsigned i, uint32_t pos)
{
	return m->part[i].head.kind == EQ_PART_RAW ? m->part[i].data + pos :
						     m->tile[i];
}

/* ---- units ----------------------------------------------------------------- */

static void merge_tile(const struct eq_kernels *k, struct member *m, uint32_t pos)
{
	const struct eq_plan *plan = m->job->plan;
	const uint8_t *plane[PARTS_MAX];
	uint32_t n = tile_units(m, pos);
	unsigned log2_unit = (unsigned)__builtin_ctz(plan->unit);

	for (unsigned i = 0; i < plan->unit; i++)
		plane[i] = tile_bytes(m, i, pos);
	k->merge[log2_unit](plane, n, plan->transform == EQ_TRANSFORM_ROTATED,
			    (uint8_t *)m->job->out + (size_t)pos * plan->unit);
}

static bool unit_finite(int dtype, uint32_t bits)
{
	uint32_t exponent = dtype == EQ_BF16 ? 0x7f80 :
			    dtype == EQ_F16  ? 0x7c00 : 0x7f800000;

	return (bits & exponent) != exponent;
}

/* Is there an outlier at this position of the chunk? */
static bool is_outlier(const struct member *m, uint32_t pos)
{
	const struct part *p = &m->part[2];
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
static int check_symbols(const struct member *m, const uint8_t *sym, uint32_t n,
			 uint32_t pos)
{
	const struct eq_plan *plan = m->job->plan;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t bits = plan->unit == 4 ? m->lut.u32[sym[i]] :
						  m->lut.u16[sym[i]];

		if (!has_value(plan, sym[i]) ||
		    (!unit_finite(plan->dtype, bits) && !is_outlier(m, pos + i)))
			return EQ_ECORRUPT;
	}
	return 0;
}

/* Escapes name any byte, so they are looked at one by one. */
static int check_escapes(const struct member *m)
{
	const struct part *p = &m->part[1];

	for (uint32_t i = 0; i < p->head.n_entries; i++)
		if (!has_value(m->job->plan, (uint8_t)p->escapes[i]))
			return EQ_ECORRUPT;
	return 0;
}

/* Does a product stay finite when it is converted? (Half a unit in the last
 * place below infinity, it rounds up.) */
static bool product_finite(int dtype, float product)
{
	float a = fabsf(product);

	return dtype == EQ_BF16 ? a < 0x1.ffp127f :
	       dtype == EQ_F16	? a < 65520.0f : isfinite(a);
}

/* Go to the next row: make its table. */
static void next_row(const struct eq_kernels *k, struct member *m)
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
	scale = scale_at(m, m->row - first);
	if (plan->dtype == EQ_BF16)
		k->lut_bf16(plan->value, scale, m->lut.u16);
	else if (plan->dtype == EQ_F16)
		k->lut_f16(plan->value, scale, m->lut.u16);
	else
		k->lut_f32(plan->value, scale, m->lut.u32);
	m->row_finite = product_finite(plan->dtype, m->value_max * scale);
}

static void quant_tile(const struct eq_kernels *k, struct member *m, uint32_t pos)
{
	const struct eq_plan *plan = m->job->plan;
	const uint8_t *sym = tile_bytes(m, 1, pos);
	uint8_t *out = (uint8_t *)m->job->out + (size_t)pos * plan->unit;
	uint32_t left = tile_units(m, pos), n;

	for (; left; left -= n, pos += n, sym += n, out += (size_t)n * plan->unit) {
		if (!m->row_left)
			next_row(k, m);
		n = m->row_left < left ? (uint32_t)m->row_left : left;
		if (!(m->lut_exact && m->row_finite) &&
		    check_symbols(m, sym, n, pos)) {
			fail(m);
			return;
		}
		if (plan->unit == 4)
			k->map32(sym, n, m->lut.u32, out);
		else
			k->map16(sym, n, m->lut.u16, out);
		m->row_left -= n;
	}
}

static int put_outliers(struct member *m)
{
	const struct part *p = &m->part[2];
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

/*
 * Have the memory fetch the raw planes of the tile at pos while the entropy
 * decoder works, which is busy with arithmetic. (Fetching the output as well was
 * measured: it drives the table out of the first-level cache.)
 */
static void prefetch_tile(const struct member *m, uint32_t pos)
{
	uint32_t n = tile_units(m, pos);

	for (unsigned i = 0; i < m->n_parts; i++)
		if (m->part[i].head.kind == EQ_PART_RAW)
			for (uint32_t at = 0; at < n; at += 64)
				__builtin_prefetch(m->part[i].data + pos + at);
}

/* ---- teams ----------------------------------------------------------------- */

static void finish(struct member *m)
{
	if (m->job->status)
		return;
	for (unsigned i = 0; i < m->n_parts; i++) {
		const struct part *p = &m->part[i];

		if (p->table && (eq_rans_dec_finish(&p->dec) ||
				 (p->head.kind == EQ_PART_PAIR &&
				  p->next_escape != p->head.n_entries)))
			fail(m);
	}
	if (!m->job->status && m->job->plan->codec == EQ_CODEC_QUANT &&
	    (check_escapes(m) || put_outliers(m)))
		fail(m);
}

/* Up to TEAM jobs of one plan. */
static void decode_team(const struct eq_kernels *k, struct eq_decode_job *jobs,
			unsigned n)
{
	const struct eq_plan *plan = jobs[0].plan;
	bool quant = plan->codec == EQ_CODEC_QUANT;
	struct member store[TEAM], *team[TEAM];
	uint32_t longest = 0;

	for (unsigned j = 0; j < n; j++) {
		struct member *m = team[j] = &store[j];

		m->job = &jobs[j];
		for (unsigned i = 0; i < PARTS_MAX; i++)
			m->part[i].table = NULL;
		if (quant)
			start_quant(m);
		else
			start_planes(m);
		if (!m->job->status && m->job->n_units > longest)
			longest = m->job->n_units;
	}
	for (uint32_t pos = 0; pos < longest; pos += TILE) {
		for (unsigned j = 0; j < n; j++)
			if (!quant && !team[j]->job->status)
				prefetch_tile(team[j], pos);
		for (unsigned i = quant; i < (quant ? 2u : plan->unit); i++)
			decode_tile(k, team, n, i, pos);
		for (unsigned j = 0; j < n; j++) {
			if (team[j]->job->status || !tile_units(team[j], pos))
				continue;
			if (quant)
				quant_tile(k, team[j], pos);
			else
				merge_tile(k, team[j], pos);
		}
	}
	for (unsigned j = 0; j < n; j++)
		finish(team[j]);
}

/* ---- the back end ----------------------------------------------------------- */

/* ctx is the table of kernels to use; NULL, the best one. */
static int cpu_decode(void *ctx, struct eq_decode_job *jobs, size_t n)
{
	const struct eq_kernels *k = ctx ? ctx : eq_kernels_get();
	unsigned team;

	for (size_t i = 0; i < n; i += team) {
		const struct eq_plan *plan = jobs[i].plan;

		team = 1;
		jobs[i].status = 0;
		if (!jobs[i].n_units)
			continue;
		if (plan->codec != EQ_CODEC_PLANES &&
		    plan->codec != EQ_CODEC_QUANT) {
			jobs[i].status = eq_decode_simple(&jobs[i]);
			continue;
		}
		while (team < TEAM && team < k->streams && i + team < n &&
		       jobs[i + team].plan == plan && jobs[i + team].n_units)
			jobs[i + team++].status = 0;
		decode_team(k, &jobs[i], team);
	}
	return 0;
}

static struct eq_backend cpu_backend = {
	.abi = EQ_BACKEND_ABI,
	.decode = cpu_decode,
};
static pthread_once_t cpu_once = PTHREAD_ONCE_INIT;
static char cpu_name[16];

static void cpu_init(void)
{
	strcpy(cpu_name, "cpu/");
	strncat(cpu_name, eq_cpu_isa(), sizeof(cpu_name) - 5);
	cpu_backend.name = cpu_name;
}

const struct eq_backend *eq_backend_cpu(void)
{
	pthread_once(&cpu_once, cpu_init);
	return &cpu_backend;
}

const char *eq_backend_name(const struct eq_backend *be)
{
	return be->name;
}
