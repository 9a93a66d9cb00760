/* SPDX-License-Identifier: Apache-2.0 */
#include <config.h>

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_nvcomp.h"

#define RUNS 9
#define WARM_UP 2

typedef unsigned long long device_ptr;

/* The options of compression and of decompression have the same layout. */
struct options {
	int32_t first, type;    /* algorithm or back end; data type */
	uint8_t sub_chunks, states, third;
	char reserved[53];
};

/* The driver, and nvCOMP (6.0, nvcomp/ans.h); the default stream is NULL. */
static struct {
	int (*init)(unsigned flags);
	int (*retain)(void **ctx, int device);
	int (*set_current)(void *ctx);
	int (*alloc)(device_ptr *p, size_t n);
	int (*free)(device_ptr p);
	int (*to_device)(device_ptr to, const void *from, size_t n);
	int (*to_host)(void *to, device_ptr from, size_t n);
	int (*event_create)(void **e, unsigned flags);
	int (*event_record)(void *e, void *stream);
	int (*event_wait)(void *e);
	int (*event_time)(float *ms, void *from, void *to);
	int (*compress_temp)(size_t n, size_t chunk, struct options o, size_t *temp, size_t total,
			     void *stream);
	int (*compress_max)(size_t chunk, struct options o, size_t *max);
	int (*compress)(device_ptr plain, device_ptr plain_len, size_t chunk, size_t n,
			device_ptr temp, size_t temp_len, device_ptr packed, device_ptr packed_len,
			struct options o, device_ptr status, void *stream);
	int (*decompress_temp)(size_t n, size_t chunk, struct options o, size_t *temp, size_t total,
			       void *stream);
	int (*decompress)(device_ptr packed, device_ptr packed_len, device_ptr room,
			  device_ptr plain_len, size_t n, device_ptr temp, size_t temp_len,
			  device_ptr plain, struct options o, device_ptr status, void *stream);
} f;

static const struct symbol {
	const char *name;
	void *to;
	bool nvcomp;
} symbols[] = {
	{ "cuInit", &f.init, false },
	{ "cuDevicePrimaryCtxRetain", &f.retain, false },
	{ "cuCtxSetCurrent", &f.set_current, false },
	{ "cuMemAlloc_v2", &f.alloc, false },
	{ "cuMemFree_v2", &f.free, false },
	{ "cuMemcpyHtoD_v2", &f.to_device, false },
	{ "cuMemcpyDtoH_v2", &f.to_host, false },
	{ "cuEventCreate", &f.event_create, false },
	{ "cuEventRecord", &f.event_record, false },
	{ "cuEventSynchronize", &f.event_wait, false },
	{ "cuEventElapsedTime", &f.event_time, false },
	{ "nvcompBatchedANSCompressGetTempSize", &f.compress_temp, true },
	{ "nvcompBatchedANSCompressGetMaxOutputChunkSize", &f.compress_max, true },
	{ "nvcompBatchedANSCompressAsync", &f.compress, true },
	{ "nvcompBatchedANSDecompressGetTempSize", &f.decompress_temp, true },
	{ "nvcompBatchedANSDecompressAsync", &f.decompress, true },
};

static void must(int rc, const char *what)
{
	if (rc == 0)
		return;
	fprintf(stderr, "nvCOMP: %s: %d\n", what, rc);
	exit(1);
}

static bool load(void)
{
	const char *path = getenv("EQFS_NVCOMP");
	void *driver = dlopen("libcuda.so.1", RTLD_NOW), *ctx;
	void *lib = dlopen(path ? path : "libnvcomp.so.6", RTLD_NOW);

	if (!driver || !lib)
		return false;
	for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
		void *p = dlsym(symbols[i].nvcomp ? lib : driver, symbols[i].name);

		must(p ? 0 : -1, symbols[i].name);
		memcpy(symbols[i].to, &p, sizeof(p));
	}
	must(f.init(0), "cuInit");
	must(f.retain(&ctx, 0), "context");
	must(f.set_current(ctx), "context");
	return true;
}

static device_ptr device_get(size_t n)
{
	device_ptr p;

	must(f.alloc(&p, n), "device memory");
	return p;
}

/* An array of n values on the device: first + i * step. */
static device_ptr device_ramp(size_t n, uint64_t first, uint64_t step)
{
	uint64_t *v = malloc(n * sizeof(*v));
	device_ptr p = device_get(n * sizeof(*v));

	must(v ? 0 : -1, "memory");
	for (size_t i = 0; i < n; i++)
		v[i] = first + i * step;
	must(f.to_device(p, v, n * sizeof(*v)), "copy");
	free(v);
	return p;
}

struct buffers {
	size_t n, chunk, room, temp_len;
	device_ptr plain, packed, temp, status, got;
	device_ptr plain_at, plain_len, packed_at, packed_len;
};

static void buffers_free(struct buffers *b)
{
	device_ptr all[] = { b->plain, b->packed, b->temp, b->status, b->got, b->plain_at,
			     b->plain_len, b->packed_at, b->packed_len };

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		f.free(all[i]);
}

static void buffers_get(struct buffers *b, size_t len, size_t chunk, struct options pack,
			struct options unpack)
{
	size_t other;

	b->chunk = chunk;
	b->n = len / chunk;
	must(f.compress_max(chunk, pack, &b->room), "size of output");
	b->room = (b->room + 255) / 256 * 256;
	must(f.compress_temp(b->n, chunk, pack, &b->temp_len, len, NULL), "temporary size");
	must(f.decompress_temp(b->n, chunk, unpack, &other, len, NULL), "temporary size");
	if (other > b->temp_len)
		b->temp_len = other;
	b->plain = device_get(len);
	b->packed = device_get(b->n * b->room);
	b->temp = device_get(b->temp_len + 1);
	b->status = device_ramp(b->n, 0, 0);
	b->got = device_ramp(b->n, 0, 0);
	b->plain_at = device_ramp(b->n, b->plain, chunk);
	b->plain_len = device_ramp(b->n, chunk, 0);
	b->packed_at = device_ramp(b->n, b->packed, b->room);
	b->packed_len = device_ramp(b->n, 0, 0);
}

static int by_value(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;

	return (x > y) - (x < y);
}

/* Median seconds of a decompression of all. */
static double time_decode(const struct buffers *b, struct options o)
{
	void *begin, *end;
	float ms[RUNS];

	must(f.event_create(&begin, 0), "event");
	must(f.event_create(&end, 0), "event");
	for (int i = -WARM_UP; i < RUNS; i++) {
		float t;

		must(f.event_record(begin, NULL), "event");
		must(f.decompress(b->packed_at, b->packed_len, b->plain_len, b->got, b->n, b->temp,
				  b->temp_len, b->plain_at, o, b->status, NULL), "decompression");
		must(f.event_record(end, NULL), "event");
		must(f.event_wait(end), "decompression");
		must(f.event_time(&t, begin, end), "event");
		if (i >= 0)
			ms[i] = t;
	}
	qsort(ms, RUNS, sizeof(ms[0]), by_value);
	return 1e-3 * (double)ms[RUNS / 2];
}

static void measure_chunks(const uint8_t *data, size_t data_len, int type, unsigned copies,
			   size_t chunk, struct nvcomp_result *out)
{
	struct options pack = { .type = type }, unpack = { .type = type };
	size_t len = data_len / chunk * chunk, packed = 0;
	struct buffers b;
	uint64_t *lens;
	uint8_t *got = malloc(len);
	double seconds;

	buffers_get(&b, len * copies, chunk, pack, unpack);
	lens = malloc(b.n * sizeof(*lens));
	must(got && lens ? 0 : -1, "memory");
	for (unsigned i = 0; i < copies; i++)
		must(f.to_device(b.plain + i * len, data, len), "copy");
	must(f.compress(b.plain_at, b.plain_len, chunk, b.n, b.temp, b.temp_len, b.packed_at,
			b.packed_len, pack, b.status, NULL), "compression");
	must(f.to_host(lens, b.packed_len, b.n * sizeof(*lens)), "copy");
	for (size_t i = 0; i < b.n; i++)
		packed += lens[i];
	must(f.to_device(b.plain, memset(got, 0xee, len), len), "copy");
	seconds = time_decode(&b, unpack);
	must(f.to_host(got, b.plain, len), "copy");
	must(memcmp(got, data, len), "wrong output");
	if ((double)(len * copies) / seconds > out->rate) {
		out->chunk = chunk;
		out->rate = (double)(len * copies) / seconds;
		out->ratio = (double)packed / (double)(len * copies);
	}
	buffers_free(&b);
	free(got);
	free(lens);
}

int nvcomp_measure(const uint8_t *data, size_t data_len, int type, unsigned copies,
		   struct nvcomp_result *out)
{
	static int loaded = -1;

	*out = (struct nvcomp_result){ 0, 0, 0 };
	if (loaded < 0)
		loaded = load();
	if (!loaded)
		return -1;
	for (size_t chunk = 65536; chunk <= 262144; chunk *= 2)
		measure_chunks(data, data_len, type, copies, chunk, out);
	return 0;
}
