/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extended attributes: those of the file in the store, and user.eqfs.*, which
 * tell what eqfs has made of it and cannot be set. Those are not listed: mv, cp
 * -a, rsync and tar would carry them to files of which they are not true, and
 * complain where they cannot.
 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "compact.h"
#include "ops.h"

static bool is_ours(const char *name)
{
	return !strncmp(name, EQ_XATTR_PREFIX, sizeof(EQ_XATTR_PREFIX) - 1);
}

/* The codec that holds most of the bytes. */
static const char *main_codec(const struct eq_arc *arc)
{
	const struct eq_tensor_info *t = eq_archive_tensors(arc->archive);
	size_t n = arc->info->n_tensors, i, k;
	const char *best = "raw";
	uint64_t most = 0, bytes;

	/* Few codecs, so each tensor that begins a codec sums it up. */
	for (i = 0; i < n; i++) {
		for (k = 0; k < i && strcmp(t[k].codec, t[i].codec); k++)
			;
		if (k < i)
			continue;
		for (bytes = 0; k < n; k++)
			bytes += strcmp(t[k].codec, t[i].codec) ? 0 : t[k].n_bytes;
		if (bytes > most) {
			most = bytes;
			best = t[i].codec;
		}
	}
	return best;
}

/* Each writes its text into buf and returns true, or says that the file has none. */
static bool get_codec(const struct eq_arc *arc, char *buf, size_t size)
{
	snprintf(buf, size, "%s", main_codec(arc));
	return true;
}

static bool get_bits(const struct eq_arc *arc, char *buf, size_t size)
{
	const struct eq_file_info *i = arc->info;

	if (!i->quant_params)
		return false;
	snprintf(buf, size, "%.4g", 8.0 * (double)i->quant_bytes / (double)i->quant_params);
	return true;
}

static bool get_error(const struct eq_arc *arc, char *buf, size_t size)
{
	snprintf(buf, size, "%.6g", arc->info->lossy ? arc->info->relative_l1 : 0.0);
	return true;
}

static bool get_sha256(const struct eq_arc *arc, char *buf, size_t size)
{
	size_t i;

	for (i = 0; i < sizeof(arc->info->sha256) && 2 * i + 2 < size; i++)
		snprintf(buf + 2 * i, 3, "%02x", arc->info->sha256[i]);
	return true;
}

static const struct {
	const char *name;       /* behind the prefix */
	bool (*get)(const struct eq_arc *arc, char *buf, size_t size);
} of_archives[] = {
	{ "codec", get_codec },
	{ "bits", get_bits },
	{ "error", get_error },
	{ "sha256", get_sha256 },
};

#define N_OF_ARCHIVES (sizeof(of_archives) / sizeof(of_archives[0]))

/* The text of user.eqfs.NAME, malloc'ed. 0, -ENODATA or an error. */
static int own_get(struct eq_fs *fs, struct eq_node *n, const char *name, char **out)
{
	char buf[EQ_STATE_SIZE];
	struct eq_arc *arc;
	bool has = false;
	size_t i;
	int rc;

	*out = NULL;
	if (n == fs->nodes.root && !strcmp(name, "policy")) {
		*out = strdup(fs->policy);
		return *out ? 0 : -ENOMEM;
	}
	if (S_ISREG(n->type) && !strcmp(name, "state")) {
		eq_compact_state(fs, n, buf);
		has = true;
	}
	for (i = 0; !has && n->archive && i < N_OF_ARCHIVES; i++) {
		if (strcmp(name, of_archives[i].name))
			continue;
		rc = eq_attr_archive(fs, n, &arc);
		if (rc)
			return rc;
		has = of_archives[i].get(arc, buf, sizeof(buf));
		eq_arc_put(&fs->arcs, arc);
		break;
	}
	if (!has)
		return -ENODATA;
	*out = strdup(buf);
	return *out ? 0 : -ENOMEM;
}

static void reply_value(fuse_req_t req, const char *value, size_t len, size_t size)
{
	if (!size)
		fuse_reply_xattr(req, len);
	else if (size < len)
		eq_reply(req, -ERANGE);
	else
		fuse_reply_buf(req, value, len);
}

void eq_op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct eq_node *n = eq_node_of(fs, ino);
	char path[EQ_PROC_SIZE], *own, *buf;
	ssize_t len;
	int rc;

	if (is_ours(name)) {
		rc = own_get(fs, n, name + sizeof(EQ_XATTR_PREFIX) - 1, &own);
		if (rc)
			eq_reply(req, rc);
		else
			reply_value(req, own, strlen(own), size);
		free(own);
		return;
	}
	buf = eq_scratch(fs, size);
	if (!buf) {
		eq_reply(req, -ENOMEM);
		return;
	}
	eq_proc_path(path, n->fd);
	len = getxattr(path, name, buf, size);
	if (len < 0)
		eq_reply(req, -errno);
	else
		reply_value(req, buf, (size_t)len, size);
}

void eq_op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	struct eq_fs *fs = eq_fs_of(req);
	char path[EQ_PROC_SIZE], *list = eq_scratch(fs, XATTR_LIST_MAX), *p;
	size_t len = 0, k;
	ssize_t all;

	if (!list) {
		eq_reply(req, -ENOMEM);
		return;
	}
	eq_proc_path(path, eq_node_of(fs, ino)->fd);
	all = listxattr(path, list, XATTR_LIST_MAX);
	if (all < 0 && errno != ENOTSUP) {
		eq_reply(req, -errno);
		return;
	}
	for (p = list; all > 0 && p < list + all; p += k) {
		k = strlen(p) + 1;
		if (is_ours(p))
			continue;
		memmove(list + len, p, k);
		len += k;
	}
	reply_value(req, list, len, size);
}

static int settable(struct eq_node *n, const char *name)
{
	if (is_ours(name))
		return -EPERM;
	return n->swapped ? -ESTALE : 0;
}

void eq_op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
		    size_t size, int flags)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct eq_node *n = eq_node_of(fs, ino);
	char path[EQ_PROC_SIZE];
	int rc;

	eq_proc_path(path, n->fd);
	pthread_rwlock_rdlock(&fs->names);
	rc = settable(n, name);
	if (!rc && setxattr(path, name, value, size, flags))
		rc = -errno;
	pthread_rwlock_unlock(&fs->names);
	eq_reply(req, rc);
}

void eq_op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct eq_node *n = eq_node_of(fs, ino);
	char path[EQ_PROC_SIZE];
	int rc;

	eq_proc_path(path, n->fd);
	pthread_rwlock_rdlock(&fs->names);
	rc = settable(n, name);
	if (!rc && removexattr(path, name))
		rc = -errno;
	pthread_rwlock_unlock(&fs->names);
	eq_reply(req, rc);
}
