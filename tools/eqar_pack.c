/* SPDX-License-Identifier: Apache-2.0 */
/* eqar pack: one file, or whole repositories (eqar_repo.c). */
#include "config.h"

#include "eqar.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
"Usage: eqar pack [OPTION]... IN [OUT]\n"
"  or:  eqar pack -r [OPTION]... DIRECTORY...\n"
"Encode the safetensors file IN as the archive OUT (default: IN" EQ_SUFFIX "),\n"
"without loss unless --bits or --lambda is given. IN stays as it is.\n"
"\n"
"  -r, --recursive      shrink all safetensors files under DIRECTORY in place:\n"
"                         each is encoded, compared and only then removed\n"
"  -n, --dry-run        estimate sizes from samples, write nothing\n"
"  -f, --force          overwrite OUT\n"
"\n"
"Policy (-r also reads .eqfs.conf in DIRECTORY; options count more):\n"
"      --bits=N         quantise to N bits a parameter, 0.5 to 8\n"
"      --lambda=X       quantise with EntQuant's lambda X\n"
"      --format=FORMAT  fp8 (default) or int8\n"
"      --include=GLOB   quantise these tensors, not those of the built-in rule\n"
"      --exclude=GLOB   keep these tensors lossless\n"
"      --policy=FILE    read the policy from FILE (see eqar(1))\n"
"\n"
"  -j, --jobs=N         use N threads (default: one a CPU)\n"
"      --gpu=GPU        use a GPU: auto, off (default) or its number\n"
"  -q, --quiet          no progress, no summary\n"
"  -v, --verbose        say more\n"
"      --json           a JSON object a file on standard output\n"
"      --help           this text\n";

#define FINEST_SHARE 0.97       /* of the bits asked for: rate control comes this close */

enum {
	OPT_POLICY = EQ_OPT_OWN,
	OPT_SETTING,            /* this and above: settings[] below */
};

static const char *const settings[] = {
	"bits", "lambda", "format", "include", "exclude",
};

static const struct option long_options[] = {
	{ "recursive", no_argument, NULL, 'r' },
	{ "dry-run", no_argument, NULL, 'n' },
	{ "force", no_argument, NULL, 'f' },
	{ "bits", required_argument, NULL, OPT_SETTING },
	{ "lambda", required_argument, NULL, OPT_SETTING + 1 },
	{ "format", required_argument, NULL, OPT_SETTING + 2 },
	{ "include", required_argument, NULL, OPT_SETTING + 3 },
	{ "exclude", required_argument, NULL, OPT_SETTING + 4 },
	{ "policy", required_argument, NULL, OPT_POLICY },
	{ "jobs", required_argument, NULL, 'j' },
	{ "quiet", no_argument, NULL, 'q' },
	{ "verbose", no_argument, NULL, 'v' },
	{ "gpu", required_argument, NULL, EQ_OPT_GPU },
	{ "json", no_argument, NULL, EQ_OPT_JSON },
	{ "help", no_argument, NULL, EQ_OPT_HELP },
	{ NULL, 0, NULL, 0 },
};

/* ---- policy -------------------------------------------------------------- */

static int policy_from_file(struct eq_policy *policy, int fd, const char *name)
{
	struct eq_error err = { .text = "" };
	int rc = eq_policy_read(policy, fd, name, &err);

	if (rc)
		eq_cli_error("%s", err.text[0] ? err.text : eq_strerror(rc));
	close(fd);
	return rc;
}

int eq_pack_policy(const struct eq_pack *p, int dirfd, const char *dir,
		   struct eq_policy *out)
{
	struct eq_error err = { .text = "" };
	struct stat st;
	int fd, rc = 0;

	eq_policy_init(out);
	if (p->policy_file) {
		fd = open(p->policy_file, O_RDONLY | O_CLOEXEC);
		if (fd < 0) {
			rc = -errno;
			eq_cli_error("%s: %s", p->policy_file, strerror(errno));
		} else {
			rc = policy_from_file(out, fd, p->policy_file);
		}
	} else if (dirfd >= 0) {
		char *name;

		if (asprintf(&name, "%s/.eqfs.conf", dir) < 0)
			name = NULL;
		/* A repository may come from anywhere: no links out of it. */
		fd = eq_open_regular(dirfd, ".eqfs.conf", &st);
		if (fd >= 0) {
			rc = policy_from_file(out, fd, name ? name : dir);
		} else if (fd != -ENOENT) {
			rc = fd;
			eq_cli_error("%s: %s", name ? name : dir, rc == -EINVAL ?
				     "not a regular file" : eq_strerror(rc));
		}
		free(name);
	}
	for (size_t i = 0; rc == 0 && i < p->n_settings; i++) {
		rc = eq_policy_set(out, p->settings[i].key,
				   p->settings[i].value, &err);
		if (rc)
			eq_cli_error("%s", err.text[0] ? err.text :
				     eq_strerror(rc));
	}
	if (rc)
		eq_policy_fini(out);
	return rc;
}

/* ---- reports ------------------------------------------------------------- */

static void report_json(const struct eq_pack *p, const char *in,
			const struct eq_summary *s)
{
	cJSON *o = eq_cli_json_new();

	eq_cli_json_string(o, "file", in, strlen(in));
	cJSON_AddStringToObject(o, "action", p->dry_run ? "estimate" : "pack");
	eq_cli_json_number(o, "logical_size", (double)s->size);
	eq_cli_json_number(o, "stored_size", (double)s->stored);
	eq_cli_json_number(o, "ratio", (double)s->stored / (double)s->size);
	cJSON_AddBoolToObject(o, "larger", s->stored > s->size);
	eq_cli_json_number(o, "tensors", (double)s->n_tensors);
	eq_cli_json_number(o, "quantized_tensors", (double)s->n_quantised);
	eq_cli_json_number(o, "quantized_params", (double)s->quant_params);
	eq_cli_json_number(o, "quantized_bits",
			   eq_bits_each(s->quant_bytes, s->quant_params));
	eq_cli_json_number(o, "lambda", s->n_quantised ? s->lambda : NAN);
	/* A sample says what a file will weigh, not how far off it will be. */
	if (!p->dry_run) {
		eq_cli_json_number(o, "relative_l1", s->relative_l1);
		eq_cli_json_number(o, "snr_db", s->n_quantised ? s->snr_db : NAN);
	}
	eq_cli_json_print(o);
}

/* The finest steps that a format has may take fewer bits than were asked for. */
static void say_finest(const struct eq_pack *p, const char *in, const struct eq_policy *policy,
		       const struct eq_summary *s)
{
	double bits = eq_bits_each(s->quant_bytes, s->quant_params);

	if (s->n_quantised && !p->common.quiet && bits < policy->bits * FINEST_SHARE)
		eq_cli_error("%s: %g bits were asked for, but the finest coding takes %.2f", in,
			     policy->bits, bits);
}

/* As with many small tensors: a payload begins at a multiple of 4096. */
static void say_larger(const struct eq_pack *p, const char *in, const struct eq_summary *s)
{
	if (s->stored > s->size && !p->common.quiet)
		eq_cli_error("%s: the archive %s larger than the file", in,
			     p->dry_run ? "would be" : "is");
}

void eq_pack_report(const struct eq_pack *p, struct eq_runner *r, const char *in,
		    const struct eq_policy *policy, const struct eq_summary *s)
{
	/* An estimate is the result; of the rest only a person may be told. */
	FILE *f = p->dry_run ? stdout : stderr;
	char from[EQ_CLI_SIZE], to[EQ_CLI_SIZE];

	eq_cli_progress_clear(&r->progress);
	say_finest(p, in, policy, s);
	say_larger(p, in, s);
	if (p->common.json) {
		report_json(p, in, s);
		return;
	}
	if (!p->dry_run && (p->common.quiet ||
			    !(p->common.verbose || r->progress.on)))
		return;
	fprintf(f, "%s: %s -> %s%s (%.1f%%)", in, eq_cli_size(from, s->size),
		p->dry_run ? "about " : "", eq_cli_size(to, s->stored),
		(double)s->stored * 100 / (double)s->size);
	if (s->n_quantised)
		fprintf(f, ", %zu of %zu tensors at %.2f bits", s->n_quantised,
			s->n_tensors,
			eq_bits_each(s->quant_bytes, s->quant_params));
	if (s->n_quantised && !p->dry_run)
		fprintf(f, ", error %.2f%%, %.1f dB", s->relative_l1 * 100,
			s->snr_db);
	putc('\n', f);
}

/* ---- one file ------------------------------------------------------------ */

static int encode_to(const struct eq_pack *p, struct eq_runner *r, int in_fd,
		     const struct stat *st, const char *in, const char *out,
		     const struct eq_policy *policy)
{
	const struct timespec times[2] = { st->st_atim, st->st_mtim };
	struct eq_error err = { .text = "" };
	struct eq_summary sum;
	struct eq_output o;
	int rc;

	rc = eq_output_distinct(out, st);
	if (rc)
		return rc;
	rc = eq_output_begin(&o, -1, out, p->force);
	if (rc)
		return rc;
	rc = eq_encode(in_fd, in, o.fd, policy, &r->run, &sum, &err);
	/* A signal that came with the last block counts as well. */
	if (rc == 0 && eq_cli_signal())
		rc = -ECANCELED;
	if (rc == -ENOSPC || rc == -EDQUOT || rc == -EFBIG)
		eq_fail(&err, rc, "%s: %s", out, eq_strerror(rc)); /* not the input's fault */
	if (rc) {
		eq_runner_error(r, in, rc, &err);
		eq_output_abort(&o);
		return rc;
	}
	eq_cli_progress_phase(&r->progress, "sync");
	rc = eq_output_commit(&o, st, times);
	if (rc == 0)
		eq_pack_report(p, r, in, policy, &sum);
	return rc;
}

static int pack_file(const struct eq_pack *p, struct eq_runner *r,
		     const char *in, const char *out)
{
	struct eq_error err = { .text = "" };
	struct eq_policy policy;
	struct eq_summary sum;
	struct stat st;
	char *name = NULL;
	int fd, rc;

	rc = eq_pack_policy(p, -1, NULL, &policy);
	if (rc)
		return EQ_EXIT_FAIL;
	fd = eq_input_open(AT_FDCWD, in, in, &st, &err);
	if (fd < 0) {
		rc = fd;
		if (rc == -EISDIR)
			eq_fail(&err, rc, "%s: %s; -r packs the files in it", in, eq_strerror(rc));
		eq_runner_error(r, in, rc, &err);
		goto out_policy;
	}
	eq_cli_progress_file(&r->progress, in);
	if (p->dry_run) {
		rc = eq_estimate(fd, in, &policy, &r->run, &sum, &err);
		if (rc)
			eq_runner_error(r, in, rc, &err);
		else
			eq_pack_report(p, r, in, &policy, &sum);
		goto out_fd;
	}
	if (!out && asprintf(&name, "%s" EQ_SUFFIX, in) < 0) {
		name = NULL;
		rc = -ENOMEM;
		eq_runner_error(r, in, rc, &err);
		goto out_fd;
	}
	rc = encode_to(p, r, fd, &st, in, out ? out : name, &policy);
	free(name);
out_fd:
	close(fd);
out_policy:
	eq_policy_fini(&policy);
	return rc ? EQ_EXIT_FAIL : EQ_EXIT_OK;
}

/* ---- command line -------------------------------------------------------- */

/* Values are checked at once, so that a mistake is a usage error. Returns a status. */
static int check_settings(const struct eq_setting *s, size_t n)
{
	struct eq_error err = { .text = "" };
	struct eq_policy scratch;
	int rc = 0;

	eq_policy_init(&scratch);
	for (size_t i = 0; rc == 0 && i < n; i++)
		rc = eq_policy_set(&scratch, s[i].key, s[i].value, &err);
	eq_policy_fini(&scratch);
	if (rc)
		eq_cli_error("%s", err.text[0] ? err.text : eq_strerror(rc));
	if (rc == -ENOMEM)
		return EQ_EXIT_FAIL;
	return rc ? eq_cli_usage("eqar pack") : EQ_EXIT_OK;
}

static int pack_run(const struct eq_pack *p, bool recursive, int n, char **args)
{
	int status = EQ_EXIT_OK;
	struct eq_runner r;

	if (eq_runner_init(&r, &p->common))
		return EQ_EXIT_FAIL;
	r.run.direct = !recursive; /* there it is read again at once */
	eq_cli_catch_signals();
	if (!recursive)
		status = pack_file(p, &r, args[0], n > 1 ? args[1] : NULL);
	for (int i = 0; recursive && i < n && !eq_cli_signal(); i++)
		if (eq_repo_pack(p, &r, args[i]))
			status = EQ_EXIT_FAIL;
	eq_runner_fini(&r);
	return status;
}

int eq_cmd_pack(int argc, char **argv)
{
	struct eq_pack p = { .policy_file = NULL };
	bool recursive = false, done = false;
	struct eq_setting *set;
	int opt, n, status;

	/* There are no more settings than arguments. */
	set = calloc((size_t)argc, sizeof(*set));
	if (!set) {
		eq_cli_error("%s", strerror(ENOMEM));
		return EQ_EXIT_FAIL;
	}
	p.settings = set;
	while ((opt = getopt_long(argc, argv, "rnfj:qv", long_options,
				  NULL)) != -1) {
		if (opt == 'r') {
			recursive = true;
		} else if (opt == 'n') {
			p.dry_run = true;
		} else if (opt == 'f') {
			p.force = true;
		} else if (opt == OPT_POLICY) {
			p.policy_file = optarg;
		} else if (opt >= OPT_SETTING) {
			set[p.n_settings++] = (struct eq_setting){
				settings[opt - OPT_SETTING], optarg };
		} else if (!eq_common_option(&p.common, opt, optarg, help,
					     &done)) {
			status = eq_cli_usage("eqar pack");
			goto out;
		}
		if (done) {
			status = EQ_EXIT_OK;
			goto out;
		}
	}
	n = argc - optind;
	if (n < 1 || (!recursive && n > 2)) {
		eq_cli_error("%s", n < 1 ? "missing operand" : "too many operands");
		status = eq_cli_usage("eqar pack");
	} else {
		status = check_settings(set, p.n_settings);
		if (status == EQ_EXIT_OK)
			status = pack_run(&p, recursive, n, argv + optind);
	}
out:
	free(set);
	return status;
}
