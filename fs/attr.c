/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "fs.h"

void eq_attr_complain(struct eq_fs *fs, struct eq_node *n, const char *text)
{
	if (text[0] && !eq_node_logged(n, text))
		eq_log(&fs->log, EQ_LOG_ERROR, "%s", text);
}

int eq_attr_archive(struct eq_fs *fs, struct eq_node *n, struct eq_arc **out)
{
	struct eq_error err = { "" };
	char path[PATH_MAX];
	int rc;

	eq_node_path(&fs->nodes, n, path, sizeof(path) - sizeof(EQ_SUFFIX));
	strcat(path, EQ_SUFFIX);
	rc = eq_arc_get(&fs->arcs, n->fd, path, out, &err);
	if (rc)
		eq_attr_complain(fs, n, err.text);
	return rc;
}

static bool meta_fits(const struct eq_meta *m, const struct stat *st)
{
	return m->known && m->stored == st->st_size &&
	       eq_time_compare(&m->ctim, &st->st_ctim) == 0;
}

/* 0 or -errno. */
static int meta_get(struct eq_fs *fs, struct eq_node *n, const struct stat *st, struct eq_meta *m)
{
	struct eq_arc *arc;
	int rc;

	pthread_mutex_lock(&n->lock);
	*m = n->meta;
	pthread_mutex_unlock(&n->lock);
	if (meta_fits(m, st))
		return 0;
	/* A damaged archive is listed with its own size and time. */
	m->ctim = st->st_ctim;
	m->stored = st->st_size;
	m->size = (uint64_t)st->st_size;
	m->mtime = st->st_mtim;
	rc = eq_attr_archive(fs, n, &arc);
	if (rc < 0 && rc >= -4095)
		return rc; /* it may pass, and a size that is wrong is worse than none */
	m->known = true;
	if (!rc) {
		m->size = arc->info->size;
		if (!eq_mtime_get(n->fd, &m->mtime)) {
			m->mtime.tv_sec = arc->info->mtime_s;
			m->mtime.tv_nsec = arc->info->mtime_ns;
		}
		eq_arc_put(&fs->arcs, arc);
	}
	pthread_mutex_lock(&n->lock);
	n->meta = *m;
	pthread_mutex_unlock(&n->lock);
	return 0;
}

int eq_attr_get(struct eq_fs *fs, struct eq_node *n, struct stat *st)
{
	struct eq_meta m;
	bool archive;
	int rc;

	pthread_mutex_lock(&n->lock); /* or it could become the other one in between */
	archive = n->archive;
	rc = fstat(n->fd, st) ? -errno : 0;
	pthread_mutex_unlock(&n->lock);
	if (rc)
		return rc;
	if (archive) {
		rc = meta_get(fs, n, st, &m);
		if (!n->archive)        /* restored meanwhile */
			return eq_attr_get(fs, n, st);
		if (rc)
			return rc;
		st->st_size = (off_t)m.size;
		st->st_mtim = m.mtime;
	}
	return 0;
}
