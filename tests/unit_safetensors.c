/* SPDX-License-Identifier: Apache-2.0 */
/* Headers of safetensors files: the fixtures of tests/data, and what no small
 * file can show. */
#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "codec_util.h"
#include "format.h"
#include "st_text.h"

static const char *data_path(const char *set, const char *file)
{
	static char path[4096];
	const char *srcdir = getenv("srcdir");

	snprintf(path, sizeof(path), "%s/tests/data/%s/%s", srcdir ? srcdir : ".", set, file);
	return path;
}

/* ---- fixtures ------------------------------------------------------------ */

/* The next line of EXPECTED, cut at its tabs. */
static bool next_case(FILE *f, char **line, size_t *size, char *field[3])
{
	if (getline(line, size, f) <= 0)
		return false;

	char *s = *line;

	s[strcspn(s, "\n")] = '\0';
	for (int i = 0; i < 3; i++)
		field[i] = s ? strsep(&s, "\t") : NULL;
	return true;
}

static size_t count_fixtures(const char *set)
{
	DIR *d = opendir(data_path(set, "."));
	const struct dirent *e;
	size_t n = 0;

	assert_non_null(d);
	while ((e = readdir(d)))
		n += strstr(e->d_name, ".safetensors") != NULL;
	closedir(d);
	return n;
}

static int read_file(const char *set, const char *file, struct eq_st **st,
		     struct eq_error *err)
{
	uint8_t *prefix = (uint8_t *)1;
	const int fd = open(data_path(set, file), O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		fail_msg("%s: %s", data_path(set, file), strerror(errno));
	const int rc = eq_st_read(fd, file, st, &prefix, err);

	assert_int_equal(lseek(fd, 0, SEEK_CUR), 0);
	close(fd);
	assert_int_equal(rc == 0, *st != NULL);
	assert_int_equal(rc == 0, prefix != NULL);
	free(prefix);
	return rc;
}

static void test_bad(void **state)
{
	FILE *f = fopen(data_path("bad", "EXPECTED"), "re");
	char *line = NULL, *field[3];
	size_t size = 0, n = 0, failures = 0;

	(void)state;
	assert_non_null(f);
	for (; next_case(f, &line, &size, field); n++) {
		struct eq_error err = { "" };
		struct eq_st *st;
		const int rc = read_file("bad", field[0], &st, &err);
		const size_t len = strlen(field[0]);

		assert_non_null(field[2]);
		if (strcmp(st_code(rc), field[1]) == 0 && strstr(err.text, field[2]) &&
		    strncmp(err.text, field[0], len) == 0 && err.text[len] == ':' &&
		    !strchr(err.text, '\n'))
			continue;
		print_error("%s: got %s '%s', expected %s '%s'\n", field[0], st_code(rc),
			    err.text, field[1], field[2]);
		failures++;
	}
	free(line);
	fclose(f);
	assert_int_equal(failures, 0);
	assert_true(n >= 40);
	assert_int_equal(n, count_fixtures("bad"));
}

static void test_good(void **state)
{
	FILE *f = fopen(data_path("good", "EXPECTED"), "re");
	char *line = NULL, *field[3];
	size_t size = 0, n = 0, failures = 0;

	(void)state;
	assert_non_null(f);
	for (; next_case(f, &line, &size, field); n++) {
		struct eq_error err = { "" };
		struct eq_st *st;
		const int rc = read_file("good", field[0], &st, &err);
		char *text = rc ? NULL : st_text(st);

		if (rc || strcmp(text, field[1]) != 0) {
			print_error("%s: got %s '%s', expected '%s'\n", field[0], st_code(rc),
				    rc ? err.text : text, field[1]);
			failures++;
		}
		free(text);
		eq_st_free(st);
	}
	free(line);
	fclose(f);
	assert_int_equal(failures, 0);
	assert_true(n >= 20);
	assert_int_equal(n, count_fixtures("good"));
}

/* ---- headers made here --------------------------------------------------- */

struct header {
	uint8_t *bytes;
	size_t len;
};

/* Exactly as long as it is, so that ASan sees a read beyond it. */
static struct header make(const char *json, size_t len)
{
	struct header h = { malloc(8 + len), 8 + len };

	assert_non_null(h.bytes);
	for (int i = 0; i < 8; i++)
		h.bytes[i] = (uint8_t)((uint64_t)len >> 8 * i);
	memcpy(h.bytes + 8, json, len);
	return h;
}

static int parse(const char *json, size_t len, uint64_t data, struct eq_st **st,
		 struct eq_error *err)
{
	const struct header h = make(json, len);
	const int rc = eq_st_parse(h.bytes, h.len, h.len + data, "F", st, err);

	assert_int_equal(rc == 0, *st != NULL);
	free(h.bytes);
	return rc;
}

static void test_truncated(void **state)
{
	static const char json[] =
		"{\"__metadata__\":{\"format\":\"pt\"},\"a\\u00e9\\ud83d\\ude00\":{\"dtype\":\"F4\","
		"\"shape\":[0,18446744073709551615],\"x\":[true,false,null,-1.5e-3,{\"\":[]}],"
		"\"data_offsets\":[0,0]},\"\xc3\xa9\":[{\"U8\":null},[ 12 ],[0,12]]}";
	struct eq_error err;
	struct eq_st *st;

	(void)state;
	assert_int_equal(parse(json, sizeof(json) - 1, 12, &st, &err), 0);
	assert_int_equal(st->n_tensors, 2);
	assert_int_equal(st->prefix_len, 8 + sizeof(json) - 1);
	eq_st_free(st);
	for (size_t len = 0; len < sizeof(json) - 1; len++)
		if (parse(json, len, 12, &st, &err) != EQ_ENOTST)
			fail_msg("accepted when cut at %zu", len);
}

static void test_prefix_length(void **state)
{
	const struct header h = make("{} ", 3);
	struct eq_error err;
	struct eq_st *st;

	(void)state;
	for (uint64_t len = 0; len < h.len; len++)
		assert_int_equal(eq_st_parse(h.bytes, len, h.len, "F", &st, &err), EQ_ENOTST);
	for (uint64_t size = 0; size < h.len; size++)
		assert_int_equal(eq_st_parse(h.bytes, h.len, size, "F", &st, &err), EQ_ENOTST);
	/* The length field rules, not what the caller has read. */
	assert_int_equal(eq_st_parse(h.bytes, h.len + 1, h.len + 1, "F", &st, &err), EQ_ENOTST);
	assert_int_equal(eq_st_parse(h.bytes, h.len, h.len, "F", &st, NULL), 0);
	eq_st_free(st);
	eq_st_free(NULL);
	free(h.bytes);
}

/* One more tensor than the limit fits 100 MB only with equal names; the limit
 * must be what is reported, and before a table of them is made. */
static void test_too_many(void **state)
{
	static const char entry[] = ",\"\":[\"U8\",[0],[0,0]]";
	const size_t n = EQ_MAX_TENSORS + 1, one = sizeof(entry) - 1;
	char *json = malloc(n * one + 2);
	struct eq_error err;
	struct eq_st *st;

	(void)state;
	assert_non_null(json);
	for (size_t i = 0; i < n; i++)
		memcpy(json + 1 + i * one, entry, one);
	json[0] = ' ';
	json[1] = '{';
	json[1 + n * one] = '}';
	assert_int_equal(parse(json, n * one + 2, 0, &st, &err), EQ_ELIMIT);
	assert_non_null(strstr(err.text, "4194304"));
	free(json);
}

/* Random tensors, their entries in random order, against what was written. */
static void test_random(void **state)
{
	uint64_t seed = 1;

	(void)state;
	for (int round = 0; round < 300; round++) {
		const size_t n = rnd(&seed) % 40;
		char *entry[40], *json = NULL, *expected = NULL, *text;
		uint64_t at = 0;
		size_t len;
		FILE *e = open_memstream(&expected, &len), *f;
		struct eq_error err = { "" };
		struct eq_st *st;

		assert_non_null(e);
		for (size_t i = 0; i < n; i++) {
			const int dtype = (int)(rnd(&seed) % EQ_DTYPES);
			const unsigned long long a = rnd(&seed) % 5 * 4, b = rnd(&seed) % 9;
			const unsigned long long end = at + a * b * eq_dtype_bits(dtype) / 8;

			/* Ascending names, so that ties (empty tensors) keep this order. */
			assert_true(asprintf(&entry[i],
					     "\"n%02zu\": {\"shape\":[%llu, %llu],\"dtype\":\"%s\","
					     "\"data_offsets\":[%llu,%llu]}", i, a, b,
					     eq_dtype_name(dtype), (unsigned long long)at, end) > 0);
			fprintf(e, "%sn%02zu %s %llux%llu %llu %llu", i ? ";" : "", i,
				eq_dtype_name(dtype), a, b, (unsigned long long)at, end);
			at = end;
		}
		fclose(e);

		f = open_memstream(&json, &len);
		assert_non_null(f);
		fputc('{', f);
		for (size_t i = 0; i < n; i++) {
			const size_t k = i + rnd(&seed) % (n - i);
			char *picked = entry[k];

			entry[k] = entry[i];
			fprintf(f, "%s%s", i ? "," : "", picked);
			free(picked);
		}
		fputc('}', f);
		fclose(f);

		if (parse(json, len, at, &st, &err) != 0)
			fail_msg("%s: %s", err.text, json);
		text = st_text(st);
		assert_string_equal(text, expected);
		eq_st_free(st);
		assert_int_equal(parse(json, len, at + 1, &st, &err), EQ_ENOTST);
		free(text);
		free(json);
		free(expected);
	}
}

static void test_read_errors(void **state)
{
	struct eq_error err = { "" };
	struct eq_st *st;
	int p[2];

	(void)state;
	assert_int_equal(eq_st_read(-1, "F", &st, NULL, &err), -EBADF);
	assert_null(st);
	assert_string_equal(err.text, "F: fstat: Bad file descriptor");
	assert_int_equal(pipe(p), 0);
	assert_int_equal(eq_st_read(p[0], "F", &st, NULL, &err), EQ_ENOTST);
	close(p[0]);
	close(p[1]);

	const int fd = open(data_path("good", "metadata.safetensors"), O_WRONLY | O_CLOEXEC);

	if (fd >= 0) { /* the source directory may be read-only */
		assert_int_equal(eq_st_read(fd, "F", &st, NULL, &err), -EBADF);
		assert_string_equal(err.text, "F: read: Bad file descriptor");
		close(fd);
	}
}

/* ---- types, messages ----------------------------------------------------- */

static void test_dtypes(void **state)
{
	unsigned seen = 0;

	(void)state;
	for (int d = 0; d < EQ_DTYPES; d++) {
		const char *name = eq_dtype_name(d);

		assert_non_null(name);
		assert_int_equal(eq_dtype_parse(name, strlen(name)), d);
		assert_int_equal(eq_dtype_parse(name, strlen(name) - 1) == d, 0);
		assert_int_equal(eq_dtype_parse(name, strlen(name) + 1), -1);
		assert_true(eq_dtype_bits(d) >= 4 && eq_dtype_bits(d) <= 64);
		if (d == EQ_C64)
			assert_int_equal(eq_dtype_unit(d), 4);
		else
			assert_int_equal(eq_dtype_unit(d), (eq_dtype_bits(d) + 7) / 8);
		seen++;
	}
	assert_int_equal(seen, 22);
	/* Values of the archive format. */
	assert_int_equal(eq_dtype_parse("BOOL", 4), 0);
	assert_int_equal(eq_dtype_parse("F16", 3), 13);
	assert_int_equal(eq_dtype_parse("U64", 3), 21);
	assert_int_equal(eq_dtype_parse("", 0), -1);
	assert_null(eq_dtype_name(-1));
	assert_null(eq_dtype_name(EQ_DTYPES));
	assert_int_equal(eq_dtype_bits(EQ_DTYPES), 0);
	assert_int_equal(eq_dtype_unit(-1), 0);
}

static void test_fail(void **state)
{
	struct eq_error err;
	char wide[600];

	(void)state;
	errno = ENOTTY;
	assert_int_equal(eq_fail(&err, EQ_ECORRUPT, "%s: %d", "a\nb\x1b[1m\x7f\xc2\x9b\xc2\xa0", 7),
			 EQ_ECORRUPT);
	assert_string_equal(err.text, "a?b?[1m???\xc2\xa0: 7");
	assert_int_equal(errno, ENOTTY);
	assert_int_equal(eq_fail(NULL, -EIO, "unused"), -EIO);

	/* Cut, and not within a character. */
	for (size_t start = 0; start < 4; start++) {
		memset(wide, 'x', start);
		for (size_t i = start; i + 4 < sizeof(wide); i += 4)
			memcpy(wide + i, "\xf0\x9f\x98\x80", 5);
		eq_fail(&err, 0, "%s", wide);
		const size_t len = strlen(err.text);

		assert_true(len > 507 && len < sizeof(err.text));
		assert_int_equal((len - start) % 4, 0);
	}
}

static void test_strerror(void **state)
{
	static const int codes[] = { 0, EQ_ECORRUPT, EQ_EUNSUP, EQ_ELIMIT, EQ_ENOTEQAR,
				     EQ_ENOTST, EQ_EDIFFER, -ENOENT, -ENOSPC };
	const size_t n = sizeof(codes) / sizeof(codes[0]);

	(void)state;
	for (size_t i = 0; i < n; i++) {
		assert_string_not_equal(eq_strerror(codes[i]), "unknown error");
		for (size_t k = 0; k < i; k++)
			assert_string_not_equal(eq_strerror(codes[i]), eq_strerror(codes[k]));
	}
	assert_string_equal(eq_strerror(-ENOENT), "No such file or directory");
	assert_string_equal(eq_strerror(1), "unknown error");
	assert_string_equal(eq_strerror(-3999), "unknown error");
	assert_string_equal(eq_strerror(INT32_MIN), "unknown error");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bad),
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_prefix_length),
		cmocka_unit_test(test_too_many),
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_read_errors),
		cmocka_unit_test(test_dtypes),
		cmocka_unit_test(test_fail),
		cmocka_unit_test(test_strerror),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
