/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replacing a plain file by its archive. The order is what makes it safe: the
 * archive is complete, compared and on disk under its own name before the plain
 * file goes, and a reader that finds both takes the plain one.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "archive_priv.h"
#include "sha256.h"

#define MAX_HOLES ((uint64_t)1 << 30) /* bytes that are read for nothing without a word, */
#define HOLES_PER_DATA 15       /* and beyond that, so many for each of data */
#define LOOKS 1024              /* at extents, before we ask whether to go on */
#define REHASHES 3              /* of a file that somebody sets attributes of */
#define REHASH_BYTES ((size_t)1 << 20)

struct shrink {
	int dirfd, fd, out;
	const char *name;
	char tmp[EQ_TMP_NAME_SIZE];
	char final[NAME_MAX + 1];
	struct stat st;         /* of the plain file when it was what we encoded */
	uint8_t sha256[SHA256_DIGEST_LENGTH]; /* of that */
	bool leased;
	struct eq_error *err;
};

static int failed(const struct shrink *s, int rc, const char *what)
{
	return eq_fail(s->err, rc, "%s: %s: %s", s->name, what, eq_strerror(rc));
}

static bool mostly_holes(uint64_t size, uint64_t data)
{
	return data < size && size - data > MAX_HOLES && data < size / (HOLES_PER_DATA + 1);
}

int eq_check_holes(int fd, const char *name, const struct stat *st, const struct eq_run *run,
		   struct eq_error *err)
{
	uint64_t size = (uint64_t)st->st_size, data = (uint64_t)st->st_blocks * 512;
	struct eq_st *header;
	off_t from, to = 0;
	unsigned looks;
	int rc;

	if (!mostly_holes(size, data))
		return 0;
	data = 0;
	for (looks = 1; (from = lseek(fd, to, SEEK_DATA)) >= 0; looks++) {
		to = lseek(fd, from, SEEK_HOLE);
		if (to <= from)
			return eq_fail(err, -EBUSY, "%s: has become shorter", name);
		data += (uint64_t)(to - from);
		if (!mostly_holes(size, data))
			return 0;
		if (looks % LOOKS == 0 && run && run->progress &&
		    run->progress(run->progress_arg, "encode", 0, size))
			return eq_fail(err, -ECANCELED, "%s: cancelled", name);
	}
	if (errno != ENXIO) { /* which says that the rest is a hole */
		rc = -errno;
		return eq_fail(err, rc, "%s: cannot be searched for holes: %s", name,
			       eq_strerror(rc));
	}
	rc = eq_st_read(fd, name, &header, NULL, err);
	if (rc)
		return rc;
	eq_st_free(header);
	return eq_fail(err, EQ_EHOLES, "%s: hardly anything but holes", name);
}

static int shrink_open(struct shrink *s)
{
	struct stat st;
	int n;

	s->fd = eq_open_regular(s->dirfd, s->name, &s->st);
	if (s->fd == -EINVAL || s->fd == -ELOOP)
		return eq_fail(s->err, EQ_ENOTST, "%s: not a regular file", s->name);
	if (s->fd < 0)
		return failed(s, s->fd, "cannot open");
	if (s->st.st_nlink > 1)
		return eq_fail(s->err, -EMLINK, "%s: has hard links", s->name);
	n = snprintf(s->final, sizeof(s->final), "%s" EQ_SUFFIX, s->name);
	if (n < 0 || n >= (int)sizeof(s->final))
		return eq_fail(s->err, -ENAMETOOLONG, "%s: no room for " EQ_SUFFIX " in the name",
			       s->name);
	if (fstatat(s->dirfd, s->final, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode))
		return eq_fail(s->err, -EISDIR, "%s: %s is a directory", s->name, s->final);
	return 0;
}

/*
 * Can nobody write to it but by opening it anew? Somebody may have it mapped, whose
 * stores need not show in its times. The kernel grants a lease for reading just then.
 */
static int shrink_lease(struct shrink *s, const struct eq_shrink_hooks *hooks)
{
	s->leased = fcntl(s->fd, F_SETLEASE, F_RDLCK) == 0;
	if (s->leased)
		return 0;
	if (errno == EAGAIN || (hooks && hooks->written && hooks->written(hooks->arg)))
		return eq_fail(s->err, -EBUSY, "%s: is being written", s->name);
	return 0;
}

/* Decode what was written and hold it against the plain file. */
static int shrink_compare(struct shrink *s, const struct eq_run *run)
{
	struct eq_archive *a;
	int fd, rc;

	fd = fcntl(s->out, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return failed(s, -errno, "cannot duplicate descriptor");
	rc = eq_archive_open(fd, s->final, &a, s->err);
	if (rc) {
		close(fd);
		return rc;
	}
	memcpy(s->sha256, eq_archive_info(a)->sha256, sizeof(s->sha256));
	rc = eq_archive_compare(a, s->fd, s->name, run, s->err);
	eq_archive_close(a);
	return rc;
}

static bool same_mtime(const struct shrink *s, const struct stat *st)
{
	return eq_time_compare(&st->st_mtim, &s->st.st_mtim) == 0;
}

static bool same_file(const struct shrink *s, const struct stat *st)
{
	return st->st_dev == s->st.st_dev && st->st_ino == s->st.st_ino &&
	       st->st_size == s->st.st_size;
}

/* Is this what we have opened, with what was in it then? */
static bool unchanged(const struct shrink *s, const struct stat *st)
{
	return same_file(s, st) && same_mtime(s, st);
}

/* Does somebody wait for our lease, to write to what he has found under this name? */
static bool shrink_wanted(const struct shrink *s)
{
	return s->leased && fcntl(s->fd, F_GETLEASE) != F_RDLCK;
}

/* Read it once more: is it what was encoded, and its times those of now? */
static int rehash(struct shrink *s, const struct eq_run *run)
{
	uint64_t size = (uint64_t)s->st.st_size, at, n;
	uint8_t sha256[SHA256_DIGEST_LENGTH], *buf;
	struct stat now;
	SHA256_CTX sha;
	int rc = 0;

	if (fstat(s->fd, &now) || !unchanged(s, &now))
		return -EBUSY;
	buf = malloc(REHASH_BYTES);
	if (!buf)
		return -ENOMEM;
	SHA256_Init(&sha);
	for (at = 0; !rc && at < size; at += n) {
		n = size - at < REHASH_BYTES ? size - at : REHASH_BYTES;
		rc = eq_read_full(s->fd, buf, n, at);
		if (rc)
			break;
		SHA256_Update(&sha, buf, n);
		if (shrink_wanted(s))
			rc = -EBUSY;
		else if (run && run->progress &&
			 run->progress(run->progress_arg, "rehash", at + n, size))
			rc = -ECANCELED;
	}
	free(buf);
	SHA256_Final(sha256, &sha);
	if (!rc && memcmp(sha256, s->sha256, sizeof(sha256)))
		rc = -EBUSY;
	if (!rc)
		s->st = now;
	return rc == EQ_ECORRUPT ? -EBUSY : rc; /* it got shorter */
}

/*
 * Somebody may have set attributes while we encoded, which no time tells from a write
 * after which the old time was put back. The contents do, read while a lease keeps
 * writers and their mappings away; shrink_recheck then goes by the times from before
 * that. Without leases it takes any change for a write.
 */
static int shrink_settle(struct shrink *s, const struct eq_run *run,
			 const struct eq_shrink_hooks *hooks)
{
	struct stat now;
	int tries, rc;

	for (tries = 0; tries < REHASHES; tries++) {
		if (fstat(s->fd, &now))
			return failed(s, -errno, "cannot be looked at");
		if (!unchanged(s, &now) || !eq_time_compare(&now.st_ctim, &s->st.st_ctim))
			return 0; /* the one is for shrink_recheck to say */
		rc = shrink_lease(s, hooks);
		if (rc || !s->leased)
			return rc;
		rc = rehash(s, run);
		fcntl(s->fd, F_SETLEASE, F_UNLCK); /* others may wait in what comes next */
		if (rc)
			return failed(s, rc, rc == -EBUSY ? "it changed meanwhile" : "cannot be read again");
	}
	return 0;
}

/* Is NAME still the file that we encoded? The time of change shows a write after which
 * somebody has put the other time back. */
static int shrink_recheck(struct shrink *s, struct stat *now)
{
	struct stat at;

	if (fstat(s->fd, now) || fstatat(s->dirfd, s->name, &at, AT_SYMLINK_NOFOLLOW))
		return failed(s, -EBUSY, "it went away");
	if (!unchanged(s, &at) || !unchanged(s, now) ||
	    eq_time_compare(&now->st_ctim, &s->st.st_ctim))
		return failed(s, -EBUSY, "it changed meanwhile");
	if (now->st_nlink > 1)
		return eq_fail(s->err, -EMLINK, "%s: has hard links", s->name);
	return 0;
}

static int copy_attributes(struct shrink *s, const struct stat *st)
{
	const struct timespec times[2] = { st->st_atim, st->st_mtim };

	/* Owner first: it clears set-id bits. Not being root is no reason to stop
	 * unless the owner would really change. */
	if (fchown(s->out, st->st_uid, st->st_gid) &&
	    (st->st_uid != geteuid() || st->st_gid != getegid()))
		return failed(s, -errno, "cannot keep the owner");
	if (fchmod(s->out, st->st_mode & 07777))
		return failed(s, -errno, "cannot keep the mode");
	eq_xattrs_copy(s->fd, s->out);
	if (futimens(s->out, times))
		return failed(s, -errno, "cannot keep the times");
	return 0;
}

/*
 * The plain file is aside, and `at` what it has become. Give the archive what was set
 * since the attributes were copied: 0; or it is not what was encoded any more. While a
 * lease holds nobody can have written, so another time is one that was set.
 */
static int catch_up(struct shrink *s, const struct stat *at)
{
	int rc = 0;

	if (!same_file(s, at) || (!same_mtime(s, at) && !s->leased) || shrink_wanted(s))
		return -EBUSY;
	if (!same_mtime(s, at)) /* the archive holds the other one */
		rc = eq_mtime_set(s->out, &at->st_mtim);
	if (rc == -ENOTSUP) /* no attributes here: once more, with the new time inside */
		rc = -EBUSY;
	return rc ? rc : copy_attributes(s, at);
}

/*
 * Remove the plain file, and nothing that took its name in the last moment: it
 * is moved aside, looked at, and moved back if it is another one. Our lock keeps
 * a sweep away from it meanwhile.
 */
static int remove_plain(struct shrink *s)
{
	char aside[EQ_TMP_NAME_SIZE];
	struct stat at;
	int rc, hold, back;

	rc = eq_tmp_create(s->dirfd, aside, &hold);
	if (!rc) {
		flock(s->fd, LOCK_EX | LOCK_NB);
		rc = renameat(s->dirfd, s->name, s->dirfd, aside) ? -errno : 0;
		close(hold);
		if (rc)
			unlinkat(s->dirfd, aside, 0);
	}
	if (rc) { /* the plain file is where it was, and counts */
		eq_withdraw(s->dirfd, s->out, s->final);
		return rc;
	}
	rc = fstatat(s->dirfd, aside, &at, AT_SYMLINK_NOFOLLOW) ? -errno : catch_up(s, &at);
	if (rc) {
		back = eq_move_new(s->dirfd, aside, s->dirfd, s->name);
		if (!back || back == -EEXIST) /* the name has what replaced these contents */
			unlinkat(s->dirfd, s->final, 0);
		return back ? back : rc;
	}
	/* If this fails it is litter, to be swept: the archive has the name. */
	(void)!unlinkat(s->dirfd, aside, 0);
	return 0;
}

static int shrink_swap(struct shrink *s, const struct eq_shrink_hooks *hooks)
{
	struct stat now;
	bool swapped = false;
	int rc;

	if (hooks && hooks->enter) {
		rc = hooks->enter(hooks->arg, s->fd);
		if (rc)
			return failed(s, rc, "given up");
	}
	rc = shrink_lease(s, hooks); /* which nobody breaks before we are done */
	if (!rc)
		rc = shrink_recheck(s, &now);
	if (!rc)
		rc = copy_attributes(s, &now);
	if (!rc) {
		rc = eq_publish(s->dirfd, s->out, s->tmp, s->final, true);
		if (rc) {
			eq_withdraw(s->dirfd, s->out, s->final);
			failed(s, rc, "cannot publish the archive");
		}
	}
	if (!rc) {
		rc = remove_plain(s);
		swapped = rc == 0;
		if (rc)
			failed(s, rc, "cannot remove the plain file");
	}
	if (hooks && hooks->leave)
		hooks->leave(hooks->arg, swapped);
	return rc;
}

int eq_shrink(int dirfd, const char *name, const struct eq_policy *policy,
	      const struct eq_run *run, const struct eq_shrink_hooks *hooks, struct eq_summary *out,
	      struct eq_error *err)
{
	struct shrink s = { .dirfd = dirfd, .fd = -1, .out = -1, .name = name, .err = err };
	int rc;

	rc = shrink_open(&s);
	if (!rc) /* now that its times are known, by which a later writer shows */
		rc = shrink_lease(&s, hooks);
	if (!rc)
		rc = eq_check_holes(s.fd, name, &s.st, run, err);
	if (rc)
		goto out;
	fcntl(s.fd, F_SETLEASE, F_UNLCK);
	rc = eq_tmp_create(dirfd, s.tmp, &s.out);
	if (rc) {
		failed(&s, rc, "cannot create a temporary file");
		goto out;
	}
	rc = eq_encode(s.fd, name, s.out, policy, run, out, err);
	if (!rc && out->stored >= (uint64_t)s.st.st_size)
		rc = eq_fail(err, -ENOTSUP, "%s: the archive would not be smaller", name);
	if (!rc)
		rc = shrink_compare(&s, run);
	/* The long sync comes before the swap, which others wait for. */
	if (!rc && fsync(s.out))
		rc = failed(&s, -errno, "cannot sync the archive");
	if (!rc)
		rc = shrink_settle(&s, run, hooks);
	if (!rc)
		rc = shrink_swap(&s, hooks);
	if (rc)
		unlinkat(dirfd, s.tmp, 0);
out:
	if (s.out >= 0)
		close(s.out);
	if (s.fd >= 0)
		close(s.fd);
	return rc;
}
