/* SPDX-License-Identifier: Apache-2.0 */
/* What a file takes over from the one that it replaces, beyond what stat() shows. By way of
 * /proc, because descriptors may be from O_PATH. */
#include "config.h"

#include <errno.h>
#include <linux/limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "eqcodec.h"

#define XATTR_OWN "user.eqfs."  /* what a mount says, not what a user set */
#define XATTR_ACL "system.posix_acl_access"
#define PROC_PATH 32

static void proc_path(char path[PROC_PATH], int fd)
{
	snprintf(path, PROC_PATH, "/proc/self/fd/%d", fd);
}

static bool of_user(const char *name)
{
	return !strncmp(name, "user.", 5) && strncmp(name, XATTR_OWN, sizeof(XATTR_OWN) - 1);
}

/* Remove what `from` has not. `list` has room for XATTR_LIST_MAX bytes. */
static void remove_others(const char *from, const char *to, char *list)
{
	ssize_t len = listxattr(to, list, XATTR_LIST_MAX);
	const char *p;

	for (p = list; len > 0 && p < list + len; p += strlen(p) + 1)
		if (of_user(p) && getxattr(from, p, NULL, 0) < 0 && errno == ENODATA)
			(void)!removexattr(to, p);
}

void eq_xattrs_copy(int from, int to)
{
	char path[PROC_PATH], target[PROC_PATH], *value, *p;
	char *names = malloc(XATTR_LIST_MAX + XATTR_SIZE_MAX);
	ssize_t len = -1, n;

	proc_path(path, from);
	proc_path(target, to);
	if (names)
		len = listxattr(path, names, XATTR_LIST_MAX);
	value = names + XATTR_LIST_MAX;
	for (p = names; len > 0 && p < names + len; p += strlen(p) + 1) {
		if (!of_user(p))
			continue;
		n = getxattr(path, p, value, XATTR_SIZE_MAX);
		if (n >= 0)
			(void)!fsetxattr(to, p, value, (size_t)n, 0);
	}
	/* What the directory gives to whatever is made in it is not of that file. */
	n = names ? getxattr(path, XATTR_ACL, value, XATTR_SIZE_MAX) : -1;
	if (n >= 0)
		(void)!fsetxattr(to, XATTR_ACL, value, (size_t)n, 0);
	else
		(void)!fremovexattr(to, XATTR_ACL);
	if (names)
		remove_others(path, target, names);
	free(names);
}

bool eq_mtime_get(int fd, struct timespec *out)
{
	char path[PROC_PATH], text[40];
	long long sec;
	long nsec;
	ssize_t len;
	int used = 0;

	proc_path(path, fd);
	len = getxattr(path, EQ_XATTR_MTIME, text, sizeof(text) - 1);
	if (len <= 0)
		return false;
	text[len] = '\0';
	if (sscanf(text, "%lld.%9ld%n", &sec, &nsec, &used) != 2 || used != len || nsec < 0 ||
	    nsec > 999999999)
		return false;
	out->tv_sec = sec;
	out->tv_nsec = nsec;
	return true;
}

int eq_mtime_set(int fd, const struct timespec *t)
{
	char path[PROC_PATH], text[40];
	int len = snprintf(text, sizeof(text), "%lld.%09ld", (long long)t->tv_sec, t->tv_nsec);

	proc_path(path, fd);
	return setxattr(path, EQ_XATTR_MTIME, text, (size_t)len, 0) ? -errno : 0;
}
