/* SPDX-License-Identifier: Apache-2.0 */
/* eqar diff: two archives or safetensors files, tensor by tensor. */
#include "config.h"

#include "eqar.h"
#include "eqar_float.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
"Usage: eqar diff [OPTION]... A B\n"
"Compare two files, each an archive or a safetensors file, tensor by tensor:\n"
"relative L1 error and signal-to-noise ratio of B against A, and the largest\n"
"difference. Exit status 0 if all tensors are the same, 1 if not.\n"
"\n"
"  -j, --jobs=N         use N threads (default: one a CPU)\n"
"  -q, --quiet          no output, only the exit status\n"
"  -v, --verbose        list identical tensors as well\n"
"      --json           a JSON object on a line\n"
"      --help           this text\n";

static const struct option long_options[] = {
	{ "jobs", required_argument, NULL, 'j' },
	{ "quiet", no_argument, NULL, 'q' },
	{ "verbose", no_argument, NULL, 'v' },
	{ "json", no_argument, NULL, EQ_OPT_JSON },
	{ "help", no_argument, NULL, EQ_OPT_HELP },
	{ NULL, 0, NULL, 0 },
};

/* Bytes compared at a time; a multiple of any unit and of usual chunks. */
#define BLOCK ((size_t)4 << 20)

/* ---- files --------------------------------------------------------------- */

/* An archive or a plain file, seen the same way: by its header. */
struct source {
	const char *path;
	int fd;                 /* plain file, else -1 */
	struct eq_archive *a;   /* archive, else NULL */
	struct eq_st *st;
	const struct eq_st_tensor **by_name;
};

static int by_name(const void *x, const void *y)
{
	const struct eq_st_tensor *a = *(const struct eq_st_tensor *const *)x;
	const struct eq_st_tensor *b = *(const struct eq_st_tensor *const *)y;
	size_t n = a->name_len < b->name_len ? a->name_len : b->name_len;
	int c = memcmp(a->name, b->name, n);

	return c ? c : (a->name_len > b->name_len) - (a->name_len < b->name_len);
}

static int source_open(struct source *s, struct eq_error *err)
{
	struct stat st;
	int rc, fd = eq_input_open(AT_FDCWD, s->path, s->path, &st, err);

	if (fd < 0)
		return fd;
	rc = eq_archive_open(fd, s->path, &s->a, err);
	if (rc == EQ_ENOTEQAR) {
		s->fd = fd;
		rc = eq_st_read(fd, s->path, &s->st, NULL, err);
	} else if (rc) {
		close(fd);
	} else {
		const struct eq_file_info *info = eq_archive_info(s->a);

		rc = eq_st_parse(eq_archive_prefix(s->a), info->prefix_len,
				 info->size, s->path, &s->st, err);
	}
	if (rc)
		return rc;
	s->by_name = calloc(s->st->n_tensors + 1, sizeof(*s->by_name));
	if (!s->by_name)
		return eq_fail(err, -ENOMEM, "%s: %s", s->path,
			       eq_strerror(-ENOMEM));
	for (size_t i = 0; i < s->st->n_tensors; i++)
		s->by_name[i] = &s->st->tensors[i];
	if (s->st->n_tensors)
		qsort(s->by_name, s->st->n_tensors, sizeof(*s->by_name),
		      by_name);
	return 0;
}

static void source_close(struct source *s)
{
	free(s->by_name);
	eq_st_free(s->st);
	if (s->a)
		eq_archive_close(s->a);
	if (s->fd >= 0)
		close(s->fd);
}

/* n bytes of the tensors' data, all of them. */
static int source_read(const struct source *s, void *buf, size_t n,
		       uint64_t off, struct eq_error *err)
{
	char *p = buf;

	off += s->st->prefix_len;
	while (n) {
		ssize_t got = s->a ? eq_archive_pread(s->a, eq_backend_cpu(), p,
						      n, off, err) :
			      pread(s->fd, p, n, (off_t)off);

		if (got < 0 && !s->a && errno == EINTR)
			continue;
		if (got < 0 && s->a)
			return (int)got;
		if (got <= 0)
			return eq_fail(err, got ? -errno : -EBUSY, "%s: %s",
				       s->path, got ? strerror(errno) :
				       "became shorter");
		p += got;
		n -= (size_t)got;
		off += (uint64_t)got;
	}
	return 0;
}

/* ---- one pair ------------------------------------------------------------ */

struct pair {
	const struct eq_st_tensor *a, *b;       /* one may be NULL */
	bool same_type, identical, numbers;
	double abs, abs_err, sq, sq_err, max;
};

struct diff {
	struct source a, b;
	struct pair *pairs;
	size_t n;
	struct eq_pool *pool;
	atomic_bool stop;
	int status;             /* of the one that stopped the others */
	struct eq_error err;
};

static void add(struct pair *p, const struct eq_reader *r, const uint8_t *x,
		const uint8_t *y, size_t n)
{
	size_t unit = eq_reader_unit(r);

	for (size_t i = 0; i + unit <= n; i += unit) {
		double v = eq_reader_get(r, x + i), d;

		/* The same NaN or infinity is no difference. */
		d = memcmp(x + i, y + i, unit) ?
		    fabs(v - eq_reader_get(r, y + i)) : 0;
		if (isnan(d))
			d = INFINITY;
		if (isfinite(v)) {
			p->abs += fabs(v);
			p->sq += v * v;
		}
		p->abs_err += d;
		p->sq_err += d * d;
		if (d > p->max)
			p->max = d;
	}
}

static int compare(const struct diff *d, struct pair *p, uint8_t *buf,
		   struct eq_error *err)
{
	uint64_t len = p->a->end - p->a->begin;
	struct eq_reader *r;
	bool no_memory;
	int rc = 0;

	r = eq_reader_create(p->a->dtype, &no_memory);
	if (no_memory)
		return -ENOMEM;
	p->numbers = r != NULL;
	p->identical = true;
	for (uint64_t off = 0; rc == 0 && off < len; off += BLOCK) {
		size_t n = len - off < BLOCK ? (size_t)(len - off) : BLOCK;

		if (d->stop)
			break;
		rc = source_read(&d->a, buf, n, p->a->begin + off, err);
		if (rc == 0)
			rc = source_read(&d->b, buf + BLOCK, n,
					 p->b->begin + off, err);
		if (rc)
			break;
		if (memcmp(buf, buf + BLOCK, n))
			p->identical = false;
		if (r)
			add(p, r, buf, buf + BLOCK, n);
	}
	eq_reader_free(r);
	return rc;
}

static void compare_task(void *arg, size_t i)
{
	struct diff *d = arg;
	struct eq_error err = { .text = "" };
	struct pair *p = &d->pairs[i];
	uint8_t *buf;
	int rc;

	if (!p->a || !p->b || d->stop)
		return;
	p->same_type = p->a->dtype == p->b->dtype && p->a->ndim == p->b->ndim &&
		       (p->a->ndim == 0 ||
			!memcmp(p->a->dims, p->b->dims,
				p->a->ndim * sizeof(*p->a->dims)));
	if (!p->same_type)
		return;
	buf = malloc(2 * BLOCK);
	rc = buf ? compare(d, p, buf, &err) : -ENOMEM;
	free(buf);
	if (rc && !atomic_exchange(&d->stop, true)) {
		d->status = rc;
		d->err = err;
	}
}

/* Merge the two sorted lists of names. */
static int pairs_make(struct diff *d)
{
	size_t i = 0, j = 0, na = d->a.st->n_tensors, nb = d->b.st->n_tensors;

	d->pairs = calloc(na + nb + 1, sizeof(*d->pairs));
	if (!d->pairs)
		return -ENOMEM;
	while (i < na || j < nb) {
		int c = i == na ? 1 : j == nb ? -1 :
			by_name(&d->a.by_name[i], &d->b.by_name[j]);
		struct pair *p = &d->pairs[d->n++];

		if (c <= 0)
			p->a = d->a.by_name[i++];
		if (c >= 0)
			p->b = d->b.by_name[j++];
	}
	return 0;
}

/* ---- output -------------------------------------------------------------- */

static double relative(double err, double ref)
{
	return err > 0 ? err / ref : 0;
}

static double snr(double sq, double sq_err)
{
	return 10 * log10(sq / sq_err);
}

static const char *verdict(const struct pair *p)
{
	if (!p->a)
		return "only in B";
	if (!p->b)
		return "only in A";
	if (!p->same_type)
		return "dtype or shape differs";
	return p->identical ? "identical" : "differs";
}

static void print_text(const struct pair *p)
{
	const struct eq_st_tensor *t = p->a ? p->a : p->b;

	if (p->same_type && !p->identical && p->numbers)
		printf("%8.3f%%  %8.2f dB  max %-10.4g  ",
		       relative(p->abs_err, p->abs) * 100,
		       snr(p->sq, p->sq_err), p->max);
	else
		printf("%-38s  ", verdict(p));
	eq_cli_put(t->name, t->name_len);
	putchar('\n');
}

static cJSON *pair_json(const struct pair *p)
{
	const struct eq_st_tensor *t = p->a ? p->a : p->b;
	cJSON *o = cJSON_CreateObject();

	eq_cli_json_string(o, "name", t->name, t->name_len);
	cJSON_AddStringToObject(o, "result", verdict(p));
	if (p->same_type && p->numbers) {
		eq_cli_json_number(o, "relative_l1",
				   relative(p->abs_err, p->abs));
		eq_cli_json_number(o, "snr_db", snr(p->sq, p->sq_err));
		eq_cli_json_number(o, "max_abs", p->max);
	}
	return o;
}

static int print_all(const struct diff *d, const struct eq_common *c)
{
	struct pair sum = { .max = 0 };
	size_t same = 0, differ = 0;
	cJSON *o = NULL, *rows = NULL;
	int rc = 0;

	if (c->json) {
		o = eq_cli_json_new();
		eq_cli_json_string(o, "a", d->a.path, strlen(d->a.path));
		eq_cli_json_string(o, "b", d->b.path, strlen(d->b.path));
		rows = cJSON_AddArrayToObject(o, "tensors");
	}
	for (size_t i = 0; i < d->n; i++) {
		const struct pair *p = &d->pairs[i];

		same += p->identical;
		if (c->json)
			cJSON_AddItemToArray(rows, pair_json(p));
		else if (!c->quiet && (c->verbose || !p->identical))
			print_text(p);
		if (p->identical)
			continue;
		differ++;
		sum.abs += p->abs;
		sum.abs_err += p->abs_err;
		sum.sq += p->sq;
		sum.sq_err += p->sq_err;
	}
	if (c->json) {
		eq_cli_json_number(o, "identical", (double)same);
		eq_cli_json_number(o, "different", (double)differ);
		eq_cli_json_number(o, "relative_l1",
				   relative(sum.abs_err, sum.abs));
		eq_cli_json_number(o, "snr_db", snr(sum.sq, sum.sq_err));
		rc = eq_cli_json_print(o);
	} else if (!c->quiet) {
		printf("%zu identical, %zu different", same, differ);
		if (sum.abs_err > 0)
			printf("; of those %.3f%%, %.2f dB",
			       relative(sum.abs_err, sum.abs) * 100,
			       snr(sum.sq, sum.sq_err));
		putchar('\n');
	}
	return rc || differ ? EQ_EXIT_FAIL : EQ_EXIT_OK;
}

/* ---- command line -------------------------------------------------------- */

static int diff_run(struct diff *d, const struct eq_common *c)
{
	int rc;

	rc = source_open(&d->a, &d->err);
	if (rc == 0)
		rc = source_open(&d->b, &d->err);
	if (rc == 0)
		rc = pairs_make(d);
	if (rc == 0) {
		eq_pool_for(d->pool, d->n, compare_task, d);
		rc = d->status;
	}
	if (rc == 0)
		return print_all(d, c);
	eq_cli_error("%s", d->err.text[0] ? d->err.text : eq_strerror(rc));
	return EQ_EXIT_FAIL;
}

int eq_cmd_diff(int argc, char **argv)
{
	struct diff d = { .a.fd = -1, .b.fd = -1 };
	struct eq_common c = { .jobs = 0 };
	struct eq_runner r;
	bool done = false;
	int opt, status;

	while ((opt = getopt_long(argc, argv, "j:qv", long_options, NULL)) != -1) {
		if (!eq_common_option(&c, opt, optarg, help, &done))
			return eq_cli_usage("eqar diff");
		if (done)
			return EQ_EXIT_OK;
	}
	if (argc - optind != 2) {
		eq_cli_error("%s", argc - optind < 2 ? "missing operand" :
			     "too many operands");
		return eq_cli_usage("eqar diff");
	}
	if (eq_runner_init(&r, &c))
		return EQ_EXIT_FAIL;
	d.pool = r.run.pool;
	d.a.path = argv[optind];
	d.b.path = argv[optind + 1];
	status = diff_run(&d, &c);
	source_close(&d.a);
	source_close(&d.b);
	free(d.pairs);
	eq_runner_fini(&r);
	return status;
}
