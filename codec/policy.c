/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Policies: options, the ini file, text. None of it depends on the locale, for
 * the same policy must give the same archive everywhere.
 */
#include "eqcodec.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "utf8.h"

#define MAX_INI 65536
#define MAX_DIGITS 15           /* decimals of that many digits are exact enough */
#define MAX_LAMBDA 1e6

void eq_policy_init(struct eq_policy *p)
{
	memset(p, 0, sizeof(*p));
	p->format = EQ_Q_FP8;
}

static void free_list(char **list)
{
	for (size_t i = 0; list && list[i]; i++)
		free(list[i]);
	free(list);
}

void eq_policy_fini(struct eq_policy *p)
{
	free_list(p->include);
	free_list(p->exclude);
	eq_policy_init(p);
}

static size_t list_len(char *const *list)
{
	size_t n = 0;

	while (list && list[n])
		n++;
	return n;
}

/* A new list: those of a, then those of b. NULL on -ENOMEM. */
static char **list_join(char *const *a, char *const *b)
{
	const size_t na = list_len(a), nb = list_len(b);
	char **list = calloc(na + nb + 1, sizeof(*list));

	for (size_t i = 0; list && i < na + nb; i++) {
		list[i] = strdup(i < na ? a[i] : b[i - na]);
		if (!list[i]) {
			free_list(list);
			return NULL;
		}
	}
	return list;
}

/* dst is overwritten, not released; after a failure it is as initialised. */
int eq_policy_copy(struct eq_policy *dst, const struct eq_policy *src)
{
	eq_policy_init(dst);
	if (src->include && !(dst->include = list_join(src->include, NULL)))
		goto no_memory;
	if (src->exclude && !(dst->exclude = list_join(src->exclude, NULL)))
		goto no_memory;
	dst->bits = src->bits;
	dst->lambda = src->lambda;
	dst->format = src->format;
	return 0;

no_memory:
	eq_policy_fini(dst);
	return -ENOMEM;
}

bool eq_policy_lossy(const struct eq_policy *p)
{
	return p->bits > 0 || p->lambda > 0;
}

/* ---- options ------------------------------------------------------------- */

/*
 * "4", "3.9", "0.25": digits with an optional fraction. strtod would follow the
 * locale, and take hexadecimal, infinity and NaN. Up to 15 digits, so that one
 * division of exact numbers gives the nearest double.
 */
static bool parse_decimal(const char *s, double *out)
{
	uint64_t v = 0, scale = 1;
	unsigned digits = 0;
	bool point = false;

	for (; *s; s++) {
		if (*s == '.' && !point && digits > 0 && s[1]) {
			point = true;
			continue;
		}
		if (*s < '0' || *s > '9' || ++digits > MAX_DIGITS)
			return false;
		v = v * 10 + (uint64_t)(*s - '0');
		scale *= point ? 10 : 1;
	}
	*out = (double)v / (double)scale;
	return digits > 0;
}

static int fail_value(struct eq_error *err, const char *key, const char *value,
		      const char *expected)
{
	return eq_fail(err, -EINVAL, "%s=%.200s: expected %s", key, value, expected);
}

static int set_bits(struct eq_policy *p, const char *key, const char *value,
		    struct eq_error *err)
{
	double bits = 0;

	if (strcmp(value, "lossless") != 0 &&
	    (!parse_decimal(value, &bits) || (bits != 0 && !(bits >= 0.5 && bits <= 8))))
		return fail_value(err, key, value, "a number from 0.5 to 8, 0 or lossless");
	p->bits = bits;
	p->lambda = 0;
	return 0;
}

static int set_lambda(struct eq_policy *p, const char *key, const char *value,
		      struct eq_error *err)
{
	double lambda;

	if (!parse_decimal(value, &lambda) || !(lambda > 0 && lambda <= MAX_LAMBDA))
		return fail_value(err, key, value, "a number above 0, at most 1000000");
	p->lambda = lambda;
	p->bits = 0;
	return 0;
}

static int set_format(struct eq_policy *p, const char *key, const char *value,
		      struct eq_error *err)
{
	if (strcmp(value, "fp8") == 0)
		p->format = EQ_Q_FP8;
	else if (strcmp(value, "int8") == 0)
		p->format = EQ_Q_INT8;
	else
		return fail_value(err, key, value, "fp8 or int8");
	return 0;
}

/* [*begin, *end) without blanks at its ends. */
static void trim(const char **begin, const char **end)
{
	while (*begin < *end && strchr(" \t\r", **begin))
		++*begin;
	while (*end > *begin && strchr(" \t\r", (*end)[-1]))
		--*end;
}

/* Split a value at ':' into a list, without blanks around the globs; an empty
 * one is a slip, not a wish. */
static int split_globs(const char *key, const char *value, char ***out,
		       struct eq_error *err)
{
	size_t n = 1;

	for (const char *s = value; *s; s++)
		n += *s == ':';

	char **list = calloc(n + 1, sizeof(*list));

	if (!list)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		const char *glob = value, *end = value + strcspn(value, ":");

		value = end + 1;
		trim(&glob, &end);
		if (glob == end) {
			free_list(list);
			return fail_value(err, key, "", "globs separated by ':', none empty");
		}
		list[i] = strndup(glob, (size_t)(end - glob));
		if (!list[i]) {
			free_list(list);
			return -ENOMEM;
		}
	}
	*out = list;
	return 0;
}

static int add_globs(char ***list, const char *key, const char *value,
		     struct eq_error *err)
{
	char **more = NULL, **joined;
	const int rc = split_globs(key, value, &more, err);

	if (rc)
		return rc;
	joined = list_join(*list, more);
	free_list(more);
	if (!joined)
		return -ENOMEM;
	free_list(*list);
	*list = joined;
	return 0;
}

static int set_include(struct eq_policy *p, const char *key, const char *value,
		       struct eq_error *err)
{
	return add_globs(&p->include, key, value, err);
}

static int set_exclude(struct eq_policy *p, const char *key, const char *value,
		       struct eq_error *err)
{
	return add_globs(&p->exclude, key, value, err);
}

int eq_policy_set(struct eq_policy *p, const char *key, const char *value,
		  struct eq_error *err)
{
	static const struct {
		const char *key;
		int (*set)(struct eq_policy *p, const char *key, const char *value,
			   struct eq_error *err);
	} options[] = {
		{ "bits", set_bits },       { "lambda", set_lambda },
		{ "format", set_format },   { "include", set_include },
		{ "exclude", set_exclude },
	};

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		if (strcmp(key, options[i].key) != 0)
			continue;
		const int rc = options[i].set(p, key, value, err);

		return rc == -ENOMEM ? eq_fail(err, rc, "%s: out of memory", key) : rc;
	}
	return eq_fail(err, -ENOENT,
		       "%.80s=%.200s: no such option (bits, lambda, format, include, exclude)",
		       key, value);
}

/* ---- ini ----------------------------------------------------------------- */

struct ini {
	const char *name;
	unsigned line;
	bool in_policy;
};

static int fail_line(const struct ini *ini, struct eq_error *err, int rc,
		     const char *cause)
{
	return eq_fail(err, rc, "%s:%u: %.300s", ini->name, ini->line, cause);
}

/* The key and the value of a line, which ends at end. */
static int read_option(const struct ini *ini, struct eq_policy *p, const char *line,
		       const char *end, struct eq_error *err)
{
	const char *key_end = memchr(line, '=', (size_t)(end - line));
	struct eq_error cause = { "" };
	const char *value;
	char *k, *v;
	int rc = -ENOMEM;

	if (!key_end)
		return fail_line(ini, err, -EINVAL, "expected key = value");
	value = key_end + 1;
	trim(&line, &key_end);
	trim(&value, &end);
	k = strndup(line, (size_t)(key_end - line));
	v = strndup(value, (size_t)(end - value));
	if (k && v)
		rc = eq_policy_set(p, k, v, &cause);
	else
		eq_fail(&cause, rc, "out of memory");
	free(k);
	free(v);
	return rc ? fail_line(ini, err, rc, cause.text) : 0;
}

static int read_line(struct ini *ini, struct eq_policy *p, const char *line,
		     const char *end, struct eq_error *err)
{
	static const char section[] = "[policy]";
	struct eq_error cause;

	trim(&line, &end);
	if (line == end || *line == '#' || *line == ';')
		return 0;
	if (*line == '[') {
		const size_t len = (size_t)(end - line);

		if (len != sizeof(section) - 1 || memcmp(line, section, len) != 0) {
			eq_fail(&cause, 0, "unknown section %.*s", (int)len, line);
			return fail_line(ini, err, -ENOENT, cause.text);
		}
		ini->in_policy = true;
		return 0;
	}
	if (!ini->in_policy)
		return fail_line(ini, err, -EINVAL, "expected [policy] first");
	return read_option(ini, p, line, end, err);
}

static int parse_ini(struct eq_policy *p, const char *text, size_t len, const char *name,
		     struct eq_error *err)
{
	struct ini ini = { .name = name };
	const size_t valid = eq_utf8_valid(text, len);
	const char *const end = text + len;

	for (const char *line = text; line < end; ) {
		const char *newline = memchr(line, '\n', (size_t)(end - line));
		const char *line_end = newline ? newline : end;

		ini.line++;
		if (line_end > text + valid)
			return fail_line(&ini, err, -EINVAL, "not UTF-8");
		for (const char *s = line; s < line_end; s++)
			if ((unsigned char)*s < 0x20 && *s != '\t' && *s != '\r')
				return fail_line(&ini, err, -EINVAL, "control character");
		const int rc = read_line(&ini, p, line, line_end, err);

		if (rc)
			return rc;
		line = line_end + 1;
	}
	return 0;
}

/* On failure p is unchanged. */
int eq_policy_read(struct eq_policy *p, int fd, const char *name,
		   struct eq_error *err)
{
	struct eq_policy copy;
	size_t len = 0;
	int rc;
	char *text = malloc(MAX_INI + 1); /* a byte more, to notice an excess */

	if (!text)
		return eq_fail(err, -ENOMEM, "%s: out of memory", name);
	while (len <= MAX_INI) {
		const ssize_t n = read(fd, text + len, MAX_INI + 1 - len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			rc = -errno;
			eq_fail(err, rc, "%s: read: %s", name, eq_strerror(rc));
			goto out;
		}
		if (n == 0)
			break;
		len += (size_t)n;
	}
	if (len > MAX_INI) {
		rc = eq_fail(err, EQ_ELIMIT, "%s: longer than %d bytes", name, MAX_INI);
		goto out;
	}
	rc = eq_policy_copy(&copy, p);
	if (rc) {
		eq_fail(err, rc, "%s: out of memory", name);
		goto out;
	}
	rc = parse_ini(&copy, text, len, name, err);
	if (rc) {
		eq_policy_fini(&copy);
	} else {
		eq_policy_fini(p);
		*p = copy;
	}
out:
	free(text);
	return rc;
}

/* ---- text ---------------------------------------------------------------- */

/* %g writes the locale's decimal point, one byte or more; this writes '.'. */
static void put_number(FILE *f, const char *key, double v)
{
	char s[64];
	const char *rest = s;

	snprintf(s, sizeof(s), "%.*g", MAX_DIGITS, v);
	fprintf(f, "%s=", key);
	while (*rest) {
		const size_t digits = strspn(rest, "0123456789e+-");

		fprintf(f, "%.*s", (int)digits, rest);
		rest += digits;
		if (*rest)
			fputc('.', f);
		rest += strcspn(rest, "0123456789e+-");
	}
}

static void put_list(FILE *f, const char *key, char *const *list)
{
	for (size_t i = 0; list && list[i]; i++)
		fprintf(f, "%s%s", i ? ":" : key, list[i]);
}

char *eq_policy_text(const struct eq_policy *p)
{
	char *text = NULL;
	size_t len;
	FILE *f;

	if (!eq_policy_lossy(p))
		return strdup("lossless");
	f = open_memstream(&text, &len);
	if (!f)
		return NULL;
	if (p->bits > 0)
		put_number(f, "bits", p->bits);
	else
		put_number(f, "lambda", p->lambda);
	fprintf(f, " format=%s", p->format == EQ_Q_INT8 ? "int8" : "fp8");
	put_list(f, " include=", p->include);
	put_list(f, " exclude=", p->exclude);
	if (fclose(f) != 0) {
		free(text);
		return NULL;
	}
	return text;
}
