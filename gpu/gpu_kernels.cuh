/* SPDX-License-Identifier: Apache-2.0 */
/* Launching the decoders of gpu_warp.h. */
#ifndef EQ_GPU_KERNELS_CUH
#define EQ_GPU_KERNELS_CUH

#include <cuda_runtime.h>

#include "gpu_task.h"

/* Tasks that share a class and a table, decoded by one block of threads. */
struct eq_gpu_block {
	uint32_t first, n;
};

/* Warps that decode in a block, at most; and blocks with one such warp, for
 * batches that would not fill the device otherwise. */
#define EQ_GPU_WARPS 8
#define EQ_GPU_WARPS_ALONE 1

/* Once for each device: let the kernels have the shared memory they want. */
cudaError_t eq_gpu_kernels_init(void);
/* Blocks of one class; all arrays are on the device. */
cudaError_t eq_gpu_launch(int cls, const struct eq_gpu_task *tasks,
			  const struct eq_gpu_block *blocks, unsigned n_blocks,
			  unsigned warps, cudaStream_t stream);
/* *differ = 1 if some of the n 16-byte words differ. */
cudaError_t eq_gpu_compare(const void *a, const void *b, size_t n, int *differ,
			   cudaStream_t stream);

#endif
