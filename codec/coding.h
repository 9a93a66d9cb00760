/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The encode side of `planes` and `quant`: choose how to code a tensor from its
 * histograms, then code chunk after chunk. A coding is plain data without
 * pointers; once chosen it is only read, so threads share it freely.
 */
#ifndef EQ_CODING_H
#define EQ_CODING_H

#include <stddef.h>
#include <stdint.h>

#include "backend.h"
#include "format.h"
#include "kernels.h"
#include "model.h"

struct eq_coding {
	enum eq_codec_id codec;         /* EQ_CODEC_PLANES or EQ_CODEC_QUANT */
	uint8_t unit, transform, scale_dtype;
	uint8_t n_parts;
	uint32_t chunk_units;
	uint64_t n_units, row_units;
	struct {
		uint8_t kind, arg;
	} part[8];                      /* what a chunk tries for each part */
	unsigned n_freq;
	struct eq_freq freq[8];
	struct eq_rans_enc enc[8];      /* of freq of the same index */
	float value[256];               /* quant: NaN where there is none */
	uint64_t size;                  /* estimate: bytes of all chunks */
};

/*
 * hist[p][s] += the bytes s of plane p in n units. Rotation as the tensor will
 * be coded: EQ_TRANSFORM_ROTATED is for floats of 2, 4 and 8 bytes.
 */
void eq_hist_planes(unsigned unit, unsigned transform, const void *units,
		    size_t n, uint64_t (*hist)[256]);

/*
 * Choose the coding of a tensor of n_units > 0 units as byte planes, given the
 * histogram of each of its `unit` planes. The histograms may be of a sample (for
 * an estimate, or if the chunks may then fall back to raw parts).
 * chunk_units: a multiple of 128, at most EQ_MAX_CHUNK_UNITS.
 */
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
#define EQ_PARAMS_MAX (8 + 8 * EQ_FREQ_MAX + EQ_VALUE_MAX)
size_t eq_params_write(const struct eq_coding *c, uint8_t *out);

/* Bytes to provide for the output and for scratch space of one chunk. */
size_t eq_chunk_bound(const struct eq_coding *c, size_t n_outliers);
size_t eq_chunk_scratch(const struct eq_coding *c);

/*
 * Encode one chunk of n units, 0 < n <= chunk_units. out (eq_chunk_bound) and
 * scratch (eq_chunk_scratch) are 16-byte aligned. A part that is constant in
 * this chunk, or would not get smaller, is stored so, whatever c says; so is
 * one that holds symbols which its histogram did not have. Returns the stored
 * length, a multiple of 16. The bytes depend on c and the units only.
 */
size_t eq_chunk_encode_planes(const struct eq_coding *c, const void *units,
			      uint32_t n, uint8_t *out, uint8_t *scratch);

/*
 * The same for symbols. `scales`: those of all rows the chunk touches, in the
 * scale dtype. Outliers ascend by position.
 */
size_t eq_chunk_encode_quant(const struct eq_coding *c, const uint8_t *sym,
			     uint32_t n, const void *scales, size_t scale_bytes,
			     const struct eq_disk_outlier *outliers,
			     size_t n_outliers, uint8_t *out, uint8_t *scratch);

#endif
