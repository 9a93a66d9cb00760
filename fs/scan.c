/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compact.h"
#include "scan.h"
#include "thread.h"

struct eq_scan {
	struct eq_fs *fs;
	struct eq_thread thread;
	_Atomic bool stop;
	struct eq_node **todo;  /* directories, each with a reference */
	size_t n_todo, max_todo;
};

static bool dots(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..");
}

static DIR *open_dir(int dirfd)
{
	int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);

	if (!d && fd >= 0)
		close(fd);
	return d;
}

long eq_scan_sweep(int dirfd)
{
	DIR *d = open_dir(dirfd);
	struct dirent *e;
	long others = 0;

	if (!d)
		return -errno;
	while ((e = readdir(d)))
		if (!dots(e->d_name) && (!eq_tmp_is(e->d_name) || eq_tmp_sweep(dirfd, e->d_name)))
			others++;
	closedir(d);
	return others;
}

static int push(struct eq_scan *s, struct eq_node *n)
{
	struct eq_node **t;
	size_t max;

	if (s->n_todo == s->max_todo) {
		max = s->max_todo ? 2 * s->max_todo : 64;
		t = realloc(s->todo, max * sizeof(*t));
		if (!t)
			return -ENOMEM;
		s->todo = t;
		s->max_todo = max;
	}
	s->todo[s->n_todo++] = n;
	return 0;
}

/* What came to be under this mount is counted where that happens. Several names of
 * a file make one file's worth. */
static void count(struct eq_fs *fs, struct stat st)
{
	if (eq_time_compare(&st.st_ctim, &fs->stats.start) >= 0)
		return;
	if (st.st_nlink > 1) {
		st.st_size /= (off_t)st.st_nlink;
		st.st_blocks /= (blkcnt_t)st.st_nlink;
	}
	eq_stats_store(&fs->stats, NULL, &st);
}

/* Is it an archive? Then it is counted. */
static bool count_archive(struct eq_fs *fs, int dirfd, const char *name)
{
	struct stat st;
	uint64_t size;
	int fd = eq_open_regular(dirfd, name, &st);

	if (fd < 0)
		return fd != -EINVAL && fd != -ELOOP;
	if (eq_archive_peek(fd, &size) == 0)
		st.st_size = (off_t)size; /* else as it is listed */
	close(fd);
	count(fs, st);
	atomic_fetch_add(&fs->stats.archives, 1);
	return true;
}

static void sweep(struct eq_fs *fs, struct eq_node *dir, const char *name)
{
	int rc;

	if (fs->m->read_only)
		return;
	/* A rename in progress may have put a file aside for a moment, and what a crash
	 * has left aside may come back. */
	pthread_rwlock_wrlock(&fs->names);
	rc = eq_tmp_sweep(dir->fd, name);
	pthread_rwlock_unlock(&fs->names);
	if (rc >= 0)
		eq_log(&fs->log, EQ_LOG_INFO, "%s %s, left by a crash",
		       rc ? "put back" : "removed", name);
}

static void visit(struct eq_scan *s, struct eq_node *dir, const char *name)
{
	struct eq_fs *fs = s->fs;
	struct eq_found f;
	struct eq_node *n;
	int rc;

	if (eq_tmp_is(name)) {
		sweep(fs, dir, name);
		return;
	}
	if (eq_name_is_archive(name) && count_archive(fs, dir->fd, name))
		return;
	pthread_rwlock_rdlock(&fs->names);
	rc = eq_name_find(dir->fd, name, &f);
	if (!rc && S_ISREG(f.st.st_mode) && !f.archive && !fs->m->read_only)
		eq_stale_bury(dir->fd, name, f.fd);
	if (!rc)
		rc = eq_node_take(&fs->nodes, &f, dir, name, false, &n);
	pthread_rwlock_unlock(&fs->names);
	if (rc)
		return;
	if (S_ISDIR(n->type) && push(s, n) == 0)
		return; /* with the reference */
	if (S_ISREG(n->type) && !n->archive)
		count(fs, f.st);
	if (S_ISREG(n->type) && !n->archive && eq_dirty_marked(fs, n)) {
		eq_dirty_set(fs, n);
		eq_compact_offer(fs, n);
	}
	eq_node_unref(&fs->nodes, n);
}

/* Is it a store that another eqfs has mounted? What lies there in between, for it, would
 * be a crash's remains to us. */
static bool taken(struct eq_scan *s, struct eq_node *dir, int fd)
{
	struct eq_fs *fs = s->fs;
	char name[NAME_MAX + 1];
	struct eq_node *parent;

	if (dir == fs->nodes.root || !eq_store_probe(fd))
		return false;
	if (eq_node_place(&fs->nodes, dir, &parent, name) == 0) {
		eq_log(&fs->log, EQ_LOG_WARN, "%s: mounted by another eqfs: left alone", name);
		eq_node_unref(&fs->nodes, parent);
	}
	return true;
}

static void *scan(void *arg)
{
	struct eq_scan *s = arg;
	struct eq_node *dir;
	struct dirent *e;
	bool skip;
	DIR *d;

	while (s->n_todo && !s->stop) {
		dir = s->todo[--s->n_todo];
		d = open_dir(dir->fd);
		skip = d && taken(s, dir, dirfd(d));
		while (d && !skip && !s->stop && (e = readdir(d)))
			if (!dots(e->d_name))
				visit(s, dir, e->d_name);
		if (d)
			closedir(d);
		eq_node_unref(&s->fs->nodes, dir);
	}
	s->fs->stats.walked = !s->stop;
	return NULL;
}

int eq_scan_create(struct eq_fs *fs)
{
	struct eq_scan *s = calloc(1, sizeof(*s));
	int rc = -ENOMEM;

	if (!s)
		return rc;
	s->fs = fs;
	eq_node_ref(&fs->nodes, fs->nodes.root);
	rc = push(s, fs->nodes.root);
	if (!rc)
		rc = eq_thread_start(&s->thread, scan, s);
	if (rc) {
		eq_node_unref(&fs->nodes, fs->nodes.root);
		free(s->todo);
		free(s);
		return rc;
	}
	fs->scan = s;
	return 0;
}

void eq_scan_cancel(struct eq_scan *s)
{
	s->stop = true;
}

bool eq_scan_ended(struct eq_scan *s)
{
	return eq_thread_ended(&s->thread);
}

void eq_scan_free(struct eq_scan *s)
{
	if (!s)
		return;
	while (s->n_todo)
		eq_node_unref(&s->fs->nodes, s->todo[--s->n_todo]);
	free(s->todo);
	free(s);
}
