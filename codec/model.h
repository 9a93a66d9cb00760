/* SPDX-License-Identifier: Apache-2.0 */
/* Frequency tables: from histograms to what coder, decoder and archive hold
 * (eqar.5, PARAMETERS). All arithmetic is on integers, so that every machine
 * makes the same tables. */
#ifndef EQ_MODEL_H
#define EQ_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "backend.h"
#include "kernels.h"

#define EQ_FREQ_MAX (8 + 16 + 32 + 512)         /* bytes of a stored table */
#define EQ_VALUE_MAX (40 + 1024)                /* and of a value table */

struct eq_freq {
	uint8_t mode;           /* EQ_TABLE_SINGLE or EQ_TABLE_PAIR */
	uint8_t nibble[16];     /* pair mode: [15] = 0 */
	uint16_t f[256];        /* sum 4096 */
};

/*
 * The frequencies that code hist in the fewest bits: at least 1 for each symbol
 * present, sum 4096. At least two symbols must be present. Minimising
 * -sum n log2 f is a separable convex problem, so moving one unit at a time to
 * where it gains most ends at the optimum.
 */
void eq_freq_fit(const uint64_t hist[256], uint16_t f[256]);

/* Bits to code hist with f, rounded down; UINT64_MAX if a symbol of hist is
 * not in f. */
uint64_t eq_freq_bits(const uint64_t hist[256], const uint16_t f[256]);

/*
 * Choose the nibbles and fit a pair table for bytes with the histogram hist,
 * taking the two bytes of a pair as independent. Sets *bits to the estimated
 * size with escapes. Returns 0, or -1 when more than one byte in 1000 would be
 * an escape, or there are fewer than two symbols.
 */
int eq_freq_fit_pair(const uint64_t hist[256], struct eq_freq *out,
		     uint64_t *bits);

/* Pairs decode twice as fast, which is worth a part of a tensor's bits: half a percent of
 * what is lossless, 1% where `bits=` or lambda make up for it with the quantiser. */
#define EQ_PAIRS_PLANES 200
#define EQ_PAIRS_QUANT 100

/* The table that the symbols of a quantised tensor get, two of them at least; returns the
 * bits that it takes for them. */
uint64_t eq_freq_fit_quant(const uint64_t hist[256], struct eq_freq *out);

/* Tables for the coder and the decoder; f must have the sum 4096. */
void eq_freq_enc(const uint16_t f[256], struct eq_rans_enc *enc);
void eq_freq_dec(const struct eq_freq *freq, struct eq_table *table);

/* Store a table in at most EQ_FREQ_MAX or EQ_VALUE_MAX bytes at out, 8-byte
 * padding included; returns the bytes. Values are left out where they are NaN. */
size_t eq_freq_write(const struct eq_freq *freq, uint8_t *out);
size_t eq_value_write(const float value[256], uint8_t *out);

/*
 * Check the parameters of a tensor's record: any bytes will do. `plan` has its
 * plain fields set (codec to const_value), which are checked as far as decoding
 * relies on them. Allocates nothing. 0, EQ_ECORRUPT or EQ_ELIMIT.
 */
int eq_plan_check(const struct eq_plan *plan, const uint8_t *params, size_t len);

/*
 * The same, and then allocate and fill n_tables, tables and value. A table takes
 * 16.5 KiB where the archive has as little as 48 bytes, so a reader does this
 * when a tensor is first wanted, not for all tensors at once.
 * On failure nothing is allocated; also -ENOMEM.
 */
int eq_plan_init(struct eq_plan *plan, const uint8_t *params, size_t len);
void eq_plan_fini(struct eq_plan *plan);

#endif
