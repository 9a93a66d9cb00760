/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A back end that fails in mid-file, as a GPU that is lost does: reading goes on
 * with the CPU, and every byte is right. Also what finding the module says. Needs
 * no GPU.
 */
#include <config.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "codec_util.h"
#include "eqcodec.h"
#include "gpu_load.h"

enum { ROWS = 512, COLUMNS = 2048, BYTES = 2 * ROWS * COLUMNS };

/* Works for a number of calls, then leaves rubbish and fails. */
struct failing {
	unsigned good, calls;
};

static int failing_decode(void *ctx, struct eq_decode_job *jobs, size_t n)
{
	struct failing *f = ctx;

	if (f->calls++ < f->good)
		return eq_backend_cpu()->decode(NULL, jobs, n);
	for (size_t i = 0; i < n; i++) {
		memset(jobs[i].out, 0xdb, (size_t)jobs[i].n_units * jobs[i].plan->unit);
		jobs[i].status = 0;
	}
	return -EIO;
}

/* A file with one bfloat16 tensor of noise. */
static int model_fd(void)
{
	int fd = memfd_create("model", MFD_CLOEXEC);
	uint64_t seed = 31, len;
	uint16_t *w = must_alloc(BYTES);
	char json[256];

	len = (uint64_t)snprintf(json, sizeof(json),
				 "{\"w\":{\"dtype\":\"BF16\",\"shape\":[%d,%d],"
				 "\"data_offsets\":[0,%d]}}", ROWS, COLUMNS, BYTES);
	for (unsigned i = 0; i < ROWS * COLUMNS; i++) {
		float v = (float)(rnd_gauss(&seed) * 0.02);
		uint32_t bits;

		memcpy(&bits, &v, 4);
		w[i] = (uint16_t)(bits >> 16);
	}
	assert_true(fd >= 0);
	assert_int_equal(write(fd, &len, 8), 8);
	assert_int_equal(write(fd, json, len), len);
	assert_int_equal(write(fd, w, BYTES), BYTES);
	free(w);
	return fd;
}

static struct eq_archive *archive_of(int in)
{
	int out = memfd_create("archive", MFD_CLOEXEC);
	const struct eq_run run = { .pool = NULL };
	struct eq_archive *a;
	struct eq_policy policy;
	struct eq_summary summary;
	struct eq_error err;

	eq_policy_init(&policy);
	assert_int_equal(eq_encode(in, "model", out, &policy, &run, &summary, &err), 0);
	eq_policy_fini(&policy);
	assert_int_equal(eq_archive_open(out, "archive", &a, &err), 0);
	return a;
}

static void test_mid_file(void **state)
{
	int in = model_fd();
	struct eq_archive *a = archive_of(in);
	size_t size = (size_t)eq_archive_info(a)->size;
	uint8_t *want = must_alloc(size), *got = must_alloc(size);

	(void)state;
	assert_int_equal(pread(in, want, size, 0), size);
	for (unsigned good = 0; good < 4; good++) {
		struct failing f = { .good = good };
		const struct eq_backend be = { EQ_BACKEND_ABI, "failing", failing_decode, &f, NULL };
		struct eq_error err;

		memset(got, 0, size);
		for (size_t at = 0; at < size; at += 300000) {
			size_t n = size - at < 300000 ? size - at : 300000;

			assert_int_equal(eq_archive_pread(a, &be, got + at, n, at, &err), n);
		}
		assert_true(f.calls > good + 1);
		assert_memory_equal(got, want, size);
	}
	free(want);
	free(got);
	eq_archive_close(a);
	close(in);
}

static int open_gpu(const char *spec, const struct eq_backend **be, struct eq_error *err)
{
	const struct eq_gpu_options o = { .spec = spec };

	return eq_gpu_backend(&o, be, err);
}

static void test_module(void **state)
{
	const struct eq_backend *be;
	struct eq_error err = { "" };

	(void)state;
	assert_int_equal(open_gpu("off", &be, &err), 0);
	assert_ptr_equal(be, eq_backend_cpu());
	assert_int_equal(open_gpu("fast", &be, &err), -EINVAL);
	assert_non_null(strstr(err.text, "gpu=fast"));
	assert_null(be);
	assert_int_equal(open_gpu("-1", &be, &err), -EINVAL);

	setenv("EQFS_CUDA_MODULE", "/nonexistent/eqfs-cuda.so", 1);
	assert_int_equal(open_gpu("auto", &be, &err), 0);
	assert_ptr_equal(be, eq_backend_cpu());
	assert_int_equal(open_gpu("0", &be, &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nonexistent/eqfs-cuda.so"));

	/* Not a library at all. */
	setenv("EQFS_CUDA_MODULE", "/proc/self/cmdline", 1);
	assert_int_equal(open_gpu("0", &be, &err), -ENOENT);
	assert_null(be);
	eq_gpu_release(eq_backend_cpu());
	eq_gpu_release(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_mid_file),
		cmocka_unit_test(test_module),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
