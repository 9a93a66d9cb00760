/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The entropy coder, scalar reference: rANS (J. Duda, arXiv 1311.2540) with 32
 * interleaved lanes, 12-bit probabilities and 16-bit renormalisation. eqar.5,
 * ENTROPY CODER, has the bitstream.
 */
#include <string.h>

#include "eqcodec.h"
#include "format.h"
#include "rans.h"

/* All ones if a < b, else 0. No branch: nothing would predict this one. */
static inline uint32_t less_mask(uint32_t a, uint32_t b)
{
	return (uint32_t)(((uint64_t)a - b) >> 32);
}

static inline uint32_t pick(uint32_t mask, uint32_t a, uint32_t b)
{
	return b ^ ((a ^ b) & mask);
}

static void decode_one(struct eq_rans_dec *d, uint8_t *out, size_t groups)
{
	const uint32_t *slot = d->table->slot;
	const uint16_t *next = d->next;
	uint32_t *x = d->x;

	for (; groups; groups--, out += EQ_GROUP) {
		for (unsigned t = 0; t < 4; t++) {
#pragma GCC unroll 8
			for (unsigned l = 0; l < EQ_LANES; l++) {
				uint32_t e = slot[x[l] & 4095];
				uint32_t y = (e >> 12 & 4095) * (x[l] >> 12) +
					     (e & 4095);
				uint32_t low = less_mask(y, EQ_RANS_L);

				out[4 * l + t] = (uint8_t)(e >> 24);
				x[l] = pick(low, y << 16 | *next, y);
				next += low & 1;
			}
		}
		if (next > d->end) {
			next = d->end;
			d->err = 1;
		}
	}
	d->next = next;
}

static void rans_decode_c(struct eq_rans_dec *const *dec, uint8_t *const *out,
			  unsigned k, size_t groups)
{
	for (unsigned i = 0; i < k; i++)
		decode_one(dec[i], out[i], groups);
}

/* A symbol with the reciprocal of its frequency f rounded up, 2^64 / f: with
 * 64 bits the quotients are exact. */
struct divisor {
	uint64_t rcp;
	uint32_t limit;         /* f << 20: from there on a word is due */
	uint16_t gap, start;    /* 4096 - f */
};

static uint16_t *rans_encode_c(const struct eq_rans_enc *enc, uint32_t x[32],
			       const uint8_t *sym, size_t groups, uint16_t *top)
{
	struct divisor table[256];
	uint32_t absent = 0;

	for (unsigned s = 0; s < 256; s++) {
		uint32_t f = (uint16_t)(enc->entry[s] >> 32);

		table[s].rcp = f > 1 ? UINT64_MAX / f + 1 : UINT64_MAX;
		table[s].limit = f << 20;
		table[s].gap = (uint16_t)(EQ_PROB_SIZE - f);
		table[s].start = (uint16_t)(enc->entry[s] >> 48);
		if (f == 1) /* the quotient is one too small */
			table[s].start += table[s].gap;
	}
	for (sym += groups * EQ_GROUP; groups; groups--) {
		sym -= EQ_GROUP;
		for (unsigned t = 4; t-- > 0;) {
#pragma GCC unroll 4
			for (unsigned l = EQ_LANES; l-- > 0;) {
				const struct divisor *d = &table[sym[4 * l + t]];
				uint32_t y = x[l], due = y >= d->limit, q;

				top[-1] = (uint16_t)y; /* counts only if due */
				top -= due;
				y >>= 16 * due;
				q = (uint32_t)((unsigned __int128)y * d->rcp >> 64);
				x[l] = y + q * d->gap + d->start;
				absent |= d->gap;
			}
		}
	}
	return absent & EQ_PROB_SIZE ? NULL : top;
}

void eq_kernels_init_c(struct eq_kernels *k)
{
	k->isa = "c";
	k->streams = 4; /* for the table's sake: it stays in the cache */
	k->rans_decode = rans_decode_c;
	k->rans_encode = rans_encode_c;
	eq_split_init_c(k);
	eq_dequant_init_c(k);
}

int eq_rans_dec_init(struct eq_rans_dec *d, const uint8_t *part,
		     uint32_t n_words, const struct eq_table *table)
{
	memcpy(d->x, part, sizeof(d->x));
	d->next = (const uint16_t *)(const void *)(part + sizeof(d->x));
	d->end = d->next + n_words;
	d->table = table;
	d->err = 0;
	for (unsigned l = 0; l < EQ_LANES; l++)
		if (d->x[l] < EQ_RANS_L)
			return EQ_ECORRUPT;
	return 0;
}

int eq_rans_dec_finish(const struct eq_rans_dec *d)
{
	uint32_t diff = 0;

	for (unsigned l = 0; l < EQ_LANES; l++)
		diff |= d->x[l] ^ EQ_RANS_L;
	return d->err || d->next != d->end || diff ? EQ_ECORRUPT : 0;
}

size_t eq_rans_write(const struct eq_kernels *k, const struct eq_rans_enc *enc,
		     const uint8_t *sym, size_t n, uint8_t *out,
		     uint32_t *n_words)
{
	size_t full = n / EQ_GROUP, tail = n % EQ_GROUP, words, size;
	uint16_t *low = (uint16_t *)(void *)(out + 128);
	/* Room for a word a symbol, and for what the encoder spoils below. */
	uint16_t *top = low + (full + 1) * EQ_GROUP + 16, *p = top;
	uint32_t x[EQ_LANES];

	for (unsigned l = 0; l < EQ_LANES; l++)
		x[l] = EQ_RANS_L;
	if (tail) {
		uint8_t last[EQ_GROUP];

		memcpy(last, sym + full * EQ_GROUP, tail);
		memset(last + tail, enc->pad, EQ_GROUP - tail);
		p = k->rans_encode(enc, x, last, 1, p);
	}
	if (p)
		p = k->rans_encode(enc, x, sym, full, p);
	if (!p)
		return 0;
	words = (size_t)(top - p);
	memcpy(out, x, sizeof(x));
	memmove(low, p, 2 * words);
	size = eq_rans_size(words);
	memset(out + 128 + 2 * words, 0, size - 128 - 2 * words);
	*n_words = (uint32_t)words;
	return size;
}
