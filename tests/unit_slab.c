/* SPDX-License-Identifier: Apache-2.0 */
/* The buffers of decoded extents: apart from each other, and all given back. */
#include <config.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "codec_util.h"
#include "slab.h"

#define HELD 200
#define ROUNDS 3000

/* Of the usual sizes, and such as last chunks and small tensors have. */
static const size_t sizes[] = { 128 << 10, 256 << 10, 512 << 10, 1 << 20, 64, 4096, 262144 + 64 };
#define SIZES (sizeof(sizes) / sizeof(*sizes))

/* A mark at both ends, by which it is known again. */
static void mark(const struct eq_room *r, uint32_t id)
{
	memcpy(r->data, &id, sizeof(id));
	memcpy(r->data + r->size - sizeof(id), &id, sizeof(id));
}

static void check(const struct eq_room *r, uint32_t id)
{
	assert_memory_equal(r->data, &id, sizeof(id));
	assert_memory_equal(r->data + r->size - sizeof(id), &id, sizeof(id));
}

static void assert_empty(const struct eq_slabs *s)
{
	for (unsigned i = 0; i < EQ_SLAB_SIZES; i++)
		assert_true(!s->part[i][0] && !s->part[i][1]);
	assert_int_equal(s->held, 0);
}

static void test_random(void **state)
{
	struct eq_slabs s = { .held = 0 };
	struct eq_room held[HELD] = { { NULL, 0, NULL } };
	uint64_t seed = 7;

	(void)state;
	for (uint32_t i = 0; i < ROUNDS + HELD; i++) {
		size_t k = i < ROUNDS ? rnd(&seed) % HELD : i - ROUNDS;

		if (held[k].data) {
			check(&held[k], (uint32_t)k);
			eq_slab_put(&s, &held[k]);
			held[k].data = NULL;
		} else if (i < ROUNDS) {
			size_t size = sizes[rnd(&seed) % SIZES], was = s.held;
			bool huge = rnd(&seed) % 8;
			size_t more = eq_slab_growth(&s, size, huge);

			held[k] = eq_slab_get(&s, size, huge, &held[k]);
			assert_int_equal(s.held, was + more);
			assert_non_null(held[k].data);
			assert_int_equal((uintptr_t)held[k].data % 64, 0);
			mark(&held[k], (uint32_t)k);
		}
	}
	assert_empty(&s);
}

/* Sixteen share a huge page, the seventeenth has another one; a place that was given
 * back is the next one to be had. */
static void test_shared(void **state)
{
	struct eq_slabs s = { .held = 0 };
	struct eq_room r[17], again;

	(void)state;
	for (unsigned i = 0; i < 17; i++) {
		r[i] = eq_slab_get(&s, 128 << 10, true, &s);
		assert_non_null(r[i].data);
		assert_int_equal(r[i].slab == r[0].slab, i < 16);
	}
	eq_slab_put(&s, &r[16]);
	assert_int_equal(s.held, EQ_SLAB_BYTES);
	eq_slab_put(&s, &r[5]);
	again = eq_slab_get(&s, 128 << 10, true, &s);
	assert_ptr_equal(again.data, r[5].data);
	for (unsigned i = 0; i < 16; i++)
		eq_slab_put(&s, &r[i]);
	assert_empty(&s);
}

static bool idle_now(const void *owner)
{
	return *(const bool *)owner;
}

/* Of two that are half empty one can be cleared, if its owners let it; a place of a
 * size that has none left comes from malloc() unless a huge page may be mapped. */
static void test_spare(void **state)
{
	struct eq_slabs s = { .held = 0 };
	bool idle[4] = { true, true, true, true };
	struct eq_room r[4];
	void *owner[EQ_SLAB_PLACES];

	(void)state;
	for (unsigned i = 0; i < 4; i++)
		r[i] = eq_slab_get(&s, 1 << 20, true, &idle[i]);
	assert_int_equal(s.held, 2 * EQ_SLAB_BYTES);
	assert_int_equal(eq_slab_spare(&s, idle_now, owner), 0);
	eq_slab_put(&s, &r[0]);
	assert_int_equal(eq_slab_spare(&s, idle_now, owner), 0);
	eq_slab_put(&s, &r[3]);
	idle[1] = false;
	assert_int_equal(eq_slab_spare(&s, idle_now, owner), 0);
	idle[1] = true;
	assert_int_equal(eq_slab_spare(&s, idle_now, owner), 1);
	assert_ptr_equal(owner[0], &idle[1]);
	eq_slab_put(&s, &r[1]);
	assert_int_equal(s.held, EQ_SLAB_BYTES);
	assert_int_equal(eq_slab_growth(&s, 128 << 10, true), EQ_SLAB_BYTES);
	r[1] = eq_slab_get(&s, 128 << 10, false, &idle[1]);
	assert_int_equal(s.held, EQ_SLAB_BYTES + (128 << 10));
	eq_slab_put(&s, &r[1]);
	eq_slab_put(&s, &r[2]);
	assert_empty(&s);
}

/* What malloc() may keep does not add up. */
static void test_loose(void **state)
{
	struct eq_slabs s = { .held = 0 };
	struct eq_room r;

	(void)state;
	for (unsigned i = 0; i < 100; i++) {
		r = eq_slab_get(&s, 1 << 20, false, &s);
		assert_non_null(r.data);
		eq_slab_put(&s, &r);
		assert_in_range(s.loose, 0, 65 << 20);
	}
	r = eq_slab_get(&s, 1 << 20, true, &s);
	assert_in_range(s.loose, 0, 4 << 20);
	eq_slab_put(&s, &r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_shared),
		cmocka_unit_test(test_spare),
		cmocka_unit_test(test_loose),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
