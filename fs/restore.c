/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From archive to plain file, for a writer. The plain file is complete and on
 * disk before it takes its name, and takes its name before the archive goes: a
 * crash leaves either, or both, and then the plain file counts.
 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "become.h"
#include "compact.h"
#include "passthrough.h"
#include "place.h"

struct restore {
	struct eq_fs *fs;
	struct eq_node *n, *parent;
	bool empty;
	bool apart;             /* n goes on being the archive, without a name */
	bool again;             /* to be encoded again though nobody has written */
	char name[NAME_MAX + 1], archive[NAME_MAX + 1];
	char tmp[EQ_TMP_NAME_SIZE];
	int fd;
	struct stat was;        /* of the archive, as shown */
	struct eq_error err;
};

/* Is it the shown file of this name, still? */
static int check_place(struct restore *r)
{
	struct eq_found f;
	int rc = eq_name_stat(r->parent->fd, r->name, &f);

	if (rc)
		return rc == -ENOENT ? -ESTALE : rc;
	return f.archive && f.st.st_ino == r->n->ino && f.st.st_dev == r->n->dev ? 0 : -ESTALE;
}

/*
 * Of an archive with hard links nobody can say under which name it was opened, so
 * none of them can be made plain; and the plain file of a name like x.eqar would be
 * taken for an archive.
 */
static int check_writable(struct restore *r)
{
	struct stat st;

	if (fstat(r->n->fd, &st))
		return -errno;
	if (st.st_nlink > 1) {
		eq_fail(&r->err, -EPERM, "%s: an archive with hard links cannot be written to",
			r->name);
		return -EPERM;
	}
	return eq_name_allowed(r->name, S_IFREG);
}

static int ending(void *arg, const char *what, uint64_t done, uint64_t total)
{
	struct restore *r = arg;

	(void)what, (void)done, (void)total;
	return r->fs->ending;
}

static int fill(struct restore *r)
{
	struct eq_run run = { .pool = r->fs->pool, .backend = r->fs->m->backend,
			      .progress = ending, .progress_arg = r };
	struct eq_arc *arc;
	int rc;

	if (!r->empty) {
		rc = eq_attr_archive(r->fs, r->n, &arc);
		if (rc)
			return rc;
		/* Only where that gives the same bytes: opening a file must not cost
		 * it precision. */
		r->again = !eq_archive_info(arc->archive)->lossy && !eq_policy_lossy(r->fs->m->policy);
		rc = eq_archive_unpack(arc->archive, r->fd, &run, &r->err);
		eq_arc_put(&r->fs->arcs, arc);
		if (rc)
			return rc;
	}
	eq_stale_mark(r->fd, true);
	if (r->again)
		eq_dirty_mark(r->fs, r->fd);
	/* The long sync comes before the lock. */
	return fsync(r->fd) ? -errno : 0;
}

/* Not before the lock: until then they can be changed, and decoding may take long. */
static int copy_attributes(struct restore *r)
{
	struct timespec times[2];
	int rc = eq_attr_get(r->fs, r->n, &r->was);

	if (rc)
		return rc;
	if (fchown(r->fd, r->was.st_uid, r->was.st_gid) &&
	    (r->was.st_uid != geteuid() || r->was.st_gid != getegid()))
		return -errno;
	if (fchmod(r->fd, r->was.st_mode & 07777))
		return -errno;
	eq_xattrs_copy(r->n->fd, r->fd);
	times[0] = r->was.st_atim;
	times[1] = r->was.st_mtim;
	return !r->empty && futimens(r->fd, times) ? -errno : 0;
}

/* The plain file, as whatever node it has now, is to be encoded again. Under the lock of
 * the names. */
static void want_encoded(struct restore *r)
{
	struct eq_found f = { .archive = false };
	struct eq_node *n;

	if (!r->again || fstat(r->fd, &f.st))
		return;
	n = eq_node_find(&r->fs->nodes, &f);
	if (n)
		eq_dirty_set(r->fs, n);
	eq_node_unref(&r->fs->nodes, n);
}

/* Under the lock of the names. */
static int swap(struct restore *r)
{
	char path[EQ_PROC_SIZE];
	int fd, rc;

	rc = check_place(r);
	if (!rc)
		rc = check_writable(r); /* there may be a link since */
	if (!rc)
		rc = copy_attributes(r);
	if (rc)
		return rc;
	eq_proc_path(path, r->fd);
	fd = open(path, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	rc = eq_publish(r->parent->fd, r->fd, r->tmp, r->name, true);
	if (rc) {
		close(fd);
		eq_withdraw(r->parent->fd, r->fd, r->name); /* the archive is still there */
		return rc;
	}
	r->tmp[0] = '\0';
	/* From here on the plain file counts, whatever becomes of the archive. */
	rc = eq_become_plain(r->fs, r->n, r->parent, r->name, fd, r->apart);
	want_encoded(r);
	if (unlinkat(r->parent->fd, r->archive, 0))
		eq_log(&r->fs->log, EQ_LOG_WARN, "%s: cannot remove: %s", r->archive,
		       eq_strerror(-errno));
	else
		eq_stale_mark(r->fd, false);
	return rc;
}

static void count_restored(struct restore *r)
{
	struct eq_stats *s = &r->fs->stats;
	struct stat now;

	eq_count(&s->restored, 1);
	atomic_fetch_sub(&s->archives, 1);
	if (fstat(r->fd, &now))
		return;
	eq_count(&s->restored_bytes, (uint64_t)now.st_size);
	eq_stats_store(s, &r->was, &now);
}

int eq_restore(struct eq_fs *fs, struct eq_node *n, bool empty)
{
	struct restore r = { .fs = fs, .n = n, .empty = empty, .fd = -1 };
	char path[PATH_MAX];
	dev_t dev = n->dev;
	ino_t ino = n->ino;
	int hold, rc;

	if (eq_place_find(fs, n, &r.parent, r.name))
		return -ESTALE;
	eq_node_path(&fs->nodes, n, path, sizeof(path));
	/* Whom the kernel has given a decoded copy cannot be told of another file. */
	r.apart = eq_pass_held(n);
	rc = check_writable(&r);
	if (!rc)
		rc = eq_name_archive(r.name, r.archive);
	if (!rc)
		rc = check_place(&r);
	if (!rc)
		rc = eq_tmp_create(r.parent->fd, r.tmp, &r.fd);
	if (rc)
		goto out;
	/* So that the archive's room is not given back under the lock. */
	hold = fcntl(n->fd, F_DUPFD_CLOEXEC, 0);
	rc = hold < 0 ? -errno : fill(&r);
	if (!rc) {
		pthread_rwlock_wrlock(&fs->names);
		rc = swap(&r);
		pthread_rwlock_unlock(&fs->names);
	}
	if (!rc)
		count_restored(&r);
	if (rc && r.tmp[0])
		unlinkat(r.parent->fd, r.tmp, 0);
	close(r.fd);
	if (!rc) {
		eq_hot_gone(fs->hot, dev, ino);
		eq_arcs_gone(&fs->arcs, dev, ino);
	}
	if (hold >= 0) /* not before: its number could be another archive's by then */
		close(hold);
out:
	eq_pass_back(n);
	eq_node_unref(&fs->nodes, r.parent);
	if (rc && rc != -ESTALE) {
		if (!r.err.text[0])
			eq_fail(&r.err, rc, "%s: cannot be made a plain file: %s", path,
				eq_strerror(rc));
		eq_attr_complain(fs, n, r.err.text);
	} else if (!rc) {
		eq_log(&fs->log, EQ_LOG_INFO, "made a plain file again: %s", path);
	}
	return !rc && r.apart ? -ESTALE : rc;
}
