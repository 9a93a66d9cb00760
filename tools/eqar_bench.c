/* SPDX-License-Identifier: Apache-2.0 */
/*
 * eqar bench: how fast an archive decodes, from the page cache into memory,
 * beside memcpy of as many bytes by as many threads in the same run.
 */
#include "config.h"

#include "eqar.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend.h"
#include "gpu_load.h"

static const char help[] =
"Usage: eqar bench [OPTION]... ARCHIVE\n"
"Decode ARCHIVE in memory with 1, 2, 4, ... threads and print decoded GB/s, the\n"
"best of several rounds, beside memcpy's in the same run. Checksums included.\n"
"\n"
"  -j, --jobs=N         no more than N threads (default: one a CPU)\n"
"      --gpu=GPU        decode on a GPU: auto, off (default) or its number\n"
"      --json           a JSON object on a line\n"
"      --help           this text\n";

static const struct option long_options[] = {
	{ "jobs", required_argument, NULL, 'j' },
	{ "gpu", required_argument, NULL, EQ_OPT_GPU },
	{ "json", no_argument, NULL, EQ_OPT_JSON },
	{ "help", no_argument, NULL, EQ_OPT_HELP },
	{ NULL, 0, NULL, 0 },
};

/* Decoded bytes at a time: far beyond any cache, so that DRAM counts. */
#define WINDOW ((size_t)256 << 20)
/* Rounds go on until both are reached. */
#define MIN_ROUNDS 3
#define MIN_SECONDS 1.0
/* A task of memcpy's. */
#define COPY_PIECE ((size_t)1 << 20)

struct bench {
	struct eq_archive *a;
	struct eq_run run;
	uint8_t *out, *from;    /* window bytes each */
	size_t window;
	struct eq_error err;
};

struct result {
	unsigned threads;
	double decode, copy;    /* bytes a second */
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One pass over the file. */
static int decode_pass(struct bench *b)
{
	const uint64_t size = eq_archive_info(b->a)->size;
	size_t got = 0;
	int rc = 0;

	for (uint64_t off = 0; rc == 0 && off < size; off += got)
		rc = eq_decode_range(b->a, &b->run, off, b->out, b->window,
				     &got, &b->err);
	return rc;
}

static void copy_piece(void *arg, size_t i)
{
	struct bench *b = arg;
	size_t off = i * COPY_PIECE, n = b->window - off;

	memcpy(b->out + off, b->from + off, n < COPY_PIECE ? n : COPY_PIECE);
}

static int copy_pass(struct bench *b)
{
	eq_pool_for(b->run.pool, (b->window + COPY_PIECE - 1) / COPY_PIECE,
		    copy_piece, b);
	return 0;
}

/* Bytes a second of the best round; the first, cold one is not counted. */
static int measure(struct bench *b, int (*pass)(struct bench *b),
		   uint64_t bytes, double *rate)
{
	double begin, best = 0, spent = 0;
	int rc = pass(b);

	for (int i = 0; rc == 0 && (i < MIN_ROUNDS || spent < MIN_SECONDS);
	     i++) {
		double t;

		begin = now();
		rc = pass(b);
		t = now() - begin;
		spent += t;
		if (i == 0 || t < best)
			best = t;
	}
	*rate = best > 0 ? (double)bytes / best : 0;
	return rc;
}

static int bench_threads(struct bench *b, unsigned threads, struct result *r)
{
	int rc = 0;

	r->threads = threads;
	b->run.pool = NULL;
	if (threads > 1)
		rc = eq_pool_create(threads - 1, &b->run.pool);
	if (rc == 0)
		rc = measure(b, decode_pass, eq_archive_info(b->a)->size,
			     &r->decode);
	if (rc == 0)
		rc = measure(b, copy_pass, b->window, &r->copy);
	eq_pool_free(b->run.pool);
	return rc;
}

static int print_results(const struct result *r, size_t n, bool json,
			 const char *path, const char *backend,
			 const struct eq_file_info *info)
{
	cJSON *o, *rows;

	if (!json) {
		printf("%s, %.1f%% of its size, decoded by %s\n"
		       "threads  decode GB/s  memcpy GB/s  ratio\n", path,
		       (double)info->stored * 100 / (double)info->size,
		       backend);
		for (size_t i = 0; i < n; i++)
			printf("%7u  %11.2f  %11.2f  %5.2f\n", r[i].threads,
			       r[i].decode / 1e9, r[i].copy / 1e9,
			       r[i].decode / r[i].copy);
		return 0;
	}
	o = eq_cli_json_new();
	eq_cli_json_string(o, "file", path, strlen(path));
	cJSON_AddStringToObject(o, "isa", eq_cpu_isa());
	cJSON_AddStringToObject(o, "backend", backend);
	eq_cli_json_number(o, "logical_size", (double)info->size);
	eq_cli_json_number(o, "stored_size", (double)info->stored);
	rows = cJSON_AddArrayToObject(o, "runs");
	for (size_t i = 0; i < n; i++) {
		cJSON *row = cJSON_CreateObject();

		eq_cli_json_number(row, "threads", r[i].threads);
		eq_cli_json_number(row, "decode_bytes_per_s", r[i].decode);
		eq_cli_json_number(row, "memcpy_bytes_per_s", r[i].copy);
		cJSON_AddItemToArray(rows, row);
	}
	return eq_cli_json_print(o);
}

static int bench_archive(struct bench *b, const struct eq_common *c,
			 const char *path)
{
	const struct eq_file_info *info = eq_archive_info(b->a);
	unsigned most = c->jobs ? c->jobs : eq_cpu_count();
	struct result results[16];      /* 1 to 1024 in powers of two, and most */
	int64_t max = eq_decode_max(b->a);
	size_t n = 0;
	int rc;

	if (max < 0)
		return (int)max;
	b->window = info->size < WINDOW ? (size_t)info->size : WINDOW;
	if (b->window < (size_t)max)
		b->window = (size_t)max;
	b->window = (b->window + 63) / 64 * 64;
	b->out = aligned_alloc(64, b->window);
	b->from = aligned_alloc(64, b->window);
	rc = b->out && b->from ? 0 : -ENOMEM;
	if (rc == 0)
		memset(b->from, 1, b->window); /* or all pages are one */
	for (unsigned t = 1; rc == 0; t = 2 * t < most ? 2 * t : most) {
		rc = bench_threads(b, t, &results[n++]);
		if (t == most)
			break;
	}
	if (rc == 0)
		rc = print_results(results, n, c->json, path,
				   b->run.backend->name, info);
	free(b->out);
	free(b->from);
	return rc;
}

int eq_cmd_bench(int argc, char **argv)
{
	struct bench b = { .err.text = "" };
	struct eq_common c = { .jobs = 0 };
	bool done = false;
	struct stat st;
	int opt, rc;

	while ((opt = getopt_long(argc, argv, "j:", long_options, NULL)) != -1) {
		if (!eq_common_option(&c, opt, optarg, help, &done))
			return eq_cli_usage("eqar bench");
		if (done)
			return EQ_EXIT_OK;
	}
	if (argc - optind != 1) {
		eq_cli_error("%s", argc == optind ? "missing operand" :
			     "too many operands");
		return eq_cli_usage("eqar bench");
	}
	rc = eq_gpu_backend(&(struct eq_gpu_options){
				    .spec = c.gpu ? c.gpu : "off" },
			    &b.run.backend, &b.err);
	if (rc) {
		eq_cli_error("%s", b.err.text);
		return EQ_EXIT_FAIL;
	}
	b.a = eq_input_archive(AT_FDCWD, argv[optind], argv[optind], &st,
			       &b.err);
	if (!b.a) {
		eq_cli_error("%s", b.err.text);
		eq_gpu_release(b.run.backend);
		return EQ_EXIT_FAIL;
	}
	rc = bench_archive(&b, &c, argv[optind]);
	if (rc)
		eq_cli_error("%s", b.err.text[0] ? b.err.text :
			     eq_strerror(rc));
	eq_archive_close(b.a);
	eq_gpu_release(b.run.backend);
	return rc ? EQ_EXIT_FAIL : EQ_EXIT_OK;
}
