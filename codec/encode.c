/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding a safetensors file: from the header to the trailer. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "direct.h"
#include "encode_priv.h"

/* Have the kernel read that far ahead: samples come from there. In steps, since it
 * takes no more at once. */
#define AHEAD_BYTES (UINT64_C(256) << 20)
#define AHEAD_STEP (UINT64_C(512) << 10)

int eq_encode_fail(struct eq_encoder *e, int rc)
{
	if (e->err && !e->err->text[0])
		eq_fail(e->err, rc, "%s: %s", e->name, eq_strerror(rc));
	return rc;
}

int eq_input_read(struct eq_encoder *e, void *buf, size_t len, uint64_t off)
{
	int rc = eq_read_full(e->fd, buf, len, off);

	return rc == EQ_ECORRUPT ? -EBUSY : rc; /* it got shorter */
}

void eq_input_ahead(struct eq_encoder *e, uint64_t from)
{
	uint64_t end = from + AHEAD_BYTES;

	if (end > e->st->file_size)
		end = e->st->file_size;
	if (e->ahead < from)
		e->ahead = from;
	for (; e->ahead < end; e->ahead += AHEAD_STEP)
		posix_fadvise(e->fd, (off_t)e->ahead, (off_t)AHEAD_STEP, POSIX_FADV_WILLNEED);
}

int eq_encode_progress(struct eq_encoder *e)
{
	int rc = 0;

	/* One thread at a time tells the caller, and is enough. */
	if (!e->run->progress || pthread_mutex_trylock(&e->progress_lock))
		return 0;
	if (e->run->progress(e->run->progress_arg, "encode", e->done, e->st->file_size))
		rc = eq_fail(e->err, -ECANCELED, "%s: cancelled", e->name);
	pthread_mutex_unlock(&e->progress_lock);
	return rc;
}

/* Would the index have room for all chunks? Better said now than when they are coded; and
 * no number of chunks exceeds 32 bits from here on. */
static int check_index(const struct eq_encoder *e)
{
	uint64_t n = 0;
	size_t i;

	for (i = 0; i < e->st->n_tensors; i++)
		n += (e->st->tensors[i].end - e->st->tensors[i].begin) /
		     eq_chunk_bytes_of(&e->st->tensors[i]);
	if (n > EQ_MAX_INDEX / sizeof(struct eq_disk_chunk))
		return eq_fail(e->err, EQ_ELIMIT, "%s: too large for an archive", e->name);
	return 0;
}

int eq_encoder_init(struct eq_encoder *e, int fd, const char *name, const struct eq_policy *policy,
		    const struct eq_run *run, struct eq_error *err)
{
	int rc;

	*e = (struct eq_encoder){ .fd = fd, .name = name, .policy = policy, .run = run, .err = err,
				  .progress_lock = PTHREAD_MUTEX_INITIALIZER };
	if (run->backend && run->backend->encoder)
		e->device = run->backend;
	if (err)
		err->text[0] = 0;
	if (fstat(fd, &e->stat))
		return eq_encode_fail(e, -errno);
	rc = eq_st_read(fd, name, &e->st, &e->prefix, err);
	if (!rc)
		rc = check_index(e);
	if (rc)
		return rc;
	e->coding = malloc(sizeof(*e->coding));
	if (!e->coding)
		return eq_encode_fail(e, -ENOMEM);
	SHA256_Init(&e->sha);
	SHA256_Update(&e->sha, e->prefix, e->st->prefix_len);
	e->done = e->st->prefix_len;
	return 0;
}

void eq_encoder_fini(struct eq_encoder *e)
{
	pthread_mutex_destroy(&e->progress_lock);
	eq_build_free(e->build);
	eq_st_free(e->st);
	free(e->prefix);
	free(e->coding);
	free(e->keep);
	free(e->out);
}

static bool to_quantise(const struct eq_encoder *e, const struct eq_st_tensor *t)
{
	return t->begin < t->end && eq_policy_lossy(e->policy) && eq_policy_selects(e->policy, t);
}

static int encode_tensors(struct eq_encoder *e)
{
	const struct eq_st_tensor *t = e->st->tensors;
	size_t i, end;
	int rc = 0;

	for (i = 0; i < e->st->n_tensors && !rc; i = end) {
		end = i + 1;
		if (to_quantise(e, &t[i])) {
			rc = eq_encode_quant(e, &t[i]);
			continue;
		}
		while (end < e->st->n_tensors && !to_quantise(e, &t[end]))
			end++;
		rc = eq_encode_stream(e, &t[i], end - i);
	}
	return rc;
}

/* Text of the PROVENANCE section; malloc'ed. */
static char *provenance(const struct eq_encoder *e)
{
	char *policy = eq_policy_text(e->policy), *text = NULL, *p;

	if (!policy)
		return NULL;
	for (p = policy; *p; p++)
		if (*p == '\n')
			*p = '?';
	if (asprintf(&text, "encoder=%s %s\npolicy=%s\nlambda=%.9g\n", PACKAGE_NAME, PACKAGE_VERSION,
		     policy, e->n_quantised ? e->lambda : 0) < 0)
		text = NULL;
	free(policy);
	return text;
}

static void fill_file(const struct eq_encoder *e, struct eq_disk_file *f)
{
	unsigned major = 0, minor = 0, patch = 0;

	sscanf(PACKAGE_VERSION, "%u.%u.%u", &major, &minor, &patch);
	*f = (struct eq_disk_file){
		.size = e->st->file_size, .prefix_len = e->st->prefix_len,
		.mtime_s = e->stat.st_mtim.tv_sec, .mtime_ns = (uint32_t)e->stat.st_mtim.tv_nsec,
		.snr_db = INFINITY, .encoder = major << 16 | minor << 8 | patch,
	};
	if (!e->n_quantised)
		return;
	f->flags = EQ_FILE_LOSSY;
	f->qformat = (uint8_t)e->policy->format;
	f->lambda = e->lambda;
	f->bits = e->policy->bits;
	f->quant_params = e->quant_params;
	f->quant_bytes = e->quant_bytes;
	f->relative_l1 = e->sum_abs > 0 ? e->err_abs / e->sum_abs : 0;
	if (e->err_sq > 0)
		f->snr_db = 10 * log10(e->sum_sq / e->err_sq);
}

/* The input must be what it was when we began. */
static int check_unchanged(struct eq_encoder *e)
{
	struct stat now;

	if (fstat(e->fd, &now))
		return eq_encode_fail(e, -errno);
	if (now.st_size != e->stat.st_size || eq_time_compare(&now.st_mtim, &e->stat.st_mtim))
		return eq_fail(e->err, -EBUSY, "%s: changed while it was read", e->name);
	return 0;
}

static int finish(struct eq_encoder *e, struct eq_summary *out)
{
	struct eq_disk_file f;
	uint64_t stored = 0;
	char *text;
	int rc = check_unchanged(e);

	if (rc)
		return rc;
	fill_file(e, &f);
	SHA256_Final(f.sha256, &e->sha);
	text = provenance(e);
	rc = text ? eq_build_finish(e->build, &f, e->prefix, text, &stored) : -ENOMEM;
	free(text);
	if (rc)
		return eq_encode_fail(e, rc);
	*out = (struct eq_summary){
		.size = f.size, .stored = stored, .n_tensors = e->st->n_tensors,
		.n_quantised = e->n_quantised, .quant_params = f.quant_params,
		.quant_bytes = f.quant_bytes, .lambda = f.lambda, .relative_l1 = f.relative_l1,
		.snr_db = f.snr_db,
	};
	return 0;
}

int eq_encode(int in_fd, const char *in_name, int out_fd, const struct eq_policy *policy,
	      const struct eq_run *run, struct eq_summary *out, struct eq_error *err)
{
	struct eq_samples samples = { .n = 0 };
	struct eq_error own;
	struct eq_encoder e;
	int rc;

	*out = (struct eq_summary){ .size = 0 };
	rc = eq_encoder_init(&e, in_fd, in_name, policy, run, err ? err : &own);
	if (!rc && eq_policy_lossy(policy)) {
		if (policy->bits > 0)
			rc = eq_samples_load(&e, &samples);
		if (!rc)
			rc = eq_encode_lambda(&e, &samples);
		eq_samples_free(&samples);
	}
	if (!rc) {
		rc = eq_build_create(out_fd, run->direct && e.st->file_size >= EQ_DIRECT_LEAST,
				     &e.build);
		if (rc)
			eq_encode_fail(&e, rc);
	}
	if (!rc)
		rc = encode_tensors(&e);
	if (!rc)
		rc = finish(&e, out);
	eq_encoder_fini(&e);
	return rc;
}
