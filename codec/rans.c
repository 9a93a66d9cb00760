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

/* ---- decoding -------------------------------------------------------------- */

/*
 * A step of all lanes goes in passes: what is the same for every lane is done for
 * four at once with whatever the compiler has for that, and nothing shorter than 4
 * bytes is stored between stores to other places, each of which takes 5 cycles
 * where caches are checked by 4 bytes (Zen 3).
 */
typedef uint32_t v4 __attribute__((vector_size(16)));

union lanes {
	uint32_t u[EQ_LANES];
	v4 v[EQ_LANES / 4];
};

/* A number in a register: compilers would put four together, at some cost. */
static inline uint32_t apart(uint32_t a)
{
	__asm__("" : "+r"(a));
	return a;
}

struct lane_states {
	union lanes x;
	union lanes y, low;     /* before they take words; all ones if one is due */
};

/* The entries of four states. */
static inline v4 find_entries(const uint32_t *slot, const uint32_t *x)
{
	return (v4){ slot[x[0] & 4095], slot[x[1] & 4095], slot[x[2] & 4095],
		     slot[x[3] & 4095] };
}

static inline void advance(struct lane_states *s, const union lanes *e)
{
	for (unsigned i = 0; i < EQ_LANES / 4; i++) {
		v4 y = (e->v[i] >> 12 & 4095) * (s->x.v[i] >> 12) + (e->v[i] & 4095);
		v4 low = (v4)(y >> 16 == 0);

		s->low.v[i] = low;
		s->y.v[i] = y ^ ((y ^ y << 16) & low);
	}
}

/* Also finds the entries for the next step, while the states are in registers.
 * Returns how many words were taken. */
static inline uint32_t take_words(struct lane_states *s, const uint16_t *next,
				  const uint32_t *slot, union lanes *e)
{
	uint32_t n = 0;

#pragma GCC unroll 8
	for (unsigned i = 0; i < EQ_LANES / 4; i++) {
		uint32_t x[4];

#pragma GCC unroll 4
		for (unsigned j = 0; j < 4; j++) {
			unsigned l = 4 * i + j;

			s->x.u[l] = x[j] = apart(s->y.u[l] | (next[n] & s->low.u[l]));
			n -= s->low.u[l];
		}
		e->v[i] = find_entries(slot, x);
	}
	return n;
}

/* The symbols of four steps, from the top bytes of the entries. */
static inline void put_symbols(const union lanes e[4], uint8_t *out)
{
	for (unsigned i = 0; i < EQ_LANES / 4; i++) {
		v4 sym = e[0].v[i] >> 24 | (e[1].v[i] >> 16 & 0xff00) |
			 (e[2].v[i] >> 8 & 0xff0000) | (e[3].v[i] & 0xff000000);

		memcpy(out + 16 * i, &sym, sizeof(sym));
	}
}

static void decode_one(struct eq_rans_dec *d, uint8_t *out, size_t groups)
{
	const uint16_t *next = d->next;
	const uint32_t *slot = d->table->slot;
	struct lane_states s;
	union lanes e[5];       /* the last one is the next group's first */

	memcpy(&s.x, d->x, sizeof(s.x));
	for (unsigned i = 0; i < EQ_LANES / 4; i++)
		e[4].v[i] = find_entries(slot, s.x.u + 4 * i);
	for (; groups; groups--, out += EQ_GROUP) {
		e[0] = e[4];
		for (unsigned t = 0; t < 4; t++) {
			advance(&s, &e[t]);
			next += take_words(&s, next, slot, &e[t + 1]);
		}
		put_symbols(e, out);
		if (next > d->end) {
			next = d->end;
			d->err = 1;
		}
	}
	memcpy(d->x, &s.x, sizeof(s.x));
	d->next = next;
}

static void rans_decode_c(struct eq_rans_dec *const *dec, uint8_t *const *out,
			  unsigned k, size_t groups)
{
	for (unsigned i = 0; i < k; i++)
		decode_one(dec[i], out[i], groups);
}

/* ---- encoding -------------------------------------------------------------- */

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

/* ---- parts ----------------------------------------------------------------- */

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
