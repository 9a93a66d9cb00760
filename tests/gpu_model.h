/* SPDX-License-Identifier: Apache-2.0 */
/* A small model with tensors of all sorts, and archives of it by a back end, for
 * the tests of encoders. Include cmocka.h first. */
#ifndef EQ_GPU_MODEL_H
#define EQ_GPU_MODEL_H

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend.h"
#include "codec_util.h"
#include "floats.h"

enum model_fill {
	MODEL_GAUSS, MODEL_WIDE, MODEL_OUTLIERS, MODEL_NAN, MODEL_ZERO, MODEL_RARE, MODEL_NOISE,
	MODEL_COUNT, MODEL_HUGE,
};

struct model_tensor {
	const char *name;
	int dtype;
	unsigned rows, k;
	enum model_fill fill;
};

#define LAYER "model.layers.0."
static const struct model_tensor model_tensors[] = {
	{ "a.noise", EQ_U8, 1, 5000, MODEL_NOISE },
	{ "b.fp8", EQ_F8_E4M3, 10, 7001, MODEL_COUNT },
	{ "embed_tokens.weight", EQ_BF16, 500, 300, MODEL_WIDE },
	{ LAYER "mlp.down_proj.weight", EQ_BF16, 700, 33, MODEL_GAUSS },
	{ LAYER "mlp.gate_proj.weight", EQ_BF16, 40, 4096, MODEL_OUTLIERS },
	{ LAYER "mlp.up_proj.weight", EQ_BF16, 128, 200, MODEL_ZERO },
	{ LAYER "self_attn.k_proj.weight", EQ_F16, 200, 513, MODEL_GAUSS },
	{ LAYER "self_attn.o_proj.weight", EQ_BF16, 64, 500, MODEL_NAN },
	{ LAYER "self_attn.q_proj.weight", EQ_BF16, 300, 700, MODEL_GAUSS },
	{ LAYER "self_attn.v_proj.weight", EQ_F32, 150, 400, MODEL_WIDE },
	{ "model.layers.1.mlp.up_proj.weight", EQ_BF16, 100, 128, MODEL_HUGE },
	{ "model.layers.1.mlp.gate_proj.weight", EQ_F16, 100, 128, MODEL_HUGE },
	{ "model.layers.1.self_attn.k_proj.weight", EQ_F32, 3, 33000, MODEL_GAUSS },
	{ "model.layers.1.self_attn.q_proj.weight", EQ_F16, 2, 24000, MODEL_OUTLIERS },
	{ "model.norm.weight", EQ_F32, 1, 5000, MODEL_GAUSS },
	{ "rare", EQ_BF16, 5, 131072, MODEL_RARE },
	{ "x.f64", EQ_F64, 3, 1000, MODEL_GAUSS },
	{ "y.f32", EQ_F32, 1, 140000, MODEL_WIDE },
	{ "z.count", EQ_I32, 1, 9000, MODEL_COUNT },
};
#undef LAYER
enum { MODEL_TENSORS = sizeof(model_tensors) / sizeof(model_tensors[0]) };

static inline void model_unit(const struct model_tensor *t, size_t i, uint64_t *seed, uint8_t *out)
{
	double x = 0.02 * rnd_gauss(seed);
	float f;
	uint32_t u;

	if (t->fill == MODEL_WIDE)
		x *= exp(2 * rnd_gauss(seed));
	if (t->fill == MODEL_OUTLIERS && rnd(seed) % 3000 == 0)
		x *= 1e6;
	if (t->fill == MODEL_HUGE) /* close to where a reconstruction overflows */
		x *= t->dtype == EQ_F16 ? 1e6 : 5e39;
	if (t->fill == MODEL_HUGE && !(fabs(x) < (t->dtype == EQ_F16 ? 65504 : 3.38e38)))
		x = t->dtype == EQ_F16 ? 65504 : 3.38e38;
	if (t->fill == MODEL_RARE && i % 131072 == 17)
		x = 1e20;
	if (t->fill == MODEL_ZERO)
		x = 0;
	f = (float)x;
	u = eq_float_bits(f);
	if (t->fill == MODEL_NAN && i == 1234)
		u = 0x7fc00000;
	if (t->fill == MODEL_NOISE || t->fill == MODEL_COUNT) {
		uint64_t v = t->fill == MODEL_NOISE ? rnd(seed) : i / 7 % 100;

		memcpy(out, &v, eq_dtype_unit(t->dtype));
	} else if (t->dtype == EQ_F64) {
		memcpy(out, &x, 8);
	} else if (t->dtype == EQ_F32) {
		memcpy(out, &u, 4);
	} else {
		uint16_t h = t->dtype == EQ_F16 ? eq_half_narrow(f) : (uint16_t)(u >> 16);

		memcpy(out, &h, 2);
	}
}

static inline void model_put(int fd, const void *data, size_t len)
{
	assert_int_equal(write(fd, data, len), (ssize_t)len);
}

static inline int model_memory(void)
{
	int fd = memfd_create("model", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* The model as a safetensors file in memory. Rows are repeated `times` times. */
static inline int model_file(uint64_t seed, unsigned times)
{
	size_t at = 0, len, pad;
	int fd = model_memory();
	char *text;
	uint64_t head;
	FILE *json = open_memstream(&text, &len);

	assert_non_null(json);
	for (size_t i = 0; i < MODEL_TENSORS; i++) {
		const struct model_tensor *t = &model_tensors[i];
		size_t bytes = (size_t)t->rows * times * t->k * eq_dtype_unit(t->dtype);

		fprintf(json, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%u,%u],\"data_offsets\":[%zu,%zu]}",
			i ? "," : "{", t->name, eq_dtype_name(t->dtype), t->rows * times, t->k, at,
			at + bytes);
		at += bytes;
	}
	fputc('}', json);
	fclose(json);
	pad = (8 - len % 8) % 8;
	head = len + pad;
	model_put(fd, &head, 8);
	model_put(fd, text, len);
	model_put(fd, "       ", pad);
	free(text);
	for (size_t i = 0; i < MODEL_TENSORS; i++) {
		const struct model_tensor *t = &model_tensors[i];
		size_t n = (size_t)t->rows * t->k, unit = eq_dtype_unit(t->dtype);
		uint8_t *data = must_alloc(n * unit);

		for (size_t k = 0; k < n; k++)
			model_unit(t, k, &seed, data + k * unit);
		for (unsigned k = 0; k < times; k++)
			model_put(fd, data, n * unit);
		free(data);
	}
	return fd;
}

static const char *const model_policies[][2] = {
	{ "bits", "lossless" }, { "lambda", "3.9" }, { "lambda", "40" }, { "bits", "4" },
	{ "bits", "7.5" },
};
enum { MODEL_POLICIES = 2 * sizeof(model_policies) / sizeof(model_policies[0]) };

struct archive {
	uint8_t *data;
	size_t size;
};

/* An archive of the file, by policy number p (odd ones: int8). */
static inline struct archive model_archive(int fd, unsigned p, const struct eq_backend *be,
					   struct eq_pool *pool)
{
	const struct eq_run run = { .pool = pool, .backend = be };
	struct eq_summary sum;
	struct eq_policy policy;
	struct eq_error err = { "" };
	struct archive a;
	int out = model_memory();

	eq_policy_init(&policy);
	assert_int_equal(eq_policy_set(&policy, model_policies[p / 2][0], model_policies[p / 2][1],
				       &err), 0);
	assert_int_equal(eq_policy_set(&policy, "format", p & 1 ? "int8" : "fp8", &err), 0);
	if (eq_encode(fd, "model", out, &policy, &run, &sum, &err))
		fail_msg("policy %u: %s", p, err.text);
	eq_policy_fini(&policy);
	a.size = (size_t)lseek(out, 0, SEEK_END);
	a.data = malloc(a.size);
	assert_non_null(a.data);
	assert_int_equal(pread(out, a.data, a.size, 0), (ssize_t)a.size);
	close(out);
	return a;
}

static inline void archive_compare(const struct archive *a, const struct archive *want,
				   const char *what, unsigned p)
{
	size_t i = 0;

	if (a->size == want->size && !memcmp(a->data, want->data, a->size))
		return;
	while (i < a->size && i < want->size && a->data[i] == want->data[i])
		i++;
	fail_msg("%s, policy %u: byte %zu differs; %zu bytes instead of %zu", what, p, i, a->size,
		 want->size);
}

#endif
