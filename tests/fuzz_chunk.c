/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target for the decoding of chunks: any parameters, any bytes, checksums
 * aside. With libFuzzer, from the top of the source:
 *
 *   F="-g -O1 -fsanitize=fuzzer-no-link,address,undefined -Icodec -Itests"
 *   clang $F -DEQ_LIBFUZZER -fsanitize=fuzzer tests/fuzz_chunk.c \
 *         codec/{backend_cpu,backend_simple,coding,cpu,dequant,model,rans,split}.c \
 *         -lzstd -lm -lpthread -o fuzz && ./fuzz NEW_INPUTS tests/data/corpus/chunk
 *
 * (an empty config.h on the include path; with the SIMD sources and HAVE_AVX2,
 * HAVE_AVX512 in it, those are fuzzed instead of the scalar code).
 *
 * An input is a struct eq_fuzz_head, the parameters, and the chunk. Without
 * libFuzzer this program replays the files given, or the corpus if none are
 * given; "--make DIR" writes the seeds of the corpus.
 */
#include <config.h>

#include <dirent.h>
#include <stdio.h>

#include "codec_util.h"
#include "coding.h"
#include "eqcodec.h"

struct eq_fuzz_head {
	uint8_t codec, unit, transform, dtype, scale_dtype, zero;
	uint16_t n_units, first_unit, row_units, param_len, zero2;
};
static_assert(sizeof(struct eq_fuzz_head) == 16, "head");

#define TEAM 3
#define UNITS_MAX 8192

static void demand(bool holds, const char *what)
{
	if (!holds) {
		fprintf(stderr, "violated: %s\n", what);
		abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Decode the chunk alone and in a team of itself: the same must come out. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct eq_backend *be = eq_backend_cpu();
	struct eq_decode_job job[1 + TEAM];
	struct eq_plan plan = { 0 };
	struct eq_fuzz_head h;
	uint8_t *in, *out[1 + TEAM];
	size_t in_len, out_len;
	int rc;

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
	in_len = size - h.param_len;
	in = must_alloc(in_len + EQ_SLACK);
	memcpy(in, data + h.param_len, in_len);
	memset(in + in_len, 0, EQ_SLACK);
	out_len = (size_t)h.n_units * plan.unit;
	for (unsigned i = 0; i <= TEAM; i++) {
		/* Exact, for the sanitizer to see the end. */
		out[i] = malloc(out_len);
		demand(out[i], "memory");
		memset(out[i], 0x55, out_len);
		job[i] = (struct eq_decode_job){ &plan, in, in_len, h.first_unit,
						 h.n_units, out[i], 1 };
	}
	demand(!be->decode(be->ctx, job, 1), "result of decode");
	demand(!be->decode(be->ctx, job + 1, TEAM), "result of decode");
	for (unsigned i = 0; i <= TEAM; i++) {
		demand(job[i].status == 0 || job[i].status == EQ_ECORRUPT, "status");
		demand(job[i].status == job[0].status, "status of a team");
		demand(job[0].status || !memcmp(out[i], out[0], out_len),
		       "output of a team");
	}
	for (unsigned i = 0; i <= TEAM; i++)
		free(out[i]);
	free(in);
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
	} kinds[] = {
		{ "planes-single", 1, 40, 0.9, false }, { "planes-pair", 1, 12, 0.5, false },
		{ "planes-2", 2, 12, 0.5, false },      { "planes-4", 4, 20, 0.7, false },
		{ "planes-8", 8, 3, 0.5, false },       { "quant-single", 2, 40, 0.9, true },
		{ "quant-pair", 2, 9, 0.5, true },
	};
	const uint32_t n = 600;
	uint64_t seed = 1;

	for (size_t k = 0; k < sizeof(kinds) / sizeof(*kinds); k++) {
		struct eq_coding *c = must_alloc(sizeof(*c));
		uint64_t hist[8][256] = { { 0 } };
		uint8_t data[600 * 8], scales[6 * 2], *out, *scratch;
		struct eq_disk_outlier o = { 17, 0x4000 };
		unsigned unit = kinds[k].unit;
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
			eq_coding_quant(c, unit, EQ_SCALE_BF16, n, 100, 640, hist[0], value, 1);
		else
			eq_coding_planes(c, unit, unit > 1, n, 640,
					 (const uint64_t(*)[256])hist);
		out = must_alloc(eq_chunk_bound(c, 1));
		scratch = must_alloc(eq_chunk_scratch(c));
		len = kinds[k].quant ?
			eq_chunk_encode_quant(c, data, n, scales, sizeof(scales), &o, 1, out,
					      scratch) :
			eq_chunk_encode_planes(c, data, n, out, scratch);
		write_seed(dir, kinds[k].name, c, EQ_BF16, n, out, len);
		free(c);
		free(out);
		free(scratch);
	}
	return 0;
}

static void replay(const char *path)
{
	uint8_t *data = must_alloc(1 << 20);
	FILE *f = fopen(path, "rb");
	size_t n;

	if (!f) {
		perror(path);
		exit(1);
	}
	n = fread(data, 1, 1 << 20, f);
	fclose(f);
	LLVMFuzzerTestOneInput(data, n);
	free(data);
}

static unsigned replay_dir(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	char path[2048];
	unsigned n = 0;

	while (d && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
		replay(path);
		n++;
	}
	if (d)
		closedir(d);
	return n;
}

int main(int argc, char **argv)
{
	const char *src = getenv("srcdir");
	char dir[1024];
	unsigned n;

	if (argc == 3 && !strcmp(argv[1], "--make"))
		return make_seeds(argv[2]);
	for (int i = 1; i < argc; i++)
		replay(argv[i]);
	if (argc > 1)
		return 0;
	snprintf(dir, sizeof(dir), "%s/tests/data/corpus/chunk", src ? src : ".");
	n = replay_dir(dir);
	printf("%u inputs replayed\n", n);
	if (!n)
		fprintf(stderr, "nothing to replay in %s\n", dir);
	return n ? 0 : 1;
}
#endif
