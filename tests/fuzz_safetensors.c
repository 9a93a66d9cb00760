/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target for headers of safetensors files.
 *
 * An input is the length of the tensor data (u16, little-endian) and the JSON
 * text; a file *.safetensors is taken as it is. Without libFuzzer this program
 * replays the files given, or the corpus and the fixtures if none are given;
 * with "-" it reads files from standard input, each behind its length (u32,
 * little-endian), and prints the verdict on each (tests/check_headers.py).
 */
#include <config.h>

#include "eqcodec.h"
#include "fuzz_util.h"
#include "st_text.h"
#include "utf8.h"

/* The same tensors as a plain header. To be freed; *len its length. */
static char *write_header(const struct eq_st *st, size_t *len)
{
	char *json = NULL;
	FILE *f = open_memstream(&json, len);

	demand(f != NULL, "memory");
	fputc('{', f);
	for (size_t i = st->n_tensors; i-- > 0; ) {
		const struct eq_st_tensor *t = &st->tensors[i];

		fputc('"', f);
		for (uint32_t k = 0; k < t->name_len; k++) {
			const unsigned char c = (unsigned char)t->name[k];

			if (c < 0x20 || c == '"' || c == '\\')
				fprintf(f, "\\u%04x", c);
			else
				fputc(c, f);
		}
		fprintf(f, "\":{\"dtype\":\"%s\",\"shape\":[", eq_dtype_name(t->dtype));
		for (unsigned k = 0; k < t->ndim; k++)
			fprintf(f, "%s%" PRIu64, k ? "," : "", t->dims[k]);
		fprintf(f, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}%s", t->begin, t->end,
			i ? "," : "");
	}
	fputc('}', f);
	demand(fclose(f) == 0, "memory");
	return json;
}

static int parse_json(const char *json, size_t len, uint64_t data, struct eq_st **st,
		      struct eq_error *err)
{
	uint8_t *bytes = malloc(8 + len);

	demand(bytes != NULL, "memory");
	for (int i = 0; i < 8; i++)
		bytes[i] = (uint8_t)((uint64_t)len >> 8 * i);
	memcpy(bytes + 8, json, len);
	const int rc = eq_st_parse(bytes, 8 + len, 8 + len + data, "F", st, err);

	free(bytes);
	return rc;
}

/* What an accepted header must be like. */
static void check_accepted(const struct eq_st *st)
{
	const uint64_t data = st->file_size - st->prefix_len;
	uint64_t at = 0;

	for (size_t i = 0; i < st->n_tensors; i++) {
		const struct eq_st_tensor *t = &st->tensors[i];
		unsigned __int128 bits = eq_dtype_bits(t->dtype);

		demand(t->begin == at && t->end >= at, "tensors tile the data");
		at = t->end;
		demand(t->ndim <= 64, "dimensions");
		for (unsigned k = 0; k < t->ndim; k++)
			if (t->dims[k] == 0)
				bits = 0;
		for (unsigned k = 0; k < t->ndim && bits; k++)
			bits *= t->dims[k];
		demand(bits == (unsigned __int128)(t->end - t->begin) * 8, "size");
		demand(eq_utf8_valid(t->name, t->name_len) == t->name_len, "UTF-8");
		demand(t->name[t->name_len] == '\0', "terminator");
	}
	demand(at == data, "end of the data");

	/* Written plainly it means the same. */
	size_t len;
	char *json = write_header(st, &len);
	struct eq_error err = { "" };
	struct eq_st *again;

	demand(parse_json(json, len, data, &again, &err) == 0, err.text);
	char *a = st_text(st), *b = st_text(again);

	demand(strcmp(a, b) == 0, "round trip");
	free(a);
	free(b);
	free(json);
	eq_st_free(again);
}

static void check(int rc, const struct eq_st *st, const struct eq_error *err)
{
	if (rc == 0) {
		check_accepted(st);
		return;
	}
	demand(rc == EQ_ENOTST || rc == EQ_ELIMIT, "result");
	demand(st == NULL, "no object on failure");
	demand_message(err->text, sizeof(err->text));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct eq_error err = { "" };
	struct eq_st *st;

	if (size < 2)
		return 0;
	const int rc = parse_json((const char *)data + 2, size - 2, data[0] | data[1] << 8,
				  &st, &err);

	check(rc, st, &err);
	eq_st_free(st);
	return 0;
}

#ifndef EQ_LIBFUZZER

/* A whole file; prints the verdict if f is not NULL. */
static void check_file(const uint8_t *bytes, size_t size, FILE *f)
{
	struct eq_error err = { "" };
	uint64_t prefix = 0;
	struct eq_st *st;

	for (size_t i = 8; i-- > 0 && size >= 8; )
		prefix = prefix << 8 | bytes[i];
	/* As eq_st_read does: never more than there is. */
	prefix = size < 8 || prefix > size - 8 ? size : prefix + 8;

	const int rc = eq_st_parse(bytes, prefix, size, "F", &st, &err);
	char *text = rc ? NULL : st_text(st);

	check(rc, st, &err);
	if (f)
		fprintf(f, "%s\t%s\n", st_code(rc), rc ? err.text : text);
	free(text);
	eq_st_free(st);
}

static int check_whole(const uint8_t *bytes, size_t size)
{
	check_file(bytes, size, NULL);
	return 0;
}

static void replay_stream(void)
{
	uint8_t n[4];

	while (fread(n, 1, 4, stdin) == 4) {
		const size_t size = (size_t)(n[0] | n[1] << 8 | n[2] << 16) | (size_t)n[3] << 24;
		uint8_t *bytes = fuzz_read(stdin, size, "standard input");

		check_file(bytes, size, stdout);
		free(bytes);
	}
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "-") == 0) {
		replay_stream();
		return 0;
	}
	for (int i = 1; i < argc; i++)
		fuzz_replay(argv[i], fuzz_has_suffix(argv[i], ".safetensors") ?
					     check_whole : LLVMFuzzerTestOneInput);
	if (argc > 1)
		return 0;
	return !fuzz_replay_directory("corpus/safetensors", "", LLVMFuzzerTestOneInput) ||
	       !fuzz_replay_directory("bad", ".safetensors", check_whole) ||
	       !fuzz_replay_directory("good", ".safetensors", check_whole);
}

#endif
