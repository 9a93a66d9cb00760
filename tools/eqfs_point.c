/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "eqfs_point.h"

extern char **environ;

/* The value behind `key` of a descriptor's entry in /proc, or -1. */
static long fd_info(int fd, const char *key)
{
	char path[64], line[128];
	long value = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "re");
	while (f && value < 0 && fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key)))
			value = strtol(line + strlen(key), NULL, 10);
	if (f)
		fclose(f);
	return value;
}

/* Does it lie in a mount of eqfs, live or not? */
static bool is_ours(int fd)
{
	long id = fd_info(fd, "mnt_id:"), at;
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t room = 0;
	bool ours = false;

	while (f && !ours && getline(&line, &room, f) > 0)
		ours = sscanf(line, "%ld", &at) == 1 && at == id && strstr(line, " - fuse.eqfs ");
	free(line);
	if (f)
		fclose(f);
	return ours;
}

/* As fusermount3 does it, which may unmount what this user has mounted. */
static bool detach_as_user(char *path)
{
	char *argv[] = { "fusermount3", "-u", "-z", "-q", "--", path, NULL };
	int status;
	pid_t pid;

	return posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ) == 0 &&
	       waitpid(pid, &status, 0) == pid && status == 0;
}

static bool detach(int fd)
{
	char link[64], path[PATH_MAX];
	ssize_t len;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	len = readlink(link, path, sizeof(path) - 1);
	if (len <= 0)
		return false;
	path[len] = '\0';
	return umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0 || detach_as_user(path);
}

int eq_point_open(const char *path, bool *revived, struct eq_error *err)
{
	struct stat st;
	int fd, rc;

	*revived = false;
	for (;;) { /* they may lie over one another */
		fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0)
			return eq_fail(err, -errno, "%s: %s", path, eq_strerror(-errno));
		rc = fstat(fd, &st) ? -errno : 0;
		if (!rc)
			return fd;
		if (rc != -ENOTCONN || !is_ours(fd) || !detach(fd))
			break;
		*revived = true;
		close(fd);
	}
	close(fd);
	return eq_fail(err, rc, "%s: %s", path, eq_strerror(rc));
}
