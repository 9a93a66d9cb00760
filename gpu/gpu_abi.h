/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the program and the module eqfs-cuda.so know of each other: C types only,
 * one exported function. The module is never newer or older than the program by
 * accident: `abi` and the sizes are compared before anything else is used.
 */
#ifndef EQ_GPU_ABI_H
#define EQ_GPU_ABI_H

#include <stddef.h>
#include <stdint.h>

#include "backend.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EQ_GPU_ABI 1
#define EQ_GPU_SYMBOL "eq_cuda_module"

struct eq_gpu_open {
	int device;             /* number, or -1: the first one that will do */
	uint64_t mem_limit;     /* bytes of device memory to take at most */
	/* Decodes what the device does not (raw, zstd ...); borrowed. */
	const struct eq_backend *cpu;
	/* One line, without a newline. Any thread. */
	void (*log)(void *arg, const char *line);
	void *log_arg;
};

struct eq_gpu_measure {
	double decode_s, copy_s;        /* medians of one run */
	uint64_t in_bytes, out_bytes;   /* of one run; the copy moves out_bytes / 2 */
};

struct eq_gpu_abi {
	uint32_t abi;                   /* EQ_GPU_ABI */
	uint32_t backend_abi;           /* EQ_BACKEND_ABI */
	size_t table_size, plan_size, job_size; /* sizeof, of backend.h */
	/* 0, or a negative errno with a line in text: -ENODEV when there is no such
	 * device. The back end is good for any number of threads. */
	int (*open)(const struct eq_gpu_open *o, const struct eq_backend **out,
		    char *text, size_t text_size);
	void (*close)(const struct eq_backend *be);
	/*
	 * Decode with everything resident in device memory, `copies` times the
	 * chunks of all jobs, and report the median of `runs` runs; also of copying
	 * half of the output over the other half. The jobs get status and output.
	 * Not bounded by mem_limit. -ENOTSUP when a job is not for the device.
	 */
	int (*measure)(const struct eq_backend *be, struct eq_decode_job *jobs, size_t n,
		       unsigned copies, unsigned runs, struct eq_gpu_measure *out);
};

typedef const struct eq_gpu_abi *eq_gpu_module_fn(void);

#ifdef __cplusplus
}
#endif
#endif
