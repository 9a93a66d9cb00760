/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <zstd.h>

#include "backend_simple.h"
#include "eqcodec.h"

static pthread_key_t zstd_key;
static pthread_once_t zstd_once = PTHREAD_ONCE_INIT;
static int zstd_key_error;

static void zstd_free(void *ctx)
{
	ZSTD_freeDCtx(ctx);
}

static void zstd_key_create(void)
{
	zstd_key_error = pthread_key_create(&zstd_key, zstd_free);
}

/* A context a thread, freed when the thread ends. */
static ZSTD_DCtx *zstd_context(void)
{
	ZSTD_DCtx *ctx;

	pthread_once(&zstd_once, zstd_key_create);
	if (zstd_key_error)
		return NULL;
	ctx = pthread_getspecific(zstd_key);
	if (ctx)
		return ctx;
	ctx = ZSTD_createDCtx();
	if (ctx && pthread_setspecific(zstd_key, ctx)) {
		ZSTD_freeDCtx(ctx);
		return NULL;
	}
	return ctx;
}

static int decode_zstd(const struct eq_decode_job *job, size_t len)
{
	ZSTD_DCtx *ctx;
	size_t got;

	if (job->in_len == len) {
		memcpy(job->out, job->in, len);
		return 0;
	}
	/* One frame: zstd itself would go on with a second one. */
	if (ZSTD_findFrameCompressedSize(job->in, job->in_len) != job->in_len)
		return EQ_ECORRUPT;
	ctx = zstd_context();
	if (!ctx)
		return -ENOMEM;
	got = ZSTD_decompressDCtx(ctx, job->out, len, job->in, job->in_len);
	return got == len ? 0 : EQ_ECORRUPT;
}

static void decode_const(const struct eq_decode_job *job, size_t len)
{
	const struct eq_plan *plan = job->plan;
	uint8_t *out = job->out;
	size_t done = plan->unit;

	memcpy(out, &plan->const_value, done);
	while (done < len) { /* double what is there */
		size_t now = done < len - done ? done : len - done;

		memcpy(out + done, out, now);
		done += now;
	}
}

int eq_decode_simple(const struct eq_decode_job *job)
{
	size_t len = (size_t)job->n_units * job->plan->unit;

	switch (job->plan->codec) {
	case EQ_CODEC_RAW:
		if (job->in_len != len)
			return EQ_ECORRUPT;
		memcpy(job->out, job->in, len);
		return 0;
	case EQ_CODEC_CONST:
		decode_const(job, len);
		return 0;
	case EQ_CODEC_ZSTD:
		return decode_zstd(job, len);
	default:
		return EQ_EUNSUP;
	}
}
