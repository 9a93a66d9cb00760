/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels: one for each class of task, a warp a chunk. */
#include "gpu_lane.cuh"
#include "gpu_planes.h"
#include "gpu_quant.h"
#include "gpu_kernels.cuh"

#define MAX_THREADS (32 * EQ_GPU_WARPS)
/* Blocks of so many threads that a multiprocessor takes at most. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define MAX_BLOCKS 4
#else
#define MAX_BLOCKS 6
#endif

template <int CLS> struct traits {
	static const bool quant = CLS < EQ_GPU_PLANES;
	static const bool any = CLS >= EQ_GPU_ANY;
	static const bool pair = !any && (CLS & 1);
	static const bool wide = quant || pair;
	static const unsigned unit = any ? 1u << (CLS - EQ_GPU_ANY) :
					   1u << ((CLS - EQ_GPU_PLANES) >> 1 & 3);
	static const int dtype = CLS >> 1 == 0 ? EQ_BF16 : CLS >> 1 == 1 ? EQ_F16 : EQ_F32;
	static const unsigned table_bytes = any ? 0 : wide ? EQ_WIDE_BYTES : EQ_NARROW_BYTES;
	static const unsigned warp_bytes = any ? unit * EQ_RING : EQ_RING;
	/* As many blocks of EQ_GPU_WARPS as the shared memory of recent devices or
	 * a decent number of registers allows. */
	static const int wanted = any ? 1 : !quant && unit > 2 ? 3 : wide ? 5 : 6;
	static const int blocks = wanted < MAX_BLOCKS ? wanted : MAX_BLOCKS;
};

/* Positions in it count from its beginning. */
extern __shared__ uint64_t eq_shared[];

template <int CLS>
static __device__ __forceinline__ void load_table(const struct eq_gpu_table *table)
{
	if (traits<CLS>::wide) {
		for (unsigned i = threadIdx.x; i < EQ_PROB_SIZE; i += blockDim.x)
			eq_shared[i] = eq_wide_entry(table, i, traits<CLS>::pair,
						     traits<CLS>::quant);
	} else if (!traits<CLS>::any) {
		for (unsigned i = threadIdx.x; i < EQ_PROB_SIZE / 2; i += blockDim.x)
			eq_shared[i] = ((const uint64_t *)table->slot)[i];
	}
}

template <int CLS>
__global__ void __launch_bounds__(MAX_THREADS, traits<CLS>::blocks)
eq_decode(const struct eq_gpu_task *tasks, const struct eq_gpu_block *blocks)
{
	typedef traits<CLS> T;
	const struct eq_gpu_block block = blocks[blockIdx.x];
	unsigned char *shared = (unsigned char *)eq_shared;
	unsigned warp = threadIdx.x / 32;
	uint32_t ring = T::table_bytes + warp * T::warp_bytes;
	int rc;

	load_table<CLS>(&tasks[block.first].tables[tasks[block.first].main.table]);
	__syncthreads();
	if (warp >= block.n)
		return;
	/* A copy, so that stores to the output are no reason to read it again. */
	const struct eq_gpu_task t = tasks[block.first + warp];

	if (T::quant)
		rc = eq_warp_quant(&t, shared, ring, T::dtype, T::pair);
	else if (T::any)
		rc = eq_warp_any(&t, shared, ring, T::unit);
	else
		rc = eq_warp_planes(&t, shared, ring, T::unit, T::pair);
	if (threadIdx.x % 32 == 0)
		*t.status = rc;
}

typedef void kernel_fn(const struct eq_gpu_task *, const struct eq_gpu_block *);

struct kernel {
	kernel_fn *fn;
	unsigned table_bytes, warp_bytes;
};

#define K(cls) { eq_decode<cls>, traits<cls>::table_bytes, traits<cls>::warp_bytes }

/* In the order of enum eq_gpu_class; a unit of one byte has one part only. */
static const struct kernel kernels[EQ_GPU_CLASSES] = {
	K(0), K(1), K(2), K(3), K(4), K(5), K(6), K(7), K(8), K(9), K(10), K(11), K(12), K(13),
	{ NULL, 0, 0 }, K(15), K(16), K(17),
};

cudaError_t eq_gpu_kernels_init(void)
{
	cudaError_t rc = cudaSuccess;

	for (int i = 0; i < EQ_GPU_CLASSES && rc == cudaSuccess; i++) {
		const struct kernel *k = &kernels[i];

		if (!k->fn)
			continue;
		rc = cudaFuncSetAttribute(k->fn, cudaFuncAttributePreferredSharedMemoryCarveout,
					  k->table_bytes ? cudaSharedmemCarveoutMaxShared :
							   cudaSharedmemCarveoutDefault);
		if (rc == cudaSuccess)
			rc = cudaFuncSetAttribute(k->fn, cudaFuncAttributeMaxDynamicSharedMemorySize,
						  (int)(k->table_bytes + EQ_GPU_WARPS * k->warp_bytes));
	}
	return rc;
}

cudaError_t eq_gpu_launch(int cls, const struct eq_gpu_task *tasks,
			  const struct eq_gpu_block *blocks, unsigned n_blocks,
			  unsigned warps, cudaStream_t stream)
{
	const struct kernel *k = &kernels[cls];
	/* A single warp decodes, but four load the table. */
	unsigned threads = warps < 4 ? 128 : 32 * warps;

	k->fn<<<n_blocks, threads, k->table_bytes + warps * k->warp_bytes, stream>>>(tasks, blocks);
	return cudaGetLastError();
}

static __global__ void compare(const uint4 *a, const uint4 *b, size_t n, int *differ)
{
	for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
	     i += (size_t)gridDim.x * blockDim.x) {
		uint4 x = a[i], y = b[i];

		if (x.x != y.x || x.y != y.y || x.z != y.z || x.w != y.w)
			*differ = 1;
	}
}

cudaError_t eq_gpu_compare(const void *a, const void *b, size_t n, int *differ,
			   cudaStream_t stream)
{
	compare<<<1024, 256, 0, stream>>>((const uint4 *)a, (const uint4 *)b, n, differ);
	return cudaGetLastError();
}
