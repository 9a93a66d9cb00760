/* SPDX-License-Identifier: Apache-2.0 */
#include "json_scan.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "utf8.h"

void eq_json_init(struct eq_json *j, const void *text, size_t len)
{
	j->base = j->p = text;
	j->end = j->base + len;
	j->depth = 0;
	j->why = NULL;
}

static int fail(struct eq_json *j, const char *why)
{
	j->why = why;
	return -1;
}

int eq_json_finish(struct eq_json *j)
{
	return eq_json_peek(j) < 0 ? 0 : fail(j, "text after the end of the object");
}

int eq_json_open(struct eq_json *j, int bracket)
{
	if (eq_json_peek(j) != bracket)
		return fail(j, bracket == '{' ? "expected an object" :
						"expected an array");
	if (j->depth == EQ_JSON_DEPTH)
		return fail(j, "nested too deeply");
	j->depth++;
	j->p++;
	return 0;
}

int eq_json_more(struct eq_json *j, int bracket, bool *first)
{
	const int close = bracket == '{' ? '}' : ']';
	int c = eq_json_peek(j);

	if (c == close) {
		j->p++;
		j->depth--;
		return 0;
	}
	if (!*first) {
		if (c != ',')
			return fail(j, bracket == '{' ? "expected ',' or '}'" :
							"expected ',' or ']'");
		j->p++;
		c = eq_json_peek(j);
		if (c == close)
			return fail(j, "trailing comma");
	}
	*first = false;
	return 1;
}

int eq_json_key(struct eq_json *j, struct eq_json_str *name)
{
	if (eq_json_string(j, name) < 0)
		return -1;
	if (eq_json_peek(j) != ':')
		return fail(j, "expected ':'");
	j->p++;
	return 0;
}

/* ---- strings ------------------------------------------------------------- */

static int hex_digit(unsigned c)
{
	if (c >= '0' && c <= '9')
		return (int)c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? (int)c - 'a' + 10 : -1;
}

/* The four digits at p, or -1. */
static int hex4(const uint8_t *p, const uint8_t *end)
{
	int v = 0;

	if (end - p < 4)
		return -1;
	for (int i = 0; i < 4; i++) {
		const int d = hex_digit(p[i]);

		if (d < 0)
			return -1;
		v = v << 4 | d;
	}
	return v;
}

/*
 * The code point of the escape at p (which is at the backslash), and its
 * length in *used; -1 if it is none.
 */
static int32_t escape(const uint8_t *p, const uint8_t *end, size_t *used)
{
	static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";

	if (end - p < 2)
		return -1;
	*used = 2;
	if (p[1] != 'u') {
		const char *at = p[1] ? strchr(from, p[1]) : NULL;

		return at ? to[at - from] : -1;
	}

	const int32_t high = hex4(p + 2, end);

	*used = 6;
	if (high < 0xd800 || high > 0xdfff)
		return high;
	/* A low surrogate first, or a high one without its other half. */
	if (high > 0xdbff || end - p < 12 || p[6] != '\\' || p[7] != 'u')
		return -1;

	const int32_t low = hex4(p + 8, end);

	*used = 12;
	if (low < 0xdc00 || low > 0xdfff)
		return -1;
	return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
}

int eq_json_string(struct eq_json *j, struct eq_json_str *s)
{
	if (eq_json_peek(j) != '"')
		return fail(j, "expected a string");

	const uint8_t *p = j->p + 1;

	s->raw = p;
	s->len = 0;
	for (;;) {
		const uint8_t *run = p;
		size_t used;
		char utf8[4];

		while (p < j->end && *p >= 0x20 && *p != '"' && *p != '\\')
			p++;
		s->len += (size_t)(p - run);
		if (p >= j->end || *p != '\\')
			break;
		const int32_t ch = escape(p, j->end, &used);

		if (ch < 0) {
			j->p = p;
			return fail(j, "bad escape in a string");
		}
		s->len += eq_utf8_put(utf8, (uint32_t)ch);
		p += used;
	}
	if (p < j->end && *p != '"') {
		j->p = p;
		return fail(j, "control character in a string");
	}
	if (p >= j->end) {
		j->p = j->end;
		return fail(j, "string without end");
	}
	s->raw_len = (size_t)(p - s->raw);
	j->p = p + 1;
	return 0;
}

void eq_json_decode(const struct eq_json_str *s, char *out)
{
	const uint8_t *p = s->raw, *end = p + s->raw_len;

	if (s->len == s->raw_len) { /* every escape is longer than what it means */
		memcpy(out, p, s->len);
		return;
	}
	while (p < end) {
		if (*p == '\\') {
			size_t used;
			const int32_t ch = escape(p, end, &used);

			out += eq_utf8_put(out, (uint32_t)ch);
			p += used;
		} else {
			*out++ = (char)*p++;
		}
	}
}

bool eq_json_equal(const struct eq_json_str *s, const char *literal)
{
	char buf[16];
	const size_t len = strlen(literal);

	if (s->len != len || len > sizeof(buf))
		return false;
	if (s->raw_len == len)
		return memcmp(s->raw, literal, len) == 0;
	eq_json_decode(s, buf);
	return memcmp(buf, literal, len) == 0;
}

/* ---- numbers ------------------------------------------------------------- */

/*
 * serde_json refuses a number beyond the doubles, and computes it as (the
 * digits that fit 64 bits) * 10^e in double arithmetic. Here the question is
 * only whether that overflows; below 10^289 it cannot.
 */
static bool overflows(uint64_t digits, int64_t e)
{
	static const double big[] = {
		1e289, 1e290, 1e291, 1e292, 1e293, 1e294, 1e295, 1e296, 1e297, 1e298,
		1e299, 1e300, 1e301, 1e302, 1e303, 1e304, 1e305, 1e306, 1e307, 1e308,
	};

	if (digits == 0 || e < 289)
		return false;
	return e > 308 || isinf((double)digits * big[e - 289]);
}

static bool is_digit(const struct eq_json *j)
{
	return j->p < j->end && *j->p >= '0' && *j->p <= '9';
}

struct digits {
	uint64_t v;             /* the leading ones, as many as fit */
	int64_t dropped;        /* integer digits behind them */
	int64_t fraction;       /* fraction digits among them */
	bool full;
};

static void add_digit(struct digits *d, unsigned digit, bool fraction)
{
	if (d->v > UINT64_MAX / 10 || (d->v == UINT64_MAX / 10 && digit > UINT64_MAX % 10))
		d->full = true;
	if (!d->full) {
		d->v = d->v * 10 + digit;
		d->fraction += fraction;
	} else if (!fraction) {
		d->dropped++;
	}
}

static int exponent(struct eq_json *j, int64_t *e)
{
	bool negative = false;
	int64_t v = 0;

	j->p++;
	if (j->p < j->end && (*j->p == '+' || *j->p == '-'))
		negative = *j->p++ == '-';
	if (!is_digit(j))
		return fail(j, "bad number");
	for (; is_digit(j); j->p++)
		if (v <= INT_MAX) /* beyond it only the sign matters */
			v = v * 10 + (*j->p - '0');
	*e = negative ? -v : v;
	return 0;
}

int eq_json_number(struct eq_json *j, bool *is_u64, uint64_t *u64)
{
	struct digits d = { 0 };
	int64_t e = 0;
	bool integer = true;

	if (eq_json_peek(j) == '-') {
		integer = false;
		j->p++;
	}
	if (!is_digit(j))
		return fail(j, "expected a number");
	if (*j->p == '0') {
		j->p++;
		if (is_digit(j))
			return fail(j, "leading zero in a number");
	}
	/* Nearly always all of it: 19 digits fit 64 bits whatever they are. */
	for (int i = 0; i < 19 && is_digit(j); i++)
		d.v = d.v * 10 + (uint64_t)(*j->p++ - '0');
	for (; is_digit(j); j->p++)
		add_digit(&d, *j->p - '0', false);
	if (j->p < j->end && *j->p == '.') {
		integer = false;
		j->p++;
		if (!is_digit(j))
			return fail(j, "bad number");
		for (; is_digit(j); j->p++)
			add_digit(&d, *j->p - '0', true);
	}
	if (j->p < j->end && (*j->p == 'e' || *j->p == 'E')) {
		integer = false;
		if (exponent(j, &e) < 0)
			return -1;
	}
	if (overflows(d.v, e + d.dropped - d.fraction))
		return fail(j, "number out of range");
	*is_u64 = integer && !d.full;
	*u64 = d.v;
	return 0;
}

/* ---- any value ----------------------------------------------------------- */

static int word(struct eq_json *j, const char *text)
{
	const size_t len = strlen(text);

	if ((size_t)(j->end - j->p) < len || memcmp(j->p, text, len) != 0)
		return fail(j, "expected a value");
	j->p += len;
	return 0;
}

int eq_json_null(struct eq_json *j)
{
	return eq_json_peek(j) == 'n' ? word(j, "null") : fail(j, "expected null");
}

static int scalar(struct eq_json *j, int c)
{
	struct eq_json_str s;
	bool is_u64;
	uint64_t u64;

	switch (c) {
	case '"':
		return eq_json_string(j, &s);
	case 't':
		return word(j, "true");
	case 'f':
		return word(j, "false");
	case 'n':
		return word(j, "null");
	default:
		if (c != '-' && (c < '0' || c > '9'))
			return fail(j, "expected a value");
		return eq_json_number(j, &is_u64, &u64);
	}
}

int eq_json_skip(struct eq_json *j)
{
	uint8_t brackets[EQ_JSON_DEPTH];
	unsigned n = 0;

	for (;;) {
		const int c = eq_json_peek(j);
		bool first = false;

		if (c == '[' || c == '{') {
			if (eq_json_open(j, c) < 0)
				return -1;
			brackets[n++] = (uint8_t)c;
			first = true;
		} else if (scalar(j, c) < 0) {
			return -1;
		}
		for (;; first = false) {
			if (n == 0)
				return 0;

			const int more = eq_json_more(j, brackets[n - 1], &first);
			struct eq_json_str name;

			if (more < 0)
				return -1;
			if (more) {
				if (brackets[n - 1] == '{' && eq_json_key(j, &name) < 0)
					return -1;
				break;
			}
			n--;
		}
	}
}
