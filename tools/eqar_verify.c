/* SPDX-License-Identifier: Apache-2.0 */
/* eqar verify: decode everything, check everything, name what is damaged. */
#include "config.h"

#include "eqar.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
"Usage: eqar verify [OPTION]... ARCHIVE...\n"
"  or:  eqar verify -r [OPTION]... DIRECTORY...\n"
"  or:  eqar verify --against=FILE [OPTION]... ARCHIVE\n"
"Decode each ARCHIVE and check every checksum and hash. Each damaged chunk is\n"
"named on a line of its own. The exit status is 1 if anything is wrong.\n"
"\n"
"  -r, --recursive      all archives under DIRECTORY\n"
"      --against=FILE   compare with FILE: bit for bit where the archive is\n"
"                         lossless; else show the error and check that it is\n"
"                         what the archive says\n"
"  -j, --jobs=N         use N threads (default: one a CPU)\n"
"      --gpu=GPU        decode on a GPU: auto, off (default) or its number\n"
"  -q, --quiet          only errors\n"
"      --json           a JSON object an archive, on a line\n"
"      --help           this text\n";

static const struct option long_options[] = {
	{ "recursive", no_argument, NULL, 'r' },
	{ "against", required_argument, NULL, EQ_OPT_OWN },
	{ "jobs", required_argument, NULL, 'j' },
	{ "quiet", no_argument, NULL, 'q' },
	{ "gpu", required_argument, NULL, EQ_OPT_GPU },
	{ "json", no_argument, NULL, EQ_OPT_JSON },
	{ "help", no_argument, NULL, EQ_OPT_HELP },
	{ NULL, 0, NULL, 0 },
};

struct verify {
	struct eq_common common;
	struct eq_runner r;
	const char *against;
	int against_fd;
	bool failed;
	size_t seen;
};

/* What one archive has come to. */
struct finding {
	struct eq_runner *r;
	cJSON *errors;          /* NULL: not for JSON */
	size_t n;
};

static void on_damage(void *arg, const char *line)
{
	struct finding *f = arg;

	f->n++;
	eq_cli_progress_clear(&f->r->progress);
	eq_cli_error("%s", line);
	if (f->errors)
		cJSON_AddItemToArray(f->errors,
				     eq_cli_json_text(line, strlen(line)));
}

static void result_json(cJSON *o, const struct verify *v, const char *path,
			const struct eq_archive *a, int rc,
			const struct eq_compare *cmp)
{
	cJSON *against;

	eq_cli_json_string(o, "file", path, strlen(path));
	cJSON_AddBoolToObject(o, "ok", rc == 0);
	if (a)
		cJSON_AddBoolToObject(o, "lossy", eq_archive_info(a)->lossy);
	if (!v->against)
		return;
	against = cJSON_AddObjectToObject(o, "against");
	eq_cli_json_string(against, "file", v->against, strlen(v->against));
	cJSON_AddBoolToObject(against, "identical", rc == 0 && cmp->identical);
	eq_cli_json_number(against, "relative_l1", rc ? NAN : cmp->relative_l1);
	eq_cli_json_number(against, "snr_db", rc ? NAN : cmp->snr_db);
}

static void result_text(const struct verify *v, const char *path,
			const struct eq_compare *cmp)
{
	eq_cli_put(path, strlen(path));
	if (!v->against) {
		puts(": ok");
		return;
	}
	if (cmp->identical)
		fputs(": ok, identical to ", stdout);
	else
		printf(": ok, error %.3f%%, %.2f dB against ",
		       cmp->relative_l1 * 100, cmp->snr_db);
	eq_cli_put(v->against, strlen(v->against));
	putchar('\n');
}

static void verify_one(struct verify *v, int dirfd, const char *name,
		       const char *path)
{
	cJSON *o = v->common.json ? eq_cli_json_new() : NULL;
	struct finding found = { .r = &v->r };
	struct eq_error err = { .text = "" };
	struct eq_compare cmp = { 0 };
	struct eq_archive *a;
	int rc = EQ_ECORRUPT;
	struct stat st;

	v->seen++;
	if (v->common.json)
		found.errors = cJSON_AddArrayToObject(o, "errors");
	eq_cli_progress_file(&v->r.progress, path);
	a = eq_input_archive(dirfd, name, path, &st, &err);
	if (a)
		rc = eq_archive_verify(a, v->against_fd, v->against, &v->r.run,
				       &cmp, on_damage, &found, &err);
	if (rc && found.n == 0)
		on_damage(&found, err.text[0] ? err.text : eq_strerror(rc));
	if (rc)
		v->failed = true;
	eq_cli_progress_clear(&v->r.progress);
	if (v->common.json) {
		result_json(o, v, path, a, rc, &cmp);
		if (eq_cli_json_print(o))
			v->failed = true;
	} else if (rc == 0 && !v->common.quiet) {
		result_text(v, path, &cmp);
	}
	if (a)
		eq_archive_close(a);
}

static int verify_visit(void *arg, const struct eq_visit *visit)
{
	if (eq_name_ends(visit->name, EQ_SUFFIX))
		verify_one(arg, visit->dirfd, visit->name, visit->path);
	return 0;
}

static int verify_run(struct verify *v, bool recursive, int n, char **args)
{
	struct eq_error err;
	struct stat st;

	v->against_fd = -1;
	if (v->against) {
		v->against_fd = eq_input_open(AT_FDCWD, v->against, v->against,
					      &st, &err);
		if (v->against_fd < 0) {
			eq_cli_error("%s", err.text);
			return EQ_EXIT_FAIL;
		}
	}
	if (eq_runner_init(&v->r, &v->common) == 0) {
		for (int i = 0; i < n; i++) {
			if (recursive)
				eq_walk(args[i], false, verify_visit, NULL, v, &v->failed);
			else
				verify_one(v, AT_FDCWD, args[i], args[i]);
		}
		/* Silence would look like success. */
		if (v->seen == 0 && !v->failed) {
			eq_cli_error("%s: no archive found", args[0]);
			v->failed = true;
		}
		eq_runner_fini(&v->r);
	} else {
		v->failed = true;
	}
	if (v->against_fd >= 0)
		close(v->against_fd);
	return v->failed ? EQ_EXIT_FAIL : EQ_EXIT_OK;
}

int eq_cmd_verify(int argc, char **argv)
{
	bool recursive = false, done = false;
	struct verify v = { .against = NULL };
	const char *wrong = NULL;
	int opt;

	while ((opt = getopt_long(argc, argv, "rj:q", long_options,
				  NULL)) != -1) {
		if (opt == 'r')
			recursive = true;
		else if (opt == EQ_OPT_OWN)
			v.against = optarg;
		else if (!eq_common_option(&v.common, opt, optarg, help, &done))
			return eq_cli_usage("eqar verify");
		if (done)
			return EQ_EXIT_OK;
	}
	if (optind == argc)
		wrong = "missing operand";
	else if (v.against && (recursive || argc - optind > 1))
		wrong = "--against goes with one archive";
	if (wrong) {
		eq_cli_error("%s", wrong);
		return eq_cli_usage("eqar verify");
	}
	return verify_run(&v, recursive, argc - optind, argv + optind);
}
