/* SPDX-License-Identifier: Apache-2.0 */
/* One-line messages and phrases for results. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* strerrordesc_np */
#endif
#include "eqcodec.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Index of the first byte of a UTF-8 sequence that the end of s cuts, or len. */
static size_t cut_sequence(const unsigned char *s, size_t len)
{
	size_t i = len;

	while (i > 0 && len - i < 3 && (s[i - 1] & 0xc0) == 0x80)
		i--;
	if (i == 0 || s[i - 1] < 0xc0)
		return len;
	const size_t need = s[i - 1] >= 0xf0 ? 4 : s[i - 1] >= 0xe0 ? 3 : 2;

	return len - (i - 1) < need ? i - 1 : len;
}

/* Names come from untrusted files and go to terminals and logs: C0, DEL and
 * C1 (U+0080 to U+009F, in UTF-8 C2 80 to C2 9F) are neutralised. */
static void replace_controls(unsigned char *s, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (s[i] < 0x20 || s[i] == 0x7f)
			s[i] = '?';
		else if (s[i] == 0xc2 && i + 1 < len && (s[i + 1] & 0xe0) == 0x80)
			s[i] = s[i + 1] = '?';
	}
}

int eq_fail(struct eq_error *err, int rc, const char *fmt, ...)
{
	if (!err)
		return rc;

	const int saved = errno;
	va_list ap;

	va_start(ap, fmt);
	int n = vsnprintf(err->text, sizeof(err->text), fmt, ap);
	va_end(ap);
	if (n < 0) {
		err->text[0] = '\0';
		n = 0;
	}

	unsigned char *s = (unsigned char *)err->text;
	size_t len = (size_t)n;

	if (len >= sizeof(err->text)) {
		len = cut_sequence(s, sizeof(err->text) - 1);
		s[len] = '\0';
	}
	replace_controls(s, len);
	errno = saved;
	return rc;
}

const char *eq_strerror(int rc)
{
	switch (rc) {
	case 0:
		return "success";
	case EQ_ECORRUPT:
		return "corrupt archive";
	case EQ_EUNSUP:
		return "unsupported archive feature";
	case EQ_ELIMIT:
		return "a limit is exceeded";
	case EQ_ENOTEQAR:
		return "not an eqar archive";
	case EQ_ENOTST:
		return "not a safetensors file";
	case EQ_EDIFFER:
		return "contents differ";
	case EQ_EHOLES:
		return "hardly anything but holes";
	}

	/* Neither translated nor written to a shared buffer, unlike strerror. */
	const char *text = rc < 0 && rc > -4096 ? strerrordesc_np(-rc) : NULL;

	return text ? text : "unknown error";
}
