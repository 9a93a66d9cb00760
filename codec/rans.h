/* SPDX-License-Identifier: Apache-2.0 */
/* Parts RANS: from the bytes of a part to a decoder, and back (eqar.5,
 * ENTROPY CODER). The loops are in the kernel table. */
#ifndef EQ_RANS_H
#define EQ_RANS_H

#include <stddef.h>
#include <stdint.h>

#include "kernels.h"

/* Bytes of the states and n_words words, padded: a part RANS, or the beginning
 * of a part PAIR. */
static inline uint64_t eq_rans_size(uint64_t n_words)
{
	return (128 + 2 * n_words + 3) / 4 * 4;
}

/* The room that encoding n symbols needs, more than eq_rans_size. */
static inline size_t eq_rans_bound(size_t n)
{
	return 128 + 2 * ((n / 128 + 1) * 128 + 16);
}

/*
 * Begin decoding the part at `part`, eq_rans_size(n_words) bytes, 4-byte
 * aligned, with EQ_SLACK readable bytes behind. 0, or EQ_ECORRUPT when a state
 * is too small.
 */
int eq_rans_dec_init(struct eq_rans_dec *d, const uint8_t *part,
		     uint32_t n_words, const struct eq_table *table);
/* After the last group: 0, or EQ_ECORRUPT unless all words are used up and all
 * states are back where the encoder started. */
int eq_rans_dec_finish(const struct eq_rans_dec *d);

/*
 * Encode n symbols to `out`, which is 4-byte aligned and has eq_rans_bound(n)
 * bytes. *n_words is set; returns eq_rans_size(*n_words), or 0 when a symbol is
 * not in the table.
 */
size_t eq_rans_write(const struct eq_kernels *k, const struct eq_rans_enc *enc,
		     const uint8_t *sym, size_t n, uint8_t *out,
		     uint32_t *n_words);

#endif
