/* SPDX-License-Identifier: Apache-2.0 */
/* What the .cu files of the module share. */
#ifndef EQ_GPU_MODULE_CUH
#define EQ_GPU_MODULE_CUH

#include "gpu_abi.h"
#include "gpu_kernels.cuh"

/* Number of the device that a back end of this module is on. */
int eq_gpu_device(const struct eq_backend *be);

/* The blocks for those of n tasks that are of the class `which`, to `out`, which
 * has room for as many; returns how many. */
unsigned eq_gpu_blocks(const struct eq_gpu_task *task, const int *cls, size_t n,
		       int which, unsigned warps, struct eq_gpu_block *out);

/* gpu_measure.cu, see gpu_abi.h. */
int eq_gpu_measure(const struct eq_backend *be, struct eq_decode_job *jobs, size_t n,
		   unsigned copies, unsigned runs, struct eq_gpu_measure *out);

#endif
