/* SPDX-License-Identifier: Apache-2.0 */
/* Archives: the fixtures of tests/data, round trips, random access, damage. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "eqcodec.h"

static const struct { const char *name; int code; } codes[] = {
	{ "ECORRUPT", EQ_ECORRUPT }, { "EUNSUP", EQ_EUNSUP }, { "ELIMIT", EQ_ELIMIT },
	{ "ENOTEQAR", EQ_ENOTEQAR },
};

static int code_of(const char *name)
{
	for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
		if (!strcmp(name, codes[i].name))
			return codes[i].code;
	fail_msg("unknown error code %s in a list", name);
	return 0;
}

static const char *source_dir(void)
{
	const char *dir = getenv("srcdir");

	return dir ? dir : ".";
}

/* Call fn for each line of tests/data/SUB/ARCHIVES; returns how many. */
static unsigned each_fixture(const char *sub, void (*fn)(const char *path, char *rest))
{
	char path[4096], line[1024], *tab;
	unsigned n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/tests/data/%s/ARCHIVES", source_dir(), sub);
	f = fopen(path, "r");
	if (!f)
		fail_msg("%s: cannot open", path);
	while (fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		tab = strchr(line, '\t');
		assert_non_null(tab);
		*tab = 0;
		snprintf(path, sizeof(path), "%s/tests/data/%s/%s", source_dir(), sub, line);
		fn(path, tab + 1);
		n++;
	}
	fclose(f);
	return n;
}

static int open_archive(const char *path, struct eq_archive **a, struct eq_error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc;

	if (fd < 0)
		fail_msg("%s: %s", path, strerror(errno));
	rc = eq_archive_open(fd, path, a, err);
	if (rc)
		close(fd);
	return rc;
}

/* What a sum over many archives takes for its size; 0: it is none. */
static uint64_t peek(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc;
	uint64_t size;

	assert_true(fd >= 0);
	rc = eq_archive_peek(fd, &size);
	close(fd);
	assert_true(!rc == (size > 0));
	return size;
}

static void hex_sha256(const void *data, size_t len, char out[65])
{
	unsigned char md[EVP_MAX_MD_SIZE];

	assert_int_equal(EVP_Digest(data, len, md, NULL, EVP_sha256(), NULL), 1);
	for (int i = 0; i < 32; i++)
		sprintf(out + 2 * i, "%02x", md[i]);
}

static void check_good(const char *path, char *expected)
{
	struct eq_run run = { .pool = NULL };
	struct eq_error err = { "" };
	struct eq_archive *a;
	char hex[65];
	uint8_t *buf;
	uint64_t size;

	if (open_archive(path, &a, &err))
		fail_msg("%s", err.text);
	size = eq_archive_info(a)->size;
	assert_true(peek(path) == size);
	buf = malloc(size);
	assert_non_null(buf);
	if (eq_archive_pread(a, NULL, buf, size, 0, &err) != (ssize_t)size)
		fail_msg("%s", err.text);
	hex_sha256(buf, size, hex);
	if (strcmp(hex, expected))
		fail_msg("%s: decodes to %s, expected %s", path, hex, expected);
	if (eq_archive_verify(a, -1, NULL, &run, NULL, NULL, NULL, &err))
		fail_msg("%s", err.text);
	free(buf);
	eq_archive_close(a);
}

static void check_refused(const char *path, char *rest)
{
	struct eq_run run = { .pool = NULL };
	struct eq_error err = { "" };
	struct eq_archive *a;
	char *text = strchr(rest, '\t');
	int rc, code;

	assert_non_null(text);
	*text++ = 0;
	code = code_of(rest);
	assert_true(peek(path) <= INT64_MAX);
	rc = open_archive(path, &a, &err);
	if (!rc) {
		rc = eq_archive_verify(a, -1, NULL, &run, NULL, NULL, NULL, &err);
		eq_archive_close(a);
	} else {
		assert_null(a);
	}
	if (rc != code || !strstr(err.text, text) || strchr(err.text, '\n'))
		fail_msg("%s: got %d (%s)\nexpected %d with '%s'", path, rc, err.text, code, text);
	if (!strstr(err.text, strrchr(path, '/') + 1))
		fail_msg("%s: the message does not name the file: %s", path, err.text);
}

static void test_golden(void **state)
{
	(void)state;
	assert_true(each_fixture("good", check_good) >= 16);
}

static void test_bad(void **state)
{
	(void)state;
	assert_true(each_fixture("bad", check_refused) >= 40);
}

static void test_unsupported(void **state)
{
	(void)state;
	assert_true(each_fixture("unsupported", check_refused) >= 6);
}

/* ---- random files --------------------------------------------------------------- */

static uint64_t seed = 88172645463325252u;

static uint64_t rnd(uint64_t n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % n;
}

/* Bytes as float-like, integer-like, constant or noise. */
static void fill_random(uint8_t *p, size_t n, int dtype)
{
	unsigned unit = eq_dtype_unit(dtype), style = (unsigned)rnd(4);
	size_t i;

	for (i = 0; i < n; i++) {
		p[i] = (uint8_t)rnd(256);
		if (style == 0 && i % unit == unit - 1)
			p[i] = (uint8_t)((p[i] & 0x80) | (0x3c + rnd(3)));
		else if (style == 1)
			p[i] = i % unit ? 0 : (uint8_t)rnd(9);
		else if (style == 2)
			p[i] = 7;
	}
}

struct random_file {
	uint8_t *data;
	size_t len;
	int fd;
};

/* A safetensors file of a few random tensors in a memfd. Dtypes of whole bytes. */
static struct random_file make_file(void)
{
	struct random_file f = { NULL, 0, -1 };
	char json[4096];
	size_t at = 0, pos = 0, sizes[6];
	int dtypes[6], n = (int)rnd(6), i;

	json[at++] = '{';
	for (i = 0; i < n; i++) {
		uint64_t d0 = rnd(40), d1 = 1 + rnd(i == 0 ? 30000 : 300);

		do
			dtypes[i] = (int)rnd(EQ_DTYPES);
		while (eq_dtype_bits(dtypes[i]) % 8);
		sizes[i] = d0 * d1 * eq_dtype_bits(dtypes[i]) / 8;
		at += (size_t)sprintf(json + at, "%s\"m.%d.weight\":{\"dtype\":\"%s\",\"shape\":[%lu,%lu],"
				      "\"data_offsets\":[%zu,%zu]}", i ? "," : "", i,
				      eq_dtype_name(dtypes[i]), d0, d1, pos, pos + sizes[i]);
		pos += sizes[i];
	}
	json[at++] = '}';
	while (at % 8)
		json[at++] = ' ';
	f.len = 8 + at + pos;
	f.data = malloc(f.len);
	assert_non_null(f.data);
	memcpy(f.data, &(uint64_t){ at }, 8);
	memcpy(f.data + 8, json, at);
	for (i = 0, pos = 8 + at; i < n; pos += sizes[i], i++)
		fill_random(f.data + pos, sizes[i], dtypes[i]);
	f.fd = memfd_create("file", MFD_CLOEXEC);
	assert_true(f.fd >= 0);
	assert_int_equal(write(f.fd, f.data, f.len), (ssize_t)f.len);
	return f;
}

static struct eq_archive *encode(int fd, const struct eq_policy *policy, const struct eq_run *run)
{
	struct eq_error err = { "" };
	struct eq_archive *a;
	struct eq_summary sum;
	int out = memfd_create("archive", MFD_CLOEXEC);

	assert_true(out >= 0);
	if (eq_encode(fd, "file", out, policy, run, &sum, &err) ||
	    eq_archive_open(out, "archive", &a, &err))
		fail_msg("%s", err.text);
	assert_int_equal(sum.stored, eq_archive_info(a)->stored);
	return a;
}

static void check_range(struct eq_archive *a, const uint8_t *whole, uint64_t size, uint64_t off,
			size_t len)
{
	struct eq_error err = { "" };
	size_t want = off >= size ? 0 : size - off < len ? size - off : len;
	uint8_t *buf = malloc(len + 1);
	ssize_t n;

	assert_non_null(buf);
	buf[len] = 0xa5;
	n = eq_archive_pread(a, NULL, buf, len, off, &err);
	if (n != (ssize_t)want)
		fail_msg("pread(%zu, %lu) = %zd: %s", len, off, n, err.text);
	if (memcmp(buf, whole + off, want) || buf[len] != 0xa5)
		fail_msg("pread(%zu, %lu) gives other bytes", len, off);
	free(buf);
}

static void test_random_files(void **state)
{
	struct eq_run run = { .pool = NULL };
	struct eq_policy policy;
	struct eq_error err = { "" };
	int round, i;

	(void)state;
	eq_policy_init(&policy);
	assert_int_equal(eq_pool_create(2, &run.pool), 0);
	for (round = 0; round < 40; round++) {
		struct random_file f = make_file();
		struct eq_archive *a = encode(f.fd, &policy, &run);
		struct eq_compare cmp;

		assert_int_equal(eq_archive_info(a)->size, f.len);
		check_range(a, f.data, f.len, 0, f.len + 100);
		for (i = 0; i < 60; i++)
			check_range(a, f.data, f.len, rnd(f.len + 2), rnd(i % 2 ? 300 : f.len + 1));
		if (eq_archive_verify(a, f.fd, "file", &run, &cmp, NULL, NULL, &err))
			fail_msg("%s", err.text);
		assert_true(cmp.identical);
		eq_archive_close(a);
		close(f.fd);
		free(f.data);
	}
	eq_pool_free(run.pool);
	eq_policy_fini(&policy);
}

/* ---- damage, threads, changes ----------------------------------------------------- */

/* A file of one bf16 tensor of rows x k Gaussian-like weights. */
static struct random_file make_weights(uint64_t rows, uint64_t k)
{
	struct random_file f = { NULL, 0, -1 };
	char json[256];
	int n = sprintf(json, "{\"model.layers.0.mlp.up_proj.weight\":{\"dtype\":\"BF16\",\"shape\":"
			"[%lu,%lu],\"data_offsets\":[0,%lu]}}", rows, k, 2 * rows * k);
	uint16_t *w;
	uint64_t i;
	float x;
	uint32_t u;

	while (n % 8)
		json[n++] = ' ';
	f.len = 8 + (size_t)n + 2 * rows * k;
	f.data = malloc(f.len);
	assert_non_null(f.data);
	memcpy(f.data, &(uint64_t){ (uint64_t)n }, 8);
	memcpy(f.data + 8, json, (size_t)n);
	w = (uint16_t *)(f.data + 8 + n);
	for (i = 0; i < rows * k; i++) { /* Irwin-Hall */
		x = (float)(rnd(1000) + rnd(1000) + rnd(1000) + rnd(1000)) * 1e-3f - 2;
		memcpy(&u, &x, 4);
		w[i] = (uint16_t)(u >> 16);
	}
	f.fd = memfd_create("weights", MFD_CLOEXEC);
	assert_int_equal(write(f.fd, f.data, f.len), (ssize_t)f.len);
	return f;
}

/* The archive's bytes must not depend on the number of threads. */
static void test_threads(void **state)
{
	struct random_file f = make_weights(600, 1100);
	struct eq_run serial = { .pool = NULL }, parallel = { .pool = NULL };
	struct eq_policy policy;
	struct eq_error err;
	struct eq_summary sum;
	struct stat st;
	int out[2], i;
	uint8_t *p[2];

	(void)state;
	eq_policy_init(&policy);
	assert_int_equal(eq_policy_set(&policy, "bits", "3.5", &err), 0);
	assert_int_equal(eq_pool_create(3, &parallel.pool), 0);
	for (i = 0; i < 2; i++) {
		out[i] = memfd_create("archive", MFD_CLOEXEC);
		assert_int_equal(eq_encode(f.fd, "f", out[i], &policy, i ? &parallel : &serial, &sum, &err), 0);
		assert_int_equal(fstat(out[i], &st), 0);
		p[i] = mmap(NULL, sum.stored, PROT_READ, MAP_SHARED, out[i], 0);
		assert_int_equal(st.st_size, sum.stored);
	}
	assert_memory_equal(p[0], p[1], sum.stored);
	assert_true(sum.n_quantised == 1 && sum.relative_l1 > 0.01 && sum.relative_l1 < 0.3);
	for (i = 0; i < 2; i++) {
		munmap(p[i], sum.stored);
		close(out[i]);
	}
	eq_pool_free(parallel.pool);
	eq_policy_fini(&policy);
	close(f.fd);
	free(f.data);
}

/* Flip one bit anywhere: an error or the right bytes, never others. */
static void test_bit_flips(void **state)
{
	struct random_file f = make_weights(200, 1500);
	struct eq_run run = { .pool = NULL };
	struct eq_policy policy;
	struct eq_error err;
	struct eq_summary sum;
	struct eq_archive *a;
	uint8_t *buf = malloc(f.len), byte, was;
	int fd = memfd_create("archive", MFD_CLOEXEC), i, refused = 0;

	(void)state;
	assert_non_null(buf);
	eq_policy_init(&policy);
	assert_int_equal(eq_encode(f.fd, "f", fd, &policy, &run, &sum, &err), 0);
	for (i = 0; i < 300; i++) {
		off_t at = (off_t)rnd(sum.stored);
		ssize_t n;

		assert_int_equal(pread(fd, &was, 1, at), 1);
		byte = was ^ (uint8_t)(1 << rnd(8));
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
		n = eq_archive_open(dup(fd), "archive", &a, &err);
		if (n == 0) {
			n = eq_archive_pread(a, NULL, buf, f.len, 0, &err);
			eq_archive_close(a);
		}
		if (n < 0)
			refused++;
		else if ((size_t)n != f.len || memcmp(buf, f.data, f.len))
			fail_msg("bit flip at byte %ld went unnoticed", (long)at);
		assert_int_equal(pwrite(fd, &was, 1, at), 1);
	}
	/* Padding is the only place where a flip may not matter. */
	assert_true(refused > 250);
	eq_policy_fini(&policy);
	close(fd);
	close(f.fd);
	free(f.data);
	free(buf);
}

static void test_locate(void **state)
{
	struct random_file f = make_weights(100, 4000);
	struct eq_run run = { .pool = NULL };
	struct eq_policy policy;
	struct eq_archive *a;
	struct eq_extent e;
	uint64_t at = 0;

	(void)state;
	eq_policy_init(&policy);
	a = encode(f.fd, &policy, &run);
	while (at < f.len) {
		assert_int_equal(eq_archive_locate(a, at, &e), 0);
		assert_int_equal(e.begin, at);
		assert_true(e.len > 0);
		at += e.len;
	}
	assert_int_equal(at, f.len);
	assert_int_equal(eq_archive_locate(a, f.len, &e), -EINVAL);
	eq_archive_close(a);
	eq_policy_fini(&policy);
	close(f.fd);
	free(f.data);
}

/* What was unpacked is what a second decoding gives, also of a lossy archive, or not. */
static void test_match(void **state)
{
	struct random_file f = make_weights(100, 4000);
	struct eq_run run = { .pool = NULL };
	int out = memfd_create("out", MFD_CLOEXEC);
	struct eq_policy policy;
	struct eq_archive *a;
	struct eq_error err;
	uint8_t byte;

	(void)state;
	for (int lossy = 0; lossy < 2; lossy++) {
		eq_policy_init(&policy);
		if (lossy)
			assert_int_equal(eq_policy_set(&policy, "lambda", "3.9", &err), 0);
		a = encode(f.fd, &policy, &run);
		assert_int_equal(eq_archive_info(a)->lossy, lossy);
		assert_int_equal(eq_archive_unpack(a, out, &run, &err), 0);
		assert_int_equal(eq_archive_match(a, out, "out", &run, &err), 0);
		assert_int_equal(eq_archive_match(a, f.fd, "f", &run, &err), lossy ? EQ_EDIFFER : 0);
		assert_int_equal(pread(out, &byte, 1, (off_t)f.len - 3), 1);
		byte ^= 1;
		assert_int_equal(pwrite(out, &byte, 1, (off_t)f.len - 3), 1);
		assert_int_equal(eq_archive_match(a, out, "out", &run, &err), EQ_EDIFFER);
		eq_archive_close(a);
		eq_policy_fini(&policy);
	}
	close(out);
	close(f.fd);
	free(f.data);
}

/* A chunk with more outliers, NaN, infinity: stays lossless and says so. */
static void test_nonfinite(void **state)
{
	struct random_file f = make_weights(64, 64);
	struct eq_run run = { .pool = NULL };
	struct eq_policy policy;
	struct eq_archive *a;
	struct eq_error err;
	uint16_t inf = 0x7f80;

	(void)state;
	assert_int_equal(pwrite(f.fd, &inf, 2, (off_t)f.len - 10), 2);
	eq_policy_init(&policy);
	assert_int_equal(eq_policy_set(&policy, "lambda", "3.9", &err), 0);
	a = encode(f.fd, &policy, &run);
	assert_false(eq_archive_info(a)->lossy);
	assert_true(eq_archive_tensors(a)[0].nonfinite);
	assert_int_equal(eq_archive_verify(a, f.fd, "f", &run, NULL, NULL, NULL, &err), 0);
	eq_archive_close(a);
	eq_policy_fini(&policy);
	close(f.fd);
	free(f.data);
}

/* Weights too small for any scale: lossless, rather than all zeros. */
static void test_vanishing(void **state)
{
	struct random_file f = make_weights(64, 64);
	struct eq_run run = { .pool = NULL };
	struct eq_policy policy;
	struct eq_archive *a;
	struct eq_error err;
	static const char as[] = "\"BF16\",\"shape\":[64,64]", to[] = "\"F32\" ,\"shape\":[64,32]";
	uint32_t tiny[64 * 32];
	char *at = memmem(f.data, 200, as, sizeof(as) - 1);

	(void)state;
	assert_non_null(at);
	assert_int_equal(pwrite(f.fd, to, sizeof(to) - 1, (char *)at - (char *)f.data), sizeof(to) - 1);
	for (size_t i = 0; i < sizeof(tiny) / 4; i++)
		tiny[i] = 1 + (uint32_t)rnd(7); /* subnormals */
	assert_int_equal(pwrite(f.fd, tiny, sizeof(tiny), (off_t)(f.len - sizeof(tiny))), sizeof(tiny));
	eq_policy_init(&policy);
	assert_int_equal(eq_policy_set(&policy, "lambda", "3.9", &err), 0);
	a = encode(f.fd, &policy, &run);
	assert_false(eq_archive_info(a)->lossy);
	assert_int_equal(eq_archive_verify(a, f.fd, "f", &run, NULL, NULL, NULL, &err), 0);
	eq_archive_close(a);
	eq_policy_fini(&policy);
	close(f.fd);
	free(f.data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden), cmocka_unit_test(test_bad),
		cmocka_unit_test(test_unsupported), cmocka_unit_test(test_random_files),
		cmocka_unit_test(test_threads), cmocka_unit_test(test_bit_flips),
		cmocka_unit_test(test_locate), cmocka_unit_test(test_nonfinite),
		cmocka_unit_test(test_vanishing), cmocka_unit_test(test_match),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
