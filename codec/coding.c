/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "coding.h"
#include "coding_tables.h"
#include "eqcodec.h"
#include "rans.h"

#define HEAD sizeof(struct eq_disk_part)
#define PARTS_QUANT 3
/* Escapes of a part PAIR, at most this share of its bytes: beyond it coding by
 * pairs was a mistake, and the part is stored as it is. */
#define ESCAPES_MAX(n) ((n) / 16)
#define NEAR_BELOW 4
#define NEAR_ABOVE 2

static size_t round_up(size_t n, size_t to)
{
	return (n + to - 1) / to * to;
}

static unsigned log2_unit(unsigned unit)
{
	return unit == 8 ? 3 : unit / 2;
}

void eq_hist_planes(unsigned unit, unsigned transform, const void *units,
		    size_t n, uint64_t (*hist)[256])
{
	const struct eq_kernels *k = eq_kernels_get();
	uint8_t buf[8][4096], *plane[8];
	const uint8_t *p = units;

	if (unit == 1) {
		k->histogram(p, n, hist[0]);
		return;
	}
	for (unsigned i = 0; i < 8; i++)
		plane[i] = buf[i];
	while (n) {
		size_t now = n < sizeof(buf[0]) ? n : sizeof(buf[0]);

		k->split[log2_unit(unit)](p, now,
					  transform == EQ_TRANSFORM_ROTATED,
					  plane);
		for (unsigned i = 0; i < unit; i++)
			k->histogram(buf[i], now, hist[i]);
		p += now * unit;
		n -= now;
	}
}

/* ---- choosing -------------------------------------------------------------- */

struct choice {
	uint64_t total;         /* symbols in the histogram */
	unsigned present, first;
	bool also[256];         /* symbols to expect: the present and near ones */
	uint64_t single, pair;  /* bits; UINT64_MAX if it cannot be */
	struct eq_freq pairs;
};

/* What a sample shows goes on a little: the rarest exponents of a tensor lie
 * below and above those of its sample. */
static void expect_near(struct choice *ch, const uint64_t hist[256])
{
	for (unsigned s = 0; s < 256; s++)
		for (unsigned near = s < NEAR_ABOVE ? 0 : s - NEAR_ABOVE;
		     near <= s + NEAR_BELOW && near < 256; near++)
			ch->also[s] |= hist[near] > 0;
}

static void choice_make(struct choice *ch, const uint64_t hist[256], bool sampled)
{
	uint16_t f[256];

	memset(ch, 0, sizeof(*ch));
	ch->single = ch->pair = UINT64_MAX;
	for (unsigned s = 256; s-- > 0;) {
		if (!hist[s])
			continue;
		ch->total += hist[s];
		ch->present++;
		ch->first = s;
		ch->also[s] = true;
	}
	if (ch->present < 2)
		return;
	if (sampled)
		expect_near(ch, hist);
	eq_freq_fit(hist, f);
	ch->single = eq_freq_bits(hist, f);
	/* Less than 1% is not worth decoding a plane for. */
	if (ch->single / 99 > ch->total * 8 / 100)
		ch->single = UINT64_MAX;
	else if (eq_freq_fit_pair(hist, &ch->pairs, &ch->pair))
		ch->pair = UINT64_MAX;
}

/* Bits by the better of what there is, without pairs. */
static uint64_t choice_bits(const struct choice *ch)
{
	if (ch->present == 1)
		return 0;
	return ch->single == UINT64_MAX ? 8 * ch->total : ch->single;
}

static unsigned add_table(struct eq_coding *c, const struct eq_freq *freq)
{
	c->freq[c->n_freq] = *freq;
	eq_freq_enc(freq->f, &c->enc[c->n_freq]);
	return c->n_freq++;
}

/* Bits of an histogram of a sample are scaled up to bytes of all units. */
static void add_size(struct eq_coding *c, const struct choice *ch, uint64_t bits)
{
	uint64_t n_chunks = (c->n_units - 1) / c->chunk_units + 1;

	/* 8: half of the padding. */
	c->size += (uint64_t)((double)bits / 8 * (double)c->n_units / (double)ch->total) +
		   n_chunks * (128 + 8);
}

/* Settle part i of c. Pairs may cost so many bits more, on the scale of the histogram. */
static void choice_take(struct eq_coding *c, unsigned i, const struct choice *ch,
			uint64_t more, const struct eq_run_hist *h)
{
	double share = (double)ch->total / (double)c->n_units;
	unsigned first = c->n_freq, n;
	uint64_t bits;

	c->part[i].spare = EQ_NO_TABLE;
	if (ch->present == 1) {
		c->part[i].kind = EQ_PART_CONST;
		c->part[i].arg = (uint8_t)ch->first;
		return;
	}
	if (ch->single == UINT64_MAX) {
		c->part[i].kind = EQ_PART_RAW;
		c->size += c->n_units;
		return;
	}
	n = eq_tables_choose(h, ch->also, share, &c->freq[first], c->table[i], &bits);
	if (ch->pair != UINT64_MAX && ch->pair <= bits + more) {
		c->part[i].kind = EQ_PART_PAIR;
		c->part[i].arg = (uint8_t)add_table(c, &ch->pairs);
		add_size(c, ch, ch->pair);
		return;
	}
	c->part[i].kind = EQ_PART_RANS;
	for (unsigned r = 0; r < h->n; r++)
		c->table[i][r] = (uint8_t)(c->table[i][r] + first);
	for (; c->n_freq < first + n; c->n_freq++)
		eq_freq_enc(c->freq[c->n_freq].f, &c->enc[c->n_freq]);
	add_size(c, ch, bits);
}

/* A table with all symbols for what the sample did not show. */
static void add_spare(struct eq_coding *c, unsigned i, const uint64_t hist[256])
{
	struct eq_freq freq = { .mode = EQ_TABLE_SINGLE };
	uint64_t all[256];

	for (unsigned s = 0; s < 256; s++)
		all[s] = hist[s] + 1;
	eq_freq_fit(all, freq.f);
	c->part[i].spare = (uint8_t)add_table(c, &freq);
}

static void coding_init(struct eq_coding *c, enum eq_codec_id codec,
			unsigned unit, uint64_t n_units, uint32_t chunk_units)
{
	memset(c, 0, sizeof(*c));
	c->codec = codec;
	c->unit = (uint8_t)unit;
	c->n_units = n_units;
	c->chunk_units = chunk_units;
	c->run_chunks = UINT32_MAX;
	for (unsigned s = 0; s < 256; s++)
		c->value[s] = NAN;
}

void eq_coding_runs(struct eq_coding *c, unsigned unit, unsigned transform,
		    uint64_t n_units, uint32_t chunk_units,
		    const struct eq_plane_hist *h)
{
	uint64_t bits = 0, all[8][256] = { { 0 } };
	struct choice ch[8];

	coding_init(c, EQ_CODEC_PLANES, unit, n_units, chunk_units);
	c->transform = (uint8_t)transform;
	c->n_parts = (uint8_t)unit;
	c->run_chunks = h->run_chunks;
	c->sampled = h->sampled;
	for (unsigned i = 0; i < h->n_runs * unit; i++)
		for (unsigned s = 0; s < 256; s++)
			all[i % unit][s] += h->hist[i][s];
	for (unsigned i = 0; i < unit; i++) {
		choice_make(&ch[i], all[i], h->sampled);
		bits += choice_bits(&ch[i]);
	}
	for (unsigned i = 0; i < unit; i++) {
		const struct eq_run_hist of = { h->hist + i, unit, h->n_runs };

		choice_take(c, i, &ch[i], bits / EQ_PAIRS_PLANES, &of);
	}
	for (unsigned i = 0; i < unit; i++)
		if (h->sampled && c->part[i].kind == EQ_PART_RANS)
			add_spare(c, i, all[i]);
	c->size += ((n_units - 1) / chunk_units + 1) * HEAD * c->n_parts;
}

void eq_coding_planes(struct eq_coding *c, unsigned unit, unsigned transform,
		      uint64_t n_units, uint32_t chunk_units,
		      const uint64_t (*hist)[256])
{
	const struct eq_plane_hist h = { .hist = hist, .n_runs = 1, .run_chunks = UINT32_MAX };

	eq_coding_runs(c, unit, transform, n_units, chunk_units, &h);
}

/* The symbols are part 1; parts 0 and 2 are as the format says. */
void eq_coding_quant(struct eq_coding *c, unsigned unit, unsigned scale_dtype,
		     uint64_t n_units, uint64_t row_units, uint32_t chunk_units,
		     const uint64_t hist[256], const float value[256],
		     uint64_t n_outliers)
{
	const struct eq_run_hist h = { .hist = (const uint64_t(*)[256])hist, .n = 1 };
	uint64_t n_chunks = (n_units - 1) / chunk_units + 1;
	uint64_t n_scales = n_units / row_units;
	struct choice ch;

	coding_init(c, EQ_CODEC_QUANT, unit, n_units, chunk_units);
	c->scale_dtype = (uint8_t)scale_dtype;
	c->row_units = row_units;
	c->n_parts = PARTS_QUANT;
	c->part[0].kind = EQ_PART_RAW;
	for (unsigned s = 0; s < 256; s++)
		if (hist[s])
			c->value[s] = value[s];
	choice_make(&ch, hist, false);
	choice_take(c, 1, &ch, choice_bits(&ch) / EQ_PAIRS_QUANT, &h);
	/* A row that a chunk boundary cuts has its scale in both chunks. */
	if (chunk_units % row_units)
		n_scales += n_chunks;
	c->size += n_scales * (scale_dtype == EQ_SCALE_BF16 ? 2 : 4) +
		   n_outliers * sizeof(struct eq_disk_outlier) +
		   n_chunks * (HEAD * PARTS_QUANT + 8);
}

size_t eq_params_write(const struct eq_coding *c, uint8_t *out)
{
	struct eq_disk_params head = { .n_freq = (uint16_t)c->n_freq };
	size_t pos = sizeof(head);

	for (unsigned i = 0; i < c->n_freq; i++)
		pos += eq_freq_write(&c->freq[i], out + pos);
	if (c->codec == EQ_CODEC_QUANT) {
		head.n_value = 1;
		pos += eq_value_write(c->value, out + pos);
	}
	memcpy(out, &head, sizeof(head));
	return pos;
}

/* ---- chunks ---------------------------------------------------------------- */

size_t eq_chunk_bound(const struct eq_coding *c, size_t n_outliers)
{
	size_t n = c->n_units < c->chunk_units ? c->n_units : c->chunk_units, size;

	size = c->n_parts * (HEAD + eq_rans_bound(n) + 4 * ESCAPES_MAX(n) +
			     EQ_PART_ALIGN);
	if (c->codec == EQ_CODEC_QUANT) {
		size += (size_t)((n - 1) / c->row_units + 2) * 4;
		size += n_outliers * sizeof(struct eq_disk_outlier);
	}
	return size;
}

/* Planes, then pair symbols and escapes. */
size_t eq_chunk_scratch(const struct eq_coding *c)
{
	size_t n = round_up(c->chunk_units, 128);

	return c->unit * n + n / 2 + 4 * ESCAPES_MAX(n);
}

struct chunk {
	const struct eq_kernels *k;
	const struct eq_coding *c;
	uint32_t number;
	uint8_t *out;
	size_t pos;             /* where the next part goes, a multiple of 16 */
	unsigned n_parts;
	uint8_t *scratch;       /* for pair symbols and escapes */
};

/* Add the head of a part whose len bytes are in place, and pad it. */
static void part_end(struct chunk *ch, const struct eq_disk_part *head,
		     size_t len)
{
	size_t end = round_up(ch->pos + len, EQ_PART_ALIGN);

	memset(ch->out + ch->pos + len, 0, end - ch->pos - len);
	memcpy(ch->out + ch->n_parts++ * HEAD, head, sizeof(*head));
	ch->pos = end;
}

static void part_copy(struct chunk *ch, struct eq_disk_part head,
		      const void *data, size_t len)
{
	if (len)
		memcpy(ch->out + ch->pos, data, len);
	part_end(ch, &head, len);
}

#define PAIR_RUN 32     /* blocks packed at once */

/* The positions and bytes of the nibbles 15 of one block, behind *n_esc. */
static void block_escapes(const uint8_t *in, size_t n, const uint8_t index[256],
			  size_t pos, uint32_t *esc, size_t *n_esc)
{
	for (size_t j = 0; j < n; j++)
		if (index[in[j]] == 15)
			esc[(*n_esc)++] = (uint32_t)((pos + j) << 8 | in[j]);
}

void eq_pair_index(const struct eq_freq *freq, uint8_t index[256])
{
	memset(index, 15, 256);
	for (unsigned i = 0; i < 15; i++)
		if (freq->f[i << 4 | i]) /* or the nibble is not in use */
			index[freq->nibble[i]] = (uint8_t)i;
}

/* Whether a block of pairs has a nibble 15. */
static bool has_escape(const uint8_t pair[64])
{
	const uint64_t ones = UINT64_C(0x1111111111111111);
	uint64_t found = 0;

	for (unsigned i = 0; i < 64; i += 8) {
		uint64_t v;

		/* Now look for a nibble 0; to subtract 1 borrows there first. */
		memcpy(&v, pair + i, 8);
		v = ~v;
		found |= (v - ones) & ~v & ones << 3;
	}
	return found;
}

/* Returns the bytes of the part, or 0 when it cannot be or would not pay. */
static size_t part_pair(struct chunk *ch, unsigned arg, const uint8_t *sym,
			size_t n, struct eq_disk_part *head)
{
	const struct eq_freq *freq = &ch->c->freq[arg];
	uint8_t *pair = ch->scratch, *out = ch->out + ch->pos;
	uint32_t *esc = (uint32_t *)(void *)(pair + round_up(n, 128) / 2);
	size_t n_esc = 0, size, blocks = (n + 127) / 128, run;
	uint8_t index[256], last[128];

	eq_pair_index(freq, index);
	for (size_t b = 0; b < blocks; b += run) {
		const uint8_t *in = sym + b * 128;
		size_t len = n - b * 128;

		run = len / 128 < PAIR_RUN ? len / 128 : PAIR_RUN;
		if (!run) {
			memcpy(last, in, len);
			memset(last + len, freq->nibble[0], 128 - len);
			in = last;
			run = 1;
		}
		if (!ch->k->pair_pack(in, run, index, pair + b * 64))
			continue;
		for (size_t i = 0; i < run; i++) {
			if (!has_escape(pair + (b + i) * 64))
				continue;
			if (n_esc + 128 > ESCAPES_MAX(n))
				return 0;
			block_escapes(in + i * 128, len < 128 ? len : 128, index,
				      (b + i) * 128, esc, &n_esc);
		}
	}
	size = eq_rans_write(ch->k, &ch->c->enc[arg], pair, blocks * 64, out,
			     &head->n_words);
	if (!size || size + 4 * n_esc >= n)
		return 0;
	memcpy(out + size, esc, 4 * n_esc);
	head->n_entries = (uint32_t)n_esc;
	return size + 4 * n_esc;
}

/* The same; with the spare table if there are symbols that the run's has not. */
static size_t part_rans(struct chunk *ch, unsigned i, const uint8_t *sym,
			size_t n, struct eq_disk_part *head)
{
	const struct eq_coding *c = ch->c;
	uint8_t *out = ch->out + ch->pos;
	size_t size;

	size = eq_rans_write(ch->k, &c->enc[head->arg], sym, n, out, &head->n_words);
	if (size || c->part[i].spare == EQ_NO_TABLE)
		return size;
	head->arg = c->part[i].spare;
	return eq_rans_write(ch->k, &c->enc[head->arg], sym, n, out, &head->n_words);
}

/* n bytes as part i of the coding, or as something simpler. */
static void part_symbols(struct chunk *ch, unsigned i, const uint8_t *sym,
			 size_t n)
{
	struct eq_disk_part head = { .kind = ch->c->part[i].kind,
				     .arg = eq_coding_arg(ch->c, i, ch->number) };
	const struct eq_disk_part raw = { .kind = EQ_PART_RAW };
	size_t size = 0;

	if (!memcmp(sym, sym + 1, n - 1)) {
		head.kind = EQ_PART_CONST;
		head.arg = sym[0];
		part_end(ch, &head, 0);
		return;
	}
	if (head.kind == EQ_PART_RANS)
		size = part_rans(ch, i, sym, n, &head);
	else if (head.kind == EQ_PART_PAIR)
		size = part_pair(ch, head.arg, sym, n, &head);
	if (size && size < n)
		part_end(ch, &head, size);
	else
		part_copy(ch, raw, sym, n);
}

static void chunk_init(struct chunk *ch, const struct eq_coding *c,
		       uint32_t chunk, uint8_t *out, uint8_t *scratch)
{
	ch->k = eq_kernels_get();
	ch->c = c;
	ch->number = chunk;
	ch->out = out;
	ch->pos = c->n_parts * HEAD;
	ch->n_parts = 0;
	ch->scratch = scratch;
}

size_t eq_chunk_encode_planes(const struct eq_coding *c, uint32_t chunk,
			      const void *units, uint32_t n, uint8_t *out,
			      uint8_t *scratch)
{
	size_t stride = round_up(c->chunk_units, 128);
	uint8_t *plane[8];
	struct chunk ch;

	chunk_init(&ch, c, chunk, out, scratch + c->unit * stride);
	if (c->unit == 1) {
		part_symbols(&ch, 0, units, n);
		return ch.pos;
	}
	for (unsigned i = 0; i < c->unit; i++)
		plane[i] = scratch + i * stride;
	ch.k->split[log2_unit(c->unit)](units, n,
					c->transform == EQ_TRANSFORM_ROTATED,
					plane);
	for (unsigned i = 0; i < c->unit; i++)
		part_symbols(&ch, i, plane[i], n);
	return ch.pos;
}

unsigned eq_chunk_tables(const struct eq_coding *c, const uint8_t *chunk)
{
	struct eq_disk_part head;
	unsigned n = 0;

	for (unsigned i = 0; i < c->n_parts; i++) {
		memcpy(&head, chunk + i * HEAD, sizeof(head));
		if ((head.kind == EQ_PART_RANS || head.kind == EQ_PART_PAIR) && head.arg >= n)
			n = head.arg + 1u;
	}
	return n;
}

size_t eq_chunk_encode_quant(const struct eq_coding *c, const uint8_t *sym,
			     uint32_t n, const void *scales, size_t scale_bytes,
			     const struct eq_disk_outlier *outliers,
			     size_t n_outliers, uint8_t *out, uint8_t *scratch)
{
	struct eq_disk_part head = { .kind = EQ_PART_RAW };
	struct chunk ch;

	chunk_init(&ch, c, 0, out, scratch);
	part_copy(&ch, head, scales, scale_bytes);
	part_symbols(&ch, 1, sym, n);
	head.kind = n_outliers ? EQ_PART_OUTLIERS : EQ_PART_EMPTY;
	head.n_entries = (uint32_t)n_outliers;
	part_copy(&ch, head, outliers, n_outliers * sizeof(*outliers));
	return ch.pos;
}
