/* SPDX-License-Identifier: Apache-2.0 */
/* What gpu_warp.h is made of, on the device: a thread is a lane. */
#ifndef EQ_GPU_LANE_CUH
#define EQ_GPU_LANE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "floats.h"

#define EQ_DEV static __device__ __forceinline__
#define EQ_UNROLL _Pragma("unroll")

#define EQ_PER_LANE(type, name) type name
#define EQ_PER_LANE_N(type, name, n) type name[n]
#define EQ_AT(v) (v)
#define EQ_EACH_LANE \
	for ([[maybe_unused]] unsigned lane = threadIdx.x & 31, eq_once = 1; eq_once; eq_once = 0)
/* A per-lane variable as an argument, to read, and to change. */
#define EQ_LANES_OF(type) const type
#define EQ_LANES_REF(type) type *
#define EQ_REF(v) (&(v))
#define EQ_REF_AT(v) (*(v))

#define EQ_BALLOT(v) __ballot_sync(0xffffffffu, v)
#define EQ_BALLOT_SMALL(x) eq_ballot_small(x)
#define EQ_FROM(v, src) __shfl_sync(0xffffffffu, v, src)
#define EQ_WARP_SYNC() __syncwarp()
#define EQ_WARP_SUM(v) eq_warp_sum(v)
#define EQ_LANES_BELOW eq_lanes_below()

/* Volatile, so that it stays in a register instead of being made anew. */
EQ_DEV uint32_t eq_lanes_below(void)
{
	uint32_t m;

	asm volatile("mov.u32 %0, %%lanemask_lt;" : "=r"(m));
	return m;
}

EQ_DEV uint32_t eq_warp_sum(uint32_t v)
{
	EQ_UNROLL
	for (int d = 16; d; d >>= 1)
		v += __shfl_xor_sync(0xffffffffu, v, d);
	return v;
}

/* Lanes whose state is under EQ_RANS_L. In PTX, as is what follows, because the
 * compiler makes two comparisons and a move of them otherwise. */
EQ_DEV uint32_t eq_ballot_small(uint32_t x)
{
	uint32_t mask;

	asm volatile("{ .reg .pred p; setp.lt.u32 p, %1, 65536;"
		     " vote.sync.ballot.b32 %0, p, 0xffffffff; }" : "=r"(mask) : "r"(x));
	return mask;
}

/* x < EQ_RANS_L ? x << 16 | word : x */
EQ_DEV uint32_t eq_refill(uint32_t x, uint32_t word)
{
	asm("{ .reg .pred p; setp.lt.u32 p, %0, 65536;"
	    " @p prmt.b32 %0, %1, %0, 0x5410; }" : "+r"(x) : "r"(word));
	return x;
}

EQ_DEV uint32_t eq_popc(uint32_t x) { return (uint32_t)__popc(x); }
EQ_DEV uint32_t eq_perm(uint32_t a, uint32_t b, uint32_t sel) { return __byte_perm(a, b, sel); }
/* The low word of (high : low) >> n. */
EQ_DEV uint32_t eq_funnel(uint32_t low, uint32_t high, unsigned n)
{
	return __funnelshift_r(low, high, n);
}

EQ_DEV float eq_mul(float a, float b) { return __fmul_rn(a, b); }

/* Two floats, rounded to nearest even; the first one in the low half. */
EQ_DEV uint32_t eq_pack_bf16(float a, float b)
{
#if __CUDA_ARCH__ >= 800
	uint32_t u;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(b), "f"(a));
	return u;
#else
	return __bfloat16_as_ushort(__float2bfloat16_rn(a)) |
	       (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(b)) << 16;
#endif
}

EQ_DEV uint32_t eq_pack_f16(float a, float b)
{
	return __half_as_ushort(__float2half_rn(a)) |
	       (uint32_t)__half_as_ushort(__float2half_rn(b)) << 16;
}

/* From device memory that no kernel writes. */
EQ_DEV uint32_t eq_load32(const void *p)
{
	uint32_t v;

	asm("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(__cvta_generic_to_global(p)));
	return v;
}

EQ_DEV uint64_t eq_load64(const void *p)
{
	uint64_t v;

	asm("ld.global.nc.u64 %0, [%1];" : "=l"(v) : "l"(__cvta_generic_to_global(p)));
	return v;
}

EQ_DEV void eq_prefetch(const void *p)
{
	asm volatile("prefetch.global.L2 [%0];" :: "l"(__cvta_generic_to_global(p)));
}

/* n words, in as few loads as there can be; p is aligned to them. */
EQ_DEV void eq_load(const unsigned char *p, uint32_t *w, const unsigned n)
{
	EQ_UNROLL
	for (unsigned i = 0; i < n; i += 4) {
		if (n == 1) {
			w[0] = *(const uint32_t *)p;
		} else if (n == 2) {
			uint2 v = *(const uint2 *)p;

			w[0] = v.x;
			w[1] = v.y;
		} else {
			uint4 v = ((const uint4 *)p)[i / 4];

			w[i] = v.x;
			w[i + 1] = v.y;
			w[i + 2] = v.z;
			w[i + 3] = v.w;
		}
	}
}

/* n words, in as few stores as there can be; p is aligned to them. */
EQ_DEV void eq_store(unsigned char *p, const uint32_t *w, const unsigned n)
{
	if (n == 1)
		*(uint32_t *)p = w[0];
	else if (n == 2)
		*(uint2 *)p = make_uint2(w[0], w[1]);
	else
		*(uint4 *)p = make_uint4(w[0], w[1], w[2], w[3]);
	if (n == 8)
		*(uint4 *)(p + 16) = make_uint4(w[4], w[5], w[6], w[7]);
}

/* ---- for encoding ------------------------------------------------------------ */

#define EQ_COUNT(p) atomicAdd(p, 1u)
#define EQ_TAKE(p) atomicAdd(p, 1u)     /* as it was before */
#define EQ_HALF_SUM(v) eq_half_sum(&(v))
#define EQ_HALF_MAX(v) eq_half_max(&(v))
#define EQ_WARP_SUM64(v) eq_warp_sum64(v)
#define EQ_SUM_ABOVE(v) eq_sum_above(&(v))
/* Which lanes have the same v[g]. */
#define EQ_MATCH(mask, v, g) ((mask)[g] = __match_any_sync(0xffffffffu, (v)[g]))

EQ_DEV uint32_t eq_mulhi(uint32_t a, uint32_t b) { return __umulhi(a, b); }

/* Lane 0 of 16 gets their sum, added up in pairs: lane i and lane i + 8, and so on. */
EQ_DEV void eq_half_sum(double *v)
{
	EQ_UNROLL
	for (int d = 8; d; d >>= 1)
		*v = *v + __shfl_down_sync(0xffffffffu, *v, d, 16);
}

EQ_DEV void eq_half_max(uint32_t *v)
{
	EQ_UNROLL
	for (int d = 8; d; d >>= 1)
		*v = max(*v, __shfl_xor_sync(0xffffffffu, *v, d));
}

EQ_DEV int64_t eq_warp_sum64(int64_t v)
{
	EQ_UNROLL
	for (int d = 16; d; d >>= 1)
		v += __shfl_xor_sync(0xffffffffu, v, d);
	return v;
}

/* Each lane gets the sum of what the lanes after it have. */
EQ_DEV void eq_sum_above(int64_t *v)
{
	int lane = threadIdx.x & 31;
	int64_t own = *v, sum = own;

	EQ_UNROLL
	for (int d = 1; d < 32; d <<= 1) {
		int64_t x = __shfl_down_sync(0xffffffffu, sum, d);

		sum += lane + d < 32 ? x : 0;
	}
	*v = sum - own;
}

#endif
