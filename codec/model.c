/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "eqcodec.h"
#include "format.h"
#include "model.h"

#define LOG_BITS 24

/* log2 of 1 to 4096, times 2^24. */
static uint32_t log_table[EQ_PROB_SIZE + 1];
static pthread_once_t log_once = PTHREAD_ONCE_INIT;

/* Digit by digit: squaring the mantissa doubles its logarithm. */
static void log_init(void)
{
	for (uint32_t i = 1; i <= EQ_PROB_SIZE; i++) {
		uint32_t whole = 31 - (uint32_t)__builtin_clz(i), frac = 0;
		uint64_t m = (uint64_t)i << (31 - whole);

		for (unsigned b = 0; b < LOG_BITS; b++) {
			m = m * m >> 31;
			frac = frac << 1 | (uint32_t)(m >> 32);
			m >>= m >> 32;
		}
		log_table[i] = whole << LOG_BITS | frac;
	}
}

static const uint32_t *log_get(void)
{
	pthread_once(&log_once, log_init);
	return log_table;
}

/* hist scaled so that its sum is below 2^33 and n * log2 fits 64 bits, present
 * symbols kept; returns the sum. */
static uint64_t hist_scale(const uint64_t hist[256], uint64_t n[256])
{
	uint64_t total = 0, sum = 0;
	unsigned shift = 0;

	for (unsigned s = 0; s < 256; s++)
		total += hist[s];
	while (total >> shift >> 32)
		shift++;
	for (unsigned s = 0; s < 256; s++) {
		n[s] = hist[s] >> shift;
		if (hist[s] && !n[s])
			n[s] = 1;
		sum += n[s];
	}
	return sum;
}

/* Numbers of which the greatest is wanted, again and again as single ones change: of
 * each 16 it is known. Ties go to the smallest symbol. */
struct greatest {
	uint64_t v[256];
	uint8_t of[16];
};

static void greatest_find(struct greatest *g, unsigned block)
{
	unsigned best = 16 * block;

	for (unsigned s = best + 1; s < 16 * block + 16; s++)
		if (g->v[s] > g->v[best])
			best = s;
	g->of[block] = (uint8_t)best;
}

static unsigned greatest_get(const struct greatest *g)
{
	unsigned best = g->of[0];

	for (unsigned b = 1; b < 16; b++)
		if (g->v[g->of[b]] > g->v[best])
			best = g->of[b];
	return best;
}

/* What each symbol gains from one more, and what it loses by one less, less all
 * that could be. A table takes hundreds of steps, and small tensors have one each. */
struct steps {
	const uint64_t *n;
	const uint32_t *lg;
	struct greatest gain, spare;
};

static void steps_set(struct steps *t, const uint16_t f[256], unsigned s)
{
	t->gain.v[s] = t->n[s] ? t->n[s] * (t->lg[f[s] + 1] - t->lg[f[s]]) : 0;
	t->spare.v[s] = f[s] < 2 ? 0 : UINT64_MAX - t->n[s] * (t->lg[f[s]] - t->lg[f[s] - 1]);
}

static void step(struct steps *t, uint16_t f[256], unsigned s, int by)
{
	f[s] = (uint16_t)(f[s] + by);
	steps_set(t, f, s);
	greatest_find(&t->gain, s / 16);
	greatest_find(&t->spare, s / 16);
}

void eq_freq_fit(const uint64_t hist[256], uint16_t f[256])
{
	uint64_t n[256], total = hist_scale(hist, n);
	struct steps t = { .n = n, .lg = log_get() };
	unsigned sum = 0, up, down;

	for (unsigned s = 0; s < 256; s++) {
		f[s] = (uint16_t)(n[s] * EQ_PROB_SIZE / total);
		if (n[s] && !f[s])
			f[s] = 1;
		sum += f[s];
		steps_set(&t, f, s);
	}
	for (unsigned b = 0; b < 16; b++) {
		greatest_find(&t.gain, b);
		greatest_find(&t.spare, b);
	}
	for (; sum > EQ_PROB_SIZE; sum--)
		step(&t, f, greatest_get(&t.spare), -1);
	for (; sum < EQ_PROB_SIZE; sum++)
		step(&t, f, greatest_get(&t.gain), 1);
	for (;;) {
		up = greatest_get(&t.gain);
		down = greatest_get(&t.spare);
		if (t.gain.v[up] <= UINT64_MAX - t.spare.v[down])
			break;
		step(&t, f, up, 1);
		step(&t, f, down, -1);
	}
}

uint64_t eq_freq_bits(const uint64_t hist[256], const uint16_t f[256])
{
	const uint32_t *lg = log_get();
	uint64_t whole = 0, frac = 0;

	for (unsigned s = 0; s < 256; s++) {
		uint64_t cost, n = hist[s];

		if (!n)
			continue;
		if (!f[s])
			return UINT64_MAX;
		cost = (EQ_PROB_BITS << LOG_BITS) - lg[f[s]];
		whole += (n >> LOG_BITS) * cost;
		frac += (n & ((1u << LOG_BITS) - 1)) * cost;
	}
	return whole + (frac >> LOG_BITS);
}

/* Symbols by descending count, ties to the smaller; returns how many occur. */
static unsigned sort_symbols(const uint64_t hist[256], uint8_t order[256])
{
	unsigned n = 0;

	for (unsigned s = 0; s < 256; s++) {
		unsigned i = n;

		if (!hist[s])
			continue;
		for (; i > 0 && hist[order[i - 1]] < hist[s]; i--)
			order[i] = order[i - 1];
		order[i] = (uint8_t)s;
		n++;
	}
	return n;
}

/* The pair table with `used` symbols as nibbles; returns its size in bits. */
static uint64_t fit_pair(const uint64_t hist[256], uint64_t total,
			 const uint8_t order[256], unsigned used,
			 struct eq_freq *out)
{
	uint64_t p[16] = { 0 }, pair[256] = { 0 }, rest = total, sum = 0, bits;

	memset(out, 0, sizeof(*out));
	out->mode = EQ_TABLE_PAIR;
	for (unsigned i = 0; i < used; i++) {
		out->nibble[i] = order[i];
		p[i] = hist[order[i]];
		rest -= p[i];
	}
	p[15] = rest;
	/* Probabilities in 1/65536, so that a product takes 32 bits. */
	for (unsigned i = 0; i < 16; i++) {
		uint64_t scaled = total >> 40 ? p[i] / (total >> 16) :
						(p[i] << 16) / total;

		p[i] = p[i] && !scaled ? 1 : scaled;
	}
	for (unsigned s = 0; s < 256; s++) {
		pair[s] = p[s & 15] * p[s >> 4];
		sum += pair[s];
	}
	eq_freq_fit(pair, out->f);
	bits = eq_freq_bits(pair, out->f);
	/* bits / sum a pair, total / 2 pairs. */
	return (uint64_t)((__extension__(unsigned __int128)bits) * total / sum / 2) +
	       32 * rest;
}

int eq_freq_fit_pair(const uint64_t hist[256], struct eq_freq *out,
		     uint64_t *bits)
{
	uint64_t total = 0, covered = 0, size;
	unsigned present, used;
	uint8_t order[256];
	struct eq_freq next;

	present = sort_symbols(hist, order);
	if (present < 2)
		return -1;
	for (unsigned i = 0; i < present; i++)
		total += hist[order[i]];
	used = present < 15 ? present : 15;
	for (unsigned i = 0; i < used; i++)
		covered += hist[order[i]];
	if (total - covered > total / 1000)
		return -1;
	*bits = fit_pair(hist, total, order, used, out);
	/* A rare symbol may be cheaper as an escape: it takes 1/4096 of the
	 * probabilities from each pair it could be in. */
	while (used > 1) {
		covered -= hist[order[--used]];
		if (total - covered > total / 1000)
			break;
		size = fit_pair(hist, total, order, used, &next);
		if (size >= *bits)
			break;
		*bits = size;
		*out = next;
	}
	return 0;
}

uint64_t eq_freq_fit_quant(const uint64_t hist[256], struct eq_freq *out)
{
	struct eq_freq pairs;
	uint64_t bits, pair;

	memset(out, 0, sizeof(*out));
	out->mode = EQ_TABLE_SINGLE;
	eq_freq_fit(hist, out->f);
	bits = eq_freq_bits(hist, out->f);
	if (eq_freq_fit_pair(hist, &pairs, &pair) || pair > bits + bits / EQ_PAIRS_QUANT)
		return bits;
	*out = pairs;
	return pair;
}

void eq_freq_enc(const uint16_t f[256], struct eq_rans_enc *enc)
{
	uint32_t start = 0;

	memset(enc, 0, sizeof(*enc));
	for (unsigned s = 0; s < 256; s++) {
		if (!f[s])
			continue;
		enc->entry[s] = UINT32_MAX / f[s] | (uint64_t)f[s] << 32 |
				(uint64_t)start << 48;
		if (f[s] > f[enc->pad])
			enc->pad = (uint8_t)s;
		start += f[s];
	}
}

void eq_freq_dec(const struct eq_freq *freq, struct eq_table *table)
{
	uint32_t *slot = table->slot;

	memset(table, 0, sizeof(*table));
	table->mode = freq->mode;
	memcpy(table->nibble, freq->nibble, sizeof(table->nibble));
	for (uint32_t s = 0; s < 256; s++) {
		if (!freq->f[s])
			continue;
		table->start[table->n_syms] = (uint16_t)(slot - table->slot);
		table->sym[table->n_syms++] = (uint8_t)s;
		if (freq->mode == EQ_TABLE_SINGLE)
			table->present[s >> 3] |= (uint8_t)(1 << (s & 7));
		for (uint32_t i = 0; i < freq->f[s]; i++)
			*slot++ = s << 24 | (uint32_t)freq->f[s] << 12 | i;
	}
	for (unsigned i = table->n_syms; i < 256; i++)
		table->start[i] = EQ_PROB_SIZE;
}

/* ---- parameters ---------------------------------------------------------- */

static size_t pad8(uint8_t *out, size_t len)
{
	size_t end = eq_align(len, 8);

	memset(out + len, 0, end - len);
	return end;
}

size_t eq_freq_write(const struct eq_freq *freq, uint8_t *out)
{
	struct eq_disk_freq head = { .mode = freq->mode };
	size_t pos = sizeof(head);
	uint8_t *bitmap;

	if (freq->mode == EQ_TABLE_PAIR) {
		memcpy(out + pos, freq->nibble, 16);
		pos += 16;
	}
	bitmap = out + pos;
	memset(bitmap, 0, 32);
	pos += 32;
	for (unsigned s = 0; s < 256; s++) {
		if (!freq->f[s])
			continue;
		bitmap[s >> 3] |= (uint8_t)(1 << (s & 7));
		memcpy(out + pos, &freq->f[s], 2);
		pos += 2;
		head.n_sym++;
	}
	memcpy(out, &head, sizeof(head));
	return pad8(out, pos);
}

size_t eq_value_write(const float value[256], uint8_t *out)
{
	struct eq_disk_value head = { 0 };
	size_t pos = sizeof(head);

	for (unsigned s = 0; s < 256; s++) {
		if (isnan(value[s]))
			continue;
		head.bitmap[s >> 3] |= (uint8_t)(1 << (s & 7));
		memcpy(out + pos, &value[s], 4);
		pos += 4;
		head.n_sym++;
	}
	memcpy(out, &head, sizeof(head));
	return pad8(out, pos);
}

struct reader {
	const uint8_t *p;
	size_t left;
};

/* The next len bytes, or NULL at the end. */
static const uint8_t *take(struct reader *r, size_t len)
{
	const uint8_t *p = r->p;

	if (len > r->left)
		return NULL;
	r->p += len;
	r->left -= len;
	return p;
}

static unsigned bits_set(const uint8_t bitmap[32])
{
	unsigned n = 0;

	for (unsigned i = 0; i < 32; i++)
		n += (unsigned)__builtin_popcount(bitmap[i]);
	return n;
}

static bool bit_is(const uint8_t bitmap[32], unsigned s)
{
	return bitmap[s >> 3] >> (s & 7) & 1;
}

static int freq_read(struct reader *r, struct eq_freq *freq)
{
	struct eq_disk_freq head;
	const uint8_t *p = take(r, sizeof(head)), *nibble = NULL, *bitmap, *list;
	unsigned sum = 0;

	if (!p)
		return EQ_ECORRUPT;
	memcpy(&head, p, sizeof(head));
	if ((head.mode != EQ_TABLE_SINGLE && head.mode != EQ_TABLE_PAIR) ||
	    head.zero0 || head.zero1 || head.n_sym < 2 || head.n_sym > 256)
		return EQ_ECORRUPT;
	memset(freq, 0, sizeof(*freq));
	freq->mode = head.mode;
	if (head.mode == EQ_TABLE_PAIR) {
		nibble = take(r, 16);
		if (!nibble || nibble[15])
			return EQ_ECORRUPT;
		memcpy(freq->nibble, nibble, 16);
	}
	bitmap = take(r, 32);
	if (!bitmap || bits_set(bitmap) != head.n_sym)
		return EQ_ECORRUPT;
	list = take(r, eq_align(2u * head.n_sym, 8));
	if (!list)
		return EQ_ECORRUPT;
	for (unsigned s = 0; s < 256; s++) {
		if (!bit_is(bitmap, s))
			continue;
		memcpy(&freq->f[s], list, 2);
		list += 2;
		if (!freq->f[s] || freq->f[s] >= EQ_PROB_SIZE)
			return EQ_ECORRUPT;
		sum += freq->f[s];
	}
	return sum == EQ_PROB_SIZE ? 0 : EQ_ECORRUPT;
}

static int value_read(struct reader *r, float value[256])
{
	struct eq_disk_value head;
	const uint8_t *p = take(r, sizeof(head)), *list;

	if (!p)
		return EQ_ECORRUPT;
	memcpy(&head, p, sizeof(head));
	if (head.n_sym < 1 || head.n_sym > 256 || head.zero ||
	    bits_set(head.bitmap) != head.n_sym)
		return EQ_ECORRUPT;
	list = take(r, eq_align(4u * head.n_sym, 8));
	if (!list)
		return EQ_ECORRUPT;
	for (unsigned s = 0; s < 256; s++) {
		value[s] = NAN;
		if (!bit_is(head.bitmap, s))
			continue;
		memcpy(&value[s], list, 4);
		list += 4;
		if (!isfinite(value[s]))
			return EQ_ECORRUPT;
	}
	return 0;
}

/* Does the record make sense, and how many value tables does it take? */
static int plan_fields(const struct eq_plan *plan, unsigned *n_value)
{
	bool quant = plan->codec == EQ_CODEC_QUANT;

	*n_value = quant ? 1 : 0;
	if (plan->unit != 1 && plan->unit != 2 && plan->unit != 4 &&
	    plan->unit != 8)
		return EQ_ECORRUPT;
	if (plan->transform > EQ_TRANSFORM_ROTATED ||
	    (plan->transform &&
	     (plan->unit == 1 || plan->codec != EQ_CODEC_PLANES)))
		return EQ_ECORRUPT;
	if (!quant)
		return plan->scale_dtype || plan->row_units ? EQ_ECORRUPT : 0;
	if (plan->dtype != EQ_F16 && plan->dtype != EQ_BF16 &&
	    plan->dtype != EQ_F32)
		return EQ_ECORRUPT;
	if (plan->unit != (plan->dtype == EQ_F32 ? 4 : 2) || !plan->row_units ||
	    plan->n_units % plan->row_units ||
	    (plan->scale_dtype != EQ_SCALE_BF16 &&
	     plan->scale_dtype != EQ_SCALE_F32))
		return EQ_ECORRUPT;
	return 0;
}

/* Go through the parameters; fill tables and value where they are not NULL. */
static int params_walk(const struct eq_plan *plan, const uint8_t *params,
		       size_t len, unsigned *n_freq, struct eq_table *tables,
		       float *value)
{
	struct reader r = { params, len };
	struct eq_disk_params head = { 0 };
	float any[256];
	struct eq_freq freq;
	unsigned n_value;
	int rc = plan_fields(plan, &n_value);

	*n_freq = 0;
	if (rc)
		return rc;
	if (plan->codec != EQ_CODEC_PLANES && plan->codec != EQ_CODEC_QUANT)
		return len ? EQ_ECORRUPT : 0;
	if (len < sizeof(head))
		return EQ_ECORRUPT;
	memcpy(&head, take(&r, sizeof(head)), sizeof(head));
	if (head.n_freq > EQ_MAX_TABLES)
		return EQ_ELIMIT;
	if (head.n_value != n_value || head.zero)
		return EQ_ECORRUPT;
	*n_freq = head.n_freq;
	for (unsigned i = 0; !rc && i < head.n_freq; i++) {
		rc = freq_read(&r, &freq);
		if (!rc && tables)
			eq_freq_dec(&freq, &tables[i]);
	}
	if (!rc && n_value)
		rc = value_read(&r, value ? value : any);
	if (!rc && r.left)
		rc = EQ_ECORRUPT;
	return rc;
}

int eq_plan_check(const struct eq_plan *plan, const uint8_t *params, size_t len)
{
	unsigned n_freq;

	return params_walk(plan, params, len, &n_freq, NULL, NULL);
}

int eq_plan_init(struct eq_plan *plan, const uint8_t *params, size_t len)
{
	struct eq_table *tables = NULL;
	float *value = NULL;
	unsigned n_freq;
	int rc;

	plan->n_tables = 0;
	plan->tables = NULL;
	plan->value = NULL;
	rc = params_walk(plan, params, len, &n_freq, NULL, NULL);
	if (rc)
		return rc;
	/* One cache line more than needed does not matter; alignment does. */
	if (n_freq) {
		tables = aligned_alloc(64, eq_align(n_freq * sizeof(*tables), 64));
		if (!tables)
			return -ENOMEM;
	}
	if (plan->codec == EQ_CODEC_QUANT) {
		value = aligned_alloc(64, 256 * sizeof(*value));
		if (!value) {
			free(tables);
			return -ENOMEM;
		}
	}
	params_walk(plan, params, len, &n_freq, tables, value);
	plan->n_tables = n_freq;
	plan->tables = tables;
	plan->value = value;
	return 0;
}

void eq_plan_fini(struct eq_plan *plan)
{
	free(plan->tables);
	free(plan->value);
	plan->tables = NULL;
	plan->value = NULL;
	plan->n_tables = 0;
}
