/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The encode side of a back end (backend.h), shared with gpu/: C types only. The
 * caller decides (tables, kinds of parts, lambda, which scales count), the back end
 * searches, quantises and codes, to the bits that the CPU makes.
 */
#ifndef EQ_BACKEND_ENCODE_H
#define EQ_BACKEND_ENCODE_H

#include "backend.h"
#include "format.h"
#include "quant_level.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EQ_NO_TABLE 255

/* A table to encode with. Those of pairs also tell the nibble of each byte, 15 if
 * it has none, and the byte that the last block is filled up with. */
struct eq_encode_table {
	uint64_t entry[256];    /* floor((2^32 - 1) / f) | f << 32 | c << 48; 0: none */
	uint8_t pad;            /* symbol that the last group is filled up with */
	uint8_t fill;
	uint8_t index[256];
	uint8_t zero[6];
};

/* What encoding needs to know of a tensor. */
struct eq_encode_plan {
	enum eq_codec_id codec; /* EQ_CODEC_PLANES, EQ_CODEC_QUANT */
	uint8_t unit, transform;
	unsigned n_tables;
	const struct eq_encode_table *table;
};

/* What a chunk tries for a part, EQ_PART_*. One that is constant in the chunk, or
 * would not get smaller, is stored so in any case. */
struct eq_encode_part {
	uint8_t kind, arg;      /* arg: index of a table */
	uint8_t spare;          /* RANS: the table if symbols are missing in that, or
	                           EQ_NO_TABLE */
};

struct eq_encode_job {          /* a chunk */
	const struct eq_encode_plan *plan;
	struct eq_encode_part part[8];  /* of each plane; quant: [0], of the symbols */
	uint32_t n_units;
	const void *units;      /* planes: they are, any alignment; pinned is fastest */
	/* quant: where its symbols are, and what goes around them */
	uint64_t first_unit;
	const void *scales;     /* of the rows that it touches */
	size_t scale_bytes;
	const struct eq_disk_outlier *outlier;
	size_t n_outliers;
	uint8_t *out;           /* 16-byte aligned, room for eq_chunk_bound() bytes */
	size_t len;             /* out: of the chunk */
};

/* ---- quantising ------------------------------------------------------------- */

/* A tensor on the device, for one thread at a time. After an error (as encode()
 * has them) it is good for nothing but `close`. */
struct eq_quantiser;

struct eq_quantiser_tensor {
	int dtype;              /* EQ_BF16, EQ_F16 or EQ_F32 */
	uint64_t rows, k;
	size_t max_outliers;    /* with more of them apply() gives -ENOSPC */
	const void *units;      /* until `norm` returns */
};

struct eq_encode_sums {         /* of a row, as in quant_ops.h */
	double abs, err_abs, sq, err_sq;
};

struct eq_quantised {
	uint64_t hist[256];             /* of the symbols */
	struct eq_encode_sums *sums;    /* the caller's, one a row */
	void *recon;            /* the caller's: the tensor as a decoder will have it;
	                           NULL if not wanted */
	struct eq_quant_outlier *outlier; /* the caller's, with room for all; unsorted */
	size_t n_outliers;
};

struct eq_quantiser_ops {
	void (*close)(struct eq_quantiser *q);
	/* Bring the tensor in; sum[r] = sum |w| over row r, added up as eq_quant_l1
	 * does. Comes first. */
	int (*norm)(struct eq_quantiser *q, double *sum, bool *finite);
	/* If all of it is finite: the scale of each row that costs the least, as
	 * eq_quant_search has it; nu is the price of a step of rate. -ENOSPC if the
	 * rows are too long for that; the quantiser is as good as before. */
	int (*search)(struct eq_quantiser *q, const struct eq_quant_format *f, double nu,
		      uint16_t *scale);
	/* Quantise with given scales, once. */
	int (*apply)(struct eq_quantiser *q, const struct eq_quant_format *f,
		     const uint16_t *scale, struct eq_quantised *out);
	/* Code chunks of the symbols, any number of times. */
	int (*encode)(struct eq_quantiser *q, struct eq_encode_job *jobs, size_t n);
};

struct eq_quantiser {
	const struct eq_quantiser_ops *ops;
};

/* ---- the back end's part ------------------------------------------------------ */

struct eq_backend_encoder {
	/* Code n chunks of planes. 0, or an error after which none of them counts
	 * and the caller codes them on the CPU: -ENOSPC when these are not for the
	 * device, anything else when it is lost, which has been logged. Any thread. */
	int (*encode)(void *ctx, struct eq_encode_job *jobs, size_t n);
	/* Make room for a tensor on the device; likewise. */
	int (*quantiser)(void *ctx, const struct eq_quantiser_tensor *t,
			 struct eq_quantiser **out);
};

#ifdef __cplusplus
}
#endif
#endif
