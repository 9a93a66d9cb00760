/* SPDX-License-Identifier: Apache-2.0 */
/* What the archive_*.c files share. */
#ifndef EQ_ARCHIVE_PRIV_H
#define EQ_ARCHIVE_PRIV_H

#include <pthread.h>
#include <sys/types.h>

#include "backend.h"
#include "eqcodec.h"
#include "format.h"
#include "xxh3.h"

/* Decoded bytes of the extents that stand for prefix and const tensors. */
#define EQ_SLICE (UINT64_C(1) << 20)

struct eq_held_plan;

struct eq_tensor_priv {
	const struct eq_disk_tensor *rec;       /* in the index */
	const uint8_t *params;
	const struct eq_disk_chunk *chunks;     /* n_chunks; 8-byte aligned */
	const uint64_t *chunk_off;              /* absolute, n_chunks */
	enum eq_codec_id codec;
	struct eq_held_plan *plan;              /* under the archive's lock; or NULL */
};

#define EQ_SCRATCH_MAX 16

struct eq_scratch {
	uint8_t *p;             /* 64-byte aligned */
	size_t size;
};

struct eq_archive {
	int fd;
	char *name;
	struct eq_file_info info;
	struct eq_tensor_info *tensors;
	struct eq_tensor_priv *priv;
	uint8_t *index;
	uint64_t index_off, index_len;
	uint64_t *chunk_off;
	uint8_t *prefix;
	char *provenance;
	char *names;            /* NUL-terminated copies */
	pthread_mutex_t lock;   /* of plans and scratch */
	struct eq_held_plan *idle_first, *idle_last;
	uint64_t plan_bytes;
	struct eq_scratch scratch[EQ_SCRATCH_MAX];
	unsigned n_scratch;
};

/* Codec of a record's name, or -1. */
int eq_codec_find(const char name[8]);
const char *eq_codec_name(enum eq_codec_id id);

/* Does the hash fit? Fuzz targets are let past, or they would see little else. */
static inline bool eq_checksum_ok(const void *p, size_t len, uint64_t xxh3)
{
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
	(void)p;
	(void)len;
	(void)xxh3;
	return true;
#else
	return XXH3_64bits(p, len) == xxh3;
#endif
}

/* pread all of it. 0, -errno, or EQ_ECORRUPT at the end of the file. */
int eq_read_full(int fd, void *buf, size_t len, uint64_t off);
int eq_write_full(int fd, const void *buf, size_t len, uint64_t off);

/* buffer.c: aligned to 64 bytes, and large ones in huge pages, which the kernel copies to
 * and from at half the cost, and hands to a disk in few pieces. NULL: no memory. */
void *eq_buffer_alloc(size_t size);
/* At least `size` bytes, *have so far; what was in them is lost. Huge pages only where it
 * is dense: what has holes that nobody touches would take memory for them. 0 or -ENOMEM. */
int eq_buffer_reserve(uint8_t **buf, size_t *have, size_t size, bool dense);

/* archive_index.c: fill a from its index. Errors as eq_archive_open. */
int eq_index_load(struct eq_archive *a, struct eq_error *err);
/* The plain fields of a plan; no tables. */
void eq_plan_of_record(struct eq_plan *plan, const struct eq_disk_tensor *r,
		       enum eq_codec_id codec);

/* archive_plan.c: the plan of tensor i, which stays until it is put. Owned by the archive. */
int eq_archive_plan(struct eq_archive *a, size_t i, const struct eq_plan **out,
		    struct eq_error *err);
void eq_archive_plan_put(struct eq_archive *a, size_t i);
void eq_archive_plans_free(struct eq_archive *a);

/*
 * archive_scan.c: decode the whole file window by window, in order, the next
 * window being decoded while the consumers see the last one.
 */
struct eq_window {
	uint8_t *buf;
	uint64_t begin;         /* logical offset */
	size_t len;
	size_t n;
	struct eq_extent_job *jobs;
	struct eq_error *errs;  /* one a job */
};

struct eq_consumer {
	/* Called once a window, in order, on any thread; 0 or an error, which ends
	 * the scan. Consumers of one window run at the same time. */
	int (*fn)(void *arg, struct eq_window *w);
	void *arg;
};

int eq_archive_scan(struct eq_archive *a, const struct eq_run *run, const char *what,
		    const struct eq_consumer *consumers, size_t n);

/* archive_verify.c: eq_archive_verify with a plain file that has just been hashed
 * while it was encoded: to be equal to it says enough. */
int eq_archive_compare(struct eq_archive *a, int fd, const char *name, const struct eq_run *run,
		       struct eq_error *err);

/* archive_build.c: the output side. */
struct eq_build;
/* direct: past the page cache, if that can be. */
int eq_build_create(int fd, bool direct, struct eq_build **out);
void eq_build_free(struct eq_build *b);
/* Begin a tensor's payload (aligned); chunks follow in order. */
void eq_build_tensor(struct eq_build *b, const struct eq_st_tensor *t);
/* Append n chunks to the current tensor: written at once. One without a length is what
 * remains where there was no memory to encode it: -ENOMEM. */
struct eq_built {
	const void *data;
	uint32_t len;
	uint64_t xxh3;
};
int eq_build_chunks(struct eq_build *b, const struct eq_built *c, size_t n);
/* Take back all that was written of the current tensor. */
int eq_build_restart(struct eq_build *b);
/* The record of the current tensor, for the encoder to fill what it knows. */
struct eq_disk_tensor *eq_build_record(struct eq_build *b);
/* End the current tensor; params as the record's param_len says. */
int eq_build_tensor_end(struct eq_build *b, const void *params);
/* Bytes that the last ended tensor takes: payload and record. */
uint64_t eq_build_tensor_cost(const struct eq_build *b);
/* Write index and trailer; *stored is the archive's length. */
int eq_build_finish(struct eq_build *b, const struct eq_disk_file *file,
		    const uint8_t *prefix, const char *provenance, uint64_t *stored);

/* Rename, unless there is something of the new name: -EEXIST. 0 or -errno. */
int eq_move_new(int fromfd, const char *from, int dirfd, const char *name);

#endif
