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
#include "backend_encode.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EQ_GPU_ABI 4
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

struct eq_gpu_measure_encode {
	double encode_s;                /* median of one run */
	uint64_t in_bytes;              /* of units, or symbols */
};

/*
 * A way of chunks into device memory: a stream, pinned staging memory for stored
 * bytes, and as much of it on the device. One thread at a time uses it.
 */
struct eq_gpu_feed {
	uint8_t *buf;           /* pinned, 64-byte aligned */
	size_t size;
};

#define EQ_GPU_FEED_JOBS 128u   /* of one feed_decode, at most */
#define EQ_GPU_LEFT 1           /* status of a job that the caller has to see to */

/* Results are 0 or a negative errno; -ENOMEM leaves the device usable, after any
 * other error it is given up, and that is logged once. All for any thread. */
struct eq_gpu_load_abi {
	/* Device memory, 256-byte aligned, not counted in mem_limit; and from host to
	 * device, done when it returns. */
	int (*alloc)(const struct eq_backend *be, size_t n, void **out);
	void (*free)(const struct eq_backend *be, void *p);
	int (*copy)(const struct eq_backend *be, void *to, const void *from, size_t n);
	/* A feed with a buffer of `size` bytes at least, one of those put back if it
	 * will do. -ENOMEM when mem_limit, the device or the host have no room. */
	int (*feed_get)(const struct eq_backend *be, size_t size, struct eq_gpu_feed **out);
	void (*feed_put)(const struct eq_backend *be, struct eq_gpu_feed *f);
	/*
	 * Queue the decoding of n jobs, whose `in` is in buf and whose `out` is device
	 * memory (32-byte aligned); once between two feed_wait. Returns at once, and
	 * then the jobs that are not for the device are EQ_GPU_LEFT. The others get
	 * their status from feed_wait, until when buf and jobs must stay.
	 */
	int (*feed_decode)(struct eq_gpu_feed *f, struct eq_decode_job *jobs, size_t n);
	/* Queue a copy of n bytes in buf to device memory. */
	int (*feed_copy)(struct eq_gpu_feed *f, void *to, const uint8_t *from, size_t n);
	int (*feed_wait)(struct eq_gpu_feed *f);
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
	const struct eq_gpu_load_abi *load;
	/* Encode likewise; symbols of quantised tensors are brought as units. The jobs
	 * get the chunks of one of the copies. -ENOTSUP if they are more than 4 GiB. */
	int (*measure_encode)(const struct eq_backend *be, struct eq_encode_job *jobs, size_t n,
			      unsigned copies, unsigned runs, struct eq_gpu_measure_encode *out);
};

typedef const struct eq_gpu_abi *eq_gpu_module_fn(void);

#ifdef __cplusplus
}
#endif
#endif
