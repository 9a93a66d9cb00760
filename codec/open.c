/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening what lies in a directory, and nothing else: names may come from strangers,
 * and change their meaning while they are looked at.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "eqcodec.h"

int eq_open_in(int dirfd, const char *name, int flags)
{
	const struct open_how how = { .flags = (uint64_t)(flags | O_NOFOLLOW | O_CLOEXEC),
				      .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS };
	long fd;

	if (strchr(name, '/') || !strcmp(name, ".."))
		return -ENOENT;
	fd = syscall(SYS_openat2, dirfd, name, &how, sizeof(how));
	/* An old kernel, or a filter that knows only old calls: with a single component
	 * that is not followed there is no difference. */
	if (fd < 0 && (errno == ENOSYS || errno == EPERM))
		fd = openat(dirfd, name, flags | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : (int)fd;
}

int eq_open_regular(int dirfd, const char *name, struct stat *st)
{
	char path[32];
	int at = eq_open_in(dirfd, name, O_PATH), fd;

	if (at < 0)
		return at;
	/* Looked at before it is opened: opening a device may have an effect. */
	if (fstat(at, st)) {
		fd = -errno;
	} else if (!S_ISREG(st->st_mode)) {
		fd = S_ISLNK(st->st_mode) ? -ELOOP : -EINVAL;
	} else {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", at);
		fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		if (fd < 0)
			fd = -errno;
	}
	close(at);
	return fd;
}
