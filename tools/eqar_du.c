/* SPDX-License-Identifier: Apache-2.0 */
/* eqar du: what directories hold, and what that takes on disk. */
#include "config.h"

#include "eqar.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
"Usage: eqar du [OPTION]... [PATH]...\n"
"Sum up each directory under PATH (default: .), of a store or of a mount: bytes of\n"
"the files, bytes that they take on disk, the ratio. An archive counts as the file\n"
"it holds, a file with several names once.\n"
"\n"
"  -h, --human-readable  sizes as 1.50 GiB\n"
"  -s, --summarize       only a total of each PATH\n"
"      --json            a JSON object a directory, on a line\n"
"      --help            this text\n";

static const struct option long_options[] = {
	{ "human-readable", no_argument, NULL, 'h' },
	{ "summarize", no_argument, NULL, 's' },
	{ "json", no_argument, NULL, EQ_OPT_JSON },
	{ "help", no_argument, NULL, EQ_OPT_HELP },
	{ NULL, 0, NULL, 0 },
};

struct sums {
	uint64_t files, archives, logical, physical;
};

struct id {
	dev_t dev;
	ino_t ino;
};

struct du {
	struct eq_common common;
	bool human, summarize, failed;
	/* The directories we are in, the outermost first. */
	struct sums *stack;
	size_t depth, max_depth;
	const char *top;        /* the path that was asked for */
	size_t top_slashes;
	/* Files with hard links that were met already: open addressing, power of
	 * two, ino 0 is free. */
	struct id *seen;
	size_t n_seen, max_seen;
};

/* ---- hard links ------------------------------------------------------------ */

static size_t slot(const struct du *d, const struct id *id)
{
	size_t i = (size_t)(((uint64_t)id->ino ^ (uint64_t)id->dev << 32) *
			    UINT64_C(0x9e3779b97f4a7c15) >> 20) & (d->max_seen - 1);

	while (d->seen[i].ino && (d->seen[i].ino != id->ino || d->seen[i].dev != id->dev))
		i = (i + 1) & (d->max_seen - 1);
	return i;
}

static int grow_seen(struct du *d)
{
	struct id *old = d->seen;
	size_t n = d->max_seen;

	d->max_seen = n ? 2 * n : 1024;
	d->seen = calloc(d->max_seen, sizeof(*d->seen));
	if (!d->seen) {
		d->seen = old;
		d->max_seen = n;
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++)
		if (old[i].ino)
			d->seen[slot(d, &old[i])] = old[i];
	free(old);
	return 0;
}

/* Was another name of the file counted? 1, 0 or -ENOMEM. */
static int seen_before(struct du *d, const struct stat *st)
{
	struct id id = { st->st_dev, st->st_ino };
	size_t i;

	if (2 * d->n_seen >= d->max_seen && grow_seen(d))
		return -ENOMEM;
	i = slot(d, &id);
	if (d->seen[i].ino)
		return 1;
	d->seen[i] = id;
	d->n_seen++;
	return 0;
}

/* ---- sums ------------------------------------------------------------------ */

static void complain(struct du *d, const char *path, int rc)
{
	eq_cli_error("%s: %s", path, eq_strerror(rc));
	d->failed = true;
}

static size_t slashes(const char *path)
{
	size_t n = 0;

	for (; *path; path++)
		n += *path == '/';
	return n;
}

/* The sums of the directory at this depth below the top, 0 being the top. */
static struct sums *level(struct du *d, size_t depth)
{
	while (depth >= d->max_depth) {
		size_t max = d->max_depth ? 2 * d->max_depth : 16;
		struct sums *s = realloc(d->stack, max * sizeof(*s));

		if (!s)
			return NULL;
		d->stack = s;
		d->max_depth = max;
	}
	while (d->depth <= depth)
		d->stack[d->depth++] = (struct sums){ 0 };
	return &d->stack[depth];
}

/*
 * An archive's logical size. It is a file in the mount unless the plain one is
 * there as well, and then it only takes room.
 */
static int archive_size(const struct eq_visit *v, uint64_t *size)
{
	size_t len = strlen(v->name) - (sizeof(EQ_SUFFIX) - 1);
	char plain[PATH_MAX];
	struct stat st;
	int fd, rc;

	if (len >= sizeof(plain))
		return -ENAMETOOLONG;
	memcpy(plain, v->name, len);
	plain[len] = 0;
	*size = 0;
	if (fstatat(v->dirfd, plain, &st, AT_SYMLINK_NOFOLLOW) == 0)
		return 0;
	fd = openat(v->dirfd, v->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	rc = eq_archive_peek(fd, size);
	close(fd);
	return rc;
}

static int visit(void *arg, const struct eq_visit *v)
{
	struct du *d = arg;
	uint64_t logical = (uint64_t)v->st->st_size;
	bool archive = eq_name_ends(v->name, EQ_SUFFIX);
	struct sums *s;
	int rc = 0;

	if (v->st->st_nlink > 1)
		rc = seen_before(d, v->st);
	if (rc > 0)
		return 0;
	s = rc ? NULL : level(d, slashes(v->path) - d->top_slashes - 1);
	if (!s) {
		complain(d, v->path, -ENOMEM);
		return -ENOMEM;
	}
	if (archive) {
		rc = archive_size(v, &logical);
		if (rc) {
			complain(d, v->path, rc);
			logical = (uint64_t)v->st->st_size; /* as the mount shows it */
		}
	}
	s->files++;
	s->archives += archive;
	s->logical += logical;
	s->physical += (uint64_t)v->st->st_blocks * 512;
	return 0;
}

static void print(const struct du *d, const char *path, const struct sums *s)
{
	double ratio = s->logical ? (double)s->physical / (double)s->logical : NAN;
	char from[EQ_CLI_SIZE], to[EQ_CLI_SIZE], part[16] = "-";

	if (d->common.json) {
		cJSON *o = eq_cli_json_new();

		eq_cli_json_string(o, "path", path, strlen(path));
		eq_cli_json_number(o, "logical_size", (double)s->logical);
		eq_cli_json_number(o, "physical_size", (double)s->physical);
		eq_cli_json_number(o, "ratio", ratio);
		eq_cli_json_number(o, "files", (double)s->files);
		eq_cli_json_number(o, "archives", (double)s->archives);
		eq_cli_json_print(o);
		return;
	}
	if (isfinite(ratio))
		snprintf(part, sizeof(part), "%.1f%%", ratio * 100);
	if (d->human)
		printf("%s\t%s\t%s\t", eq_cli_size(from, s->logical),
		       eq_cli_size(to, s->physical), part);
	else
		printf("%" PRIu64 "\t%" PRIu64 "\t%s\t", s->logical, s->physical, part);
	eq_cli_put(path, strlen(path));
	putchar('\n');
}

/* A directory is done: say it, and add it to the one it is in. */
static void leave(void *arg, const char *path)
{
	struct du *d = arg;
	bool top = !strcmp(path, d->top);
	size_t depth = top ? 0 : slashes(path) - d->top_slashes;
	struct sums *s = level(d, depth), *up;

	if (!s) {
		complain(d, path, -ENOMEM);
		return;
	}
	if (top || !d->summarize)
		print(d, path, s);
	d->depth = depth;
	if (!depth)
		return;
	up = &d->stack[depth - 1];
	up->files += s->files;
	up->archives += s->archives;
	up->logical += s->logical;
	up->physical += s->physical;
}

/* ---- command line ------------------------------------------------------------ */

/* A file is the one entry of a directory of its own. */
static void du_file(struct du *d, const char *path, const struct stat *st)
{
	const struct eq_visit v = { .dirfd = AT_FDCWD, .name = path, .path = path, .st = st };

	d->top_slashes = slashes(path) - 1;
	if (visit(d, &v) == 0 && d->depth)
		print(d, path, d->stack);
}

static void du_path(struct du *d, const char *path)
{
	size_t len = strlen(path);
	struct stat st;
	char *top;

	if (lstat(path, &st)) {
		complain(d, path, -errno);
		return;
	}
	d->depth = 0;
	if (S_ISREG(st.st_mode)) {
		du_file(d, path, &st);
		return;
	}
	/* As eq_walk has it. */
	while (len > 1 && path[len - 1] == '/')
		len--;
	top = strndup(path, len);
	if (!top) {
		complain(d, path, -ENOMEM);
		return;
	}
	d->top = top;
	d->top_slashes = strcmp(top, "/") ? slashes(top) : 0;
	eq_walk(path, false, visit, leave, d, &d->failed);
	free(top);
}

int eq_cmd_du(int argc, char **argv)
{
	struct du d = { .failed = false };
	bool done = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "hs", long_options, NULL)) != -1) {
		if (opt == 'h')
			d.human = true;
		else if (opt == 's')
			d.summarize = true;
		else if (!eq_common_option(&d.common, opt, optarg, help, &done))
			return eq_cli_usage("eqar du");
		if (done)
			return EQ_EXIT_OK;
	}
	if (optind == argc)
		du_path(&d, ".");
	for (int i = optind; i < argc; i++)
		du_path(&d, argv[i]);
	free(d.stack);
	free(d.seen);
	return d.failed ? EQ_EXIT_FAIL : EQ_EXIT_OK;
}
