/* SPDX-License-Identifier: Apache-2.0 */
/* Device memory for the tests of the GPU back end: the driver itself, and decoding by
 * feeds in the way of a back end. */
#ifndef EQ_GPU_FEED_UTIL_H
#define EQ_GPU_FEED_UTIL_H

#include <dlfcn.h>

#include "codec_util.h"
#include "gpu_load.h"

/* The driver's own functions, so that the test needs no CUDA to be built. */
struct driver {
	int (*retain)(void **ctx, int device);
	int (*set)(void *ctx);
	int (*alloc)(unsigned long long *p, size_t n);
	int (*free)(unsigned long long p);
};

static void *driver_symbol(const char *name)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW), *symbol = lib ? dlsym(lib, name) : NULL;

	if (!symbol)
		fail_msg("libcuda.so.1 has no %s", name);
	return symbol;
}

/* The context that a program has if it uses the device by the runtime; now this thread. */
static void context_primary(int number)
{
	struct driver d;
	void *ctx;

	*(void **)&d.retain = driver_symbol("cuDevicePrimaryCtxRetain");
	*(void **)&d.set = driver_symbol("cuCtxSetCurrent");
	assert_int_equal(d.retain(&ctx, number), 0);
	assert_int_equal(d.set(ctx), 0);
}

/* ---- feeds ----------------------------------------------------------------------- */

enum { FEED_BYTES = 3 << 20, GUARD = 256 };

static const struct eq_gpu_load_abi *load;
static int (*from_device)(void *to, unsigned long long from, size_t n);

/* Bytes and what lies behind them, from the device: that must be as it was. */
static int fetch(const struct eq_decode_job *job, const void *at)
{
	size_t len = (size_t)job->n_units * job->plan->unit;
	uint8_t *got = must_alloc(len + GUARD);
	int rc = from_device(got, (unsigned long long)(uintptr_t)at, len + GUARD);

	memcpy(job->out, got, len);
	for (size_t i = len; i < len + GUARD && !rc; i++)
		rc = got[i] != 0xdb;
	free(got);
	return rc;
}

/* Some jobs with inputs in the buffer and outputs on the device; what the device
 * leaves is decoded by the CPU. */
static int feed_some(const struct eq_backend *be, struct eq_gpu_feed *feed,
		     struct eq_decode_job *jobs, size_t n)
{
	struct eq_decode_job job[EQ_GPU_FEED_JOBS];
	uint8_t *at = feed->buf, *poison;
	int rc = 0;

	for (size_t i = 0; i < n; i++) {
		size_t len = (size_t)jobs[i].n_units * jobs[i].plan->unit + GUARD;

		job[i] = jobs[i];
		job[i].in = memcpy(at, jobs[i].in, jobs[i].in_len);
		at += (jobs[i].in_len + EQ_SLACK + 15) / 16 * 16;
		poison = must_alloc(len);
		rc |= load->alloc(be, len, &job[i].out);
		rc |= load->copy(be, job[i].out, memset(poison, 0xdb, len), len);
		free(poison);
	}
	rc |= load->feed_decode(feed, job, n) || load->feed_wait(feed);
	for (size_t i = 0; i < n; i++) {
		jobs[i].status = job[i].status;
		if (job[i].status == EQ_GPU_LEFT)
			eq_backend_cpu()->decode(NULL, &jobs[i], 1);
		else
			rc |= fetch(&jobs[i], job[i].out);
		load->free(be, job[i].out);
	}
	return rc;
}

/* As decode() of a back end, so that the tests above can be of feeds. */
static int feed_decode(void *ctx, struct eq_decode_job *jobs, size_t n)
{
	struct eq_gpu_feed *feed;
	size_t some, room;
	int rc = load->feed_get(ctx, FEED_BYTES, &feed);

	if (rc)
		return rc;
	for (; n && !rc; jobs += some, n -= some) {
		room = FEED_BYTES;
		for (some = 0; some < n && some < EQ_GPU_FEED_JOBS; some++) {
			if (room < jobs[some].in_len + EQ_SLACK + 16)
				break;
			room -= jobs[some].in_len + EQ_SLACK + 16;
		}
		rc = feed_some(ctx, feed, jobs, some);
	}
	load->feed_put(ctx, feed);
	return rc;
}

#endif
