/* SPDX-License-Identifier: Apache-2.0 */
/* eqar ls and eqar stat: what an archive holds. Nothing is decoded. */
#include "config.h"

#include "eqar.h"

#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char help_ls[] =
"Usage: eqar ls [OPTION]... ARCHIVE...\n"
"List the tensors of each ARCHIVE: dtype, shape, codec, bits a parameter as\n"
"stored, and relative L1 error.\n"
"\n"
"  -l, --long           also sizes, chunks and signal-to-noise ratio\n"
"      --json           a JSON object an archive, on a line\n"
"      --help           this text\n";

static const char help_stat[] =
"Usage: eqar stat [OPTION]... ARCHIVE...\n"
"Show sizes, error, policy, SHA-256 and time of the original of each ARCHIVE.\n"
"\n"
"      --json           a JSON object an archive, on a line\n"
"      --help           this text\n";

static const struct option options_ls[] = {
	{ "long", no_argument, NULL, 'l' },
	{ "json", no_argument, NULL, EQ_OPT_JSON },
	{ "help", no_argument, NULL, EQ_OPT_HELP },
	{ NULL, 0, NULL, 0 },
};

/* options_stat is the rest of that. */
static const struct option *const options_stat = options_ls + 1;

double eq_bits_each(uint64_t bytes, uint64_t params)
{
	return params ? (double)bytes * 8 / (double)params : NAN;
}

static double ratio(const struct eq_file_info *f)
{
	return f->size ? (double)f->stored / (double)f->size : NAN;
}

static const char *qformat_name(enum eq_qformat q)
{
	return q == EQ_Q_FP8 ? "fp8" : q == EQ_Q_INT8 ? "int8" : NULL;
}

/* ---- ls ------------------------------------------------------------------ */

/* 64 dimensions of 20 digits. */
#define SHAPE_SIZE 1400

static int shape_text(char buf[SHAPE_SIZE], const struct eq_tensor_info *t)
{
	int n = 0;

	if (t->ndim == 0)
		return snprintf(buf, SHAPE_SIZE, "scalar");
	for (unsigned i = 0; i < t->ndim; i++)
		n += snprintf(buf + n, SHAPE_SIZE - (size_t)n, "%s%" PRIu64,
			      i ? "x" : "", t->dims[i]);
	return n;
}

static void error_text(char *buf, size_t size, const struct eq_tensor_info *t)
{
	if (t->lossy)
		snprintf(buf, size, "%.3f%%", t->relative_l1 * 100);
	else
		snprintf(buf, size, "lossless%s",
			 t->nonfinite ? " (non-finite)" : "");
}

static void snr_text(char *buf, size_t size, const struct eq_tensor_info *t)
{
	if (t->lossy && isfinite(t->snr_db))
		snprintf(buf, size, "%.2f", t->snr_db);
	else
		snprintf(buf, size, "-");
}

static void ls_row(const struct eq_tensor_info *t, int shape_width,
		   int error_width, bool long_rows)
{
	char shape[SHAPE_SIZE], bits[32], error[64], snr[32];
	double b = eq_bits_each(t->stored, t->params);

	shape_text(shape, t);
	error_text(error, sizeof(error), t);
	snprintf(bits, sizeof(bits), isfinite(b) ? "%.2f" : "-", b);
	printf("%-11s  %*s  %-8s  %7s  %-*s  ", eq_dtype_name(t->dtype),
	       shape_width, shape, t->codec, bits, error_width, error);
	if (long_rows) {
		snr_text(snr, sizeof(snr), t);
		printf("%7s  %12" PRIu64 "  %12" PRIu64 "  %6" PRIu32 "  ", snr,
		       t->n_bytes, t->stored, t->n_chunks);
	}
	eq_cli_put(t->name, t->name_len);
	putchar('\n');
}

static void ls_totals(const struct eq_file_info *f)
{
	char from[EQ_CLI_SIZE], to[EQ_CLI_SIZE];

	printf("%zu tensors, %s -> %s (%.1f%%)", f->n_tensors,
	       eq_cli_size(from, f->size), eq_cli_size(to, f->stored),
	       ratio(f) * 100);
	if (f->quant_params)
		printf("; %" PRIu64 " parameters quantised at %.3f bits, "
		       "error %.3f%%, %.2f dB", f->quant_params,
		       eq_bits_each(f->quant_bytes, f->quant_params),
		       f->relative_l1 * 100, f->snr_db);
	putchar('\n');
}

static void ls_text(const struct eq_archive *a, bool long_rows)
{
	const struct eq_file_info *f = eq_archive_info(a);
	const struct eq_tensor_info *t = eq_archive_tensors(a);
	int shape_width = 5, error_width = 8;
	char text[SHAPE_SIZE];

	for (size_t i = 0; i < f->n_tensors; i++) {
		int n = shape_text(text, &t[i]);

		/* One odd shape must not push all others off the screen. */
		if (n > shape_width && n <= 32)
			shape_width = n;
		error_text(text, sizeof(text), &t[i]);
		if ((int)strlen(text) > error_width)
			error_width = (int)strlen(text);
	}
	printf("%-11s  %*s  %-8s  %7s  %-*s  ", "DTYPE", shape_width, "SHAPE",
	       "CODEC", "BITS", error_width, "ERROR");
	if (long_rows)
		printf("%7s  %12s  %12s  %6s  ", "SNR", "BYTES", "STORED",
		       "CHUNKS");
	puts("NAME");
	for (size_t i = 0; i < f->n_tensors; i++)
		ls_row(&t[i], shape_width, error_width, long_rows);
	ls_totals(f);
}

static cJSON *tensor_json(const struct eq_tensor_info *t)
{
	cJSON *o = cJSON_CreateObject(), *shape;

	eq_cli_json_string(o, "name", t->name, t->name_len);
	cJSON_AddStringToObject(o, "dtype", eq_dtype_name(t->dtype));
	shape = cJSON_AddArrayToObject(o, "shape");
	for (unsigned i = 0; i < t->ndim; i++)
		cJSON_AddItemToArray(shape,
				     cJSON_CreateNumber((double)t->dims[i]));
	cJSON_AddStringToObject(o, "codec", t->codec);
	eq_cli_json_number(o, "offset", (double)t->begin);
	eq_cli_json_number(o, "logical_size", (double)t->n_bytes);
	eq_cli_json_number(o, "stored_size", (double)t->stored);
	eq_cli_json_number(o, "params", (double)t->params);
	eq_cli_json_number(o, "bits", eq_bits_each(t->stored, t->params));
	cJSON_AddBoolToObject(o, "lossy", t->lossy);
	cJSON_AddBoolToObject(o, "nonfinite", t->nonfinite);
	eq_cli_json_number(o, "relative_l1", t->relative_l1);
	eq_cli_json_number(o, "snr_db", t->snr_db);
	eq_cli_json_number(o, "chunks", t->n_chunks);
	return o;
}

/* ---- stat ---------------------------------------------------------------- */

static void hex(char out[65], const uint8_t sha256[32])
{
	for (int i = 0; i < 32; i++)
		snprintf(out + 2 * i, 3, "%02x", sha256[i]);
}

/* The value of a line "key=value", or NULL; *len gets its length. */
static const char *provenance(const struct eq_file_info *f, const char *key,
			      size_t *len)
{
	const char *line = f->provenance;
	size_t k = strlen(key);

	while (*line) {
		size_t n = strcspn(line, "\n");

		if (n > k && !strncmp(line, key, k) && line[k] == '=') {
			*len = n - k - 1;
			return line + k + 1;
		}
		line += n + (line[n] == '\n');
	}
	return NULL;
}

static void info_json(cJSON *o, const struct eq_file_info *f)
{
	const char *text, *format = qformat_name(f->qformat);
	char sha[65], version[40];
	size_t len;

	hex(sha, f->sha256);
	snprintf(version, sizeof(version), "%u.%u.%u", f->encoder >> 16,
		 f->encoder >> 8 & 0xff, f->encoder & 0xff);
	eq_cli_json_number(o, "logical_size", (double)f->size);
	eq_cli_json_number(o, "stored_size", (double)f->stored);
	eq_cli_json_number(o, "ratio", ratio(f));
	cJSON_AddBoolToObject(o, "lossy", f->lossy);
	eq_cli_json_number(o, "quantized_params", (double)f->quant_params);
	eq_cli_json_number(o, "quantized_bytes", (double)f->quant_bytes);
	eq_cli_json_number(o, "quantized_bits",
			   eq_bits_each(f->quant_bytes, f->quant_params));
	eq_cli_json_number(o, "relative_l1", f->relative_l1);
	eq_cli_json_number(o, "snr_db", f->snr_db);
	if (format)
		cJSON_AddStringToObject(o, "format", format);
	else
		cJSON_AddNullToObject(o, "format");
	eq_cli_json_number(o, "lambda", f->lambda > 0 ? f->lambda : NAN);
	eq_cli_json_number(o, "bits", f->bits > 0 ? f->bits : NAN);
	text = provenance(f, "policy", &len);
	if (text)
		eq_cli_json_string(o, "policy", text, len);
	else
		cJSON_AddNullToObject(o, "policy");
	cJSON_AddStringToObject(o, "encoder", version);
	cJSON_AddStringToObject(o, "sha256", sha);
	eq_cli_json_number(o, "mtime", (double)f->mtime_s);
	eq_cli_json_number(o, "mtime_ns", f->mtime_ns);
}

static void stat_json(cJSON *o, const struct eq_archive *a)
{
	const struct eq_file_info *f = eq_archive_info(a);

	info_json(o, f);
	eq_cli_json_number(o, "tensors", (double)f->n_tensors);
	eq_cli_json_string(o, "provenance", f->provenance,
			   strlen(f->provenance));
}

static void ls_json(cJSON *o, const struct eq_archive *a)
{
	const struct eq_file_info *f = eq_archive_info(a);
	const struct eq_tensor_info *t = eq_archive_tensors(a);
	cJSON *rows;

	info_json(o, f);
	rows = cJSON_AddArrayToObject(o, "tensors");
	for (size_t i = 0; i < f->n_tensors; i++)
		cJSON_AddItemToArray(rows, tensor_json(&t[i]));
}

static void stat_text(const struct eq_archive *a)
{
	const struct eq_file_info *f = eq_archive_info(a);
	char size[EQ_CLI_SIZE], sha[65], when[64] = "?";
	time_t at = (time_t)f->mtime_s;
	const char *policy;
	struct tm tm;
	size_t len;

	hex(sha, f->sha256);
	if (localtime_r(&at, &tm))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S %z", &tm);
	printf("  logical size      %" PRIu64 " (%s)\n", f->size,
	       eq_cli_size(size, f->size));
	printf("  stored size       %" PRIu64 " (%s)\n", f->stored,
	       eq_cli_size(size, f->stored));
	printf("  ratio             %.2f%%\n", ratio(f) * 100);
	printf("  tensors           %zu\n", f->n_tensors);
	policy = provenance(f, "policy", &len);
	if (policy) {
		fputs("  policy            ", stdout);
		eq_cli_put(policy, len);
		putchar('\n');
	}
	if (f->quant_params) {
		printf("  quantised         %" PRIu64 " parameters, %s\n",
		       f->quant_params, qformat_name(f->qformat) ?
		       qformat_name(f->qformat) : "unknown format");
		printf("  bits a parameter  %.4f\n",
		       eq_bits_each(f->quant_bytes, f->quant_params));
		printf("  lambda            %.6g\n", f->lambda);
		printf("  relative L1       %.6f\n", f->relative_l1);
		printf("  SNR               %.3f dB\n", f->snr_db);
	} else {
		puts("  lossless");
	}
	printf("  modified          %s\n", when);
	printf("  SHA-256           %s\n", sha);
	printf("  encoder           %u.%u.%u\n", f->encoder >> 16,
	       f->encoder >> 8 & 0xff, f->encoder & 0xff);
}

/* ---- command lines ------------------------------------------------------- */

struct list {
	struct eq_common common;
	bool is_ls, long_rows, many;
};

static int list_one(const struct list *l, const char *path)
{
	struct eq_error err;
	struct eq_archive *a;
	struct stat st;
	int rc = 0;

	a = eq_input_archive(AT_FDCWD, path, path, &st, &err);
	if (!a) {
		eq_cli_error("%s", err.text);
		return EQ_EXIT_FAIL;
	}
	if (l->common.json) {
		cJSON *o = eq_cli_json_new();

		eq_cli_json_string(o, "file", path, strlen(path));
		if (l->is_ls)
			ls_json(o, a);
		else
			stat_json(o, a);
		rc = eq_cli_json_print(o);
	} else {
		if (l->many || !l->is_ls) {
			eq_cli_put(path, strlen(path));
			puts(":");
		}
		if (l->is_ls)
			ls_text(a, l->long_rows);
		else
			stat_text(a);
	}
	eq_archive_close(a);
	return rc ? EQ_EXIT_FAIL : EQ_EXIT_OK;
}

static int list(int argc, char **argv, bool is_ls)
{
	const char *command = is_ls ? "eqar ls" : "eqar stat";
	struct list l = { .is_ls = is_ls };
	int opt, status = EQ_EXIT_OK;
	bool done = false;

	while ((opt = getopt_long(argc, argv, is_ls ? "l" : "",
				  is_ls ? options_ls : options_stat,
				  NULL)) != -1) {
		if (opt == 'l')
			l.long_rows = true;
		else if (!eq_common_option(&l.common, opt, optarg,
					   is_ls ? help_ls : help_stat, &done))
			return eq_cli_usage(command);
		if (done)
			return EQ_EXIT_OK;
	}
	if (optind == argc) {
		eq_cli_error("missing operand");
		return eq_cli_usage(command);
	}
	l.many = argc - optind > 1;
	for (int i = optind; i < argc; i++)
		if (list_one(&l, argv[i]))
			status = EQ_EXIT_FAIL;
	return status;
}

int eq_cmd_ls(int argc, char **argv)
{
	return list(argc, argv, true);
}

int eq_cmd_stat(int argc, char **argv)
{
	return list(argc, argv, false);
}
