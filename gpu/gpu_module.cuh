/* SPDX-License-Identifier: Apache-2.0 */
/* What the .cu files of the module share. */
#ifndef EQ_GPU_MODULE_CUH
#define EQ_GPU_MODULE_CUH

#include "gpu_abi.h"
#include "gpu_kernels.cuh"

struct CUctx_st;
struct eq_gpu_feeds;

/* ---- gpu_context.cu ----------------------------------------------------------- */

/* Hold the primary context of a device, once the runtime has counted them. */
cudaError_t eq_gpu_context_get(int device, CUctx_st **out);
void eq_gpu_context_put(int device);

/* While it lives, that context is current in this thread; afterwards what was, or
 * none. Every function that others call has one. */
struct eq_gpu_scope {
	const cudaError_t rc;

	explicit eq_gpu_scope(CUctx_st *context);
	eq_gpu_scope(const eq_gpu_scope &) = delete;
	~eq_gpu_scope();
};

/* ---- gpu_module.cu ------------------------------------------------------------ */

/* The context of a back end of this module. */
CUctx_st *eq_gpu_context(const struct eq_backend *be);
/* Its feeds, see gpu_feed.cu. */
struct eq_gpu_feeds *eq_gpu_feeds_of(const struct eq_backend *be);
/* The device failed: have no more to do with it, say so at the first time, and
 * return the errno. */
int eq_gpu_give_up(const struct eq_backend *be, cudaError_t rc);
bool eq_gpu_is_dead(const struct eq_backend *be);

/* The blocks for those of n tasks that are of the class `which`, to `out`, which
 * has room for as many; returns how many. */
unsigned eq_gpu_blocks(const struct eq_gpu_task *task, const int *cls, size_t n,
		       int which, unsigned warps, struct eq_gpu_block *out);

/* gpu_measure.cu, see gpu_abi.h. */
int eq_gpu_measure(const struct eq_backend *be, struct eq_decode_job *jobs, size_t n,
		   unsigned copies, unsigned runs, struct eq_gpu_measure *out);

/* gpu_measure_encode.cu, likewise. */
int eq_gpu_measure_encode(const struct eq_backend *be, struct eq_encode_job *jobs, size_t n,
			  unsigned copies, unsigned runs, struct eq_gpu_measure_encode *out);

/* gpu_feed.cu: what loading into device memory needs. */
struct eq_gpu_feeds *eq_gpu_feeds_create(uint64_t mem_limit); /* NULL: no memory */
void eq_gpu_feeds_free(struct eq_gpu_feeds *feeds); /* or NULL; none may be in use */
extern const struct eq_gpu_load_abi eq_gpu_load;

#endif
