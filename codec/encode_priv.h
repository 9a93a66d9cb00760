/* SPDX-License-Identifier: Apache-2.0 */
/* What the encode_*.c files share. */
#ifndef EQ_ENCODE_PRIV_H
#define EQ_ENCODE_PRIV_H

#include <openssl/evp.h>
#include <sys/stat.h>

#include "archive_priv.h"
#include "coding.h"
#include "quant.h"

#define EQ_CHUNK_UNITS 131072u
#define EQ_GROUP_BYTES (UINT64_C(16) << 20)     /* input handled at once */
#define EQ_MAX_SERIAL 4

struct eq_encoder {
	int fd;
	const char *name;
	const struct eq_policy *policy;
	const struct eq_run *run;
	struct eq_error *err;
	struct stat stat;       /* of the input, when we began */
	struct eq_st *st;
	uint8_t *prefix;
	struct eq_build *build;
	EVP_MD_CTX *sha;
	struct eq_coding *coding;       /* of the current tensor */
	double lambda;
	uint64_t done;          /* input bytes encoded */
	/* Reused from tensor to tensor. */
	uint8_t *keep;          /* a whole tensor, or two groups of one */
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
/* A message for rc, if there is none yet (those of lower levels have none). */
int eq_encode_fail(struct eq_encoder *e, int rc);
/* Make *buf at least size bytes (64-byte aligned, contents lost). */
int eq_buffer_reserve(uint8_t **buf, size_t *have, size_t size);
/* Tell of progress; -ECANCELED if it is to end. */
int eq_encode_progress(struct eq_encoder *e);
uint8_t eq_transform_of(int dtype);
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
 */
struct eq_emit {
	size_t (*encode)(void *arg, uint32_t chunk, uint8_t *out, uint8_t *scratch);
	int (*serial[2])(void *arg, uint32_t g);
	unsigned n_serial;
	void *arg;
	const struct eq_st_tensor *t;
	size_t bound, scratch;
};
int eq_emit_run(struct eq_encoder *e, const struct eq_emit *m);

/*
 * Encode tensor t as it is. whole: its bytes if they are in memory and in the
 * file's hash already, else NULL.
 */
int eq_encode_lossless(struct eq_encoder *e, const struct eq_st_tensor *t, const uint8_t *whole,
		       uint16_t flags);
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

/* How a tensor without quantisation is coded, of its histograms. */
enum eq_codec_id eq_choose_lossless(struct eq_encoder *e, const struct eq_st_tensor *t,
				    const uint64_t (*hist)[256], uint64_t *size);

/* Open the input: header, hash of the prefix. eq_encoder_fini after success or
 * failure. */
int eq_encoder_init(struct eq_encoder *e, int fd, const char *name, const struct eq_policy *policy,
		    const struct eq_run *run, struct eq_error *err);
void eq_encoder_fini(struct eq_encoder *e);

#endif
