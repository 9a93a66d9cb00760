/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lossless encoder on whole files: what a sample does not show of a tensor,
 * tensors of all sizes in one stretch, the same archive with any number of
 * threads.
 */
#include "config.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "codec_util.h"
#include "eqcodec.h"
#include "floats.h"

#define CHUNK 131072u
#define UNITS (8 * CHUNK)       /* of a large tensor; a quarter of it is sampled */
#define TENSORS 400

struct spec {
	const char *dtype;
	size_t units;
	void (*fill)(uint16_t *w, size_t n, uint64_t *seed);
};

struct file {
	int fd;
	uint64_t size;
};

/* ---- what is in the tensors --------------------------------------------------- */

static void fill_gauss(uint16_t *w, size_t n, uint64_t *seed)
{
	for (size_t i = 0; i < n; i++)
		w[i] = eq_bf16_narrow((float)(0.02 * rnd_gauss(seed)));
}

/* Numbers that are a fifth as large in the second half. */
static void fill_drift(uint16_t *w, size_t n, uint64_t *seed)
{
	for (size_t i = 0; i < n; i++)
		w[i] = eq_bf16_narrow((float)((i < n / 2 ? 0.1 : 0.02) * rnd_gauss(seed)));
}

/* Is unit i in the middle half of its chunk, where samples come from? */
static bool in_middle(size_t i)
{
	return i % CHUNK >= CHUNK / 4 && i % CHUNK < CHUNK / 4 * 3;
}

/* Some exponents that no sample holds, in each chunk. */
static void fill_rare(uint16_t *w, size_t n, uint64_t *seed)
{
	fill_gauss(w, n, seed);
	for (size_t i = 0; i < n; i += CHUNK)
		w[i + rnd(seed) % (CHUNK / 4)] = 0x7f00;
}

/* One exponent where samples come from, Gaussian elsewhere. */
static void fill_unlike(uint16_t *w, size_t n, uint64_t *seed)
{
	fill_gauss(w, n, seed);
	for (size_t i = 0; i < n; i++)
		if (in_middle(i))
			w[i] = (uint16_t)(0x3f80 | (rnd(seed) & 0x807f));
}

static void fill_zero(uint16_t *w, size_t n, uint64_t *seed)
{
	(void)seed;
	memset(w, 0, n * sizeof(*w));
}

/* Zero except for a unit that is not sampled. */
static void fill_speck(uint16_t *w, size_t n, uint64_t *seed)
{
	fill_zero(w, n, seed);
	w[n / 8 * 7 + 3] = 0x3f80;
}

static void fill_noise(uint16_t *w, size_t n, uint64_t *seed)
{
	for (size_t i = 0; i < n; i++)
		w[i] = (uint16_t)rnd(seed);
}

/* Counting: nothing for planes, a lot for zstd. */
static void fill_count(uint16_t *w, size_t n, uint64_t *seed)
{
	(void)seed;
	for (size_t i = 0; i < n; i++)
		w[i] = (uint16_t)(i % 1000 * 65);
}

/* ---- files --------------------------------------------------------------------- */

static int memory_file(void)
{
	int fd = memfd_create("stream", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* On a filesystem that may know direct I/O. */
static int disk_file(void)
{
	const char *tmp = getenv("TMPDIR");
	int fd = open(tmp ? tmp : "/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	return fd < 0 ? memory_file() : fd;
}

static void put(int fd, const void *data, size_t len)
{
	assert_int_equal(write(fd, data, len), (ssize_t)len);
}

/* A safetensors file of n tensors t0000, t0001, ... in 16-bit units. */
static struct file make_file(const struct spec *t, size_t n, uint64_t seed)
{
	struct file f = { .fd = memory_file() };
	size_t at = 0, len, pad;
	char *text;
	uint64_t head;
	FILE *json = open_memstream(&text, &len);

	assert_non_null(json);
	for (size_t i = 0; i < n; i++) {
		fprintf(json, "%s\"t%04zu\":{\"dtype\":\"%s\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}",
			i ? "," : "{", i, t[i].dtype, t[i].units, at, at + 2 * t[i].units);
		at += 2 * t[i].units;
	}
	fputc('}', json);
	fclose(json);
	pad = (8 - len % 8) % 8;
	head = len + pad;
	put(f.fd, &head, 8);
	put(f.fd, text, len);
	put(f.fd, "       ", pad);
	free(text);
	for (size_t i = 0; i < n; i++) {
		uint16_t *w = must_alloc(2 * t[i].units);

		t[i].fill(w, t[i].units, &seed);
		put(f.fd, w, 2 * t[i].units);
		free(w);
	}
	f.size = 8 + head + at;
	return f;
}

/* Encode with n workers, to fd; the archive is left open. */
static struct eq_archive *pack(const struct file *f, unsigned workers, bool direct, int fd)
{
	struct eq_pool *pool = NULL;
	struct eq_error err = { "" };
	struct eq_summary sum;
	struct eq_policy policy;
	struct eq_archive *a;

	eq_policy_init(&policy);
	if (workers)
		assert_int_equal(eq_pool_create(workers, &pool), 0);
	struct eq_run run = { .pool = pool, .direct = direct };

	if (eq_encode(f->fd, "in", fd, &policy, &run, &sum, &err))
		fail_msg("%s", err.text);
	if (eq_archive_open(dup(fd), "A", &a, &err) ||
	    eq_archive_verify(a, f->fd, "in", &run, NULL, NULL, NULL, &err))
		fail_msg("%s", err.text);
	eq_pool_free(pool);
	eq_policy_fini(&policy);
	return a;
}

static void assert_same(int a, int b)
{
	off_t size = lseek(a, 0, SEEK_END);
	void *x, *y;

	assert_int_equal(size, lseek(b, 0, SEEK_END));
	x = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, a, 0);
	y = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, b, 0);
	assert_true(x != MAP_FAILED && y != MAP_FAILED);
	assert_memory_equal(x, y, (size_t)size);
	munmap(x, (size_t)size);
	munmap(y, (size_t)size);
}

/* Encode with and without threads, and past the page cache; compare. */
static struct eq_archive *pack_all(const struct spec *t, size_t n)
{
	struct file f = make_file(t, n, 42);
	int fd[3] = { memory_file(), memory_file(), disk_file() }, i;
	struct eq_archive *a = pack(&f, 0, false, fd[0]);

	eq_archive_close(pack(&f, 3, false, fd[1]));
	eq_archive_close(pack(&f, 2, true, fd[2]));
	assert_same(fd[0], fd[1]);
	assert_same(fd[0], fd[2]);
	for (i = 0; i < 3; i++)
		close(fd[i]);
	close(f.fd);
	return a;
}

/* Stored bytes of a tensor, as a share of its own. */
static double share(const struct eq_archive *a, size_t i)
{
	const struct eq_tensor_info *t = &eq_archive_tensors(a)[i];

	return (double)t->stored / (double)t->n_bytes;
}

static void assert_codec(const struct eq_archive *a, size_t i, const char *codec)
{
	assert_string_equal(eq_archive_tensors(a)[i].codec, codec);
}

/* ---- tests ---------------------------------------------------------------------- */

static void test_samples(void **state)
{
	static const struct spec t[] = {
		{ "BF16", UNITS, fill_gauss }, { "BF16", UNITS, fill_rare },
		{ "BF16", UNITS, fill_unlike }, { "BF16", UNITS, fill_zero },
		{ "BF16", UNITS, fill_speck }, { "BF16", UNITS, fill_drift },
		{ "U16", UNITS, fill_noise }, { "U16", UNITS, fill_count },
	};
	struct eq_archive *a = pack_all(t, sizeof(t) / sizeof(*t));

	(void)state;
	assert_codec(a, 0, "planes");
	assert_true(share(a, 0) > 0.65 && share(a, 0) < 0.67);
	/* a table with all symbols costs 0.08 bit of 16, no table 5 */
	assert_true(share(a, 1) > share(a, 0) && share(a, 1) < share(a, 0) + 0.01);
	/* half of it has no entropy in its exponents but for being that half: with
	 * the sample's constant it would take 75% */
	assert_codec(a, 2, "planes");
	assert_true(share(a, 2) < 0.66);
	assert_codec(a, 3, "const");
	assert_true(share(a, 4) < 0.01);
	/* with one table for both halves it would be 0.687 */
	assert_true(share(a, 5) < share(a, 0) + 0.002);
	assert_codec(a, 6, "raw");
	assert_codec(a, 7, "zstd");
	eq_archive_close(a);
}

/* More tensors than a block takes, and of all kinds of sizes. */
static void test_many(void **state)
{
	static void (*const fill[])(uint16_t *, size_t, uint64_t *) = {
		fill_gauss, fill_zero, fill_noise, fill_count,
	};
	struct spec t[TENSORS];
	uint64_t seed = 7;
	struct eq_archive *a;

	(void)state;
	for (size_t i = 0; i < TENSORS; i++) {
		static const size_t bound[] = { 1, 2, 130, 5000, 5000, CHUNK + 3, 2 * CHUNK + 2 };
		size_t most = bound[rnd(&seed) % 50 ? rnd(&seed) % 5 : 5 + rnd(&seed) % 2];

		t[i] = (struct spec){ i % 3 ? "BF16" : "I16", rnd(&seed) % most, fill[rnd(&seed) % 4] };
	}
	t[11].units = 3 * CHUNK + 1;
	a = pack_all(t, TENSORS);
	assert_int_equal(eq_archive_info(a)->n_tensors, TENSORS);
	eq_archive_close(a);
}

/* Large enough to be written directly; one tensor is taken back, out of the file. */
static void test_direct(void **state)
{
	static const struct spec t[] = {
		{ "U16", 8 * UNITS, fill_noise }, { "BF16", 4 * UNITS, fill_unlike },
		{ "U16", 5 * UNITS, fill_noise },
	};
	struct eq_archive *a = pack_all(t, sizeof(t) / sizeof(*t));

	(void)state;
	assert_true(share(a, 1) < 0.66);
	eq_archive_close(a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_samples),
		cmocka_unit_test(test_direct),
		cmocka_unit_test(test_many),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
