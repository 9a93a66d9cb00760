/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The back end as a const table of functions, shared with gpu/ (C types only).
 * A back end decodes chunks whose checksum has been verified, but must still
 * survive any bytes: the checksum is no signature. backend_encode.h has what it
 * may do for encoding.
 */
#ifndef EQ_BACKEND_H
#define EQ_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EQ_BACKEND_ABI 2
#define EQ_SLACK 256    /* readable bytes behind every input of a job */

enum eq_codec_id { EQ_CODEC_RAW, EQ_CODEC_CONST, EQ_CODEC_ZSTD, EQ_CODEC_PLANES,
		   EQ_CODEC_QUANT };

/*
 * A decoding table: entry of slot = symbol << 24 | frequency << 12 | slot - start.
 * Pair tables also have the symbols of the nibbles.
 */
struct eq_table {
	uint32_t slot[4096];
	uint8_t mode;           /* EQ_TABLE_SINGLE or EQ_TABLE_PAIR */
	uint8_t nibble[16];     /* [15] = 0 */
	uint8_t present[32];    /* bit map of the symbols that decoding can yield:
	                           of single tables only */
	/* The same table by symbols, for decoders that search: the n_syms that
	 * have a frequency, ascending, and where each begins; 4096 beyond. */
	uint16_t n_syms;
	uint8_t sym[256];
	uint16_t start[256];
};

/* What decoding needs to know of a tensor; immutable once built. */
struct eq_plan {
	enum eq_codec_id codec;
	uint8_t unit;           /* bytes a unit */
	uint8_t transform;      /* EQ_TRANSFORM_* */
	uint8_t dtype;          /* enum eq_dtype; of the output when quantised */
	uint8_t scale_dtype;    /* EQ_SCALE_* */
	uint32_t chunk_units;
	uint64_t n_units;
	uint64_t row_units;     /* K, quantised only */
	uint64_t const_value;
	unsigned n_tables;
	struct eq_table *tables;
	float *value;           /* 256 entries, quantised only; NaN: no value */
};

struct eq_decode_job {
	const struct eq_plan *plan;
	const uint8_t *in;      /* 16-byte aligned, EQ_SLACK readable behind */
	size_t in_len;
	uint64_t first_unit;    /* of the chunk, in the tensor */
	uint32_t n_units;
	void *out;              /* n_units * unit bytes, any alignment */
	int status;             /* out: 0, EQ_ECORRUPT or -errno */
};

struct eq_backend_encoder; /* backend_encode.h */

struct eq_backend {
	uint32_t abi;           /* EQ_BACKEND_ABI */
	const char *name;       /* "cpu/avx512", "cuda/0 CARD" ...: to be read by eq_backend_name */
	/* Decode n jobs; each gets its status. Returns 0, or an error of the back
	 * end as a whole (device lost, out of memory), after which no job counts
	 * and the caller repeats them on the CPU. Any thread. */
	int (*decode)(void *ctx, struct eq_decode_job *jobs, size_t n);
	void *ctx;
	const struct eq_backend_encoder *encoder; /* NULL: it decodes only */
};

#ifdef __cplusplus
}
#endif
#endif
