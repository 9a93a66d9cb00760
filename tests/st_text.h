/* SPDX-License-Identifier: Apache-2.0 */
/* A parsed header as text, for the tests of the safetensors parser. */
#ifndef EQ_ST_TEXT_H
#define EQ_ST_TEXT_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "eqcodec.h"

static inline const char *st_code(int rc)
{
	return rc == 0 ? "0" : rc == EQ_ENOTST ? "EQ_ENOTST" :
	       rc == EQ_ELIMIT ? "EQ_ELIMIT" : eq_strerror(rc);
}

/* "NAME DTYPE DIMxDIM BEGIN END" a tensor, joined by ';'; a byte of a name that
 * is not printable ASCII, or one of " %;", as %XX; "-" for rank 0. To be freed. */
static inline char *st_text(const struct eq_st *st)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		abort();
	for (size_t i = 0; i < st->n_tensors; i++) {
		const struct eq_st_tensor *t = &st->tensors[i];

		if (i)
			fputc(';', f);
		for (uint32_t k = 0; k < t->name_len; k++) {
			const unsigned char c = (unsigned char)t->name[k];

			if (c <= ' ' || c >= 0x7f || c == '%' || c == ';')
				fprintf(f, "%%%02X", c);
			else
				fputc(c, f);
		}
		fprintf(f, " %s ", eq_dtype_name(t->dtype));
		for (unsigned k = 0; k < t->ndim; k++)
			fprintf(f, "%s%" PRIu64, k ? "x" : "", t->dims[k]);
		fprintf(f, "%s %" PRIu64 " %" PRIu64, t->ndim ? "" : "-", t->begin, t->end);
	}
	if (fclose(f) != 0)
		abort();
	return text;
}

#endif
