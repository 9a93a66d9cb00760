/* SPDX-License-Identifier: Apache-2.0 */
/* A back end on a GPU, if there is one: the module eqfs-cuda.so, loaded
 * when it is wanted. Without it, or without a GPU, everything runs as before. */
#ifndef EQ_GPU_LOAD_H
#define EQ_GPU_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "eqcodec.h"
#include "gpu_abi.h"

struct eq_gpu_options {
	/* "off"; "auto": a GPU if there is one that works; or the number of one,
	 * and then it is an error if it does not. */
	const char *spec;
	uint64_t mem_limit;     /* bytes of device memory to use at most, 0: 256 MiB */
	/* Leave the device alone until something is to be decoded: for programs
	 * that fork first, which no GPU survives. What goes wrong then is logged. */
	bool later;
	/* Gets one line when a device fails, from any thread; NULL: to stderr. */
	void (*log)(void *arg, const char *line);
	void *log_arg;
};

/*
 * Open a back end. The module is looked for as $EQFS_CUDA_MODULE says, beside the
 * program, and in the package's library directory. *out is for any number of
 * threads, and the CPU's if no GPU is used; give it to eq_gpu_release when nobody
 * uses it any more. A GPU that fails has its decode() return an error, then and
 * from then on, upon which eq_archive_decode goes on with the CPU.
 * Errors: -EINVAL (spec, mem_limit), -ENOENT (no module), -ENODEV, -ENOMEM.
 */
int eq_gpu_backend(const struct eq_gpu_options *o, const struct eq_backend **out,
		   struct eq_error *err);
void eq_gpu_release(const struct eq_backend *be);

/* Is this back end a GPU's? */
bool eq_gpu_is(const struct eq_backend *be);

/*
 * What loads into the memory of a back end's device, and the back end to hand to
 * it: see gpu_abi.h. Opens the device if that was left for later. Both live as
 * long as be. -ENOTSUP when the back end is not a GPU's, else as eq_gpu_backend.
 */
int eq_gpu_loading(const struct eq_backend *be, const struct eq_gpu_load_abi **load,
		   const struct eq_backend **inner, struct eq_error *err);

/* The rate with all data resident on the device: see `measure` in gpu_abi.h.
 * -ENOTSUP also when the back end is not a GPU's. */
int eq_gpu_bench(const struct eq_backend *be, struct eq_decode_job *jobs, size_t n,
		 unsigned copies, unsigned runs, struct eq_gpu_measure *out);
int eq_gpu_bench_encode(const struct eq_backend *be, struct eq_encode_job *jobs, size_t n,
			unsigned copies, unsigned runs, struct eq_gpu_measure_encode *out);

#endif
