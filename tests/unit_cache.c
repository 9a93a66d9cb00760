/* SPDX-License-Identifier: Apache-2.0 */
/* The cache of decoded extents: right bytes, and the room that it takes, keeps and gives
 * back while a reader's demand goes up and down. */
#include <config.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cache.h"
#include "codec_util.h"

#define MIB ((size_t)1 << 20)
#define UNITS (16 * MIB)        /* of bfloat16: 128 chunks of 256 KiB */
#define CHUNK (256 << 10)
#define LIMIT (64 * MIB)

static struct eq_arc arc;
static uint8_t *model;          /* the file */
static size_t data;             /* where its tensor begins */

/* One tensor whose exponents take two bits or so. */
static int make_model(void)
{
	int fd = memfd_create("model", MFD_CLOEXEC);
	size_t room = 2 * UNITS + 512, len;
	uint64_t seed = 5, head;
	uint16_t *w;

	assert_true(fd >= 0);
	model = must_alloc(room);
	len = (size_t)snprintf((char *)model + 8, 500,
			       "{\"w\":{\"dtype\":\"BF16\",\"shape\":[%zu],\"data_offsets\":[0,%zu]}}",
			       UNITS, 2 * UNITS);
	head = len;
	memcpy(model, &head, 8);
	data = 8 + len;
	w = must_alloc(2 * UNITS);
	for (size_t i = 0; i < UNITS; i++) {
		uint64_t r = rnd(&seed);

		w[i] = (uint16_t)(0x3c00 | (r & r >> 16 & 0x1ff) | (r >> 32 & 0x8000));
	}
	memcpy(model + data, w, 2 * UNITS);
	free(w);
	assert_int_equal(write(fd, model, data + 2 * UNITS), data + 2 * UNITS);
	return fd;
}

static int setup(void **state)
{
	const struct eq_run run = { .pool = NULL };
	struct eq_policy policy;
	struct eq_summary summary;
	struct eq_error err;
	int in = make_model(), out = memfd_create("archive", MFD_CLOEXEC);

	(void)state;
	eq_policy_init(&policy);
	assert_int_equal(eq_encode(in, "model", out, &policy, &run, &summary, &err), 0);
	eq_policy_fini(&policy);
	close(in);
	assert_int_equal(eq_archive_open(out, "archive", &arc.archive, &err), 0);
	arc.info = eq_archive_info(arc.archive);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	eq_archive_close(arc.archive);
	free(model);
	return 0;
}

static struct eq_cache *cache_new(void)
{
	struct eq_cache *c;

	assert_int_equal(eq_cache_create(LIMIT, NULL, eq_backend_cpu(), &c), 0);
	return c;
}

/* Pin n chunks from chunk k on. */
static void get_chunks(struct eq_cache *c, size_t k, int n, struct eq_piece *p)
{
	struct eq_error err;
	size_t at = data + k * CHUNK;

	assert_int_equal(eq_cache_get(c, &arc, at, (size_t)n * CHUNK, p, &err), n);
	for (int i = 0; i < n; at += p[i++].len) {
		assert_int_equal(p[i].len, CHUNK);
		assert_memory_equal(p[i].data, model + at, CHUNK);
	}
}

/* Pin n chunks for each of some readers, and let them go as the kernel's page cache does. */
static void burst(struct eq_cache *c, int n, int readers)
{
	struct eq_piece p[4][EQ_PIECES];
	int i;

	assert_in_range(readers, 1, 4);
	arc.id++; /* nothing of it is there */
	for (i = 0; i < readers; i++)
		get_chunks(c, (size_t)(i * n), n, p[i]);
	for (i = 0; i < readers; i++)
		eq_cache_release(c, p[i], n, true);
}

static uint64_t held(struct eq_cache *c)
{
	struct eq_cache_stats st;

	eq_cache_stats(c, &st);
	return st.bytes;
}

/* A reader in front of whom much lies, and then little: what he will want again is not
 * given back each time, since to map and clear it anew is work. */
static void test_swing(void **state)
{
	struct eq_cache *c = cache_new();
	uint64_t most;

	(void)state;
	for (int i = 0; i < 2; i++) {
		burst(c, 4, 1);
		burst(c, EQ_PIECES, 1);
	}
	most = held(c);
	assert_in_range(most, 8 * MIB, 14 * MIB);
	for (int i = 0; i < 3; i++) {
		burst(c, 4, 1);
		assert_int_equal(held(c), most);
		burst(c, EQ_PIECES, 1);
		assert_int_equal(held(c), most);
	}
	eq_cache_free(c);
}

/* What only a crowd of readers needed goes when they have gone. */
static void test_crowd(void **state)
{
	struct eq_cache *c = cache_new();

	(void)state;
	burst(c, EQ_PIECES, 4);
	assert_in_range(held(c), 32 * MIB, 35 * MIB);
	burst(c, EQ_PIECES, 1);
	assert_in_range(held(c), 8 * MIB, 24 * MIB);
	eq_cache_free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_swing),
		cmocka_unit_test(test_crowd),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
