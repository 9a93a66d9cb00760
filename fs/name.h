/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How names in the mount map to names in the store: NAME is the plain file NAME,
 * or else the archive NAME.eqar.
 */
#ifndef EQ_NAME_H
#define EQ_NAME_H

#include <limits.h>
#include <stdbool.h>
#include <sys/stat.h>

/* An open file's path, for calls that take no O_PATH descriptor. */
#define EQ_PROC_SIZE 32
void eq_proc_path(char buf[EQ_PROC_SIZE], int fd);

/* Is this the name that an archive has in the store? */
bool eq_name_is_archive(const char *name);
/* Is the file still being written by a downloader, whatever its contents? */
bool eq_name_is_partial(const char *name);
/* The name of NAME's archive. 0 or -ENAMETOOLONG. */
int eq_name_archive(const char *name, char out[NAME_MAX + 1]);
/* May something of this type be made under this name in the mount? 0 or -EPERM. */
int eq_name_allowed(const char *name, mode_t type);

struct eq_found {
	int fd;                 /* O_PATH | O_NOFOLLOW */
	bool archive;
	struct stat st;
};

/*
 * What NAME is in the directory dirfd; the caller closes f->fd. Symbolic links
 * are not followed. 0, -ENOENT (also for names that the mount hides) or -errno,
 * and f->fd is -1 then.
 */
int eq_name_find(int dirfd, const char *name, struct eq_found *f);
/* The same without opening: just f->archive and f->st. */
int eq_name_stat(int dirfd, const char *name, struct eq_found *f);

/* Remove the archive that the plain file NAME hides, if there is one. 0 or -errno. */
int eq_name_bury(int dirfd, const char *name);
/*
 * Mark a plain file (any descriptor) that takes the place of an archive, until that
 * is gone: a crash in between leaves both, and which is right must be known. Best
 * effort: there may be no extended attributes.
 */
void eq_stale_mark(int fd, bool on);
/* What a crash has left so is put right. The caller keeps others from the names. */
void eq_stale_bury(int dirfd, const char *name, int fd);

#endif
