/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libeqfs: tensors of eqfs archives, straight into the memory of the host or of a
 * CUDA device. See libeqfs(3).
 *
 * Functions that can fail return 0 or a negative number, one of EQFS_E* or a
 * negative errno, and then leave one line that names the file and the cause in
 * *err (which may be NULL). On failure *out is NULL.
 *
 * Any function may be called from any thread, and files and devices may be shared
 * by threads; only to close one, nobody else may be using it.
 */
#ifndef LIBEQFS_H
#define LIBEQFS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#ifdef __GNUC__
#pragma GCC visibility push(default)
#endif

#define EQFS_ECORRUPT (-7001)   /* bytes contradict the format or a checksum */
#define EQFS_EUNSUP (-7002)     /* a version, flag or codec we do not know */
#define EQFS_ELIMIT (-7003)     /* a stated limit is exceeded */
#define EQFS_ENOTEQAR (-7004)   /* not an archive */

struct eqfs_error {
	char text[512];
};

/* ---- files -------------------------------------------------------------------- */

struct eqfs_file;

/* One tensor; belongs to its file. Members may be added at the end. */
struct eqfs_tensor {
	const char *name;       /* UTF-8; NUL-terminated, and may hold NULs before that */
	const char *dtype;      /* as in safetensors: "BF16", "F8_E4M3" ... */
	uint32_t bits;          /* of an element */
	uint32_t ndim;
	const uint64_t *shape;
	uint64_t n_bytes;       /* decoded: what loading writes */
	uint64_t stored;        /* bytes in the archive */
	int lossy;
	uint32_t name_len;      /* bytes, without the NUL at the end */
};

/*
 * Open an archive, or a file in a mounted store that is kept as one. All of the
 * index is validated here, nothing is decoded.
 * Errors: EQFS_E*, -ENOENT and other results of open(2), -ENOMEM.
 */
int eqfs_file_open(const char *path, struct eqfs_file **out, struct eqfs_error *err);
void eqfs_file_close(struct eqfs_file *f);
/* The tensors in the order of the file; NULL beyond the last one. */
size_t eqfs_file_count(const struct eqfs_file *f);
const struct eqfs_tensor *eqfs_file_tensor(const struct eqfs_file *f, size_t i);
/* The safetensors header that the file had, JSON of *len bytes, not terminated. */
const char *eqfs_file_header(const struct eqfs_file *f, size_t *len);

/* ---- devices ------------------------------------------------------------------ */

struct eqfs_device;

#define EQFS_HOST (-1)

struct eqfs_options {
	int device;             /* number of a CUDA device, or EQFS_HOST */
	unsigned threads;       /* that read, check and decode; 0: all CPUs, at most 16 */
	/* Pinned memory of the host, and as much of the device's, for stored bytes on
	 * their way: a limit in bytes; 0: 256 MiB, of which 16 threads use 160. */
	uint64_t staging;
	/* Gets one line when a device fails or has no room for staging, from any
	 * thread; NULL: to stderr. */
	void (*log)(void *arg, const char *line);
	void *log_arg;
};

/*
 * Open a device; staging memory and threads are kept between loads until it is
 * closed. In a child of fork() the host's device loads by the calling thread alone, and
 * a CUDA device must not be used; to close either there does nothing.
 * Errors: -ENODEV, -ENOENT (no CUDA module), -EINVAL, -ENOMEM.
 */
int eqfs_device_open(const struct eqfs_options *o, struct eqfs_device **out,
		     struct eqfs_error *err);
/* Memory and DLPack tensors of the device may outlive this call. */
void eqfs_device_close(struct eqfs_device *d);
/* Memory of the device, aligned to 64 bytes at least. Errors: -ENOMEM, -EIO. */
int eqfs_device_alloc(struct eqfs_device *d, size_t size, void **out, struct eqfs_error *err);
void eqfs_device_free(struct eqfs_device *d, void *p);

/* ---- loading ------------------------------------------------------------------ */

/*
 * Load n tensors, those of the given indices, to memory of the device: to[k] has
 * room for the n_bytes of tensor index[k]; device memory is aligned to 32 bytes.
 * Every chunk's checksum is verified. When this returns 0 all bytes are in place, for
 * any stream; after a failure the memory holds nothing of use. Work that was
 * queued before and still uses the memory has to be waited for by the caller.
 *
 * Stored bytes are read by several threads into staging memory, copied to the
 * device and decoded there. Chunks that the device does not decode (zstd, constant
 * tensors, rare layouts) are decoded by the CPU and copied, as is everything when
 * there is no room for staging; tensors that are stored raw are copied as they are.
 * Errors: EQFS_ECORRUPT, -EINVAL (index, alignment), -EIO, -ENOMEM.
 */
int eqfs_load(struct eqfs_file *f, struct eqfs_device *d, const size_t *index,
	      void *const *to, size_t n, struct eqfs_error *err);

/*
 * Wrap memory that eqfs_device_alloc returned as a DLPack tensor with the dtype and
 * shape of t: a DLManagedTensorVersioned (1.0) if versioned is not 0, else a
 * DLManagedTensor. From then on the memory is the tensor's, and its deleter frees
 * it, on any thread, whether file and device are open or not. Types that DLPack 1.0
 * does not have (fp8, sub-byte) are given as uint8, of n_bytes if sub-byte.
 * Errors: -EINVAL (more dimensions or larger ones than DLPack has), -ENOMEM; then
 * the memory is still the caller's.
 */
int eqfs_dlpack(struct eqfs_device *d, const struct eqfs_tensor *t, void *memory, int versioned,
		void **out, struct eqfs_error *err);

#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
