/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A strict scanner over JSON text in memory. It accepts the language that
 * serde_json accepts (RFC 8259; numbers that fit a double; surrogates in pairs;
 * at most 127 levels), allocates nothing and never recurses, so that what it
 * costs is bounded by the length of the text.
 *
 * A general JSON library cannot stand here: the sizes in a header are full
 * 64-bit integers, which a library that keeps numbers as double (cJSON) rounds;
 * names may hold U+0000, which NUL-terminated strings cut; and its tree takes
 * 14 and more times the text's memory, which the header's author chooses.
 *
 * Functions return 0, or -1 with `why` (a static phrase) and the position left
 * at the offending byte.
 */
#ifndef EQ_JSON_SCAN_H
#define EQ_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EQ_JSON_DEPTH 127

struct eq_json {
	const uint8_t *base, *p, *end;
	unsigned depth;         /* open arrays and objects */
	const char *why;
};

/* A string of the text: the bytes between the quotes, already checked. */
struct eq_json_str {
	const uint8_t *raw;
	size_t raw_len;
	size_t len;             /* decoded, bytes of UTF-8 */
};

/* text must be valid UTF-8 (utf8.h). */
void eq_json_init(struct eq_json *j, const void *text, size_t len);

/* Skip white space; the next byte, or -1 at the end. */
static inline int eq_json_peek(struct eq_json *j)
{
	while (j->p < j->end) {
		const int c = *j->p;

		if (c > ' ' || (c != ' ' && c != '\n' && c != '\r' && c != '\t'))
			return c;
		j->p++;
	}
	return -1;
}

/* Nothing but white space may follow. */
int eq_json_finish(struct eq_json *j);

/*
 * Arrays and objects: open ('[' or '{'), then `more` before each element:
 * 1 there is one, 0 that was the last (and the bracket is consumed), -1 error.
 * For objects `more` leaves the position at the name; eq_json_key reads the
 * name and the colon.
 */
int eq_json_open(struct eq_json *j, int bracket);
int eq_json_more(struct eq_json *j, int bracket, bool *first);
int eq_json_key(struct eq_json *j, struct eq_json_str *name);

int eq_json_string(struct eq_json *j, struct eq_json_str *s);
/* A number; *is_u64 says whether it is written as a non-negative integer that
 * fits 64 bits, and *u64 then holds it. */
int eq_json_number(struct eq_json *j, bool *is_u64, uint64_t *u64);
int eq_json_null(struct eq_json *j);
/* Check and skip any value. */
int eq_json_skip(struct eq_json *j);

/* Decode s into out, s->len bytes, no terminator. */
void eq_json_decode(const struct eq_json_str *s, char *out);
bool eq_json_equal(const struct eq_json_str *s, const char *literal);

#endif
