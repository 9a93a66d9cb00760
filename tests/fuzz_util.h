/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the fuzz targets share: a check that fails loudly, and, without libFuzzer,
 * the replay of files. See HACKING.md for how to build and run the targets.
 */
#ifndef EQ_FUZZ_UTIL_H
#define EQ_FUZZ_UTIL_H

#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void demand(bool holds, const char *what)
{
	if (!holds) {
		fprintf(stderr, "violated: %s\n", what);
		abort();
	}
}

/* One line that begins with the name "F", as every message does. */
static inline void demand_message(const char *text, size_t room)
{
	demand(strncmp(text, "F: ", 3) == 0 && strlen(text) > 3, "message");
	demand(strlen(text) < room && !strpbrk(text, "\n\r\x1b"), "one line");
}

#ifndef EQ_LIBFUZZER

/* Exactly as many bytes as there are, so that ASan sees a read beyond them. */
static inline uint8_t *fuzz_read(FILE *f, size_t size, const char *name)
{
	uint8_t *bytes = malloc(size ? size : 1);

	if (!bytes || fread(bytes, 1, size, f) != size) {
		fprintf(stderr, "%s: cannot read %zu bytes\n", name, size);
		exit(1);
	}
	return bytes;
}

static inline void fuzz_replay(const char *path, int (*fn)(const uint8_t *data, size_t size))
{
	FILE *f = fopen(path, "re");
	long size;

	if (!f || fseek(f, 0, SEEK_END) < 0 || (size = ftell(f)) < 0) {
		perror(path);
		exit(1);
	}
	rewind(f);
	uint8_t *bytes = fuzz_read(f, (size_t)size, path);

	fclose(f);
	fn(bytes, (size_t)size);
	free(bytes);
}

static inline bool fuzz_has_suffix(const char *name, const char *suffix)
{
	const size_t len = strlen(name), n = strlen(suffix);

	return len >= n && strcmp(name + len - n, suffix) == 0;
}

/* The files of tests/data/NAME whose names end in suffix; how many there were. */
static inline size_t fuzz_replay_directory(const char *name, const char *suffix,
					   int (*fn)(const uint8_t *data, size_t size))
{
	const char *srcdir = getenv("srcdir");
	char path[4096];
	const struct dirent *e;
	size_t n = 0;

	snprintf(path, sizeof(path), "%s/tests/data/%s", srcdir ? srcdir : ".", name);
	DIR *d = opendir(path);

	if (!d) {
		perror(path);
		exit(1);
	}
	const size_t len = strlen(path);

	while ((e = readdir(d))) {
		if (e->d_name[0] == '.' || !fuzz_has_suffix(e->d_name, suffix))
			continue;
		snprintf(path + len, sizeof(path) - len, "/%s", e->d_name);
		fuzz_replay(path, fn);
		n++;
	}
	closedir(d);
	printf("%s: %zu files\n", name, n);
	if (!n)
		fprintf(stderr, "nothing to replay in %s\n", name);
	return n;
}

#endif
#endif
