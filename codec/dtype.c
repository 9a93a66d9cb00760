/* SPDX-License-Identifier: Apache-2.0 */
/* The data types of safetensors: names, sizes, coded units. */
#include "eqcodec.h"

#include <string.h>

/* Names and sizes as in safetensors/src/tensor.rs (enum Dtype, bitsize). */
static const struct {
	char name[12];
	uint8_t bits, unit;
} dtypes[EQ_DTYPES] = {
	[EQ_BOOL] = { "BOOL", 8, 1 },
	[EQ_F4] = { "F4", 4, 1 },
	[EQ_F6_E2M3] = { "F6_E2M3", 6, 1 },
	[EQ_F6_E3M2] = { "F6_E3M2", 6, 1 },
	[EQ_U8] = { "U8", 8, 1 },
	[EQ_I8] = { "I8", 8, 1 },
	[EQ_F8_E5M2] = { "F8_E5M2", 8, 1 },
	[EQ_F8_E4M3] = { "F8_E4M3", 8, 1 },
	[EQ_F8_E8M0] = { "F8_E8M0", 8, 1 },
	[EQ_F8_E4M3FNUZ] = { "F8_E4M3FNUZ", 8, 1 },
	[EQ_F8_E5M2FNUZ] = { "F8_E5M2FNUZ", 8, 1 },
	[EQ_I16] = { "I16", 16, 2 },
	[EQ_U16] = { "U16", 16, 2 },
	[EQ_F16] = { "F16", 16, 2 },
	[EQ_BF16] = { "BF16", 16, 2 },
	[EQ_I32] = { "I32", 32, 4 },
	[EQ_U32] = { "U32", 32, 4 },
	[EQ_F32] = { "F32", 32, 4 },
	[EQ_C64] = { "C64", 64, 4 }, /* two float32 */
	[EQ_F64] = { "F64", 64, 8 },
	[EQ_I64] = { "I64", 64, 8 },
	[EQ_U64] = { "U64", 64, 8 },
};

static bool in_range(int dtype)
{
	return dtype >= 0 && dtype < EQ_DTYPES;
}

const char *eq_dtype_name(int dtype)
{
	return in_range(dtype) ? dtypes[dtype].name : NULL;
}

int eq_dtype_parse(const char *name, size_t len)
{
	char key[sizeof(dtypes[0].name)] = "";

	if (len >= sizeof(key) || memchr(name, '\0', len))
		return -1;
	memcpy(key, name, len);
	for (int i = 0; i < EQ_DTYPES; i++)
		if (memcmp(dtypes[i].name, key, sizeof(key)) == 0)
			return i;
	return -1;
}

unsigned eq_dtype_bits(int dtype)
{
	return in_range(dtype) ? dtypes[dtype].bits : 0;
}

unsigned eq_dtype_unit(int dtype)
{
	return in_range(dtype) ? dtypes[dtype].unit : 0;
}
