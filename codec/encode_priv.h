/* SPDX-License-Identifier: Apache-2.0 */
/* What the encode_*.c files share. */
#ifndef EQ_ENCODE_PRIV_H
#define EQ_ENCODE_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "archive_priv.h"
#include "coding.h"
#include "quant.h"
#include "sha256.h"

#define EQ_CHUNK_UNITS 131072u
#define EQ_GROUP_BYTES (UINT64_C(16) << 20)     /* input handled at once */
#define EQ_MAX_SERIAL 4
#define EQ_SCRATCH_BYTES (9u * EQ_CHUNK_UNITS)  /* for a chunk of any coding */

struct eq_encoder {
	int fd;
	const char *name;
	const struct eq_policy *policy;
	const struct eq_run *run;
	const struct eq_backend *device; /* that encodes, or NULL: none, or lost */
	struct eq_error *err;
	struct stat stat;       /* of the input, when we began */
	struct eq_st *st;
	uint8_t *prefix;
	struct eq_build *build;
	SHA256_CTX sha;
	struct eq_coding *coding;       /* of a quantised tensor */
	double lambda;
	_Atomic uint64_t done;  /* input bytes encoded */
	pthread_mutex_t progress_lock;
	uint64_t ahead;         /* how far the kernel was told to read */
	/* Reused from tensor to tensor. */
	uint8_t *keep;          /* a tensor to be quantised, or two groups of one */
	size_t keep_size;
	uint8_t *out;           /* two groups of output slots */
	size_t out_size;
	/* Totals. */
	size_t n_quantised;
	uint64_t quant_params, quant_bytes;
	double sum_abs, err_abs, sum_sq, err_sq;
};

/* Input as it was when we began, or -EBUSY; with a message. */
int eq_input_read(struct eq_encoder *e, void *buf, size_t len, uint64_t off);
/* Let the kernel read what comes at `from` and next while we do something else. One
 * thread at a time. */
void eq_input_ahead(struct eq_encoder *e, uint64_t from);
/* A message for rc, if there is none yet (those of lower levels have none). */
int eq_encode_fail(struct eq_encoder *e, int rc);
/* Tell of progress, from any thread; -ECANCELED if it is to end. */
int eq_encode_progress(struct eq_encoder *e);
uint8_t eq_transform_of(int dtype);
static inline void eq_atomic_max(atomic_uint *a, unsigned v)
{
	unsigned old = atomic_load_explicit(a, memory_order_relaxed);

	while (old < v && !atomic_compare_exchange_weak(a, &old, v))
		;
}
/* Bytes of a full chunk of the tensor. */
static inline uint64_t eq_chunk_bytes_of(const struct eq_st_tensor *t)
{
	return (uint64_t)EQ_CHUNK_UNITS * eq_dtype_unit(t->dtype);
}

/*
 * A pass over the chunks of a tensor in groups: while the chunks of a group are
 * worked on in parallel, serial tasks run beside them: reading the next group
 * (of group g + 1), hashing this one (g), writing the last one (g - 1). Each is
 * called once for every g in order; the first to fail ends the pass.
 */
struct eq_pass {
	uint32_t n_chunks, group;       /* chunks in all, chunks a group */
	int (*serial[EQ_MAX_SERIAL])(void *arg, uint32_t g);
	unsigned n_serial;
	void (*each)(void *arg, uint32_t chunk); /* may be NULL */
	void *arg;
};
int eq_pass_run(struct eq_encoder *e, const struct eq_pass *p);

/*
 * Encode a tensor's chunks and write them in order. `encode` gets the chunk's
 * index, and a slot with room for `bound` bytes of output and `scratch` bytes;
 * it returns the stored length. `serial` tasks run beside, as above.
 * encode_group, if it is there, may do a group's chunks at once, the i-th one in
 * out + i * slot, and set the lengths; EQ_ONE_BY_ONE has them encoded so.
 */
#define EQ_ONE_BY_ONE 1
struct eq_emit {
	size_t (*encode)(void *arg, uint32_t chunk, uint8_t *out, uint8_t *scratch);
	int (*encode_group)(void *arg, uint32_t first, uint32_t n, uint8_t *out, size_t slot,
			    struct eq_built *built);
	int (*serial[2])(void *arg, uint32_t g);
	unsigned n_serial;
	void *arg;
	const struct eq_st_tensor *t;
	size_t bound, scratch;
};
int eq_emit_run(struct eq_encoder *e, const struct eq_emit *m);

/*
 * encode_choose.c: how a tensor of at least a byte is coded without loss.
 * A sample holds histograms of its planes and its first unit, and whether any
 * unit that was looked at is another one.
 */
#define EQ_SAMPLE_PIECES 32
enum eq_sampling {
	EQ_SAMPLE_FEW,          /* EQ_SAMPLE_PIECES pieces at most, one run */
	EQ_SAMPLE_EACH,         /* a piece of each chunk; all of a small tensor */
	EQ_SAMPLE_ALL,          /* every unit */
};
struct eq_sample {
	struct eq_plane_hist h; /* of malloc'ed histograms */
	uint8_t first[8];
	bool varies;
};
/* whole: the tensor's bytes if they are in memory, or NULL. Without a message. */
int eq_sample_tensor(struct eq_encoder *e, const struct eq_st_tensor *t, const uint8_t *whole,
		     enum eq_sampling how, struct eq_sample *s);
void eq_sample_fini(struct eq_sample *s);
/* Choose RAW, PLANES (and c) or ZSTD; *size is what the chunks will take. */
int eq_choose_lossless(struct eq_encoder *e, const struct eq_st_tensor *t,
		       const struct eq_sample *s, struct eq_coding *c, enum eq_codec_id *codec,
		       uint64_t *size);

/* A chunk of a tensor so coded, of len bytes at most: room for it, encoding (0: there was
 * no memory). */
size_t eq_lossless_bound(enum eq_codec_id codec, const struct eq_coding *c, size_t len);
size_t eq_lossless_chunk(enum eq_codec_id codec, const struct eq_coding *c, uint32_t chunk,
			 const uint8_t *data, size_t len, uint8_t *out, uint8_t *scratch);
/* What the codec adds to the tensor's record, and the parameters. tables: how
 * many tables the chunks use; first: the first unit. */
void eq_lossless_record(struct eq_disk_tensor *r, enum eq_codec_id codec, struct eq_coding *c,
			unsigned tables, const uint8_t first[8], uint8_t *params);

/*
 * encode_lossless.c: encode tensor t alone, from the histograms of all units.
 * whole: its bytes if they are in memory, else NULL; they are in the file's hash
 * already.
 */
int eq_encode_lossless(struct eq_encoder *e, const struct eq_st_tensor *t, const uint8_t *whole,
		       uint16_t flags);
/* encode_stream.c: encode n tensors, one behind the other in the file, in one
 * reading. */
int eq_encode_stream(struct eq_encoder *e, const struct eq_st_tensor *t, size_t n);
/* Quantise tensor t, or encode it losslessly where that is not to be. */
int eq_encode_quant(struct eq_encoder *e, const struct eq_st_tensor *t);

/* Rows and units a row of a tensor that the policy selects. */
void eq_matrix_of(const struct eq_st_tensor *t, uint64_t *rows, uint64_t *k);

/*
 * encode_sample.c: evenly spaced rows of all tensors that the policy selects.
 * sample[i] belongs to tensor index[i].
 */
struct eq_samples {
	size_t n;
	size_t *index;
	struct eq_rate_tensor *rate;
	void *data;
};
int eq_samples_load(struct eq_encoder *e, struct eq_samples *s);
void eq_samples_free(struct eq_samples *s);
/* Set e->lambda as the policy asks. */
int eq_encode_lambda(struct eq_encoder *e, const struct eq_samples *s);

/* Open the input: header, hash of the prefix. eq_encoder_fini after success or
 * failure. */
int eq_encoder_init(struct eq_encoder *e, int fd, const char *name, const struct eq_policy *policy,
		    const struct eq_run *run, struct eq_error *err);
void eq_encoder_fini(struct eq_encoder *e);

#endif
