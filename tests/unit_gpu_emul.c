/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels of gpu/ on the host, lane by lane, against the CPU's decoder: the
 * same units and the same verdicts, on good chunks and on damaged ones. Chunks
 * and outputs lie in allocations of their exact size, so that a build with
 * AddressSanitizer finds what the kernels would touch out of bounds.
 */
#include <config.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gpu_lane_host.h"
#include "gpu_util.h"
#include "gpu_planes.h"
#include "gpu_quant.h"

static unsigned ran[EQ_GPU_CLASSES], on_cpu, corrupt_found;

static void load_table(const struct eq_gpu_table *table, int cls, unsigned char *shared)
{
	bool quant = cls < EQ_GPU_PLANES, pair = cls & 1;

	if (cls >= EQ_GPU_ANY)
		return;
	for (unsigned i = 0; i < EQ_PROB_SIZE; i++) {
		if (quant || pair)
			((uint64_t *)(void *)shared)[i] = eq_wide_entry(table, i, pair, quant);
		else
			((uint32_t *)(void *)shared)[i] = table->slot[i];
	}
}

/* What the kernel of the class does with one task. */
static int emulate(const struct eq_gpu_task *t, int cls)
{
	static const int dtypes[] = { EQ_BF16, EQ_F16, EQ_F32 };
	uint32_t table_bytes = cls >= EQ_GPU_ANY ? 0 :
			       cls < EQ_GPU_PLANES || cls & 1 ? EQ_WIDE_BYTES : EQ_NARROW_BYTES;
	unsigned char *shared = must_alloc(table_bytes + 8 * EQ_RING);
	unsigned log2_unit = cls >= EQ_GPU_ANY ? (unsigned)(cls - EQ_GPU_ANY) :
						 (unsigned)(cls - EQ_GPU_PLANES) / 2;
	int rc;

	memset(shared, 0xa5, table_bytes + 8 * EQ_RING);
	load_table(&t->tables[t->main.table], cls, shared);
	if (cls < EQ_GPU_PLANES)
		rc = eq_warp_quant(t, shared, table_bytes, dtypes[cls / 2], cls & 1);
	else if (cls < EQ_GPU_ANY)
		rc = eq_warp_planes(t, shared, table_bytes, 1u << log2_unit, cls & 1);
	else
		rc = eq_warp_any(t, shared, table_bytes, 1u << log2_unit);
	free(shared);
	return rc;
}

/* Decode a job both ways and compare; the job's output is made here. */
static void compare(const char *name, const struct eq_decode_job *job)
{
	static struct eq_gpu_table array[EQ_GPU_PARTS];
	struct eq_gpu_tables tables = { .array = array, .max = EQ_GPU_PARTS };
	size_t len = (size_t)job->n_units * job->plan->unit;
	struct eq_decode_job cpu = *job;
	unsigned char *out = aligned_alloc(32, (len + 31) / 32 * 32);
	struct eq_gpu_task t;
	int cls, rc;

	cpu.out = must_alloc(len);
	assert_int_equal(eq_backend_cpu()->decode(NULL, &cpu, 1), 0);
	cls = eq_gpu_prepare(job, &t, &tables);
	if (cls == EQ_GPU_CPU) {
		on_cpu++;
	} else {
		memset(out, 0xee, len);
		t.in = job->in;
		t.out = out;
		t.tables = array;
		rc = emulate(&t, cls);
		ran[cls]++;
		corrupt_found += rc == EQ_ECORRUPT;
		if (rc != cpu.status)
			fail_msg("%s, class %d: status %d, on the CPU %d", name, cls, rc,
				 cpu.status);
		if (!rc && memcmp(out, cpu.out, len)) {
			size_t i = 0;

			while (out[i] == ((uint8_t *)cpu.out)[i])
				i++;
			fail_msg("%s, class %d: unit %zu of %u differs", name, cls,
				 i / job->plan->unit, job->n_units);
		}
	}
	free(out);
	free(cpu.out);
}

static void test_good(void **state)
{
	uint64_t seed = 11;

	(void)state;
	for (unsigned i = 0; i < GPU_CASES; i++) {
		const struct gpu_case *g = &gpu_cases[i];
		unsigned before = on_cpu;
		struct gpu_tensor t;

		gpu_tensor_make(g, &seed, GPU_CHUNK, &t);
		for (unsigned k = 0; k < t.n; k++)
			compare(g->name, &t.job[k]);
		/* Only what no kernel is for may go to the CPU. */
		if (on_cpu != before && strcmp(g->name, "quant, odd rows") &&
		    strcmp(g->name, "bytes at random"))
			fail_msg("%s: left to the CPU", g->name);
		gpu_tensor_free(&t);
	}
	for (int c = 0; c < EQ_GPU_CLASSES; c++)
		if (!ran[c] && c != EQ_GPU_ANY)
			fail_msg("no case for the kernel of class %d", c);
	assert_int_equal(corrupt_found, 0);
}

/* Every number of units up to some groups, so that all ends of chunks occur. */
static void test_lengths(void **state)
{
	uint64_t seed = 12;

	(void)state;
	for (unsigned i = 0; i < GPU_CASES; i++) {
		struct gpu_case g = gpu_cases[i];

		for (uint32_t n = 90; n < 530; n += 1 + rnd(&seed) % 40) {
			struct gpu_tensor t;

			g.n = n;
			if (g.quant) {
				g.row = g.row < 60 ? g.row : 4 * (1 + n / 9);
				g.n = n / g.row * g.row;
				if (!g.n)
					continue;
			}
			gpu_tensor_make(&g, &seed, 256, &t);
			for (unsigned k = 0; k < t.n; k++)
				compare(g.name, &t.job[k]);
			gpu_tensor_free(&t);
		}
	}
}

static void test_damaged(void **state)
{
	uint64_t seed = 13;

	(void)state;
	corrupt_found = 0;
	for (unsigned i = 0; i < GPU_CASES; i++) {
		const struct gpu_case *g = &gpu_cases[i];
		struct gpu_tensor t;

		gpu_tensor_make(g, &seed, GPU_CHUNK, &t);
		for (unsigned round = 0; round < 150; round++) {
			struct eq_decode_job job = t.job[round % t.n];
			uint8_t *copy = gpu_chunk_copy(job.in, job.in_len), *exact;

			job.in_len = gpu_damage(&seed, copy, job.in_len);
			exact = gpu_chunk_copy(copy, job.in_len);
			job.in = exact;
			compare(g->name, &job);
			free(exact);
			free(copy);
		}
		gpu_tensor_free(&t);
	}
	/* The damage must reach the kernels, not stop at the layout. */
	assert_in_range(corrupt_found, 1000, 1000000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_lengths),
		cmocka_unit_test(test_damaged),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
