/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target for the decoding of chunks: any parameters, any bytes, checksums
 * aside. Every instruction set must do the same as the scalar code, a chunk alone
 * the same as in a team with another one, and what lies behind it must not matter.
 *
 * An input is a struct eq_fuzz_head, the parameters, and the chunk. Without
 * libFuzzer this program replays the files given, or the corpus if none are
 * given; "--make DIR" writes the seeds of the corpus.
 */
#include <config.h>

#include "codec_util.h"
#include "coding.h"
#include "eqcodec.h"
#include "fuzz_util.h"
#include "kernels_util.h"

struct eq_fuzz_head {
	uint8_t codec, unit, transform, dtype, scale_dtype, zero;
	uint16_t n_units, first_unit, row_units, param_len, zero2;
};
static_assert(sizeof(struct eq_fuzz_head) == 16, "head");

#define TEAM 3
#define UNITS_MAX 8192

/* One back end for each table of kernels, the scalar one first. */
static struct named_kernels kernels[KERNELS_MAX];
static struct eq_backend backend[KERNELS_MAX];
static unsigned n_backends;

static void backends_init(void)
{
	n_backends = all_kernels(kernels);
	for (unsigned i = 0; i < n_backends; i++) {
		backend[i] = *eq_backend_cpu();
		backend[i].ctx = &kernels[i].k;
	}
}

/* A copy of the chunk that ends with EQ_SLACK bytes of `slack` and, for the
 * sanitizer to see the end, nothing else. */
static uint8_t *copy_chunk(const uint8_t *data, size_t len, int slack)
{
	void *p = NULL;

	demand(!posix_memalign(&p, 64, len + EQ_SLACK), "memory");
	memcpy(p, data, len);
	memset((uint8_t *)p + len, slack, EQ_SLACK);
	return p;
}

static size_t out_len(const struct eq_decode_job *job)
{
	return (size_t)job->n_units * job->plan->unit;
}

/* Decode with the scalar code, for the others to be held against. */
static void decode_first(struct eq_decode_job *job)
{
	job->out = malloc(out_len(job));
	demand(job->out != NULL, "memory");
	demand(!backend->decode(backend->ctx, job, 1), "result of decode");
	demand(job->status == 0 || job->status == EQ_ECORRUPT, "status");
}

/* Decode n chunks again, at once; want[i] is what decode_first gave. */
static void decode_again(struct eq_backend *be, struct eq_decode_job *const *want, unsigned n)
{
	struct eq_decode_job job[TEAM];

	for (unsigned i = 0; i < n; i++) {
		job[i] = *want[i];
		job[i].in = copy_chunk(want[i]->in, want[i]->in_len, i & 1 ? 0xff : 0xa5);
		job[i].out = malloc(out_len(want[i]));
		demand(job[i].out != NULL, "memory");
	}
	demand(!be->decode(be->ctx, job, n), "result of decode");
	for (unsigned i = 0; i < n; i++) {
		demand(job[i].status == want[i]->status, "the same status");
		demand(want[i]->status || !memcmp(job[i].out, want[i]->out, out_len(want[i])),
		       "the same output");
		free((void *)job[i].in);
		free(job[i].out);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct eq_decode_job job = { 0 }, less;
	struct eq_decode_job *const team[TEAM] = { &job, &less, &job };
	struct eq_plan plan = { 0 };
	struct eq_fuzz_head h;
	int rc;

	if (!n_backends)
		backends_init();
	if (size < sizeof(h))
		return 0;
	memcpy(&h, data, sizeof(h));
	data += sizeof(h);
	size -= sizeof(h);
	if (h.param_len > size || !h.n_units || h.n_units > UNITS_MAX)
		return 0;
	plan.codec = (enum eq_codec_id)(h.codec % 5);
	plan.unit = h.unit;
	plan.transform = h.transform;
	plan.dtype = h.dtype;
	plan.scale_dtype = h.scale_dtype;
	plan.row_units = h.row_units;
	plan.n_units = h.row_units ? (uint64_t)h.row_units << 20 : 1 << 20;
	plan.chunk_units = UNITS_MAX;
	rc = eq_plan_init(&plan, data, h.param_len);
	demand(rc == 0 || rc == EQ_ECORRUPT || rc == EQ_ELIMIT, "result of eq_plan_init");
	if (rc)
		return 0;
	job.plan = &plan;
	job.in_len = size - h.param_len;
	job.in = copy_chunk(data + h.param_len, job.in_len, 0);
	job.first_unit = h.first_unit;
	job.n_units = h.n_units;
	less = job;
	less.n_units = (h.n_units + 1) / 2;
	decode_first(&job);
	decode_first(&less);
	for (unsigned i = 0; i < n_backends; i++) {
		decode_again(&backend[i], team, 1);
		decode_again(&backend[i], team, TEAM);
	}
	free(less.out);
	free((void *)job.in);
	free(job.out);
	eq_plan_fini(&plan);
	return 0;
}

#ifndef EQ_LIBFUZZER

static void write_seed(const char *dir, const char *name, const struct eq_coding *c,
		       int dtype, uint32_t n, const uint8_t *chunk, size_t len)
{
	uint8_t params[EQ_PARAMS_MAX];
	struct eq_fuzz_head h = {
		.codec = (uint8_t)c->codec, .unit = c->unit, .transform = c->transform,
		.dtype = (uint8_t)dtype, .scale_dtype = c->scale_dtype,
		.n_units = (uint16_t)n, .row_units = (uint16_t)c->row_units,
	};
	char path[512];
	FILE *f;

	h.param_len = (uint16_t)eq_params_write(c, params);
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "wb");
	if (!f || fwrite(&h, sizeof(h), 1, f) != 1 ||
	    fwrite(params, h.param_len, 1, f) != 1 || fwrite(chunk, len, 1, f) != 1 ||
	    fclose(f)) {
		perror(path);
		exit(1);
	}
}

static int make_seeds(const char *dir)
{
	static const struct {
		const char *name;
		unsigned unit, alphabet;
		double ratio;
		bool quant;
		uint32_t n;
	} kinds[] = {
		{ "planes-single", 1, 40, 0.9, false, 600 },
		{ "planes-pair", 1, 12, 0.5, false, 600 },
		{ "planes-2", 2, 12, 0.5, false, 600 },
		{ "planes-4", 4, 20, 0.7, false, 600 },
		{ "planes-8", 8, 3, 0.5, false, 600 },
		{ "quant-single", 2, 40, 0.9, true, 600 },
		{ "quant-pair", 2, 9, 0.5, true, 600 },
		{ "quant-escape", 2, 20, 0.45, true, 2100 },
	};
	uint64_t seed = 1;

	for (size_t k = 0; k < sizeof(kinds) / sizeof(*kinds); k++) {
		struct eq_coding *c = must_alloc(sizeof(*c));
		uint64_t hist[8][256] = { { 0 } };
		uint8_t data[4800], scales[2 * 21], *out, *scratch;
		struct eq_disk_outlier o = { 17, 0x4000 };
		unsigned unit = kinds[k].unit;
		uint32_t n = kinds[k].n, chunk_units = (uint32_t)eq_align(n, 128);
		float value[256];
		size_t len;

		rnd_symbols(&seed, data, sizeof(data), kinds[k].alphabet, kinds[k].ratio);
		data[300] = 250;
		for (unsigned s = 0; s < 256; s++)
			value[s] = (float)s / 16;
		for (unsigned s = 0; s < sizeof(scales); s++)
			scales[s] = s & 1 ? 0x3d : (uint8_t)(40 * s);
		eq_hist_planes(kinds[k].quant ? 1 : unit, unit > 1, data, n, hist);
		if (kinds[k].quant)
			eq_coding_quant(c, unit, EQ_SCALE_BF16, n, 100, chunk_units,
					hist[0], value, 1);
		else
			eq_coding_planes(c, unit, unit > 1, n, chunk_units,
					 (const uint64_t(*)[256])hist);
		out = must_alloc(eq_chunk_bound(c, 1));
		scratch = must_alloc(eq_chunk_scratch(c));
		len = kinds[k].quant ?
			eq_chunk_encode_quant(c, data, n, scales, n / 100 * 2, &o, 1, out,
					      scratch) :
			eq_chunk_encode_planes(c, 0, data, n, out, scratch);
		write_seed(dir, kinds[k].name, c, EQ_BF16, n, out, len);
		free(c);
		free(out);
		free(scratch);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "--make"))
		return make_seeds(argv[2]);
	for (int i = 1; i < argc; i++)
		fuzz_replay(argv[i], LLVMFuzzerTestOneInput);
	return argc == 1 && !fuzz_replay_directory("corpus/chunk", "", LLVMFuzzerTestOneInput);
}
#endif
