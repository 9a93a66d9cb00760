/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The encode side of `planes` and `quant`: choose how to code a tensor from its
 * histograms, then code chunk after chunk. A coding is plain data without
 * pointers; once chosen it is only read, so threads share it freely.
 */
#ifndef EQ_CODING_H
#define EQ_CODING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend_encode.h"
#include "format.h"
#include "kernels.h"
#include "model.h"

#define EQ_TABLES_MAX 4         /* that the chunks of a plane can choose from */
#define EQ_RUNS_MAX 1024u
#define EQ_CODING_FREQS (8 * (EQ_TABLES_MAX + 1))

struct eq_coding {
	enum eq_codec_id codec;         /* EQ_CODEC_PLANES or EQ_CODEC_QUANT */
	uint8_t unit, transform, scale_dtype;
	uint8_t n_parts;
	bool sampled;           /* chosen from a sample */
	uint32_t chunk_units;
	uint64_t n_units, row_units;
	struct {
		uint8_t kind, arg;      /* arg: of CONST and PAIR */
		uint8_t spare;          /* RANS: the table for chunks that hold
		                           symbols which theirs has not, if any */
	} part[8];                      /* what a chunk tries for each part */
	uint32_t run_chunks;            /* chunks in a row that share tables */
	uint8_t table[8][EQ_RUNS_MAX];  /* RANS: of the part, by run */
	unsigned n_freq;                /* spare tables are the last ones */
	struct eq_freq freq[EQ_CODING_FREQS];
	struct eq_rans_enc enc[EQ_CODING_FREQS]; /* of freq of the same index */
	float value[256];               /* quant: NaN where there is none */
	uint64_t size;                  /* estimate: bytes of all chunks */
};

/* The argument of a part, as chunk number `chunk` tries it. */
static inline uint8_t eq_coding_arg(const struct eq_coding *c, unsigned part, uint32_t chunk)
{
	return c->part[part].kind == EQ_PART_RANS ? c->table[part][chunk / c->run_chunks] :
						    c->part[part].arg;
}

/*
 * hist[p][s] += the bytes s of plane p in n units. Rotation as the tensor will
 * be coded: EQ_TRANSFORM_ROTATED is for floats of 2, 4 and 8 bytes.
 */
void eq_hist_planes(unsigned unit, unsigned transform, const void *units,
		    size_t n, uint64_t (*hist)[256]);

/*
 * Histograms of a tensor's planes: hist[run * unit + plane], where runs are of
 * run_chunks chunks each. `sampled`: not all units have been counted, so chunks
 * may hold symbols that the histograms have not.
 */
struct eq_plane_hist {
	const uint64_t (*hist)[256];
	unsigned n_runs;        /* 1 to EQ_RUNS_MAX */
	uint32_t run_chunks;
	bool sampled;
};

/*
 * Choose the coding of a tensor of n_units > 0 units as byte planes.
 * chunk_units: a multiple of 128, at most EQ_MAX_CHUNK_UNITS.
 */
void eq_coding_runs(struct eq_coding *c, unsigned unit, unsigned transform,
		    uint64_t n_units, uint32_t chunk_units,
		    const struct eq_plane_hist *h);
/* The same with one run, all units counted: the histogram of each plane. */
void eq_coding_planes(struct eq_coding *c, unsigned unit, unsigned transform,
		      uint64_t n_units, uint32_t chunk_units,
		      const uint64_t (*hist)[256]);

/*
 * Choose the coding of a quantised tensor: unit is the size of the dtype, rows
 * of row_units, hist[s] the number of symbols s, value[s] what s stands for
 * (finite where hist[s] > 0), n_outliers how many units are outliers.
 */
void eq_coding_quant(struct eq_coding *c, unsigned unit, unsigned scale_dtype,
		     uint64_t n_units, uint64_t row_units, uint32_t chunk_units,
		     const uint64_t hist[256], const float value[256],
		     uint64_t n_outliers);

/* The nibble of each byte in a pair table, 15 if it has none. */
void eq_pair_index(const struct eq_freq *freq, uint8_t index[256]);

/* The parameters of the tensor's record; at most EQ_PARAMS_MAX bytes. */
#define EQ_PARAMS_MAX (8 + EQ_CODING_FREQS * EQ_FREQ_MAX + EQ_VALUE_MAX)
size_t eq_params_write(const struct eq_coding *c, uint8_t *out);

/* Bytes to provide for the output and for scratch space of one chunk. */
size_t eq_chunk_bound(const struct eq_coding *c, size_t n_outliers);
size_t eq_chunk_scratch(const struct eq_coding *c);

/*
 * Encode chunk number `chunk` of n units, 0 < n <= chunk_units. out (eq_chunk_bound) and
 * scratch (eq_chunk_scratch) are 16-byte aligned. A part that is constant in
 * this chunk, or would not get smaller, is stored so, whatever c says; so is
 * one that holds symbols which its histogram did not have. Returns the stored
 * length, a multiple of 16. The bytes depend on c, chunk and the units only.
 */
size_t eq_chunk_encode_planes(const struct eq_coding *c, uint32_t chunk,
			      const void *units, uint32_t n, uint8_t *out,
			      uint8_t *scratch);
/* The tables of c that such a chunk needs: those below this number. Spare ones
 * that no chunk needs are not worth storing. */
unsigned eq_chunk_tables(const struct eq_coding *c, const uint8_t *chunk);

/*
 * The same for symbols. `scales`: those of all rows the chunk touches, in the
 * scale dtype. Outliers ascend by position.
 */
size_t eq_chunk_encode_quant(const struct eq_coding *c, const uint8_t *sym,
			     uint32_t n, const void *scales, size_t scale_bytes,
			     const struct eq_disk_outlier *outliers,
			     size_t n_outliers, uint8_t *out, uint8_t *scratch);

#endif
