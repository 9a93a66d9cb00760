/* SPDX-License-Identifier: Apache-2.0 */
/* Policies: options, ini files, text, and which tensors they quantise. */
#include <config.h>

#include <errno.h>
#include <locale.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "eqcodec.h"
#include "real_names.h"

/* ---- selection ------------------------------------------------------------- */

static bool selects(const struct eq_policy *p, const char *name, uint32_t name_len,
		    int dtype, const uint64_t *dims, unsigned ndim)
{
	struct eq_st_tensor t = {
		.name = name, .name_len = name_len, .dtype = (uint8_t)dtype,
		.ndim = (uint8_t)ndim, .dims = dims,
	};

	t.end = eq_dtype_bits(dtype) / 8;
	for (unsigned i = 0; i < ndim; i++)
		t.end *= dims[i];
	return eq_policy_selects(p, &t);
}

static void test_real_names(void **state)
{
	static const int dtypes[] = { EQ_BF16, EQ_F16, EQ_F32 };
	struct eq_policy p;
	unsigned failures = 0;

	(void)state;
	eq_policy_init(&p);
	p.bits = 4;
	for (size_t d = 0; d < 3; d++) {
		for (size_t i = 0; i < sizeof(quantised) / sizeof(quantised[0]); i++) {
			const struct real_name *n = &quantised[i];

			if (selects(&p, n->name, (uint32_t)strlen(n->name), dtypes[d], n->dims,
				    count_dims(n)))
				continue;
			print_error("not quantised: %s\n", n->name);
			failures++;
		}
		for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
			const struct real_name *n = &kept[i];

			if (!selects(&p, n->name, (uint32_t)strlen(n->name), dtypes[d], n->dims,
				     count_dims(n)))
				continue;
			print_error("quantised: %s\n", n->name);
			failures++;
		}
	}
	assert_int_equal(failures, 0);
}

static void test_preconditions(void **state)
{
	static const char name[] = "model.layers.0.mlp.up_proj.weight";
	static const uint64_t dims[] = { 64, 64, 64 }, empty[] = { 64, 0 };
	const uint32_t len = sizeof(name) - 1;
	struct eq_policy p;

	(void)state;
	eq_policy_init(&p);
	assert_false(eq_policy_lossy(&p));
	assert_false(selects(&p, name, len, EQ_BF16, dims, 2)); /* lossless */
	for (int pass = 0; pass < 2; pass++) {
		p.bits = 4;
		for (int d = 0; d < EQ_DTYPES; d++)
			assert_int_equal(selects(&p, name, len, d, dims, 2),
					 d == EQ_BF16 || d == EQ_F16 || d == EQ_F32);
		assert_false(selects(&p, name, len, EQ_F32, dims, 0));
		assert_false(selects(&p, name, len, EQ_F32, dims, 1));
		assert_false(selects(&p, name, len, EQ_F32, empty, 2));
		p.bits = 0;
		p.lambda = 3.9;
		assert_true(selects(&p, name, len, EQ_F32, dims, 2));
		/* The same holds for what a pattern asks for. */
		assert_int_equal(eq_policy_set(&p, "include", "*", NULL), 0);
	}
	assert_true(selects(&p, name, len, EQ_F32, dims, 3));
	eq_policy_fini(&p);
}

static void test_include_exclude(void **state)
{
	static const uint64_t dims[] = { 8, 8, 8 }, large[] = { 64, 64 };
	static const char up[] = "model.layers.0.mlp.up_proj.weight";
	struct eq_policy p;

	(void)state;
	eq_policy_init(&p);
	assert_int_equal(eq_policy_set(&p, "bits", "4", NULL), 0);
	assert_int_equal(eq_policy_set(&p, "exclude", "*.up_proj.*", NULL), 0);
	assert_false(selects(&p, up, sizeof(up) - 1, EQ_F32, large, 2));
	assert_true(selects(&p, "model.layers.0.mlp.down_proj.weight", 35, EQ_F32, large, 2));
	/* With include the rule on names and sizes no longer counts. */
	assert_int_equal(eq_policy_set(&p, "include", "lm_head.*:x", NULL), 0);
	assert_false(selects(&p, "model.layers.0.mlp.down_proj.weight", 35, EQ_F32, large, 2));
	assert_true(selects(&p, "lm_head.weight", 14, EQ_F32, dims, 2));
	assert_true(selects(&p, "x", 1, EQ_F32, dims, 3));
	assert_false(selects(&p, "x", 1, EQ_F32, dims, 1));
	assert_int_equal(eq_policy_set(&p, "include", "*", NULL), 0);
	assert_false(selects(&p, up, sizeof(up) - 1, EQ_F32, large, 2));
	eq_policy_fini(&p);
}

static void test_globs(void **state)
{
	static const struct {
		const char *glob, *name;
		uint32_t len;
		bool match;
	} cases[] = {
		{ "a", "a", 1, true },          { "a", "ab", 2, false },
		{ "ab", "a", 1, false },        { "*", "", 0, true },
		{ "*", "a.b/c", 5, true },      { "?", "", 0, false },
		{ "?", "\xc3\xa9", 2, true },   { "??", "\xc3\xa9", 2, false },
		{ "a*c", "abbc", 4, true },     { "a*c", "abcb", 4, false },
		{ "*.q*.w", "l.q.q.w", 7, true }, { "a**b*", "ab", 2, true },
		{ "[abc]", "b", 1, true },      { "[abc]", "d", 1, false },
		{ "[a-c]x", "bx", 2, true },    { "[!a-c]", "b", 1, false },
		{ "[^a-c]", "d", 1, true },     { "[]]", "]", 1, true },
		{ "[!]]", "]", 1, false },      { "[a-]", "-", 1, true },
		{ "[a-]", "b", 1, false },      { "[\\]a]", "]", 1, true },
		{ "[a", "[a", 2, true },        { "[a", "a", 1, false },
		{ "[", "[", 1, true },          { "[!", "[!", 2, true },
		{ "[\xc3\xa0-\xc3\xbf]", "\xc3\xa9", 2, true },
		{ "\\*", "*", 1, true },        { "\\*", "a", 1, false },
		{ "\\", "\\", 1, true },        { "a\\?", "a?", 2, true },
		{ "A", "a", 1, false },         { "[9-0]", "5", 1, false },
		{ "layers.[0-9].*", "layers.3.w", 10, true },
		{ "layers.[0-9].*", "layers.13.w", 11, false },
		{ "a?b", "a\0b", 3, true },     { "a", "a\0b", 3, false },
		{ "*b", "a\0b", 3, true },      { "\xff", "\xff", 1, true },
		{ "?", "\xff", 1, true },       { "\xff", "\xfe", 1, false },
	};
	static const uint64_t dims[] = { 2, 2 };
	unsigned failures = 0;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct eq_policy p;

		eq_policy_init(&p);
		p.bits = 4;
		assert_int_equal(eq_policy_set(&p, "include", cases[i].glob, NULL), 0);
		if (selects(&p, cases[i].name, cases[i].len, EQ_F32, dims, 2) != cases[i].match) {
			print_error("%s on %s\n", cases[i].glob, cases[i].name);
			failures++;
		}
		eq_policy_fini(&p);
	}
	assert_int_equal(failures, 0);
}

/* A pattern of many stars on a long name must not take exponential time. */
static void test_glob_time(void **state)
{
	static const uint64_t dims[] = { 2, 2 };
	static char name[65536], glob[2001];
	struct eq_policy p;

	(void)state;
	memset(name, 'a', sizeof(name));
	for (size_t i = 0; i < sizeof(glob) - 1; i += 2)
		memcpy(glob + i, "*a", 2);
	glob[sizeof(glob) - 3] = 'b';
	glob[sizeof(glob) - 2] = '*';
	eq_policy_init(&p);
	p.bits = 4;
	assert_int_equal(eq_policy_set(&p, "include", glob, NULL), 0);
	assert_false(selects(&p, name, sizeof(name), EQ_F32, dims, 2));
	eq_policy_fini(&p);
}

/* ---- options --------------------------------------------------------------- */

static void expect_text(const struct eq_policy *p, const char *text)
{
	char *s = eq_policy_text(p);

	assert_non_null(s);
	assert_string_equal(s, text);
	free(s);
}

static void test_set(void **state)
{
	static const struct {
		const char *key, *value, *text; /* text: NULL if it is refused */
		int rc;
	} steps[] = {
		{ "bits", "4", "bits=4 format=fp8", 0 },
		{ "bits", "0.5", "bits=0.5 format=fp8", 0 },
		{ "bits", "8", "bits=8 format=fp8", 0 },
		{ "bits", "2.10", "bits=2.1 format=fp8", 0 },
		{ "bits", "0.49", NULL, -EINVAL },
		{ "bits", "8.01", NULL, -EINVAL },
		{ "bits", "", NULL, -EINVAL },
		{ "bits", "4x", NULL, -EINVAL },
		{ "bits", " 4", NULL, -EINVAL },
		{ "bits", "+4", NULL, -EINVAL },
		{ "bits", "-4", NULL, -EINVAL },
		{ "bits", "4e0", NULL, -EINVAL },
		{ "bits", "0x4", NULL, -EINVAL },
		{ "bits", "4,5", NULL, -EINVAL },
		{ "bits", "4.", NULL, -EINVAL },
		{ "bits", ".5", NULL, -EINVAL },
		{ "bits", "4.5.6", NULL, -EINVAL },
		{ "bits", "nan", NULL, -EINVAL },
		{ "bits", "inf", NULL, -EINVAL },
		{ "bits", "4.0000000000000001", NULL, -EINVAL },
		{ "lambda", "3.9", "lambda=3.9 format=fp8", 0 },
		{ "lambda", "0", NULL, -EINVAL },
		{ "lambda", "lossless", NULL, -EINVAL },
		{ "lambda", "1000001", NULL, -EINVAL },
		{ "format", "int8", "lambda=3.9 format=int8", 0 },
		{ "format", "INT8", NULL, -EINVAL },
		{ "format", "", NULL, -EINVAL },
		{ "bits", "0", "lossless", 0 },
		{ "lambda", "14.5", "lambda=14.5 format=int8", 0 },
		{ "bits", "lossless", "lossless", 0 },
		{ "format", "fp8", "lossless", 0 },
		{ "bits", "3", "bits=3 format=fp8", 0 },
		{ "include", "", NULL, -EINVAL },
		{ "include", "a::b", NULL, -EINVAL },
		{ "include", "a:", NULL, -EINVAL },
		{ "include", "a: \t:b", NULL, -EINVAL },
		{ "include", "a*:b", "bits=3 format=fp8 include=a*:b", 0 },
		{ "include", "c", "bits=3 format=fp8 include=a*:b:c", 0 },
		{ "exclude", "d", "bits=3 format=fp8 include=a*:b:c exclude=d", 0 },
		{ "bit", "4", NULL, -ENOENT },
		{ "", "4", NULL, -ENOENT },
		{ "Bits", "4", NULL, -ENOENT },
	};
	struct eq_policy p;
	char *before = strdup("lossless");

	(void)state;
	eq_policy_init(&p);
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		struct eq_error err = { "" };
		const int rc = eq_policy_set(&p, steps[i].key, steps[i].value, &err);

		if (rc != steps[i].rc)
			fail_msg("%s=%s gave %d", steps[i].key, steps[i].value, rc);
		if (rc) { /* says what, and leaves the policy alone */
			assert_non_null(strstr(err.text, steps[i].key));
			assert_non_null(strstr(err.text, strncmp(steps[i].value, "a:", 2) ?
					       steps[i].value : "none empty"));
			expect_text(&p, before);
		} else {
			expect_text(&p, steps[i].text);
			free(before);
			before = strdup(steps[i].text);
		}
	}
	free(before);
	eq_policy_fini(&p);
	expect_text(&p, "lossless");
}

static void test_copy(void **state)
{
	struct eq_policy a, b;

	(void)state;
	eq_policy_init(&a);
	assert_int_equal(eq_policy_set(&a, "lambda", "58", NULL), 0);
	assert_int_equal(eq_policy_set(&a, "format", "int8", NULL), 0);
	assert_int_equal(eq_policy_set(&a, "include", "x", NULL), 0);
	memset(&b, 0x5a, sizeof(b)); /* a copy needs no initialised target */
	assert_int_equal(eq_policy_copy(&b, &a), 0);
	assert_int_equal(eq_policy_set(&b, "include", "y", NULL), 0);
	assert_int_equal(eq_policy_set(&b, "exclude", "z", NULL), 0);
	assert_int_equal(eq_policy_set(&b, "bits", "4", NULL), 0);
	expect_text(&a, "lambda=58 format=int8 include=x");
	expect_text(&b, "bits=4 format=int8 include=x:y exclude=z");
	eq_policy_fini(&a);
	expect_text(&b, "bits=4 format=int8 include=x:y exclude=z");
	eq_policy_fini(&b);
}

/* ---- ini --------------------------------------------------------------------- */

static int read_ini(struct eq_policy *p, const char *text, size_t len, struct eq_error *err)
{
	FILE *f = tmpfile();

	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, len, f), len);
	rewind(f);
	err->text[0] = '\0';
	const int rc = eq_policy_read(p, fileno(f), "C", err);

	fclose(f);
	return rc;
}

static void test_ini(void **state)
{
	static const struct {
		const char *text, *result; /* the policy, or the message */
		int rc;
	} cases[] = {
		{ "", "bits=2 format=fp8", 0 },
		{ "[policy]", "bits=2 format=fp8", 0 },
		{ "[policy]\nbits=4\n", "bits=4 format=fp8", 0 },
		{ "[policy]\r\n\tlambda =\t3.9 \r\n", "lambda=3.9 format=fp8", 0 },
		{ "# a comment\n; another\n\n[policy]\n # one more\nbits = 4", "bits=4 format=fp8", 0 },
		{ "[policy]\nbits=4\nlambda=9\n", "lambda=9 format=fp8", 0 },
		{ "[policy]\ninclude = a = b : c\n", "bits=2 format=fp8 include=a = b:c", 0 },
		{ "[policy]\nexclude = a : \n", "C:2: exclude=: expected globs separated by ':', none empty",
		  -EINVAL },
		{ "[policy]\ninclude=\xc3\xa9\ninclude=y\n", "bits=2 format=fp8 include=\xc3\xa9:y", 0 },
		{ "[policy]\nbits=lossless\n", "lossless", 0 },
		{ "bits=4\n", "C:1: expected [policy] first", -EINVAL },
		{ "\n[Policy]\n", "C:2: unknown section [Policy]", -ENOENT },
		{ "[policy]\n[cache]\n", "C:2: unknown section [cache]", -ENOENT },
		{ "[policy] x\n", "C:1: unknown section [policy] x", -ENOENT },
		{ "[policy]\nbits 4\n", "C:2: expected key = value", -EINVAL },
		{ "[policy]\n\nbit=4\n",
		  "C:3: bit=4: no such option (bits, lambda, format, include, exclude)", -ENOENT },
		{ "[policy]\nformat=int8\nbits=9\n",
		  "C:3: bits=9: expected a number from 0.5 to 8, 0 or lossless", -EINVAL },
		{ "[policy]\n=4\n",
		  "C:2: =4: no such option (bits, lambda, format, include, exclude)", -ENOENT },
		{ "[policy]\nbits=4 # four\n",
		  "C:2: bits=4 # four: expected a number from 0.5 to 8, 0 or lossless", -EINVAL },
		{ "[policy]\ninclude=\xff\n", "C:2: not UTF-8", -EINVAL },
		{ "[policy]\ninclude=\x01\n", "C:2: control character", -EINVAL },
		{ "\xef\xbb\xbf[policy]\n", "C:1: expected [policy] first", -EINVAL },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct eq_error err;
		struct eq_policy p;

		eq_policy_init(&p);
		p.bits = 2;
		const int rc = read_ini(&p, cases[i].text, strlen(cases[i].text), &err);

		if (rc != cases[i].rc)
			fail_msg("%s: %d %s", cases[i].text, rc, err.text);
		if (rc)
			assert_string_equal(err.text, cases[i].result);
		/* A failed file leaves no half of itself. */
		expect_text(&p, rc ? "bits=2 format=fp8" : cases[i].result);
		eq_policy_fini(&p);
	}
}

static void test_ini_limits(void **state)
{
	static char text[65538];
	struct eq_error err;
	struct eq_policy p;

	(void)state;
	eq_policy_init(&p);
	memset(text, '\n', sizeof(text));
	memcpy(text, "[policy]", 8);
	memcpy(text + 65536 - 6, "bits=4", 6);
	assert_int_equal(read_ini(&p, text, 65537, &err), EQ_ELIMIT);
	assert_string_equal(err.text, "C: longer than 65536 bytes");
	assert_int_equal(read_ini(&p, text, 65536, &err), 0);
	expect_text(&p, "bits=4 format=fp8");
	/* A NUL hides nothing behind it. */
	assert_int_equal(read_ini(&p, "[policy]\nbits=4\0\nbits=x", 23, &err), -EINVAL);
	assert_string_equal(err.text, "C:2: control character");
	assert_int_equal(eq_policy_read(&p, -1, "C", &err), -EBADF);
	assert_string_equal(err.text, "C: read: Bad file descriptor");
	eq_policy_fini(&p);
}

/* A comma as decimal point, where such a locale is installed. */
static void test_locale(void **state)
{
	static const char *const names[] = { "de_DE.UTF-8", "fr_FR.UTF-8", "de_DE.utf8", NULL };
	struct eq_policy p;
	size_t i = 0;

	(void)state;
	while (names[i] && !setlocale(LC_ALL, names[i]))
		i++;
	if (!names[i])
		skip();
	eq_policy_init(&p);
	assert_int_equal(eq_policy_set(&p, "lambda", "3.9", NULL), 0);
	expect_text(&p, "lambda=3.9 format=fp8");
	setlocale(LC_ALL, "C");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_real_names),
		cmocka_unit_test(test_preconditions),
		cmocka_unit_test(test_include_exclude),
		cmocka_unit_test(test_globs),
		cmocka_unit_test(test_glob_time),
		cmocka_unit_test(test_set),
		cmocka_unit_test(test_copy),
		cmocka_unit_test(test_ini),
		cmocka_unit_test(test_ini_limits),
		cmocka_unit_test(test_locale),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
