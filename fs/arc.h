/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open archives, shared by all who use the same file. A few that nobody uses
 * stay open for the next one.
 */
#ifndef EQ_ARC_H
#define EQ_ARC_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "eqcodec.h"

struct eq_arc {
	uint64_t id;            /* no other arc of this process ever has it */
	struct eq_archive *archive;
	const struct eq_file_info *info;

	/* Belong to the registry. */
	dev_t dev;
	ino_t ino;
	off_t size;
	struct timespec mtim;
	int fd;                 /* the archive's */
	unsigned refs;
	bool gone;              /* not to be kept when nobody uses it */
	struct eq_arc *next;
};

struct eq_arcs {
	pthread_mutex_t lock;
	struct eq_arc *list;    /* the last used first */
	uint64_t last_id;
};

void eq_arcs_init(struct eq_arcs *s);
/* Closes all; none may be in use. */
void eq_arcs_fini(struct eq_arcs *s);
/*
 * The archive that the O_PATH descriptor stands for, with a reference. name is
 * for messages. 0, an error of eq_archive_open, or -errno.
 */
int eq_arc_get(struct eq_arcs *s, int path_fd, const char *name, struct eq_arc **out,
	       struct eq_error *err);
void eq_arc_ref(struct eq_arcs *s, struct eq_arc *a);
void eq_arc_put(struct eq_arcs *s, struct eq_arc *a); /* NULL is fine */
/* The file has no name any more: its room is given back with the last reference. What was
 * removed without our hearing of it is found out when an archive, any, is put. */
void eq_arcs_gone(struct eq_arcs *s, dev_t dev, ino_t ino);

#endif
