/* SPDX-License-Identifier: Apache-2.0 */
/* UTF-8, as strict as RFC 3629: no surrogates, no over-long forms. */
#ifndef EQ_UTF8_H
#define EQ_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Length of the valid beginning of s; len if all of it is valid. */
size_t eq_utf8_valid(const void *s, size_t len);

/*
 * The character at s (len > 0 bytes are left) and its length in bytes. A byte
 * that begins no valid sequence is a character of its own, above U+10FFFF.
 */
size_t eq_utf8_next(const unsigned char *s, size_t len, uint32_t *ch);

/* Write a code point (at most U+10FFFF); returns 1 to 4, the bytes written. */
size_t eq_utf8_put(char *out, uint32_t ch);

#endif
