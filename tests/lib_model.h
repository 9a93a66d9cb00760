/* SPDX-License-Identifier: Apache-2.0 */
/* The model that unit_lib loads. Include cmocka.h first. */
#ifndef EQ_LIB_MODEL_H
#define EQ_LIB_MODEL_H

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "codec_util.h"

enum { ROWS = 320, COLUMNS = 2048, COUNT = ROWS * COLUMNS };

/* A model with something of everything: quantised, lossless, raw, zstd, constant,
 * many small ones, and one without elements. */
static const struct made {
	const char *name, *dtype, *shape;
	uint64_t n;
	unsigned unit;
	char kind;              /* gauss, bytes, ints, zero */
} model[] = {
	{ "model.layers.0.mlp.up_proj.weight", "BF16", "320,2048", COUNT, 2, 'g' },
	{ "model.layers.1.mlp.up_proj.weight", "F32", "320,2048", COUNT, 4, 'g' },
	{ "model.embed_tokens.weight", "BF16", "320,2048", COUNT, 2, 'g' },
	{ "noise", "U8", "1000003", 1000003, 1, 'b' },
	{ "positions", "I64", "5000", 5000, 8, 'i' },
	{ "zeros", "F32", "640,2048", 2 * COUNT, 4, '0' },
	{ "nothing", "F32", "0,7", 0, 4, '0' },
	{ "norm.a", "BF16", "513", 513, 2, 'g' },
	{ "norm.b", "F32", "100", 100, 4, 'g' },
	{ "scalar", "F64", "", 1, 8, 'g' },
};
enum { TENSORS = sizeof(model) / sizeof(model[0]) };

static inline void fill(const struct made *m, uint64_t *seed, uint8_t *p)
{
	for (uint64_t i = 0; i < m->n; i++) {
		float f = (float)(rnd_gauss(seed) * 0.02);
		double d = f;
		int64_t k = (int64_t)(i / 3);

		if (m->kind == 'b')
			p[i] = (uint8_t)rnd(seed);
		else if (m->kind == 'i')
			memcpy(p + 8 * i, &k, 8);
		else if (m->kind == '0')
			memset(p + m->unit * i, 0, m->unit);
		else if (m->unit == 8)
			memcpy(p + 8 * i, &d, 8);
		else
			memcpy(p + m->unit * i, (uint8_t *)&f + 4 - m->unit, m->unit);
	}
}

static inline int model_fd(void)
{
	int fd = memfd_create("model", MFD_CLOEXEC);
	uint64_t at = 0, seed = 17, len;
	char json[4096] = "{";

	for (size_t i = 0; i < TENSORS; i++) {
		const struct made *m = &model[i];

		snprintf(json + strlen(json), sizeof(json) - strlen(json),
			 "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
			 i ? "," : "", m->name, m->dtype, m->shape, (unsigned long long)at,
			 (unsigned long long)(at + m->n * m->unit));
		at += m->n * m->unit;
	}
	strcat(json, "}");
	len = strlen(json);
	assert_int_equal(write(fd, &len, 8), 8);
	assert_int_equal(write(fd, json, len), len);
	for (size_t i = 0; i < TENSORS; i++) {
		size_t n = (size_t)(model[i].n * model[i].unit);
		uint8_t *p = must_alloc(n);

		fill(&model[i], &seed, p);
		assert_int_equal(write(fd, p, n), n);
		free(p);
	}
	return fd;
}

#endif
