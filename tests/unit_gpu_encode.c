/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The encoding kernels of gpu/ on the host, lane by lane, against the CPU: the same
 * chunks, norms, scales, symbols, sums and outliers, to the bit; and whole archives,
 * also when the device fails half way.
 */
#include <config.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gpu_enc_host.h"
#include "gpu_enc_util.h"
#include "gpu_model.h"

static void compare_quant(const struct gpu_case *g, uint64_t *s, uint32_t n)
{
	struct eq_disk_outlier o[3] = { { 0, 1 }, { n / 2, 2 }, { n - 1, 3 } };
	uint64_t hist[256] = { 0 };
	uint8_t *sym = must_alloc(n), *want, *scratch, scales[64];
	struct eq_encode_job job = { .n_units = n, .scales = scales, .scale_bytes = 2 * (rnd(s) % 30),
				     .outlier = o, .n_outliers = rnd(s) % 4 };
	struct eq_coding *c = must_alloc(sizeof(*c));
	struct eq_encode_plan plan;
	float value[256];
	size_t len;

	for (unsigned i = 0; i < 256; i++)
		value[i] = (float)i;
	rnd_symbols(s, sym, n, g->alphabet[0], g->ratio);
	for (uint32_t i = 0; i < n; i++)
		hist[sym[i]]++;
	memset(scales, 0x3c, sizeof(scales));
	eq_coding_quant(c, g->unit, EQ_SCALE_BF16, n, n, eq_align(n, 128), hist, value, 3);
	want = must_alloc(eq_chunk_bound(c, 3) + sizeof(scales));
	scratch = must_alloc(eq_chunk_scratch(c));
	len = eq_chunk_encode_quant(c, sym, n, scales, job.scale_bytes, o, job.n_outliers, want,
				    scratch);
	assert_int_equal(eq_device_plan(c, &plan), 0);
	eq_device_parts(c, 0, job.part);
	job.plan = &plan;
	job.out = must_alloc(eq_chunk_bound(c, 3) + sizeof(scales));
	emulate(&job, 1, sym);
	check_chunk(g->name, &job, want, len);
	free((void *)(uintptr_t)plan.table);
	free(job.out);
	free(want);
	free(scratch);
	free(c);
	free(sym);
}

static void test_symbols(void **state)
{
	uint64_t s = 32;

	(void)state;
	for (unsigned i = 0; i < GPU_CASES; i++) {
		if (!gpu_cases[i].quant)
			continue;
		compare_quant(&gpu_cases[i], &s, 20000);
		for (uint32_t n = 2; n < 600; n += 1 + (uint32_t)(rnd(&s) % 20))
			compare_quant(&gpu_cases[i], &s, n);
	}
}

/* ---- archives ---------------------------------------------------------------------- */

static void test_archives(void **state)
{
	int fd = model_file(41, 1);

	(void)state;
	for (unsigned p = 0; p < MODEL_POLICIES; p++) {
		struct archive want = model_archive(fd, p, NULL, NULL), a;
		struct emulated x;

		emulated_init(&x, 0);
		a = model_archive(fd, p, &x.be, NULL);
		assert_in_range(x.n_chunks, 15, 1000);
		archive_compare(&a, &want, "emulated", p);
		free(a.data);
		x.no_room = true;
		a = model_archive(fd, p, &x.be, NULL);
		archive_compare(&a, &want, "no room for tensors", p);
		free(a.data);
		free(want.data);
	}
	close(fd);
}

/* Whichever call is the first to fail. */
static void test_failing(void **state)
{
	int fd = model_file(42, 1);
	struct eq_pool *pool;

	(void)state;
	assert_int_equal(eq_pool_create(3, &pool), 0);
	for (unsigned p = 0; p < 4; p++) {
		struct archive want = model_archive(fd, p, NULL, NULL);
		unsigned at = 0;
		struct emulated x;

		do {
			struct archive a;

			emulated_init(&x, ++at);
			a = model_archive(fd, p, &x.be, pool);
			archive_compare(&a, &want, "failing", p);
			free(a.data);
		} while (x.calls >= at);
		assert_in_range(at, p < 2 ? 2 : 20, 1000);
		free(want.data);
	}
	eq_pool_free(pool);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_planes),
		cmocka_unit_test(test_escapes),
		cmocka_unit_test(test_symbols),
		cmocka_unit_test(test_quantiser),
		cmocka_unit_test(test_long_rows),
		cmocka_unit_test(test_odd_rows),
		cmocka_unit_test(test_not_finite),
		cmocka_unit_test(test_archives),
		cmocka_unit_test(test_failing),
	};

	struct emulated x;

	emulated_init(&x, 0);
	encoder_under_test = &x.be;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
