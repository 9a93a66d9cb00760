/* SPDX-License-Identifier: Apache-2.0 */
/* Walk a directory tree whose files change while we are in it. */
#include "config.h"

#include "eqar.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct walk {
	int (*fn)(void *arg, const struct eq_visit *v);
	void (*leave)(void *arg, const char *path);
	void *arg;
	bool *failed;
	bool own;               /* leave directories alone that somebody holds */
	dev_t dev;
};

struct names {
	char **v;
	size_t n, cap;
};

static void names_free(struct names *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->v[i]);
	free(l->v);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* All entries, sorted: the order of the work must not be the disk's. */
static int names_read(DIR *dir, struct names *l)
{
	const struct dirent *e;

	for (errno = 0; (e = readdir(dir)) != NULL; errno = 0) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (l->n == l->cap) {
			size_t cap = l->cap ? 2 * l->cap : 64;
			char **v = realloc(l->v, cap * sizeof(*v));

			if (!v)
				return -ENOMEM;
			l->v = v;
			l->cap = cap;
		}
		l->v[l->n] = strdup(e->d_name);
		if (!l->v[l->n])
			return -ENOMEM;
		l->n++;
	}
	if (errno)
		return -errno;
	if (l->n)
		qsort(l->v, l->n, sizeof(*l->v), by_name);
	return 0;
}

static int walk_dir(const struct walk *w, int fd, const char *path);

static int walk_entry(const struct walk *w, int dirfd, const char *dir,
		      const char *name)
{
	struct eq_visit v = { .dirfd = dirfd, .name = name };
	struct stat st;
	char *path;
	int fd, rc = 0;

	if (asprintf(&path, "%s/%s", dir, name) < 0) {
		eq_cli_error("%s/%s: %s", dir, name, strerror(ENOMEM));
		*w->failed = true;
		return 0;
	}
	if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW)) {
		/* Gone since the names were read: nothing to do. */
		if (errno != ENOENT) {
			eq_cli_error("%s: %s", path, strerror(errno));
			*w->failed = true;
		}
	} else if (S_ISREG(st.st_mode) || (w->own && eq_tmp_is(name))) {
		v.path = path;
		v.st = &st;
		rc = w->fn(w->arg, &v);
	} else if (S_ISDIR(st.st_mode) && st.st_dev == w->dev) {
		fd = openat(dirfd, name,
			    O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0) {
			eq_cli_error("%s: %s", path, strerror(errno));
			*w->failed = true;
		} else if (w->own && eq_store_probe(fd)) {
			eq_cli_error("%s: in use by a mount or another eqar", path);
			*w->failed = true;
			close(fd);
		} else {
			rc = walk_dir(w, fd, path);
		}
	}
	free(path);
	return rc;
}

/* Takes fd over. */
static int walk_dir(const struct walk *w, int fd, const char *path)
{
	struct names l = { 0 };
	DIR *dir = fdopendir(fd);
	int rc;

	if (!dir) {
		rc = -errno;
		close(fd);
	} else {
		rc = names_read(dir, &l);
	}
	if (rc) {
		eq_cli_error("%s: %s", path, eq_strerror(rc));
		*w->failed = true;
	}
	rc = 0;
	for (size_t i = 0; rc == 0 && i < l.n; i++)
		rc = walk_entry(w, dirfd(dir), path, l.v[i]);
	if (rc == 0 && w->leave)
		w->leave(w->arg, *path ? path : "/");
	names_free(&l);
	if (dir)
		closedir(dir);
	return rc;
}

int eq_walk(const char *path, bool own, int (*fn)(void *arg, const struct eq_visit *v),
	    void (*leave)(void *arg, const char *path), void *arg, bool *failed)
{
	struct walk w = { .own = own, .fn = fn, .leave = leave, .arg = arg, .failed = failed };
	size_t len = strlen(path);
	struct stat st;
	char *plain;
	int fd, rc;

	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st)) {
		eq_cli_error("%s: %s", path, strerror(errno));
		if (fd >= 0)
			close(fd);
		*failed = true;
		return 0;
	}
	w.dev = st.st_dev;
	while (len > 1 && path[len - 1] == '/')
		len--;
	plain = strndup(path, len);
	if (!plain) {
		eq_cli_error("%s: %s", path, strerror(ENOMEM));
		close(fd);
		*failed = true;
		return 0;
	}
	/* "/" and "/x" give "/x", not "//x". */
	rc = walk_dir(&w, fd, len == 1 && *path == '/' ? "" : plain);
	free(plain);
	return rc;
}
