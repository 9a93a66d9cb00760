/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GPU back end against the CPU's: the same units and verdicts, the same chunks and
 * archives. Exits with 77 (skipped) where no GPU can be used, unless EQFS_TEST_REQUIRE
 * names "gpu". An argument chooses tests by a pattern.
 */
#include <config.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>

#include "gpu_enc_util.h"
#include "gpu_feed_util.h"
#include "gpu_load.h"
#include "gpu_model.h"
#include "gpu_util.h"

static const struct eq_backend *gpu;
static const char *device = "0";        /* or $EQFS_TEST_GPU, where there are several */
static unsigned logged;

static void count_log(void *arg, const char *line)
{
	(void)arg;
	fprintf(stderr, "%s\n", line);
	logged++;
}

static int open_gpu(const char *spec, uint64_t mem_limit, bool later,
		    const struct eq_backend **out, struct eq_error *err)
{
	const struct eq_gpu_options o = { .spec = spec, .mem_limit = mem_limit, .later = later,
					  .log = count_log };

	return eq_gpu_backend(&o, out, err);
}

/* Jobs for both sides, in one call each. */
struct batch {
	const char *name[512];
	struct eq_decode_job job[512];
	uint8_t *cpu_out[512];
	size_t n;
};

static void batch_add(struct batch *b, const char *name, const struct eq_decode_job *job)
{
	size_t len = (size_t)job->n_units * job->plan->unit;

	assert_in_range(b->n, 0, 511);
	b->name[b->n] = name;
	b->job[b->n] = *job;
	b->job[b->n].out = must_alloc(len);
	memset(b->job[b->n].out, 0xee, len);
	b->cpu_out[b->n++] = must_alloc(len);
}

/* Decode both ways and free the outputs; what differs, or NULL. For any thread,
 * which cmocka's assertions are not. */
static const char *batch_differs(struct batch *b)
{
	struct eq_decode_job *cpu = must_alloc(b->n * sizeof(*cpu));
	const char *bad = NULL;

	memcpy(cpu, b->job, b->n * sizeof(*cpu));
	for (size_t i = 0; i < b->n; i++) {
		cpu[i].out = b->cpu_out[i];
		b->job[i].status = 99;
	}
	if (eq_backend_cpu()->decode(NULL, cpu, b->n) || gpu->decode(gpu->ctx, b->job, b->n))
		bad = "decode() itself";
	for (size_t i = 0; i < b->n; i++) {
		size_t len = (size_t)cpu[i].n_units * cpu[i].plan->unit;

		if (b->job[i].status != cpu[i].status ||
		    (!cpu[i].status && memcmp(b->job[i].out, cpu[i].out, len)))
			bad = b->name[i];
		free(b->job[i].out);
		free(cpu[i].out);
	}
	free(cpu);
	b->n = 0;
	return bad;
}

static void batch_check(struct batch *b)
{
	const char *bad = batch_differs(b);

	if (bad)
		fail_msg("%s: not as on the CPU", bad);
}

static void test_good(void **state)
{
	static struct batch b;
	static struct gpu_tensor t[2 * GPU_CASES];
	uint64_t seed = 21;

	(void)state;
	/* All tensors in one batch, so that classes and tables alternate; chunks
	 * of the size that archives have as well. */
	for (unsigned i = 0; i < 2 * GPU_CASES; i++) {
		struct gpu_case g = gpu_cases[i / 2];

		if (i & 1)
			g.n *= 20;
		gpu_tensor_make(&g, &seed, i & 1 ? 131072 : GPU_CHUNK, &t[i]);
		for (unsigned k = 0; k < t[i].n; k++)
			batch_add(&b, g.name, &t[i].job[k]);
	}
	batch_check(&b);
	for (unsigned i = 0; i < 2 * GPU_CASES; i++)
		gpu_tensor_free(&t[i]);
}

static void test_lengths(void **state)
{
	static struct batch b;
	static struct gpu_tensor t[100];
	uint64_t seed = 22;

	(void)state;
	for (unsigned i = 0; i < GPU_CASES; i++) {
		struct gpu_case g = gpu_cases[i];
		unsigned n_made = 0;

		for (uint32_t n = 90; n < 530; n += 1 + rnd(&seed) % 20) {
			g.n = n;
			if (g.quant) {
				g.row = g.row < 60 ? g.row : 4 * (1 + n / 9);
				g.n = n / g.row * g.row;
				if (!g.n)
					continue;
			}
			gpu_tensor_make(&g, &seed, 256, &t[n_made]);
			for (unsigned k = 0; k < t[n_made].n; k++)
				batch_add(&b, g.name, &t[n_made].job[k]);
			n_made++;
		}
		batch_check(&b);
		while (n_made)
			gpu_tensor_free(&t[--n_made]);
	}
}

/* Damaged chunks among good ones: each gets its own verdict. What differs, or
 * NULL. */
static const char *damaged_differs(uint64_t seed, unsigned rounds)
{
	struct batch *b = must_alloc(sizeof(*b));
	const char *bad = NULL;

	b->n = 0;
	for (unsigned i = 0; i < GPU_CASES && !bad; i++) {
		const struct gpu_case *g = &gpu_cases[i];
		uint8_t *copy[512];
		struct gpu_tensor t;
		unsigned n;

		gpu_tensor_make(g, &seed, GPU_CHUNK, &t);
		for (n = 0; n < rounds; n++) {
			struct eq_decode_job job = t.job[n % t.n];

			copy[n] = gpu_chunk_copy(job.in, job.in_len);
			if (n % 4)
				job.in_len = gpu_damage(&seed, copy[n], job.in_len);
			job.in = copy[n];
			batch_add(b, g->name, &job);
		}
		bad = batch_differs(b);
		while (n)
			free(copy[--n]);
		gpu_tensor_free(&t);
	}
	free(b);
	return bad;
}

static void test_damaged(void **state)
{
	(void)state;
	assert_null(damaged_differs(23, 300));
}

static void *thread_main(void *arg)
{
	uint64_t *seed = arg;

	return (void *)(uintptr_t)damaged_differs(*seed, 60);
}

/* More threads than there are slots. */
static void test_threads(void **state)
{
	pthread_t thread[24];
	uint64_t seed[24];
	void *bad;

	(void)state;
	for (unsigned i = 0; i < 24; i++) {
		seed[i] = 100 * i;
		assert_int_equal(pthread_create(&thread[i], NULL, thread_main, &seed[i]), 0);
	}
	for (unsigned i = 0; i < 24; i++) {
		assert_int_equal(pthread_join(thread[i], &bad), 0);
		if (bad)
			fail_msg("%s: not as on the CPU", (const char *)bad);
	}
}

/* ---- encoding ---------------------------------------------------------------------- */

static void compare_archives(const struct eq_backend *be, unsigned times, const char *what)
{
	int fd = model_file(27, times);
	struct eq_pool *pool;

	assert_int_equal(eq_pool_create(3, &pool), 0);
	for (unsigned p = 0; p < MODEL_POLICIES; p++) {
		struct archive want = model_archive(fd, p, NULL, pool);
		struct archive a = model_archive(fd, p, be, pool);

		archive_compare(&a, &want, what, p);
		free(a.data);
		free(want.data);
	}
	eq_pool_free(pool);
	close(fd);
}

static void test_archives(void **state)
{
	(void)state;
	compare_archives(gpu, 1, "a small model");
	compare_archives(gpu, 30, "a larger one");
}

static void *archive_main(void *arg)
{
	const unsigned *p = arg;
	int fd = model_file(28, 5);
	struct archive a = model_archive(fd, *p, gpu, NULL);
	struct archive want = model_archive(fd, *p, NULL, NULL);
	bool same = a.size == want.size && !memcmp(a.data, want.data, a.size);

	free(a.data);
	free(want.data);
	close(fd);
	return same ? NULL : arg;
}

static void test_encoding_threads(void **state)
{
	pthread_t thread[8];
	unsigned policy[8];
	void *bad;

	(void)state;
	for (unsigned i = 0; i < 8; i++) {
		policy[i] = i;
		assert_int_equal(pthread_create(&thread[i], NULL, archive_main, &policy[i]), 0);
	}
	for (unsigned i = 0; i < 8; i++) {
		assert_int_equal(pthread_join(thread[i], &bad), 0);
		if (bad)
			fail_msg("policy %u: not as on the CPU", i);
	}
}

/* The least memory there can be: one slot for everybody; opened when wanted. */
static void test_little_memory(void **state)
{
	const struct eq_backend *all = gpu, *small;
	struct eq_error err;

	(void)state;
	assert_int_equal(open_gpu(device, 1 << 20, false, &small, &err), -EINVAL);
	assert_null(small);
	assert_int_equal(open_gpu("auto", 24 << 20, true, &small, &err), 0);
	gpu = small;
	test_threads(NULL);
	gpu = all;
	compare_archives(small, 3, "little memory");
	eq_gpu_release(small);
}

/* Resident data, many copies: block shapes that small batches do not have. */
static void test_resident(void **state)
{
	uint64_t seed = 25;

	(void)state;
	for (unsigned i = 0; i < GPU_CASES; i++) {
		const struct gpu_case *g = &gpu_cases[i];
		struct eq_gpu_measure m;
		struct gpu_tensor t;
		struct batch b;
		int rc;

		gpu_tensor_make(g, &seed, GPU_CHUNK, &t);
		b.n = 0;
		for (unsigned k = 0; k < t.n; k++)
			batch_add(&b, g->name, &t.job[k]);
		rc = eq_gpu_bench(gpu, b.job, b.n, 37, 1, &m);
		assert_true(rc == 0 || rc == -ENOTSUP);
		for (unsigned k = 0; k < t.n; k++) {
			struct eq_decode_job cpu = b.job[k];

			cpu.out = b.cpu_out[k];
			eq_backend_cpu()->decode(NULL, &cpu, 1);
			if (rc == 0)
				assert_int_equal(b.job[k].status, 0);
			if (rc == 0 && memcmp(b.job[k].out, cpu.out, (size_t)cpu.n_units * g->unit))
				fail_msg("%s: other units than on the CPU", g->name);
			free(b.job[k].out);
			free(cpu.out);
		}
		gpu_tensor_free(&t);
	}
}

/* Nothing above may have failed. */
static void test_no_log(void **state)
{
	(void)state;
	assert_int_equal(logged, 0);
}

/* ---- feeds ----------------------------------------------------------------------- */

static void test_feeds(void **state)
{
	const struct eq_backend *all = gpu, *inner;
	struct eq_backend feeds = { .abi = EQ_BACKEND_ABI, .name = "feeds", .decode = feed_decode };
	struct eq_error err;

	assert_int_equal(eq_gpu_loading(gpu, &load, &inner, &err), 0);
	*(void **)&from_device = driver_symbol("cuMemcpyDtoH_v2");
	context_primary(atoi(device));
	feeds.ctx = (void *)(uintptr_t)inner;
	gpu = &feeds;
	test_good(state);
	test_lengths(state);
	assert_null(damaged_differs(27, 150));
	gpu = all;
}

/* Without free device memory decode() fails, says so once, and goes on failing. */
static void test_full_device(void **state)
{
	unsigned long long taken[4096];
	const struct eq_backend *full;
	struct eq_decode_job job;
	struct gpu_tensor t;
	struct eq_error err;
	struct driver d;
	unsigned n = 0;
	uint64_t seed = 26;

	(void)state;
	*(void **)&d.alloc = driver_symbol("cuMemAlloc_v2");
	*(void **)&d.free = driver_symbol("cuMemFree_v2");
	assert_int_equal(open_gpu(device, 0, false, &full, &err), 0);
	context_primary(atoi(device));
	for (size_t size = (size_t)1 << 30; size >= (size_t)1 << 20; size /= 4)
		while (n < 4096 && d.alloc(&taken[n], size) == 0)
			n++;
	gpu_tensor_make(&gpu_cases[0], &seed, GPU_CHUNK, &t);
	job = t.job[0];
	job.out = must_alloc((size_t)job.n_units * t.plan.unit);
	assert_int_equal(full->decode(full->ctx, &job, 1), -ENOMEM);
	assert_int_equal(logged, 1);
	assert_int_not_equal(full->decode(full->ctx, &job, 1), 0);
	compare_archives(full, 1, "a full device");
	while (n)
		d.free(taken[--n]);
	assert_int_not_equal(full->decode(full->ctx, &job, 1), 0);
	assert_int_equal(logged, 1);
	eq_gpu_release(full);
	/* The other one has what it needs. */
	job.status = 99;
	assert_int_equal(gpu->decode(gpu->ctx, &job, 1), 0);
	assert_int_equal(job.status, 0);
	free(job.out);
	gpu_tensor_free(&t);
}

/* ---- the caller's context ---------------------------------------------------------- */

static void *current;           /* what must be */
static int (*get_current)(void **ctx);

static void same_context(const char *after)
{
	void *now;

	assert_int_equal(get_current(&now), 0);
	if (now != current)
		fail_msg("%s changed the context of its caller", after);
}

/* Everything that loads into device memory. */
static void context_load(const struct eq_backend *be, struct eq_decode_job *job)
{
	const struct eq_backend *inner;
	struct eq_gpu_feed *feed;
	struct eq_error err;

	assert_int_equal(eq_gpu_loading(be, &load, &inner, &err), 0);
	assert_int_equal(load->alloc(inner, FEED_BYTES, &job->out), 0);
	same_context("alloc");
	assert_int_equal(load->copy(inner, job->out, job->in, job->in_len), 0);
	same_context("copy");
	assert_int_equal(load->feed_get(inner, FEED_BYTES, &feed), 0);
	same_context("feed_get");
	job->in = memcpy(feed->buf, job->in, job->in_len);
	assert_int_equal(load->feed_decode(feed, job, 1), 0);
	same_context("feed_decode");
	assert_int_equal(load->feed_copy(feed, job->out, feed->buf, job->in_len), 0);
	same_context("feed_copy");
	assert_int_equal(load->feed_wait(feed), 0);
	same_context("feed_wait");
	load->feed_put(inner, feed);
	same_context("feed_put");
	load->free(inner, job->out);
	same_context("free");
}

static void context_use(void)
{
	const struct eq_backend *be;
	struct eq_decode_job job;
	struct eq_gpu_measure m;
	struct gpu_tensor t;
	struct eq_error err;
	uint64_t seed = 27;

	assert_int_equal(open_gpu(device, 0, false, &be, &err), 0);
	same_context("open");
	gpu_tensor_make(&gpu_cases[0], &seed, GPU_CHUNK, &t);
	job = t.job[0];
	job.out = must_alloc((size_t)job.n_units * t.plan.unit);
	assert_int_equal(be->decode(be->ctx, &job, 1), 0);
	same_context("decode");
	assert_int_equal(eq_gpu_bench(be, &job, 1, 1, 1, &m), 0);
	same_context("measure");
	free(job.out);
	context_load(be, &job);
	encoder_under_test = be;
	test_planes(NULL);
	same_context("encode");
	test_quantiser(NULL);
	same_context("quantiser");
	encoder_under_test = gpu;
	eq_gpu_release(be);
	same_context("close");
	gpu_tensor_free(&t);
}

/* A thread's context stays as it is, its own or none. With that also its device. */
static void test_context(void **state)
{
	int (*create)(void **ctx, unsigned flags, int number), (*destroy)(void *ctx);
	int (*set)(void *ctx);

	(void)state;
	*(void **)&get_current = driver_symbol("cuCtxGetCurrent");
	*(void **)&set = driver_symbol("cuCtxSetCurrent");
	*(void **)&create = driver_symbol("cuCtxCreate_v2");
	*(void **)&destroy = driver_symbol("cuCtxDestroy_v2");
	assert_int_equal(set(NULL), 0);
	current = NULL;
	context_use();
	assert_int_equal(create(&current, 0, 0), 0);
	context_use();
	destroy(current);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_lengths),
		cmocka_unit_test(test_damaged),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_little_memory),
		cmocka_unit_test(test_resident),
		cmocka_unit_test(test_planes),
		cmocka_unit_test(test_escapes),
		cmocka_unit_test(test_quantiser),
		cmocka_unit_test(test_long_rows),
		cmocka_unit_test(test_odd_rows),
		cmocka_unit_test(test_not_finite),
		cmocka_unit_test(test_archives),
		cmocka_unit_test(test_encoding_threads),
		cmocka_unit_test(test_feeds),
		cmocka_unit_test(test_no_log),
		cmocka_unit_test(test_full_device),
		cmocka_unit_test(test_context),
	};
	const char *require = getenv("EQFS_TEST_REQUIRE");
	struct eq_error err = { "" };
	int rc;

	if (getenv("EQFS_TEST_GPU"))
		device = getenv("EQFS_TEST_GPU");
	if (open_gpu(device, 0, false, &gpu, &err)) {
		fprintf(stderr, "no GPU: %s\n", err.text);
		return require && strstr(require, "gpu") ? 1 : 77;
	}
	fprintf(stderr, "%s\n", gpu->name);
	encoder_under_test = gpu;
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	rc = cmocka_run_group_tests(tests, NULL, NULL);
	eq_gpu_release(gpu);
	return rc;
}
