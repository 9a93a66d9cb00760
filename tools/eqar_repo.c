/* SPDX-License-Identifier: Apache-2.0 */
/* pack -r and unpack -r: the files of a repository, in place. */
#include "config.h"

#include "eqar.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

struct repo {
	const struct eq_common *common;
	const struct eq_pack *pack;     /* NULL when unpacking */
	struct eq_runner *r;
	struct eq_policy policy;
	bool force, failed;
	uint64_t files, size, stored;
};

bool eq_name_ends(const char *name, const char *suffix)
{
	size_t n = strlen(name), s = strlen(suffix);

	return n > s && !strcmp(name + n - s, suffix);
}

/* Through a mount the archives look plain; packing them there would pack the
 * decoded files once more. The attribute alone may be a copy's. */
static bool is_eqfs_mount(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 && fs.f_type == FUSE_SUPER_MAGIC &&
	       fgetxattr(fd, "user.eqfs.state", NULL, 0) >= 0;
}

/* Open dir and take it as a mount of it would: with one at work in there, both
 * would shrink and restore the same files. The descriptor, or -errno, said. */
static int repo_open(const char *dir, bool lock)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc;

	rc = fd < 0 || (lock && flock(fd, LOCK_EX | LOCK_NB)) ? -errno : 0;
	if (!rc && lock)
		rc = eq_store_above(fd);
	if (!rc)
		return fd;
	if (fd >= 0 && (rc == -EWOULDBLOCK || rc == -EBUSY))
		eq_cli_error("%s: in use by a mount or another eqar", dir);
	else
		eq_cli_error("%s: %s", dir, eq_strerror(rc));
	if (fd >= 0)
		close(fd);
	return rc;
}

static void summary(const struct repo *p)
{
	FILE *f = p->pack && p->pack->dry_run ? stdout : stderr;
	char from[EQ_CLI_SIZE], to[EQ_CLI_SIZE];

	eq_cli_progress_clear(&p->r->progress);
	if (p->common->json || p->common->quiet || p->files == 0)
		return;
	if (f == stderr && !p->common->verbose && !p->r->progress.on)
		return;
	eq_cli_size(from, p->pack ? p->size : p->stored);
	eq_cli_size(to, p->pack ? p->stored : p->size);
	fprintf(f, "total: %llu files, %s -> %s%s\n",
		(unsigned long long)p->files, from,
		f == stdout ? "about " : "", to);
}

/* ---- pack -r ------------------------------------------------------------- */

/* A file that the rule leaves alone: not an error, but worth a word. */
static void left_plain(const struct repo *p, const char *path, const char *why)
{
	cJSON *o;

	eq_cli_progress_clear(&p->r->progress);
	if (p->common->json) {
		o = eq_cli_json_new();
		eq_cli_json_string(o, "file", path, strlen(path));
		cJSON_AddStringToObject(o, "action", "skip");
		cJSON_AddStringToObject(o, "reason", why);
		eq_cli_json_print(o);
	} else if (p->common->verbose) {
		fprintf(stderr, "%s: left as it is: %s\n", path, why);
	}
}

/* Why the rule leaves this result alone, or NULL if it is a failure. */
static const char *why_left(int rc)
{
	switch (rc) {
	case EQ_ELIMIT:
		return "beyond the limits of the format";
	case -EMLINK:
		return "has hard links";
	case -ENOTSUP:
		return "would not become smaller";
	case EQ_EHOLES:
		return "hardly anything but holes";
	case -ENAMETOOLONG:
		return "the name is too long";
	default:
		return NULL;
	}
}

static int estimate(const struct repo *p, int fd, const struct eq_visit *v,
		    struct eq_summary *sum, struct eq_error *err)
{
	int rc;

	if (v->st->st_nlink > 1)
		return -EMLINK;
	rc = eq_check_holes(fd, v->path, v->st, &p->r->run, err);
	if (!rc)
		rc = eq_estimate(fd, v->path, &p->policy, &p->r->run, sum, err);
	return rc == 0 && sum->stored >= sum->size ? -ENOTSUP : rc;
}

/* eq_shrink knows a file by its name in the directory: say the whole path. */
static void name_by_path(struct eq_error *err, const struct eq_visit *v)
{
	struct eq_error by_name, text = *err;
	size_t n;

	/* Written the same way, control characters and all. */
	eq_fail(&by_name, 0, "%s: ", v->name);
	n = strlen(by_name.text);
	if (!strncmp(text.text, by_name.text, n))
		eq_fail(err, 0, "%s: %s", v->path, text.text + n);
}

static int pack_visit(void *arg, const struct eq_visit *v)
{
	struct eq_error err = { .text = "" };
	struct repo *p = arg;
	struct eq_summary sum;
	struct eq_st *st;
	const char *why;
	int fd, rc;

	if (eq_cli_signal())
		return 1;
	if (eq_tmp_is(v->name)) {
		if (!p->pack->dry_run)
			(void)eq_tmp_sweep(v->dirfd, v->name);
		return 0;
	}
	if (eq_name_ends(v->name, EQ_SUFFIX) ||
	    eq_name_ends(v->name, ".incomplete"))
		return 0;
	fd = openat(v->dirfd, v->name,
		    O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0) {
		rc = -errno;
		goto fail;
	}
	if (is_eqfs_mount(fd)) {
		close(fd);
		eq_cli_error("%s: lies in a mounted eqfs; pack its store",
			     v->path);
		p->failed = true;
		return 1;
	}
	/* Content decides, not the suffix: a hub's blobs have none. */
	rc = eq_st_read(fd, v->path, &st, NULL, &err);
	if (rc == EQ_ENOTST) {
		close(fd);
		return 0;
	}
	if (rc == 0) {
		eq_st_free(st);
		eq_cli_progress_file(&p->r->progress, v->path);
		if (p->pack->dry_run)
			rc = estimate(p, fd, v, &sum, &err);
		else
			rc = eq_shrink(v->dirfd, v->name, &p->policy,
				       &p->r->run, NULL, &sum, &err);
	}
	close(fd);
	why = why_left(rc);
	if (why) {
		left_plain(p, v->path, why);
		return 0;
	}
fail:
	if (rc) {
		name_by_path(&err, v);
		eq_runner_error(p->r, v->path, rc, &err);
		p->failed = true;
		return eq_cli_signal() ? 1 : 0;
	}
	p->files++;
	p->size += sum.size;
	p->stored += sum.stored;
	eq_pack_report(p->pack, p->r, v->path, &p->policy, &sum);
	return 0;
}

int eq_repo_pack(const struct eq_pack *pack, struct eq_runner *r,
		 const char *dir)
{
	struct repo p = { .common = &pack->common, .pack = pack, .r = r };
	char *text;
	int fd, rc;

	/* What the kernel sends when a lease has to go, deadly by default. */
	signal(SIGIO, SIG_IGN);
	fd = repo_open(dir, !pack->dry_run);
	if (fd < 0)
		return EQ_EXIT_FAIL;
	rc = eq_pack_policy(pack, fd, dir, &p.policy);
	if (rc)
		goto out;
	text = eq_policy_text(&p.policy);
	if (pack->common.verbose)
		fprintf(stderr, "%s: policy: %s\n", dir, text ? text : "?");
	free(text);
	eq_walk(dir, true, pack_visit, NULL, &p, &p.failed);
	summary(&p);
	eq_policy_fini(&p.policy);
out:
	close(fd);
	return rc || p.failed ? EQ_EXIT_FAIL : EQ_EXIT_OK;
}

/* ---- unpack -r ----------------------------------------------------------- */

/* Decode into o and make sure of every byte before anything is removed. */
static int restore_bytes(struct repo *p, struct eq_archive *a,
			 struct eq_output *o, struct eq_error *err)
{
	/* With all its hashes. */
	int rc = eq_archive_unpack(a, o->fd, &p->r->run, err);

	/* And as it was written, in no other way than it is decoded again. */
	return rc ? rc : eq_archive_match(a, o->fd, o->path, &p->r->run, err);
}

/* One of two names would become a file of its own. */
static int check_links(const struct eq_visit *v, const struct stat *st, struct eq_error *err)
{
	return st->st_nlink <= 1 ? 0 : eq_fail(err, -EMLINK, "%s: has hard links; unpack it to "
					       "another name", v->path);
}

/* Remove what we decoded, not what may have taken its name. */
static int remove_archive(const struct eq_visit *v, const struct stat *st)
{
	struct stat now;

	if (fstatat(v->dirfd, v->name, &now, AT_SYMLINK_NOFOLLOW) ||
	    now.st_dev != st->st_dev || now.st_ino != st->st_ino)
		return -EBUSY;
	return unlinkat(v->dirfd, v->name, 0) ? -errno : 0;
}

/* What there is to say of an archive now goes to the plain file. */
static void catch_up(struct eq_archive *a, int attr_fd, int fd, const struct stat *now,
		     struct timespec times[2])
{
	times[0] = now->st_atim;
	eq_archive_mtime(a, &times[1]);
	eq_xattrs_copy(attr_fd, fd);
}

/* Has nobody done anything to the plain file since it was made, with these attributes? */
static bool untouched(int fd, const struct stat *made, const struct stat *like,
		      const struct timespec *mtime)
{
	struct stat st;

	return fstat(fd, &st) == 0 && eq_time_compare(&st.st_ctim, &made->st_ctim) == 0 &&
	       eq_time_compare(&st.st_mtim, mtime) == 0 && st.st_mode == like->st_mode &&
	       st.st_uid == like->st_uid && st.st_gid == like->st_gid;
}

/* The archive st, open as attr_fd, becomes o, which is decoded and compared. */
static int restore_swap(struct repo *p, struct eq_archive *a, struct eq_output *o,
			const struct eq_visit *v, const struct stat *st, int attr_fd)
{
	struct eq_error err = { .text = "" };
	struct timespec times[2];
	struct stat now, made;
	int fd = fcntl(o->fd, F_DUPFD_CLOEXEC, 0), rc;

	/* There may be a link since, and other attributes. */
	if (fd < 0 || fstat(attr_fd, &now))
		rc = -errno;
	else
		rc = eq_cli_signal() ? -ECANCELED : check_links(v, &now, &err);
	if (rc) {
		eq_output_abort(o);
		goto out;
	}
	catch_up(a, attr_fd, fd, &now, times);
	eq_cli_progress_phase(&p->r->progress, "sync");
	rc = eq_output_commit(o, &now, times);
	if (rc) {
		close(fd);
		return rc; /* said */
	}
	rc = fstat(fd, &made) ? -errno : remove_archive(v, st);
	/* Nor is anything lost that was set on the archive since: nobody finds it any more. But
	 * what was done to the plain file, which has its name by now, came later. */
	if (!rc && untouched(fd, &made, &now, &times[1]) && fstat(attr_fd, &now) == 0) {
		catch_up(a, attr_fd, fd, &now, times);
		rc = eq_output_attributes(fd, &now, times);
	}
	if (!rc && fsync(v->dirfd))
		rc = -errno;
out:
	if (rc)
		eq_runner_error(p->r, v->path, rc, &err);
	if (fd >= 0)
		close(fd);
	return rc;
}

/* Has a run that was interrupted got as far as the plain file? Then it is on disk. */
static bool is_restored(struct repo *p, struct eq_archive *a, const char *plain,
			const struct eq_visit *v)
{
	const char *slash = strrchr(plain, '/');
	struct eq_error err = { .text = "" };
	struct stat st;
	bool is;
	int fd = eq_open_regular(v->dirfd, slash ? slash + 1 : plain, &st);

	if (fd < 0)
		return false;
	is = eq_archive_match(a, fd, plain, &p->r->run, &err) == 0 && fsync(fd) == 0;
	close(fd);
	return is;
}

static int restore(struct repo *p, struct eq_archive *a, const char *plain,
		   const struct eq_visit *v, const struct stat *st, int attr_fd)
{
	struct eq_error err = { .text = "" };
	struct eq_output o;
	int rc;

	rc = check_links(v, st, &err);
	if (!rc && !p->force && is_restored(p, a, plain, v)) {
		rc = remove_archive(v, st);
		if (!rc)
			return 0;
	} else if (!rc) {
		rc = eq_output_begin(&o, v->dirfd, plain, p->force);
		if (rc)
			return rc; /* said */
		rc = restore_bytes(p, a, &o, &err);
		if (!rc)
			return restore_swap(p, a, &o, v, st, attr_fd);
		eq_output_abort(&o);
	}
	eq_runner_error(p->r, v->path, rc, &err);
	return rc;
}

static int unpack_visit(void *arg, const struct eq_visit *v)
{
	struct repo *p = arg;
	struct eq_error err;
	struct eq_archive *a;
	struct stat st, st2;
	char *plain;
	int fd = -1;

	if (eq_cli_signal())
		return 1;
	if (eq_tmp_is(v->name)) {
		(void)eq_tmp_sweep(v->dirfd, v->name);
		return 0;
	}
	if (!eq_name_ends(v->name, EQ_SUFFIX))
		return 0;
	eq_cli_progress_file(&p->r->progress, v->path);
	plain = strndup(v->path, strlen(v->path) - strlen(EQ_SUFFIX));
	if (!plain) {
		eq_cli_error("%s: %s", v->path, strerror(ENOMEM));
		p->failed = true;
		return 0;
	}
	a = eq_input_archive(v->dirfd, v->name, v->path, &st, &err);
	if (a)
		fd = eq_input_open(v->dirfd, v->name, v->path, &st2, &err);
	if (fd < 0) {
		eq_cli_error("%s", err.text);
		p->failed = true;
	} else if (restore(p, a, plain, v, &st, fd)) {
		p->failed = true;
	} else {
		p->files++;
		p->size += eq_archive_info(a)->size;
		p->stored += eq_archive_info(a)->stored;
		eq_unpack_report(p->common, p->r, plain, eq_archive_info(a));
	}
	if (fd >= 0)
		close(fd);
	free(plain);
	if (a)
		eq_archive_close(a);
	return eq_cli_signal() ? 1 : 0;
}

int eq_repo_unpack(const struct eq_common *c, bool force, struct eq_runner *r,
		   const char *dir)
{
	struct repo p = { .common = c, .r = r, .force = force };
	int fd = repo_open(dir, true);

	if (fd < 0)
		return EQ_EXIT_FAIL;
	eq_walk(dir, true, unpack_visit, NULL, &p, &p.failed);
	summary(&p);
	close(fd);
	return p.failed ? EQ_EXIT_FAIL : EQ_EXIT_OK;
}
