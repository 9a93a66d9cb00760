/* SPDX-License-Identifier: Apache-2.0 */
#include "utf8.h"

#include <string.h>

#define NOT_A_CHARACTER 0x110000u

size_t eq_utf8_next(const unsigned char *s, size_t len, uint32_t *ch)
{
	const unsigned c = s[0];

	if (c < 0x80) {
		*ch = c;
		return 1;
	}

	/* RFC 3629, section 4: only the second byte has special ranges, which
	 * keep out over-long forms, surrogates and what lies above U+10FFFF. */
	unsigned n = 0, low = 0x80, high = 0xbf;
	uint32_t v = 0;

	if (c >= 0xc2 && c <= 0xdf) {
		n = 2;
		v = c & 0x1f;
	} else if (c >= 0xe0 && c <= 0xef) {
		n = 3;
		v = c & 0x0f;
		if (c == 0xe0)
			low = 0xa0;
		else if (c == 0xed)
			high = 0x9f;
	} else if (c >= 0xf0 && c <= 0xf4) {
		n = 4;
		v = c & 0x07;
		if (c == 0xf0)
			low = 0x90;
		else if (c == 0xf4)
			high = 0x8f;
	}
	*ch = NOT_A_CHARACTER + c;
	if (n == 0 || n > len || s[1] < low || s[1] > high)
		return 1;
	for (unsigned i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 1;
		v = v << 6 | (s[i] & 0x3f);
	}
	*ch = v;
	return n;
}

size_t eq_utf8_valid(const void *s, size_t len)
{
	const unsigned char *p = s;
	size_t i = 0;

	while (i < len) {
		uint64_t word;

		/* Headers are ASCII nearly everywhere. */
		while (len - i >= sizeof(word)) {
			memcpy(&word, p + i, sizeof(word));
			if (word & UINT64_C(0x8080808080808080))
				break;
			i += sizeof(word);
		}
		if (i == len)
			break;

		uint32_t ch;
		const size_t n = eq_utf8_next(p + i, len - i, &ch);

		if (ch >= NOT_A_CHARACTER)
			break;
		i += n;
	}
	return i;
}

size_t eq_utf8_put(char *out, uint32_t ch)
{
	if (ch < 0x80) {
		out[0] = (char)ch;
		return 1;
	}
	if (ch < 0x800) {
		out[0] = (char)(0xc0 | ch >> 6);
		out[1] = (char)(0x80 | (ch & 0x3f));
		return 2;
	}
	if (ch < 0x10000) {
		out[0] = (char)(0xe0 | ch >> 12);
		out[1] = (char)(0x80 | (ch >> 6 & 0x3f));
		out[2] = (char)(0x80 | (ch & 0x3f));
		return 3;
	}
	out[0] = (char)(0xf0 | ch >> 18);
	out[1] = (char)(0x80 | (ch >> 12 & 0x3f));
	out[2] = (char)(0x80 | (ch >> 6 & 0x3f));
	out[3] = (char)(0x80 | (ch & 0x3f));
	return 4;
}
