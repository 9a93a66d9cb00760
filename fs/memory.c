/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "config.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"

/* The files of a group, and keys in memory.stat. Of what it uses, the kernel gives page cache back. */
static const struct names {
	const char *limit, *used, *inactive, *active;
} versions[] = {
	{ "memory.max", "memory.current", "inactive_file ", "active_file " },
	{ "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ",
	  "total_active_file " },
};

static FILE *open_at(const char *directory, const char *name)
{
	char path[PATH_MAX];

	if ((size_t)snprintf(path, sizeof(path), "%s/%s", directory, name) >= sizeof(path))
		return NULL;
	return fopen(path, "re");
}

/* The number behind a key at the beginning of a line; fallback, if there is none. */
static uint64_t number_in(const char *directory, const char *name, const char *key,
			  uint64_t fallback)
{
	const size_t len = strlen(key);
	FILE *f = open_at(directory, name);
	uint64_t n = fallback;
	char line[256], *end;

	while (f && fgets(line, sizeof(line), f)) {
		if (strncmp(line, key, len))
			continue;
		n = strtoull(line + len, &end, 10);
		if (end == line + len) /* "max" */
			n = fallback;
		break;
	}
	if (f)
		fclose(f);
	return n;
}

/* What one group has left. */
static uint64_t room_of(const char *group, const struct names *v)
{
	const uint64_t limit = number_in(group, v->limit, "", UINT64_MAX);
	uint64_t used, cached;

	if (limit == UINT64_MAX)
		return limit;
	used = number_in(group, v->used, "", 0);
	cached = number_in(group, "memory.stat", v->inactive, 0) +
		 number_in(group, "memory.stat", v->active, 0);
	used -= cached < used ? cached : used;
	return used < limit ? limit - used : 0;
}

/* The least that one of the groups from path up to the top of the hierarchy has. */
static uint64_t room_above(char *path, size_t top_len, const struct names *v)
{
	uint64_t least = UINT64_MAX, room;

	for (;;) {
		room = room_of(path, v);
		if (room < least)
			least = room;
		if (strlen(path) <= top_len)
			return least;
		*strrchr(path, '/') = '\0';
	}
}

/* Is this a line of /proc/self/mountinfo that says where groups of that version are? Their
 * root and the mountpoint, at most PATH_MAX bytes each. */
static bool hierarchy(const char *line, bool v1, char *root, char *point)
{
	const char *type = strstr(line, " - "), *options;

	if (!type || sscanf(line, "%*s %*s %*s %4095s %4095s", root, point) != 2)
		return false;
	if (!v1)
		return !strncmp(type, " - cgroup2 ", 11);
	options = strrchr(type, ' '); /* the last word */
	return !strncmp(type, " - cgroup ", 10) && options && strstr(options, ",memory");
}

/* Our group, from /proc/self/cgroup: "0::PATH", or "N:...memory...:PATH". */
static bool group_path(const char *root, bool v1, char *path)
{
	FILE *f = open_at(root, "proc/self/cgroup");
	char *line = NULL, *names, *at;
	bool found = false;
	size_t size = 0;

	while (f && !found && getline(&line, &size, f) > 0) {
		line[strcspn(line, "\n")] = '\0';
		names = strchr(line, ':');
		at = names ? strchr(names + 1, ':') : NULL;
		if (!at)
			continue;
		*at++ = '\0';
		found = v1 ? strstr(names, "memory") != NULL : !names[1];
		if (found)
			snprintf(path, PATH_MAX, "%s", at);
	}
	free(line);
	if (f)
		fclose(f);
	return found;
}

static uint64_t groups_room(const char *root, bool v1)
{
	char top[PATH_MAX], point[PATH_MAX], group[PATH_MAX], path[3 * PATH_MAX];
	FILE *f = open_at(root, "proc/self/mountinfo");
	const char *below;
	char *line = NULL;
	size_t size = 0, len;
	bool found = false;

	while (f && !found && getline(&line, &size, f) > 0)
		found = hierarchy(line, v1, top, point);
	free(line);
	if (f)
		fclose(f);
	if (!found || !group_path(root, v1, group))
		return UINT64_MAX;
	/* What is mounted may be our group alone, or one above it. */
	len = strcmp(top, "/") ? strlen(top) : 0;
	below = strncmp(group, top, len) || !strcmp(group + len, "/") ? "" : group + len;
	snprintf(path, sizeof(path), "%s%s%s", root, point, below);
	return room_above(path, strlen(root) + strlen(point), &versions[v1]);
}

uint64_t eq_memory_available(const char *root)
{
	const uint64_t kib = number_in(*root ? root : "/", "proc/meminfo", "MemAvailable:",
				       UINT64_MAX >> 10);
	uint64_t least = kib << 10, room;

	for (int v1 = 0; v1 < 2; v1++) {
		room = groups_room(root, v1);
		if (room < least)
			least = room;
	}
	return least;
}
