/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "arc.h"
#include "name.h"

#define MAX_IDLE 8

void eq_arcs_init(struct eq_arcs *s)
{
	pthread_mutex_init(&s->lock, NULL);
	s->list = NULL;
	s->last_id = 0;
}

static void arc_free(struct eq_arc *a)
{
	eq_archive_close(a->archive);
	free(a);
}

static void free_all(struct eq_arc *a)
{
	struct eq_arc *next;

	for (; a; a = next) {
		next = a->next;
		arc_free(a);
	}
}

void eq_arcs_fini(struct eq_arcs *s)
{
	free_all(s->list);
	pthread_mutex_destroy(&s->lock);
}

/* A reference to what is open already, which moves to the front. */
static struct eq_arc *find(struct eq_arcs *s, const struct stat *st)
{
	struct eq_arc **p, *a;

	for (p = &s->list; (a = *p); p = &a->next)
		if (a->ino == st->st_ino && a->dev == st->st_dev && a->size == st->st_size &&
		    eq_time_compare(&a->mtim, &st->st_mtim) == 0) {
			*p = a->next;
			a->next = s->list;
			s->list = a;
			a->refs++;
			return a;
		}
	return NULL;
}

static bool is_gone(const struct eq_arc *a)
{
	struct stat st;

	return a->gone || (fstat(a->fd, &st) == 0 && !st.st_nlink);
}

/* Take the idle ones that nobody will open again, or beyond MAX_IDLE, off the list; the
 * caller frees them. */
static struct eq_arc *surplus(struct eq_arcs *s)
{
	struct eq_arc **p = &s->list, *out = NULL, *a;
	unsigned idle = 0;

	while ((a = *p)) {
		if (a->refs || (!is_gone(a) && ++idle <= MAX_IDLE)) {
			p = &a->next;
			continue;
		}
		*p = a->next;
		a->next = out;
		out = a;
	}
	return out;
}

static int open_new(int path_fd, const char *name, struct eq_arc **out, struct eq_error *err)
{
	char path[EQ_PROC_SIZE];
	struct eq_arc *a;
	struct stat st;
	int fd, rc;

	*out = NULL;
	eq_proc_path(path, path_fd);
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return eq_fail(err, -errno, "%s: cannot open: %s", name, eq_strerror(-errno));
	a = calloc(1, sizeof(*a));
	rc = a ? 0 : -ENOMEM;
	if (!rc && fstat(fd, &st))
		rc = -errno;
	if (!rc)
		rc = eq_archive_open(fd, name, &a->archive, err);
	if (rc) {
		close(fd);
		free(a);
		return rc;
	}
	a->info = eq_archive_info(a->archive);
	a->fd = fd;
	a->dev = st.st_dev;
	a->ino = st.st_ino;
	a->size = st.st_size;
	a->mtim = st.st_mtim;
	a->refs = 1;
	*out = a;
	return 0;
}

int eq_arc_get(struct eq_arcs *s, int path_fd, const char *name, struct eq_arc **out,
	       struct eq_error *err)
{
	struct eq_arc *fresh;
	struct stat st;
	int rc;

	*out = NULL;
	if (fstat(path_fd, &st))
		return -errno;
	pthread_mutex_lock(&s->lock);
	*out = find(s, &st);
	pthread_mutex_unlock(&s->lock);
	if (*out)
		return 0;
	rc = open_new(path_fd, name, &fresh, err); /* may take a while: no lock */
	if (rc)
		return rc;
	st.st_size = fresh->size;
	st.st_mtim = fresh->mtim;
	pthread_mutex_lock(&s->lock);
	*out = find(s, &st); /* somebody else may have been as quick */
	if (!*out) {
		fresh->id = ++s->last_id;
		fresh->next = s->list;
		s->list = fresh;
		*out = fresh;
		fresh = NULL;
	}
	pthread_mutex_unlock(&s->lock);
	if (fresh)
		arc_free(fresh);
	return 0;
}

void eq_arc_ref(struct eq_arcs *s, struct eq_arc *a)
{
	pthread_mutex_lock(&s->lock);
	a->refs++;
	pthread_mutex_unlock(&s->lock);
}

void eq_arc_put(struct eq_arcs *s, struct eq_arc *a)
{
	struct eq_arc *old;

	if (!a)
		return;
	pthread_mutex_lock(&s->lock);
	old = --a->refs ? NULL : surplus(s);
	pthread_mutex_unlock(&s->lock);
	free_all(old);
}

void eq_arcs_gone(struct eq_arcs *s, dev_t dev, ino_t ino)
{
	struct eq_arc *a, *old;

	pthread_mutex_lock(&s->lock);
	for (a = s->list; a; a = a->next)
		if (a->ino == ino && a->dev == dev)
			a->gone = true;
	old = surplus(s);
	pthread_mutex_unlock(&s->lock);
	free_all(old);
}
