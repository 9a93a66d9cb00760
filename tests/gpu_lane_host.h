/* SPDX-License-Identifier: Apache-2.0 */
/* What gpu/gpu_warp.h is made of, on a host: a loop goes through the lanes of a
 * warp, a per-lane variable is an array. The counterpart of gpu/gpu_lane.cuh. */
#ifndef EQ_GPU_LANE_HOST_H
#define EQ_GPU_LANE_HOST_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "eqcodec.h"
#include "floats.h"
#include "format.h"
#include "kernels.h"

#define EQ_DEV static inline
#define EQ_UNROLL

#define EQ_PER_LANE(type, name) type name[32]
#define EQ_PER_LANE_N(type, name, n) type name[32][n]
#define EQ_AT(v) (v)[lane]
#define EQ_EACH_LANE for (unsigned lane = 0; lane < 32; lane++)
#define EQ_LANES_OF(type) const type *
#define EQ_LANES_REF(type) type *
#define EQ_REF(v) (v)
#define EQ_REF_AT(v) (v)[lane]

#define EQ_BALLOT(v) eq_ballot(v)
#define EQ_BALLOT_SMALL(x) eq_ballot_small(x)
#define EQ_FROM(v, src) (v)[src]
#define EQ_WARP_SYNC() ((void)0)
#define EQ_WARP_SUM(v) eq_warp_sum(v)
#define EQ_LANES_BELOW ((1u << lane) - 1)

static inline uint32_t eq_ballot(const bool *v)
{
	uint32_t mask = 0;

	for (unsigned lane = 0; lane < 32; lane++)
		mask |= (uint32_t)v[lane] << lane;
	return mask;
}

static inline uint32_t eq_ballot_small(const uint32_t *x)
{
	uint32_t mask = 0;

	for (unsigned lane = 0; lane < 32; lane++)
		mask |= (uint32_t)(x[lane] < EQ_RANS_L) << lane;
	return mask;
}

static inline uint32_t eq_refill(uint32_t x, uint32_t word)
{
	return x < EQ_RANS_L ? x << 16 | word : x;
}

static inline uint32_t eq_warp_sum(const uint32_t *v)
{
	uint32_t sum = 0;

	for (unsigned lane = 0; lane < 32; lane++)
		sum += v[lane];
	return sum;
}

static inline uint32_t eq_popc(uint32_t x)
{
	return (uint32_t)__builtin_popcount(x);
}

/* Bytes of b : a, picked by the four low digits of sel. */
static inline uint32_t eq_perm(uint32_t a, uint32_t b, uint32_t sel)
{
	uint64_t both = (uint64_t)b << 32 | a;
	uint32_t out = 0;

	for (unsigned i = 0; i < 4; i++)
		out |= (uint32_t)(both >> 8 * (sel >> 4 * i & 7) & 255) << 8 * i;
	return out;
}

static inline uint32_t eq_funnel(uint32_t low, uint32_t high, unsigned n)
{
	return (uint32_t)(((uint64_t)high << 32 | low) >> n);
}

static inline float eq_mul(float a, float b)
{
	return a * b;
}

/* The codec's own rounding: its tables hold value * scale for 256 values, so the
 * conversion of one is remembered. */
static inline uint32_t eq_round16(float a, bool f16)
{
	static struct {
		uint32_t bits;
		uint16_t half;
		bool known;
	} memo[2][4096];
	uint32_t bits = eq_float_bits(a), slot = (bits * 2654435761u) >> 20;
	float value[256] = { a };
	uint16_t lut[256];

	if (!memo[f16][slot].known || memo[f16][slot].bits != bits) {
		if (f16)
			eq_kernels_get()->lut_f16(value, 1.0f, lut);
		else
			eq_kernels_get()->lut_bf16(value, 1.0f, lut);
		memo[f16][slot].bits = bits;
		memo[f16][slot].half = lut[0];
		memo[f16][slot].known = true;
	}
	return memo[f16][slot].half;
}

static inline uint32_t eq_pack_bf16(float a, float b)
{
	return eq_round16(a, false) | eq_round16(b, false) << 16;
}

static inline uint32_t eq_pack_f16(float a, float b)
{
	return eq_round16(a, true) | eq_round16(b, true) << 16;
}

static inline uint32_t eq_load32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static inline uint64_t eq_load64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/* Touches what a device would fetch, so that sanitizers see it. */
static inline void eq_prefetch(const void *p)
{
	(void)*(const volatile unsigned char *)p;
}

static inline void eq_store(unsigned char *p, const uint32_t *w, unsigned n)
{
	memcpy(p, w, 4 * (size_t)n);
}

static inline void eq_load(const unsigned char *p, uint32_t *w, unsigned n)
{
	memcpy(w, p, 4 * (size_t)n);
}

/* ---- for encoding ------------------------------------------------------------ */

#define EQ_COUNT(p) ((void)++*(p))
#define EQ_TAKE(p) ((*(p))++)
#define EQ_HALF_SUM(v) eq_half_sum(v)
#define EQ_HALF_MAX(v) eq_half_max(v)
#define EQ_WARP_SUM64(v) eq_warp_sum64(v)
#define EQ_SUM_ABOVE(v) eq_sum_above(v)
#define EQ_MATCH(mask, v, g) eq_match(mask, (const uint32_t (*)[4])(v), g)

static inline uint32_t eq_mulhi(uint32_t a, uint32_t b)
{
	return (uint32_t)((uint64_t)a * b >> 32);
}

static inline void eq_half_sum(double *v)
{
	for (unsigned d = 8; d; d /= 2)
		for (unsigned lane = 0; lane < 32; lane++)
			if (lane % 16 < d)
				v[lane] += v[lane + d];
}

static inline void eq_half_max(uint32_t *v)
{
	for (unsigned lane = 0; lane < 32; lane++)
		if (v[lane] > v[lane & 16])
			v[lane & 16] = v[lane];
}

/* Which lanes have the same in column g. */
static inline void eq_match(uint32_t (*mask)[4], const uint32_t (*v)[4], unsigned g)
{
	for (unsigned lane = 0; lane < 32; lane++) {
		mask[lane][g] = 0;
		for (unsigned other = 0; other < 32; other++)
			mask[lane][g] |= (uint32_t)(v[lane][g] == v[other][g]) << other;
	}
}

static inline int64_t eq_warp_sum64(const int64_t *v)
{
	int64_t sum = 0;

	for (unsigned lane = 0; lane < 32; lane++)
		sum += v[lane];
	return sum;
}

static inline void eq_sum_above(int64_t *v)
{
	int64_t above = 0;

	for (unsigned lane = 32; lane-- > 0;) {
		int64_t own = v[lane];

		v[lane] = above;
		above += own;
	}
}

#endif
