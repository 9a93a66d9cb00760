/* SPDX-License-Identifier: Apache-2.0 */
/* Files, threads and common options of eqar's commands. */
#include "config.h"

#include "eqar.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu_load.h"

/* ---- options ------------------------------------------------------------- */

bool eq_common_option(struct eq_common *c, int opt, const char *arg,
		      const char *help, bool *done)
{
	switch (opt) {
	case 'q':
		c->quiet = true;
		return true;
	case 'v':
		c->verbose = true;
		return true;
	case 'j':
		if (eq_cli_parse_uint(arg, 1, 1024, &c->jobs) == 0)
			return true;
		eq_cli_error("%s: not a number of threads (1 to 1024)", arg);
		return false;
	case EQ_OPT_GPU:
		c->gpu = arg;
		return true;
	case EQ_OPT_JSON:
		c->json = true;
		return true;
	case EQ_OPT_HELP:
		fputs(help, stdout);
		*done = true;
		return true;
	default:
		return false; /* getopt_long has said why */
	}
}

/* ---- running the codec --------------------------------------------------- */

static void log_gpu(void *arg, const char *line)
{
	struct eq_runner *r = arg;

	eq_cli_progress_clear(&r->progress);
	eq_cli_error("%s", line);
}

int eq_runner_init(struct eq_runner *r, const struct eq_common *c)
{
	const struct eq_gpu_options gpu = { .spec = c->gpu ? c->gpu : "off",
					    .mem_limit = UINT64_C(1) << 30,
					    .log = log_gpu, .log_arg = r };
	struct eq_error err = { .text = "" };
	int rc;

	*r = (struct eq_runner){ .run = { .backend = NULL } };
	eq_cli_progress_init(&r->progress, c->quiet);
	rc = eq_gpu_backend(&gpu, &r->run.backend, &err);
	if (rc) {
		eq_cli_error("%s", err.text);
		return rc;
	}
	r->run.progress = eq_cli_progress_step;
	r->run.progress_arg = &r->progress;
	/* The calling thread works as well. */
	if (c->jobs != 1)
		rc = eq_pool_create(c->jobs ? c->jobs - 1 : 0, &r->run.pool);
	if (rc) {
		eq_cli_error("cannot start threads: %s", eq_strerror(rc));
		eq_gpu_release(r->run.backend);
	}
	return rc;
}

void eq_runner_fini(struct eq_runner *r)
{
	eq_cli_progress_clear(&r->progress);
	eq_pool_free(r->run.pool);
	eq_gpu_release(r->run.backend);
}

void eq_runner_error(struct eq_runner *r, const char *path, int rc,
		     const struct eq_error *err)
{
	eq_cli_progress_clear(&r->progress);
	/* After a signal the reason is known, and said by the exit status. */
	if (rc == -ECANCELED && eq_cli_signal())
		return;
	if (err->text[0])
		eq_cli_error("%s", err->text);
	else
		eq_cli_error("%s: %s", path, eq_strerror(rc));
}

/* ---- input --------------------------------------------------------------- */

int eq_input_open(int dirfd, const char *name, const char *path,
		  struct stat *st, struct eq_error *err)
{
	/* O_NONBLOCK so that a FIFO cannot hang us; it means nothing to files. */
	int fd = openat(dirfd, name,
			O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	int rc;

	if (fd < 0 || fstat(fd, st))
		rc = eq_fail(err, -errno, "%s: %s", path, eq_strerror(-errno));
	else if (S_ISDIR(st->st_mode))
		rc = eq_fail(err, -EISDIR, "%s: %s", path, eq_strerror(-EISDIR));
	else if (!S_ISREG(st->st_mode))
		rc = eq_fail(err, -EINVAL, "%s: not a regular file", path);
	else
		return fd;
	if (fd >= 0)
		close(fd);
	return rc;
}

struct eq_archive *eq_input_archive(int dirfd, const char *name,
				    const char *path, struct stat *st,
				    struct eq_error *err)
{
	struct eq_archive *a;
	int fd, rc;

	err->text[0] = 0;
	fd = eq_input_open(dirfd, name, path, st, err);
	if (fd < 0)
		return NULL;
	rc = eq_archive_open(fd, path, &a, err);
	if (rc == 0)
		return a;
	if (!err->text[0])
		eq_fail(err, rc, "%s: %s", path, eq_strerror(rc));
	close(fd);
	return NULL;
}

/* ---- output -------------------------------------------------------------- */

static int output_fail(const struct eq_output *o, int rc)
{
	eq_cli_error("%s: %s", o->path, rc == -EEXIST ? "already exists; -f overwrites it" :
							eq_strerror(rc));
	return rc;
}

static void output_close(struct eq_output *o)
{
	if (o->fd >= 0)
		close(o->fd);
	if (o->own_dirfd && o->dirfd >= 0)
		close(o->dirfd);
}

/* Open the directory that path lies in and find the last component. */
static int output_place(struct eq_output *o)
{
	const char *slash = strrchr(o->path, '/');
	char *dir;

	o->base = slash ? slash + 1 : o->path;
	if (!*o->base)
		return -EISDIR;
	/* "/x" lies in "/", "a/x" in "a", "x" in ".". */
	dir = !slash ? strdup(".") :
	      strndup(o->path, slash == o->path ? 1 : (size_t)(slash - o->path));
	if (!dir)
		return -ENOMEM;
	o->dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	o->own_dirfd = true;
	free(dir);
	return o->dirfd < 0 ? -errno : 0;
}

int eq_output_begin(struct eq_output *o, int dirfd, const char *path,
		    bool overwrite)
{
	struct stat st;
	int rc = 0;

	*o = (struct eq_output){ .path = path, .base = path, .dirfd = dirfd,
				 .fd = -1, .overwrite = overwrite };
	if (dirfd < 0) {
		rc = output_place(o);
	} else {
		const char *slash = strrchr(path, '/');

		o->base = slash ? slash + 1 : path;
	}
	if (rc == 0 && fstatat(o->dirfd, o->base, &st, AT_SYMLINK_NOFOLLOW) == 0) {
		if (S_ISDIR(st.st_mode))
			rc = -EISDIR;
		else if (!overwrite)
			rc = -EEXIST;
	}
	if (rc == 0)
		rc = eq_tmp_create(o->dirfd, o->tmp, &o->fd);
	if (rc) {
		output_fail(o, rc);
		output_close(o);
	}
	return rc;
}

/* What of the owner cannot be kept must not open the file to others. */
static int copy_owner_and_mode(int fd, const struct stat *st)
{
	mode_t mode = st->st_mode & 0777;

	if (fchown(fd, st->st_uid, st->st_gid) &&
	    fchown(fd, (uid_t)-1, st->st_gid))
		mode &= (mode & 07) << 3 | ~(mode_t)070;
	return fchmod(fd, mode) ? -errno : 0;
}

int eq_output_attributes(int fd, const struct stat *owner_and_mode,
			 const struct timespec times[2])
{
	int rc = copy_owner_and_mode(fd, owner_and_mode);

	return rc == 0 && futimens(fd, times) ? -errno : rc;
}

int eq_output_commit(struct eq_output *o, const struct stat *owner_and_mode,
		     const struct timespec times[2])
{
	int rc = eq_output_attributes(o->fd, owner_and_mode, times);

	if (rc == 0)
		rc = eq_publish(o->dirfd, o->fd, o->tmp, o->base, o->overwrite);
	if (rc) {
		output_fail(o, rc);
		eq_output_abort(o);
		return rc;
	}
	output_close(o);
	return 0;
}

int eq_output_distinct(const char *out, const struct stat *st)
{
	struct stat old;

	if (stat(out, &old) || old.st_dev != st->st_dev || old.st_ino != st->st_ino)
		return 0;
	eq_cli_error("%s: is the input itself", out);
	return -EINVAL;
}

void eq_output_abort(struct eq_output *o)
{
	unlinkat(o->dirfd, o->tmp, 0);
	output_close(o);
}

/* ---- decoding ------------------------------------------------------------ */

/* Extents a task: several at once keep the decoder's pipelines full. */
#define DECODE_GROUP 4

struct decode {
	struct eq_archive *a;
	const struct eq_backend *backend;
	struct eq_extent_job *jobs;
	struct eq_error *errs;  /* one a group: threads must not share it */
	size_t n;
};

static void decode_group(void *arg, size_t i)
{
	struct decode *d = arg;
	size_t first = i * DECODE_GROUP, n = d->n - first;

	eq_archive_decode(d->a, d->backend, d->jobs + first,
			  n < DECODE_GROUP ? n : DECODE_GROUP, &d->errs[i]);
}

int eq_decode_range(struct eq_archive *a, const struct eq_run *run,
		    uint64_t off, void *buf, size_t max, size_t *got,
		    struct eq_error *err)
{
	struct decode d = { .a = a, .backend = run->backend };
	size_t cap = 0, groups;
	int rc = 0;

	*got = 0;
	while (off < eq_archive_info(a)->size) {
		struct eq_extent e;

		rc = eq_archive_locate(a, off, &e);
		if (rc || e.len > max - *got)
			break;
		if (d.n == cap) {
			void *p;

			cap = cap ? 2 * cap : 64;
			p = realloc(d.jobs, cap * sizeof(*d.jobs));
			if (!p) {
				rc = -ENOMEM;
				break;
			}
			d.jobs = p;
		}
		d.jobs[d.n++] = (struct eq_extent_job){
			.ext = e, .out = (char *)buf + *got };
		*got += e.len;
		off += e.len;
	}
	groups = (d.n + DECODE_GROUP - 1) / DECODE_GROUP;
	if (rc == 0 && groups) {
		d.errs = calloc(groups, sizeof(*d.errs));
		rc = d.errs ? 0 : -ENOMEM;
	}
	if (rc == 0)
		eq_pool_for(run->pool, groups, decode_group, &d);
	for (size_t i = 0; rc == 0 && i < d.n; i++) {
		rc = d.jobs[i].status;
		if (rc)
			*err = d.errs[i / DECODE_GROUP];
	}
	free(d.errs);
	free(d.jobs);
	return rc;
}

int64_t eq_decode_max(const struct eq_archive *a)
{
	const struct eq_file_info *info = eq_archive_info(a);
	const struct eq_tensor_info *t = eq_archive_tensors(a);
	struct eq_extent e;
	int64_t max = 0;
	int rc;

	/* The first extent of a tensor is its largest. */
	for (size_t i = 0; i <= info->n_tensors; i++) {
		if (i < info->n_tensors && t[i].n_bytes == 0)
			continue;
		rc = eq_archive_locate(a, i < info->n_tensors ? t[i].begin : 0,
				       &e);
		if (rc)
			return rc;
		if ((int64_t)e.len > max)
			max = (int64_t)e.len;
	}
	return max;
}
