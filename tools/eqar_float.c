/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include "eqar_float.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eqcodec.h"

/*
 * Layouts of the small formats, from their publications: IEEE 754 binary16;
 * bfloat16; OCP 8-bit floating point (OFP8) for E4M3 and E5M2; OCP Microscaling
 * for E8M0; Noune et al., arXiv 2206.02915, for FNUZ.
 */
enum special {
	IEEE,                   /* all-ones exponent: infinity and NaN */
	ALL_ONES_NAN,           /* only S.1111.111 is NaN, no infinity */
	MINUS_ZERO_NAN,         /* only the pattern of -0 is NaN */
};

struct layout {
	int dtype;
	unsigned exp, man;
	int bias;
	enum special special;
};

static const struct layout layouts[] = {
	{ EQ_F16, 5, 10, 15, IEEE },
	{ EQ_BF16, 8, 7, 127, IEEE },
	{ EQ_F8_E4M3, 4, 3, 7, ALL_ONES_NAN },
	{ EQ_F8_E5M2, 5, 2, 15, IEEE },
	{ EQ_F8_E4M3FNUZ, 4, 3, 8, MINUS_ZERO_NAN },
	{ EQ_F8_E5M2FNUZ, 5, 2, 16, MINUS_ZERO_NAN },
};

struct eq_reader {
	size_t unit;
	int dtype;
	double values[];        /* of all patterns, for 1 and 2 bytes */
};

static double value_of(const struct layout *l, unsigned bits)
{
	unsigned man = bits & ((1u << l->man) - 1);
	unsigned exp = bits >> l->man & ((1u << l->exp) - 1);
	unsigned sign = bits >> (l->man + l->exp);
	unsigned top = (1u << l->exp) - 1;
	double v;

	if (l->special == MINUS_ZERO_NAN && sign && !exp && !man)
		return NAN;
	if (l->special == ALL_ONES_NAN && exp == top &&
	    man == (1u << l->man) - 1)
		return NAN;
	if (l->special == IEEE && exp == top)
		v = man ? NAN : INFINITY;
	else if (exp == 0)
		v = ldexp(man, 1 - l->bias - (int)l->man);
	else
		v = ldexp(man + (1u << l->man),
			  (int)exp - l->bias - (int)l->man);
	return sign ? -v : v;
}

static const struct layout *find_layout(int dtype)
{
	for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++)
		if (layouts[i].dtype == dtype)
			return &layouts[i];
	return NULL;
}

struct eq_reader *eq_reader_create(int dtype, bool *no_memory)
{
	const struct layout *l = find_layout(dtype);
	size_t unit = eq_dtype_unit(dtype), n = 0;
	struct eq_reader *r;

	*no_memory = false;
	if (l || dtype == EQ_F8_E8M0)
		n = (size_t)1 << 8 * unit;
	else if (dtype != EQ_F32 && dtype != EQ_C64 && dtype != EQ_F64)
		return NULL;
	r = malloc(sizeof(*r) + n * sizeof(r->values[0]));
	if (!r) {
		*no_memory = true;
		return NULL;
	}
	r->unit = unit;
	r->dtype = dtype;
	for (unsigned i = 0; i < n; i++)
		r->values[i] = l ? value_of(l, i) :
			       i == 255 ? NAN : ldexp(1, (int)i - 127);
	return r;
}

void eq_reader_free(struct eq_reader *r)
{
	free(r);
}

size_t eq_reader_unit(const struct eq_reader *r)
{
	return r->unit;
}

double eq_reader_get(const struct eq_reader *r, const uint8_t *p)
{
	uint16_t half;
	double d;
	float f;

	switch (r->unit) {
	case 1:
		return r->values[*p];
	case 2:
		memcpy(&half, p, sizeof(half));
		return r->values[half];
	case 4:
		memcpy(&f, p, sizeof(f));
		return (double)f;
	default:
		memcpy(&d, p, sizeof(d));
		return d;
	}
}
