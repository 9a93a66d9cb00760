/* SPDX-License-Identifier: Apache-2.0 */
/* eqar unpack: one archive, to a file or a pipe, or whole repositories. */
#include "config.h"

#include "eqar.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
"Usage: eqar unpack [OPTION]... ARCHIVE [OUT]\n"
"  or:  eqar unpack -r [OPTION]... DIRECTORY...\n"
"Decode ARCHIVE to OUT (default: ARCHIVE without " EQ_SUFFIX "). ARCHIVE stays.\n"
"\n"
"  -r, --recursive      restore all archives under DIRECTORY in place: each is\n"
"                         decoded, compared and only then removed\n"
"  -c, --stdout         write to standard output\n"
"  -f, --force          overwrite OUT\n"
"  -j, --jobs=N         use N threads (default: one a CPU)\n"
"      --gpu=GPU        decode on a GPU: auto, off (default) or its number\n"
"  -q, --quiet          no progress, no summary\n"
"  -v, --verbose        say more\n"
"      --json           a JSON object a file on standard output\n"
"      --help           this text\n";

static const struct option long_options[] = {
	{ "recursive", no_argument, NULL, 'r' },
	{ "stdout", no_argument, NULL, 'c' },
	{ "force", no_argument, NULL, 'f' },
	{ "jobs", required_argument, NULL, 'j' },
	{ "quiet", no_argument, NULL, 'q' },
	{ "verbose", no_argument, NULL, 'v' },
	{ "gpu", required_argument, NULL, EQ_OPT_GPU },
	{ "json", no_argument, NULL, EQ_OPT_JSON },
	{ "help", no_argument, NULL, EQ_OPT_HELP },
	{ NULL, 0, NULL, 0 },
};

struct unpack {
	struct eq_common common;
	bool recursive, to_stdout, force;
};

/* ---- to standard output -------------------------------------------------- */

/* Decoded bytes in hand at a time: enough for the threads, little for RAM. */
#define WINDOW ((size_t)32 << 20)

static int write_all(int fd, const uint8_t *p, size_t n)
{
	while (n) {
		ssize_t w = write(fd, p, n);

		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0)
			return -errno;
		p += w;
		n -= (size_t)w;
	}
	return 0;
}

static int unpack_stdout(struct eq_runner *r, struct eq_archive *a,
			 const char *path)
{
	const uint64_t size = eq_archive_info(a)->size;
	struct eq_error err = { .text = "" };
	int64_t max = eq_decode_max(a);
	size_t window = WINDOW, got;
	uint8_t *buf;
	int rc = 0;

	if (max > (int64_t)window)
		window = (size_t)max;
	buf = max < 0 ? NULL : aligned_alloc(64, (window + 63) / 64 * 64);
	if (!buf)
		rc = max < 0 ? (int)max : -ENOMEM;
	for (uint64_t off = 0; rc == 0 && off < size; off += got) {
		rc = eq_decode_range(a, &r->run, off, buf, window, &got,
				     &err);
		if (rc == 0) {
			rc = write_all(STDOUT_FILENO, buf, got);
			if (rc)
				eq_fail(&err, rc, "standard output: %s",
					eq_strerror(rc));
		}
		if (rc == 0 && eq_cli_progress_step(&r->progress, "decode",
						    off + got, size))
			rc = -ECANCELED;
	}
	free(buf);
	if (rc)
		eq_runner_error(r, path, rc, &err);
	return rc;
}

/* ---- to a file ----------------------------------------------------------- */

void eq_unpack_report(const struct eq_common *c, struct eq_runner *r,
		      const char *out, const struct eq_file_info *info)
{
	char from[EQ_CLI_SIZE], to[EQ_CLI_SIZE];
	cJSON *o;

	eq_cli_progress_clear(&r->progress);
	if (c->json) {
		o = eq_cli_json_new();
		eq_cli_json_string(o, "file", out, strlen(out));
		cJSON_AddStringToObject(o, "action", "unpack");
		eq_cli_json_number(o, "logical_size", (double)info->size);
		eq_cli_json_number(o, "stored_size", (double)info->stored);
		cJSON_AddBoolToObject(o, "lossy", info->lossy);
		eq_cli_json_print(o);
	} else if (!c->quiet && (c->verbose || r->progress.on)) {
		fprintf(stderr, "%s: %s -> %s%s\n", out,
			eq_cli_size(from, info->stored),
			eq_cli_size(to, info->size),
			info->lossy ? ", not the original: it was quantised" :
				      "");
	}
}

static int unpack_file(const struct unpack *u, struct eq_runner *r,
		       struct eq_archive *a, const struct stat *st,
		       const char *path, const char *out)
{
	struct timespec times[2] = { st->st_atim };
	struct eq_error err = { .text = "" };
	struct eq_output o;
	int rc;

	rc = eq_output_distinct(out, st);
	if (rc)
		return rc;
	rc = eq_output_begin(&o, -1, out, u->force);
	if (rc)
		return rc;
	rc = eq_archive_unpack(a, o.fd, &r->run, &err);
	if (rc == 0 && eq_cli_signal())
		rc = -ECANCELED;
	if (rc) {
		eq_runner_error(r, path, rc, &err);
		eq_output_abort(&o);
		return rc;
	}
	eq_archive_mtime(a, &times[1]);
	eq_cli_progress_phase(&r->progress, "sync");
	rc = eq_output_commit(&o, st, times);
	if (rc == 0)
		eq_unpack_report(&u->common, r, out, eq_archive_info(a));
	return rc;
}

static int unpack_one(const struct unpack *u, struct eq_runner *r,
		      const char *path, const char *out)
{
	struct eq_error err;
	struct eq_archive *a;
	struct stat st;
	char *plain;
	int rc;

	if (!u->to_stdout && !out && !eq_name_ends(path, EQ_SUFFIX)) {
		eq_cli_error("%s: does not end in " EQ_SUFFIX "; name the output",
			     path);
		return EQ_EXIT_FAIL;
	}
	a = eq_input_archive(AT_FDCWD, path, path, &st, &err);
	if (!a) {
		eq_cli_error("%s", err.text);
		return EQ_EXIT_FAIL;
	}
	eq_cli_progress_file(&r->progress, path);
	if (u->to_stdout) {
		rc = unpack_stdout(r, a, path);
	} else {
		plain = out ? strdup(out) :
			strndup(path, strlen(path) - strlen(EQ_SUFFIX));
		rc = plain ? unpack_file(u, r, a, &st, path, plain) : -ENOMEM;
		if (!plain)
			eq_cli_error("%s: %s", path, strerror(ENOMEM));
		free(plain);
	}
	eq_archive_close(a);
	return rc ? EQ_EXIT_FAIL : EQ_EXIT_OK;
}

/* ---- command line -------------------------------------------------------- */

static int unpack_run(const struct unpack *u, int n, char **args)
{
	int status = EQ_EXIT_OK;
	struct eq_runner r;

	if (eq_runner_init(&r, &u->common))
		return EQ_EXIT_FAIL;
	r.run.direct = !u->recursive; /* there it is read again at once */
	eq_cli_catch_signals();
	if (!u->recursive)
		status = unpack_one(u, &r, args[0], n > 1 ? args[1] : NULL);
	for (int i = 0; u->recursive && i < n && !eq_cli_signal(); i++)
		if (eq_repo_unpack(&u->common, u->force, &r, args[i]))
			status = EQ_EXIT_FAIL;
	eq_runner_fini(&r);
	return status;
}

int eq_cmd_unpack(int argc, char **argv)
{
	struct unpack u = { .recursive = false };
	const char *wrong = NULL;
	bool done = false;
	int opt, n;

	while ((opt = getopt_long(argc, argv, "rcfj:qv", long_options,
				  NULL)) != -1) {
		if (opt == 'r')
			u.recursive = true;
		else if (opt == 'c')
			u.to_stdout = true;
		else if (opt == 'f')
			u.force = true;
		else if (!eq_common_option(&u.common, opt, optarg, help, &done))
			return eq_cli_usage("eqar unpack");
		if (done)
			return EQ_EXIT_OK;
	}
	n = argc - optind;
	if (n < 1)
		wrong = "missing operand";
	else if (!u.recursive && n > (u.to_stdout ? 1 : 2))
		wrong = "too many operands";
	else if (u.to_stdout && (u.recursive || u.common.json))
		wrong = "--stdout goes neither with -r nor with --json";
	else if (u.to_stdout && !u.force && isatty(STDOUT_FILENO))
		wrong = "standard output is a terminal; -f writes there";
	if (wrong) {
		eq_cli_error("%s", wrong);
		return eq_cli_usage("eqar unpack");
	}
	return unpack_run(&u, n, argv + optind);
}
