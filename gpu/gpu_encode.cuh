/* SPDX-License-Identifier: Apache-2.0 */
/* The encoder of the module: kernels of gpu_enc_*.h, and what its files share. */
#ifndef EQ_GPU_ENCODE_CUH
#define EQ_GPU_ENCODE_CUH

#include <cuda_runtime.h>

#include "backend_encode.h"
#include "gpu_enc_task.h"

struct eq_gpu_rows;
struct eq_gpu_encoder;

/* ---- gpu_enc_kernels.cu ----------------------------------------------------- */

/* Once for each device. */
cudaError_t eq_enc_kernels_init(void);
/* Code n parts, and put them one behind the other; all pointers are the device's. What
 * became of the parts goes to done, and to host, pinned memory, unless that is NULL. */
cudaError_t eq_enc_launch(const struct eq_gpu_enc_task *tasks, struct eq_gpu_enc_done *done,
			  unsigned n, struct eq_gpu_enc_done *host, cudaStream_t stream);
/* *r is copied at once. */
cudaError_t eq_norm_launch(const struct eq_gpu_rows *r, int dtype, cudaStream_t stream);
/* cudaErrorNotSupported: not for such rows. What symbols there are is lost. */
cudaError_t eq_search_launch(const struct eq_gpu_rows *r, int dtype, bool fp8,
			     cudaStream_t stream);
/* Also counts the symbols, to hist, which is zero. */
cudaError_t eq_quantise_launch(const struct eq_gpu_rows *r, int dtype, bool fp8, uint32_t *hist,
			       cudaStream_t stream);

/* ---- gpu_encode.cu ---------------------------------------------------------- */

/* An encoder that takes mem_limit bytes of device memory at most, all of it when
 * it is first used; NULL: no memory. */
struct eq_gpu_encoder *eq_gpu_encoder_create(const struct eq_backend *be, uint64_t mem_limit);
void eq_gpu_encoder_free(struct eq_gpu_encoder *e); /* none of it may be in use */
struct eq_gpu_encoder *eq_gpu_encoder_of(const struct eq_backend *be);
extern const struct eq_backend_encoder eq_gpu_encoder_ops;

/* Code jobs; symbols: those of the tensor in device memory, or NULL when the jobs
 * bring their units. As encode() of backend_encode.h. */
int eq_gpu_encode_jobs(struct eq_gpu_encoder *e, struct eq_encode_job *jobs, size_t n,
		       const unsigned char *symbols);

/* ---- gpu_quantise.cu -------------------------------------------------------- */

struct eq_gpu_quantisers;

struct eq_gpu_quantisers *eq_gpu_quantisers_create(const struct eq_backend *be,
						   uint64_t mem_limit);
void eq_gpu_quantisers_free(struct eq_gpu_quantisers *p);
int eq_gpu_quantiser_open(struct eq_gpu_quantisers *p, const struct eq_quantiser_tensor *t,
			  struct eq_quantiser **out);

#endif
