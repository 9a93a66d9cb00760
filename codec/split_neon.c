/* SPDX-License-Identifier: Apache-2.0 */
/* Byte planes, pairs of nibbles and tables of values with NEON. The structured
 * loads and stores take units apart and put them together. */
#include <arm_neon.h>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

/* The 16 high bits of 16 units, by bytes. */
struct high {
	uint8x16_t p0, p1;      /* planes 0 and 1 */
};

INLINE struct high rotl16(struct high h, bool rotate)
{
	struct high r = { vsriq_n_u8(vshlq_n_u8(h.p0, 1), h.p1, 7),
			  vsriq_n_u8(vshlq_n_u8(h.p1, 1), h.p0, 7) };

	return rotate ? r : h;
}

INLINE struct high rotr16(struct high h, bool rotate)
{
	struct high r = { vsliq_n_u8(vshrq_n_u8(h.p0, 1), h.p1, 7),
			  vsliq_n_u8(vshrq_n_u8(h.p1, 1), h.p0, 7) };

	return rotate ? r : h;
}

INLINE void store_high(uint8_t *const *plane, size_t i, struct high h)
{
	vst1q_u8(plane[0] + i, h.p0);
	vst1q_u8(plane[1] + i, h.p1);
}

INLINE struct high load_high(const uint8_t *const *plane, size_t i)
{
	return (struct high){ vld1q_u8(plane[0] + i), vld1q_u8(plane[1] + i) };
}

static void split16_neon(const void *units, size_t n, bool rotate,
			 uint8_t *const *plane)
{
	const uint8_t *in = units;
	size_t i = 0;

	for (; i + 16 <= n; i += 16) {
		uint8x16x2_t u = vld2q_u8(in + 2 * i);

		store_high(plane, i, rotl16((struct high){ u.val[1], u.val[0] }, rotate));
	}
	eq_split_c(units, i, n, rotate, plane, 2);
}

static void merge16_neon(const uint8_t *const *plane, size_t n, bool rotate,
			 void *units)
{
	uint8_t *out = units;
	size_t i = 0;

	for (; i + 16 <= n; i += 16) {
		struct high h = rotr16(load_high(plane, i), rotate);
		uint8x16x2_t u = { { h.p1, h.p0 } };

		vst2q_u8(out + 2 * i, u);
	}
	eq_merge_c(plane, i, n, rotate, units, 2);
}

static void split32_neon(const void *units, size_t n, bool rotate,
			 uint8_t *const *plane)
{
	const uint8_t *in = units;
	size_t i = 0;

	for (; i + 16 <= n; i += 16) {
		uint8x16x4_t u = vld4q_u8(in + 4 * i);

		store_high(plane, i, rotl16((struct high){ u.val[3], u.val[2] }, rotate));
		vst1q_u8(plane[2] + i, u.val[1]);
		vst1q_u8(plane[3] + i, u.val[0]);
	}
	eq_split_c(units, i, n, rotate, plane, 4);
}

static void merge32_neon(const uint8_t *const *plane, size_t n, bool rotate,
			 void *units)
{
	uint8_t *out = units;
	size_t i = 0;

	for (; i + 16 <= n; i += 16) {
		struct high h = rotr16(load_high(plane, i), rotate);
		uint8x16x4_t u = { { vld1q_u8(plane[3] + i), vld1q_u8(plane[2] + i),
				     h.p1, h.p0 } };

		vst4q_u8(out + 4 * i, u);
	}
	eq_merge_c(plane, i, n, rotate, units, 4);
}

/* Units of 8 bytes are four 16-bit numbers, the highest last, and each of those
 * two planes. */
static void split64_neon(const void *units, size_t n, bool rotate,
			 uint8_t *const *plane)
{
	const uint16_t *in = units;
	size_t i = 0;

	for (; i + 16 <= n; i += 16) {
		uint16x8x4_t a = vld4q_u16(in + 4 * i), b = vld4q_u16(in + 4 * i + 32);

		for (unsigned q = 0; q < 4; q++) {
			uint8x16_t lo = vreinterpretq_u8_u16(a.val[3 - q]);
			uint8x16_t hi = vreinterpretq_u8_u16(b.val[3 - q]);
			struct high h = { vuzp2q_u8(lo, hi), vuzp1q_u8(lo, hi) };

			store_high(plane + 2 * q, i, rotl16(h, rotate && q == 0));
		}
	}
	eq_split_c(units, i, n, rotate, plane, 8);
}

static void merge64_neon(const uint8_t *const *plane, size_t n, bool rotate,
			 void *units)
{
	uint16_t *out = units;
	size_t i = 0;

	for (; i + 16 <= n; i += 16) {
		uint16x8x4_t a, b;

		for (unsigned q = 0; q < 4; q++) {
			struct high h = rotr16(load_high(plane + 2 * q, i),
					       rotate && q == 0);

			a.val[3 - q] = vreinterpretq_u16_u8(vzip1q_u8(h.p1, h.p0));
			b.val[3 - q] = vreinterpretq_u16_u8(vzip2q_u8(h.p1, h.p0));
		}
		vst4q_u16(out + 4 * i, a);
		vst4q_u16(out + 4 * i + 32, b);
	}
	eq_merge_c(plane, i, n, rotate, units, 8);
}

/* Add how many bytes of a and b are 15: at most 2 in each byte. */
INLINE uint8x16_t add_escapes(uint8x16_t sum, uint8x16_t a, uint8x16_t b)
{
	const uint8x16_t escape = vdupq_n_u8(15);

	/* What is equal counts as -1. */
	sum = vsubq_u8(sum, vceqq_u8(a, escape));
	return vsubq_u8(sum, vceqq_u8(b, escape));
}

/* 16 pairs' nibbles: those of the first half of the block, and of the second.
 * Adds the escapes to sum. */
INLINE uint8x16_t load_nibbles(uint8x16_t sum, const uint8_t *pair, uint8x16_t n[2])
{
	uint8x16_t v = vld1q_u8(pair);

	n[0] = vandq_u8(v, vdupq_n_u8(15));
	n[1] = vshrq_n_u8(v, 4);
	return add_escapes(sum, n[0], n[1]);
}

static size_t pair_expand_neon(const uint8_t *pair, size_t blocks,
			       const uint8_t nibble[16], uint8_t *out)
{
	const uint8x16_t lut = vld1q_u8(nibble);
	size_t escapes = 0;

	for (; blocks; blocks--, pair += 64, out += 128) {
		uint8x16_t sum = vdupq_n_u8(0);

		for (unsigned j = 0; j < 64; j += 16) {
			uint8x16_t n[2];

			sum = load_nibbles(sum, pair + j, n);
			vst1q_u8(out + j, vqtbl1q_u8(lut, n[0]));
			vst1q_u8(out + 64 + j, vqtbl1q_u8(lut, n[1]));
		}
		escapes += vaddlvq_u8(sum);
	}
	return escapes;
}

static size_t pair_merge16_neon(const uint8_t *pair, size_t blocks,
				const uint8_t nibble[16], const uint8_t *low,
				bool rotate, void *units)
{
	const uint8x16_t lut = vld1q_u8(nibble);
	uint8_t *out = units;
	size_t escapes = 0;

	for (; blocks; blocks--, pair += 64, low += 128, out += 256) {
		uint8x16_t sum = vdupq_n_u8(0);

		for (unsigned j = 0; j < 64; j += 16) {
			uint8x16_t n[2];

			sum = load_nibbles(sum, pair + j, n);
			for (unsigned h = 0; h < 2; h++) {
				struct high r = rotr16(
					(struct high){ vqtbl1q_u8(lut, n[h]),
						       vld1q_u8(low + 64 * h + j) },
					rotate);
				uint8x16x2_t u = { { r.p1, r.p0 } };

				vst2q_u8(out + 128 * h + 2 * j, u);
			}
		}
		escapes += vaddlvq_u8(sum);
	}
	return escapes;
}

static size_t pair_map16_neon(const uint8_t *pair, size_t blocks,
			      const uint16_t lut[16], void *out)
{
	const uint8x16x2_t bytes = vld2q_u8((const uint8_t *)lut);
	uint8_t *o = out;
	size_t escapes = 0;

	for (; blocks; blocks--, pair += 64, o += 256) {
		uint8x16_t sum = vdupq_n_u8(0);

		for (unsigned j = 0; j < 64; j += 16) {
			uint8x16_t n[2];

			sum = load_nibbles(sum, pair + j, n);
			for (unsigned h = 0; h < 2; h++) {
				uint8x16x2_t u = { { vqtbl1q_u8(bytes.val[0], n[h]),
						     vqtbl1q_u8(bytes.val[1], n[h]) } };

				vst2q_u8(o + 128 * h + 2 * j, u);
			}
		}
		escapes += vaddlvq_u8(sum);
	}
	return escapes;
}

/* A table of 256 bytes. An index beyond its quarter leaves what is there, and
 * the exclusive or makes each quarter in turn the first. */
INLINE uint8x16_t look_up(const uint8x16x4_t quarter[4], uint8x16_t s)
{
	uint8x16_t r = vqtbl4q_u8(quarter[0], s);

	r = vqtbx4q_u8(r, quarter[1], veorq_u8(s, vdupq_n_u8(64)));
	r = vqtbx4q_u8(r, quarter[2], veorq_u8(s, vdupq_n_u8(128)));
	return vqtbx4q_u8(r, quarter[3], veorq_u8(s, vdupq_n_u8(192)));
}

static size_t pair_pack_neon(const uint8_t *in, size_t blocks,
			     const uint8_t index[256], uint8_t *pair)
{
	const uint8x16x4_t quarter[4] = { vld1q_u8_x4(index), vld1q_u8_x4(index + 64),
					  vld1q_u8_x4(index + 128),
					  vld1q_u8_x4(index + 192) };
	size_t escapes = 0;

	for (; blocks; blocks--, in += 128, pair += 64) {
		uint8x16_t sum = vdupq_n_u8(0);

		for (unsigned j = 0; j < 64; j += 16) {
			uint8x16_t lo = look_up(quarter, vld1q_u8(in + j));
			uint8x16_t hi = look_up(quarter, vld1q_u8(in + 64 + j));

			vst1q_u8(pair + j, vsliq_n_u8(lo, hi, 4));
			sum = add_escapes(sum, lo, hi);
		}
		escapes += vaddlvq_u8(sum);
	}
	return escapes;
}

static void lut_f32_neon(const float value[256], float scale, uint32_t lut[256])
{
	for (unsigned i = 0; i < 256; i += 4)
		vst1q_u32(lut + i, vreinterpretq_u32_f32(
					   vmulq_n_f32(vld1q_f32(value + i), scale)));
}

/* The conversion rounds to nearest even, keeps subnormals and makes a NaN quiet,
 * as the scalar one does. */
static void lut_f16_neon(const float value[256], float scale, uint16_t lut[256])
{
	for (unsigned i = 0; i < 256; i += 4) {
		float32x4_t p = vmulq_n_f32(vld1q_f32(value + i), scale);

		vst1_u16(lut + i, vreinterpret_u16_f16(vcvt_f16_f32(p)));
	}
}

static void lut_bf16_neon(const float value[256], float scale, uint16_t lut[256])
{
	for (unsigned i = 0; i < 256; i += 4) {
		float32x4_t p = vmulq_n_f32(vld1q_f32(value + i), scale);
		uint32x4_t u = vreinterpretq_u32_f32(p), h = vshrq_n_u32(u, 16);
		uint32x4_t r = vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)),
					 vandq_u32(h, vdupq_n_u32(1)));
		uint32x4_t nan = vorrq_u32(h, vdupq_n_u32(0x40));

		vst1_u16(lut + i, vmovn_u32(vbslq_u32(vceqq_f32(p, p),
						      vshrq_n_u32(r, 16), nan)));
	}
}

void eq_split_init_neon(struct eq_kernels *k)
{
	k->pair_expand = pair_expand_neon;
	k->pair_merge16 = pair_merge16_neon;
	k->pair_map16 = pair_map16_neon;
	k->pair_pack = pair_pack_neon;
	k->split[1] = split16_neon;
	k->split[2] = split32_neon;
	k->split[3] = split64_neon;
	k->merge[1] = merge16_neon;
	k->merge[2] = merge32_neon;
	k->merge[3] = merge64_neon;
	k->lut_bf16 = lut_bf16_neon;
	k->lut_f16 = lut_f16_neon;
	k->lut_f32 = lut_f32_neon;
}
