/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inner loops of the codec as a table of functions, one implementation for
 * each instruction set. The scalar table (_c) is the reference: every other
 * implementation gives the same bytes, the same final states and the same
 * errors. Kernels touch only the memory stated here, never allocate and never
 * fail: whatever the input, they end and stay inside their buffers.
 */
#ifndef EQ_KERNELS_H
#define EQ_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend.h"

/*
 * A decoder of one RANS part between two groups. `next` may run up to 128 words
 * past `end` within a group, so 256 bytes (EQ_SLACK) behind `end` must be
 * readable. When a group used more words than there are, `err` is set, `next`
 * stays at `end`, and what comes out from then on is of no use.
 */
struct eq_rans_dec {
	uint32_t x[32] __attribute__((aligned(64)));
	const uint16_t *next, *end;
	const struct eq_table *table;
	int err;
};

/*
 * What encoding a symbol needs, in one load: floor((2^32 - 1) / f) | f << 32 |
 * c << 48. A symbol that is not in the table has 0.
 */
struct eq_rans_enc {
	uint64_t entry[256];
	uint8_t pad;            /* what the last group is filled up with */
};

struct eq_kernels {
	const char *isa;
	unsigned streams;       /* decoders at once that rans_decode is fastest with */

	/* Decode groups * 128 symbols of each of k decoders into out[0..k). The
	 * decoders are independent of each other and all different. */
	void (*rans_decode)(struct eq_rans_dec *const *dec, uint8_t *const *out,
			    unsigned k, size_t groups);

	/* Encode groups * 128 symbols, last group first, with the states x,
	 * writing words downwards from `top`; returns the lowest word written,
	 * or NULL when some symbol is not in the table. At most one word a
	 * symbol, and the 32 bytes below them may be overwritten. */
	uint16_t *(*rans_encode)(const struct eq_rans_enc *enc, uint32_t x[32],
				 const uint8_t *sym, size_t groups,
				 uint16_t *top);

	/* hist[s] += the number of bytes s in p[0..n). */
	void (*histogram)(const uint8_t *p, size_t n, uint64_t hist[256]);

	/* blocks of 64 pair symbols -> blocks of 128 bytes nibble[...]; returns
	 * how many nibbles were 15. */
	size_t (*pair_expand)(const uint8_t *pair, size_t blocks,
			      const uint8_t nibble[16], uint8_t *out);
	/* Blocks of 128 bytes -> blocks of 64 pair symbols; index[s] is the
	 * nibble of s, 15 when it has none. Returns how many nibbles were 15. */
	size_t (*pair_pack)(const uint8_t *in, size_t blocks,
			    const uint8_t index[256], uint8_t *pair);

	/* n units of 1 << i bytes (index i = 1, 2, 3) <-> planes of n bytes,
	 * most significant first; with `rotate` the unit's 16 high bits are
	 * rotated (eqar.5, FLOAT PLANES). No alignment is asked for. */
	void (*split[4])(const void *units, size_t n, bool rotate,
			 uint8_t *const *plane);
	void (*merge[4])(const uint8_t *const *plane, size_t n, bool rotate,
			 void *units);
	/* pair_expand and merge[1] in one: the expanded bytes are plane 0, and
	 * `low`, blocks * 128 bytes, is plane 1. */
	size_t (*pair_merge16)(const uint8_t *pair, size_t blocks,
			       const uint8_t nibble[16], const uint8_t *low,
			       bool rotate, void *units);

	/* lut[s] = convert(value[s] * scale), the product and the conversion
	 * rounded to nearest even. A symbol without a value (NaN) gives some
	 * NaN. The 16-bit tables are uint16_t, the float32 one is bits. */
	void (*lut_bf16)(const float value[256], float scale, uint16_t lut[256]);
	void (*lut_f16)(const float value[256], float scale, uint16_t lut[256]);
	void (*lut_f32)(const float value[256], float scale, uint32_t lut[256]);
	/* out[i] = lut[sym[i]]; out has no particular alignment. */
	void (*map16)(const uint8_t *sym, size_t n, const uint16_t lut[256],
		      void *out);
	void (*map32)(const uint8_t *sym, size_t n, const uint32_t lut[256],
		      void *out);
	/* pair_expand and map16 in one, with the units of the nibbles. */
	size_t (*pair_map16)(const uint8_t *pair, size_t blocks,
			     const uint16_t lut[16], void *out);
};

/* The best table for this CPU, less what EQFS_DISABLE_CPU masks; static. */
const struct eq_kernels *eq_kernels_get(void);

/* Fill in the scalar table, and override it; for cpu.c and the parity test. */
void eq_kernels_init_c(struct eq_kernels *k);
void eq_kernels_init_avx2(struct eq_kernels *k);
void eq_kernels_init_avx512(struct eq_kernels *k);
/* The same with gathers, or more of them, for processors that are fast at them. */
void eq_kernels_init_avx2_gather(struct eq_kernels *k);
void eq_kernels_init_avx512_gather(struct eq_kernels *k);
void eq_kernels_init_neon(struct eq_kernels *k);

/* Scalar parts, named so that others can use them for their tails. Units
 * [from, n) of n. */
void eq_split_c(const void *units, size_t from, size_t n, bool rotate,
		uint8_t *const *plane, unsigned unit);
void eq_merge_c(const uint8_t *const *plane, size_t from, size_t n, bool rotate,
		void *units, unsigned unit);
void eq_map16_c(const uint8_t *sym, size_t n, const uint16_t lut[256], void *out);

/* How many of 16 nibbles are 15. */
static inline unsigned eq_fifteens(uint64_t v)
{
	v &= v >> 1;
	v &= v >> 2 & UINT64_C(0x1111111111111111);
	v = (v & UINT64_C(0x0101010101010101)) + (v >> 4 & UINT64_C(0x0101010101010101));
	return (unsigned)(v * UINT64_C(0x0101010101010101) >> 56);
}

/* Parts of the tables, by source file. */
void eq_split_init_c(struct eq_kernels *k);
void eq_split_init_avx2(struct eq_kernels *k);
void eq_split_init_avx512(struct eq_kernels *k);
void eq_split_init_neon(struct eq_kernels *k);
void eq_dequant_init_c(struct eq_kernels *k);

#endif
