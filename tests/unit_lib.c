/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libeqfs as it is installed: what is loaded to the host, to the device of
 * tests/fake_cuda.c and, where there is a GPU, to that, is what eq_archive_pread
 * says; failures have the right result, a line, and leave nothing behind.
 */
#include <config.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "codec_util.h"
#include "eqcodec.h"
#include "lib_model.h"
#include "libeqfs.h"

static char path[64];           /* of the archive, below /proc/self/fd */
static int archive_fd;
static struct eq_archive *reference;
static uint8_t *expected;       /* the logical file */

static int setup(void **state)
{
	const struct eq_run run = { .pool = NULL };
	struct eq_policy policy;
	struct eq_summary summary;
	struct eq_error err;
	int in = model_fd();
	size_t size;

	(void)state;
	archive_fd = memfd_create("archive", MFD_CLOEXEC);
	eq_policy_init(&policy);
	assert_int_equal(eq_policy_set(&policy, "bits", "4", &err), 0);
	assert_int_equal(eq_encode(in, "model", archive_fd, &policy, &run, &summary, &err), 0);
	eq_policy_fini(&policy);
	close(in);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", archive_fd);
	assert_int_equal(eq_archive_open(dup(archive_fd), "archive", &reference, &err), 0);
	size = (size_t)eq_archive_info(reference)->size;
	expected = must_alloc(size);
	assert_int_equal(eq_archive_pread(reference, NULL, expected, size, 0, &err), size);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	eq_archive_close(reference);
	free(expected);
	close(archive_fd);
	return 0;
}

/* ---- devices -------------------------------------------------------------------- */

static struct {
	pthread_mutex_t lock;
	unsigned n;
	char last[512];
} logged = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void log_line(void *arg, const char *line)
{
	(void)arg;
	pthread_mutex_lock(&logged.lock);
	logged.n++;
	snprintf(logged.last, sizeof(logged.last), "%s", line);
	pthread_mutex_unlock(&logged.lock);
}

static int open_device(int number, unsigned threads, uint64_t staging, struct eqfs_device **d,
		       struct eqfs_error *err)
{
	const struct eqfs_options o = { .device = number, .threads = threads,
					.staging = staging, .log = log_line };

	logged.n = 0;
	return eqfs_device_open(&o, d, err);
}

static struct eqfs_device *device(int number, unsigned threads, uint64_t staging)
{
	struct eqfs_error err;
	struct eqfs_device *d;

	if (open_device(number, threads, staging, &d, &err))
		fail_msg("%s", err.text);
	return d;
}

static void use_fake(const char *plan)
{
	const char *module = getenv("EQFS_FAKE_CUDA");

	assert_non_null(module);
	setenv("EQFS_CUDA_MODULE", module, 1);
	setenv("EQFS_FAKE", plan, 1);
}

/* From memory of a device. */
typedef void fetch_fn(void *to, const void *from, size_t n);

static void fetch_host(void *to, const void *from, size_t n)
{
	memcpy(to, from, n);
}

static struct eqfs_file *open_model(void)
{
	struct eqfs_error err;
	struct eqfs_file *f;

	if (eqfs_file_open(path, &f, &err))
		fail_msg("%s", err.text);
	assert_int_equal(eqfs_file_count(f), TENSORS);
	return f;
}

struct memory {
	size_t index[TENSORS];
	void *to[TENSORS];
};

static void memory_get(struct eqfs_file *f, struct eqfs_device *d, struct memory *m)
{
	struct eqfs_error err;

	for (size_t i = 0; i < TENSORS; i++) {
		m->index[i] = i;
		if (eqfs_device_alloc(d, (size_t)eqfs_file_tensor(f, i)->n_bytes, &m->to[i], &err))
			fail_msg("%s", err.text);
	}
}

static void memory_put(struct eqfs_device *d, struct memory *m)
{
	for (size_t i = 0; i < TENSORS; i++)
		eqfs_device_free(d, m->to[i]);
}

static void compare(const struct eqfs_file *f, const struct memory *m, size_t from, size_t to,
		    fetch_fn *fetch)
{
	const struct eq_tensor_info *info = eq_archive_tensors(reference);

	for (size_t i = from; i < to; i++) {
		const struct eqfs_tensor *t = eqfs_file_tensor(f, m->index[i]);
		uint8_t *got = must_alloc((size_t)t->n_bytes);

		fetch(got, m->to[i], (size_t)t->n_bytes);
		if (memcmp(got, expected + info[m->index[i]].begin, (size_t)t->n_bytes))
			fail_msg("%s: wrong bytes", t->name);
		free(got);
	}
}

/* Load everything twice, then two tensors of all; it all has to be right. */
static void load_all(struct eqfs_device *d, fetch_fn *fetch)
{
	struct eqfs_file *f = open_model();
	struct eqfs_error err;
	struct memory m;

	memory_get(f, d, &m);
	for (unsigned i = 0; i < 2; i++)
		if (eqfs_load(f, d, m.index, m.to, TENSORS, &err))
			fail_msg("%s", err.text);
	compare(f, &m, 0, TENSORS, fetch);
	m.index[1] = 2; /* into the memory of other ones, which is larger */
	m.index[2] = 0;
	if (eqfs_load(f, d, m.index + 1, m.to + 1, 2, &err))
		fail_msg("%s", err.text);
	compare(f, &m, 1, 3, fetch);
	memory_put(d, &m);
	eqfs_file_close(f);
}

static void test_host(void **state)
{
	(void)state;
	for (unsigned threads = 1; threads < 4; threads++) {
		struct eqfs_device *d = device(EQFS_HOST, threads, 0);

		load_all(d, fetch_host);
		eqfs_device_close(d);
	}
	assert_int_equal(logged.n, 0);
}

/* The model in a child, whose device has no threads any more; the status to exit with. */
static int child_loads(struct eqfs_device *d, struct eqfs_file *f, const struct memory *m)
{
	const struct eq_tensor_info *info = eq_archive_tensors(reference);
	int status = eqfs_load(f, d, m->index, m->to, TENSORS, NULL) ? 1 : 0;

	for (size_t i = 0; i < TENSORS; i++)
		if (memcmp(m->to[i], expected + info[i].begin, (size_t)info[i].n_bytes))
			status = 2;
	for (size_t i = 0; i < TENSORS; i++)
		eqfs_device_free(d, m->to[i]);
	eqfs_device_close(d);
	return status;
}

static void test_fork(void **state)
{
	struct eqfs_device *d = device(EQFS_HOST, 3, 0);
	struct eqfs_file *f = open_model();
	struct memory m;
	int status;
	pid_t pid;

	(void)state;
	/* Often: what a child must not wait for are threads that wait, as after a load. */
	for (unsigned i = 0; i < 8; i++) {
		load_all(d, fetch_host);
		memory_get(f, d, &m);
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0) {
			alarm(60);
			_exit(child_loads(d, f, &m));
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
		memory_put(d, &m);
	}
	eqfs_file_close(f);
	load_all(d, fetch_host);
	eqfs_device_close(d);
}

/* The device's part is done, or left to the CPU, with one line: all bytes right. */
static void test_fake(void **state)
{
	static const struct { const char *plan; uint64_t staging; unsigned lines; } cases[] = {
		{ "", 0, 0 }, { "", (uint64_t)24 << 20, 0 }, { "feeds=1", 0, 0 },
		{ "feeds=4", (uint64_t)11 << 20, 0 }, { "staging", 0, 3 }, { "launch", 0, 0 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct eqfs_device *d;

		use_fake(cases[i].plan);
		d = device(0, 2, cases[i].staging);
		load_all(d, fetch_host);
		eqfs_device_close(d);
		assert_int_equal(logged.n, cases[i].lines); /* one a load */
		if (logged.n)
			assert_non_null(strstr(logged.last, "device 0: no room for staging"));
	}
}

static void expect_failure(struct eqfs_device *d, int rc, const char *what)
{
	struct eqfs_file *f = open_model();
	struct eqfs_error err = { "" };
	struct memory m;

	memory_get(f, d, &m);
	assert_int_equal(eqfs_load(f, d, m.index, m.to, TENSORS, &err), rc);
	if (!strstr(err.text, what))
		fail_msg("'%s' does not say '%s'", err.text, what);
	assert_null(strchr(err.text, '\n'));
	assert_int_equal(eqfs_load(f, d, m.index, m.to, TENSORS, NULL), rc);
	memory_put(d, &m);
	eqfs_file_close(f);
}

static void test_fake_fails(void **state)
{
	struct eqfs_error err = { "" };
	struct eqfs_device *d;
	void *p;

	(void)state;
	for (unsigned n = 1; n < 4; n++) {
		char plan[16];

		snprintf(plan, sizeof(plan), "lost=%u", n);
		use_fake(plan);
		d = device(0, 2, 1 << 20); /* so that there are several batches */
		expect_failure(d, -EIO, "device 0: ");
		eqfs_device_close(d);
	}
	use_fake("nodevice");
	assert_int_equal(open_device(0, 0, 0, &d, &err), -ENODEV);
	assert_null(d);
	assert_non_null(strstr(err.text, "no such device"));
	use_fake("memory");
	d = device(0, 0, 0);
	assert_int_equal(eqfs_device_alloc(d, 1 << 20, &p, &err), -ENOMEM);
	assert_null(p);
	assert_non_null(strstr(err.text, "1048576 bytes"));
	eqfs_device_close(d);
	setenv("EQFS_CUDA_MODULE", "/nonexistent/eqfs-cuda.so", 1);
	assert_int_equal(open_device(0, 0, 0, &d, &err), -ENOENT);
	assert_int_equal(open_device(-2, 0, 0, &d, &err), -EINVAL);
}

/* What the device finds corrupt is named, by tensor and chunk. */
static void test_corrupt_on_device(void **state)
{
	struct eqfs_file *f = open_model();
	struct eqfs_error err;
	struct eqfs_device *d;
	struct memory m;

	(void)state;
	use_fake("corrupt=3");
	d = device(0, 1, 0);
	memory_get(f, d, &m);
	assert_int_equal(eqfs_load(f, d, m.index, m.to, TENSORS, &err), EQFS_ECORRUPT);
	assert_non_null(strstr(err.text, path));
	assert_non_null(strstr(err.text, "tensor '"));
	assert_non_null(strstr(err.text, "corrupt data"));
	memory_put(d, &m);
	eqfs_device_close(d);
	eqfs_file_close(f);
}

/* A bit anywhere in the payload is found by the checksums, and nothing is delivered. */
static void test_damage(void **state)
{
	uint64_t seed = 5, stored = eq_archive_info(reference)->stored;
	struct eqfs_device *d[2];
	unsigned found = 0;

	(void)state;
	use_fake("");
	d[0] = device(EQFS_HOST, 2, 0);
	d[1] = device(0, 2, 0);
	for (unsigned i = 0; i < 24; i++) {
		struct eqfs_error err = { "" };
		off_t at = (off_t)(rnd(&seed) % (stored * 9 / 10));
		struct eqfs_file *f;
		struct memory m;
		uint8_t old, bad;
		int rc;

		assert_int_equal(pread(archive_fd, &old, 1, at), 1);
		bad = (uint8_t)(old ^ 1 << i % 8);
		assert_int_equal(pwrite(archive_fd, &bad, 1, at), 1);
		if (eqfs_file_open(path, &f, &err) == 0) {
			memory_get(f, d[i % 2], &m);
			rc = eqfs_load(f, d[i % 2], m.index, m.to, TENSORS, &err);
			if (rc) {
				assert_int_equal(rc, EQFS_ECORRUPT);
				assert_non_null(strstr(err.text, "checksum mismatch"));
				found++;
			} else { /* it hit what is between the chunks */
				compare(f, &m, 0, TENSORS, fetch_host);
			}
			memory_put(d[i % 2], &m);
			eqfs_file_close(f);
		}
		assert_int_equal(pwrite(archive_fd, &old, 1, at), 1);
	}
	assert_true(found >= 16);
	eqfs_device_close(d[0]);
	eqfs_device_close(d[1]);
}

static void test_misuse(void **state)
{
	struct eqfs_device *d = device(EQFS_HOST, 0, 0), *gpu;
	struct eqfs_file *f = open_model(), *none;
	struct eqfs_error err;
	size_t index = TENSORS, len;
	void *p;

	(void)state;
	assert_int_equal(eqfs_device_alloc(d, COUNT * 4, &p, &err), 0);
	assert_int_equal(eqfs_load(f, d, &index, &p, 1, &err), -EINVAL);
	assert_non_null(strstr(err.text, "no tensor 10"));
	assert_null(eqfs_file_tensor(f, TENSORS));
	index = 0;
	assert_int_equal(eqfs_load(f, d, &index, &(void *){ NULL }, 1, &err), -EINVAL);
	assert_non_null(strstr(err.text, "up_proj"));
	use_fake("");
	gpu = device(0, 0, 0);
	assert_int_equal(eqfs_load(f, gpu, &index, &(void *){ (char *)p + 2 }, 1, &err), -EINVAL);
	assert_non_null(strstr(err.text, "up_proj"));
	eqfs_device_close(gpu);
	assert_int_equal(eqfs_load(f, d, NULL, NULL, 0, &err), 0);
	eqfs_device_free(d, p);
	eqfs_device_free(d, NULL);
	assert_memory_equal(eqfs_file_header(f, &len), "{\"model.layers.0", 16);
	assert_int_equal(eqfs_file_open("/nonexistent", &none, &err), -ENOENT);
	assert_null(none);
	assert_non_null(strstr(err.text, "/nonexistent"));
	assert_int_equal(eqfs_file_open("/proc/self/exe", &none, &err), EQFS_ENOTEQAR);
	eqfs_file_close(f);
	eqfs_file_close(NULL);
	eqfs_device_close(d);
	eqfs_device_close(NULL);
}

/* Several threads load the same file to the same device at once, and wait for each
 * other's buffers. */
static void *load_thread(void *arg)
{
	load_all(arg, fetch_host);
	return NULL;
}

static void test_threads(void **state)
{
	pthread_t thread[3];
	struct eqfs_device *d;

	(void)state;
	for (unsigned feeds = 1; feeds < 6; feeds += 2) {
		char plan[16];

		snprintf(plan, sizeof(plan), "feeds=%u", feeds);
		use_fake(plan);
		d = device(0, 2, 0);
		for (size_t i = 0; i < 3; i++)
			assert_int_equal(pthread_create(&thread[i], NULL, load_thread, d), 0);
		for (size_t i = 0; i < 3; i++)
			pthread_join(thread[i], NULL);
		eqfs_device_close(d);
		assert_int_equal(logged.n, 0);
	}
}

/* ---- DLPack ------------------------------------------------------------------------ */

struct dl_tensor {
	void *data;
	int32_t device_type, device_id, ndim;
	uint8_t code, bits;
	uint16_t lanes;
	int64_t *shape, *strides;
	uint64_t byte_offset;
};

struct dl_managed {
	struct dl_tensor t;
	void *ctx;
	void (*deleter)(struct dl_managed *self);
};

struct dl_versioned {
	uint32_t major, minor;
	void *ctx;
	void (*deleter)(struct dl_versioned *self);
	uint64_t flags;
	struct dl_tensor t;
};

static void check_dl(const struct dl_tensor *t, int type, const void *p)
{
	assert_ptr_equal(t->data, p);
	assert_int_equal(t->device_type, type);
	assert_int_equal(t->device_id, 0);
	assert_int_equal(t->ndim, 2);
	assert_int_equal(t->code, 4);
	assert_int_equal(t->bits, 16);
	assert_int_equal(t->lanes, 1);
	assert_int_equal(t->shape[0], ROWS);
	assert_int_equal(t->shape[1], COLUMNS);
	assert_int_equal(t->strides[0], COLUMNS);
	assert_int_equal(t->strides[1], 1);
	assert_int_equal(t->byte_offset, 0);
}

/* The tensors outlive file and device; fake_cuda aborts if memory is left when its
 * device is closed, and ASan sees the rest. */
static void test_dlpack(void **state)
{
	struct eqfs_file *f = open_model();
	struct eqfs_error err;
	struct dl_versioned *v;
	struct dl_managed *m;
	struct eqfs_device *d;
	uint64_t huge[2] = { UINT64_C(1) << 63, 2 };
	struct eqfs_tensor odd = { .name = "odd", .dtype = "F4", .bits = 4, .ndim = 2,
				   .shape = huge, .n_bytes = 40 };
	void *p[3];

	(void)state;
	use_fake("");
	for (int number = EQFS_HOST; number <= 0; number++) {
		d = device(number, 1, 0);
		for (unsigned i = 0; i < 3; i++)
			assert_int_equal(eqfs_device_alloc(d, COUNT * 2, &p[i], &err), 0);
		assert_int_equal(eqfs_dlpack(d, eqfs_file_tensor(f, 0), p[0], 0, (void **)&m, &err), 0);
		assert_int_equal(eqfs_dlpack(d, eqfs_file_tensor(f, 2), p[1], 1, (void **)&v, &err), 0);
		check_dl(&m->t, number < 0 ? 1 : 2, p[0]);
		check_dl(&v->t, number < 0 ? 1 : 2, p[1]);
		assert_int_equal(v->major, 1);
		assert_int_equal(v->flags, 0);
		m->deleter(m);
		/* Four bits are given as bytes; what is too large is refused. */
		assert_int_equal(eqfs_dlpack(d, &odd, p[2], 0, (void **)&m, &err), 0);
		assert_int_equal(m->t.ndim, 1);
		assert_int_equal(m->t.shape[0], 40);
		assert_int_equal(m->t.code, 1);
		eqfs_device_close(d);
		m->deleter(m);
		v->deleter(v);
	}
	d = device(EQFS_HOST, 1, 0);
	odd.dtype = "F8_E4M3";
	odd.bits = 8;
	assert_int_equal(eqfs_dlpack(d, &odd, NULL, 0, (void **)&m, &err), -EINVAL);
	assert_null(m);
	eqfs_device_close(d);
	eqfs_file_close(f);
}

/* ---- a GPU ------------------------------------------------------------------------ */

static int (*driver_copy)(void *to, unsigned long long from, size_t n);

static void fetch_gpu(void *to, const void *from, size_t n)
{
	if (n)
		assert_int_equal(driver_copy(to, (unsigned long long)(uintptr_t)from, n), 0);
}

static void test_gpu(void **state)
{
	const char *require = getenv("EQFS_TEST_REQUIRE"), *module = getenv("EQFS_REAL_CUDA");
	struct eqfs_error err = { "" };
	struct eqfs_device *d;
	void *lib, *symbol;

	(void)state;
	setenv("EQFS_CUDA_MODULE", module ? module : "", 1);
	if (open_device(0, 0, 0, &d, &err)) {
		fprintf(stderr, "no GPU: %s\n", err.text);
		if (require && strstr(require, "gpu"))
			fail_msg("a GPU is required");
		skip();
	}
	lib = dlopen("libcuda.so.1", RTLD_NOW);
	symbol = lib ? dlsym(lib, "cuMemcpyDtoH_v2") : NULL;
	assert_non_null(symbol);
	memcpy(&driver_copy, &symbol, sizeof(driver_copy));
	load_all(d, fetch_gpu);
	eqfs_device_close(d);
	d = device(0, 0, (uint64_t)11 << 20);
	load_all(d, fetch_gpu);
	assert_int_equal(logged.n, 0);
	eqfs_device_close(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_host),
		cmocka_unit_test(test_fork),
		cmocka_unit_test(test_fake),
		cmocka_unit_test(test_fake_fails),
		cmocka_unit_test(test_corrupt_on_device),
		cmocka_unit_test(test_damage),
		cmocka_unit_test(test_misuse),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_dlpack),
		cmocka_unit_test(test_gpu),
	};

	setenv("EQFS_REAL_CUDA", getenv("EQFS_CUDA_MODULE") ? getenv("EQFS_CUDA_MODULE") : "", 1);
	return cmocka_run_group_tests(tests, setup, teardown);
}
