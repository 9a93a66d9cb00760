/* SPDX-License-Identifier: Apache-2.0 */
/* Files of the library: archives, and files of a mounted store that are kept as such. */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "lib_priv.h"

static_assert(EQFS_ECORRUPT == EQ_ECORRUPT && EQFS_EUNSUP == EQ_EUNSUP &&
	      EQFS_ELIMIT == EQ_ELIMIT && EQFS_ENOTEQAR == EQ_ENOTEQAR &&
	      sizeof(struct eqfs_error) == sizeof(struct eq_error), "libeqfs.h");

/* ---- mounted stores ------------------------------------------------------------- */

/* Undo the octal escapes of /proc/self/mountinfo, in place. */
static void unescape(char *s)
{
	char *to = s;

	for (; *s; s++) {
		if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' &&
		    s[3] >= '0' && s[3] <= '7') {
			*to++ = (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
			s += 3;
		} else {
			*to++ = *s;
		}
	}
	*to = '\0';
}

/* Is this line of mountinfo an eqfs mount of the device? Then its mount point and
 * the store, both within the line. */
static bool mount_line(char *line, dev_t dev, char **point, char **store)
{
	char *field[6], *save, *type;
	unsigned ma, mi;
	size_t i;

	for (i = 0; i < 6; i++) {
		field[i] = strtok_r(i ? NULL : line, " \n", &save);
		if (!field[i])
			return false;
	}
	if (sscanf(field[2], "%u:%u", &ma, &mi) != 2 || makedev(ma, mi) != dev ||
	    strcmp(field[3], "/") != 0)
		return false;
	do { /* optional fields, up to a dash */
		type = strtok_r(NULL, " \n", &save);
	} while (type && strcmp(type, "-") != 0);
	type = strtok_r(NULL, " \n", &save);
	*store = strtok_r(NULL, " \n", &save);
	*point = field[4];
	if (!type || strcmp(type, "fuse.eqfs") != 0 || !*store || **store != '/')
		return false;
	unescape(*point);
	unescape(*store);
	return true;
}

/* The store's path of a file that is in an eqfs mount, malloc'ed; NULL: none. */
static char *store_path(const char *path, dev_t dev)
{
	char *real = realpath(path, NULL), *line = NULL, *point, *store, *found = NULL;
	FILE *f = fopen("/proc/self/mountinfo", "re");
	size_t size = 0, len;

	while (real && f && !found && getline(&line, &size, f) > 0) {
		if (!mount_line(line, dev, &point, &store))
			continue;
		len = strlen(point);
		if (strncmp(real, point, len) == 0 && real[len] == '/' &&
		    asprintf(&found, "%s%s", store, real + len) < 0)
			found = NULL;
	}
	if (f)
		fclose(f);
	free(line);
	free(real);
	return found;
}

/* Instead of *fd, a file that is no archive: the archive that it is a view of, if it
 * is one. *name is what to call it, malloc'ed. */
static int open_behind(const char *path, int *fd, char **name, struct eq_error *err)
{
	struct stat st;
	char *plain = fstat(*fd, &st) ? NULL : store_path(path, st.st_dev);
	int rc = 0;

	*name = NULL;
	if (!plain)
		return eq_fail(err, EQ_ENOTEQAR, "%s: not an archive", path);
	close(*fd);
	*fd = -1;
	if (asprintf(name, "%s" EQ_SUFFIX, plain) < 0) {
		*name = NULL;
		rc = eq_fail(err, -ENOMEM, "%s: out of memory", path);
	} else if (access(plain, F_OK) == 0) { /* the plain file wins */
		rc = eq_fail(err, EQ_ENOTEQAR, "%s: not encoded: %s is a plain file", path, plain);
	} else {
		*fd = open(*name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		if (*fd < 0)
			rc = eq_fail(err, -errno, "%s: its archive %s: %s", path, *name,
				     strerror(errno));
	}
	free(plain);
	return rc;
}

/* ---- files ------------------------------------------------------------------------ */

static int archive_open(const char *path, struct eq_archive **out, struct eq_error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc;
	char *name = NULL;

	*out = NULL;
	if (fd < 0)
		return eq_fail(err, -errno, "%s: %s", path, strerror(errno));
	rc = eq_archive_open(fd, path, out, err);
	if (rc == EQ_ENOTEQAR) {
		rc = open_behind(path, &fd, &name, err);
		if (rc == 0)
			rc = eq_archive_open(fd, name, out, err);
		free(name);
	}
	if (rc && fd >= 0)
		close(fd);
	return rc;
}

int eqfs_file_open(const char *path, struct eqfs_file **out, struct eqfs_error *err)
{
	const struct eq_tensor_info *info;
	struct eq_archive *a;
	struct eqfs_file *f;
	size_t n, i;
	int rc;

	*out = NULL;
	rc = archive_open(path, &a, eq_lib_error(err));
	if (rc)
		return rc;
	n = eq_archive_info(a)->n_tensors;
	info = eq_archive_tensors(a);
	f = malloc(sizeof(*f) + n * sizeof(f->tensor[0]));
	if (!f) {
		eq_archive_close(a);
		return eq_fail(eq_lib_error(err), -ENOMEM, "%s: out of memory", path);
	}
	f->archive = a;
	f->n = n;
	for (i = 0; i < n; i++)
		f->tensor[i] = (struct eqfs_tensor){
			.name = info[i].name, .dtype = eq_dtype_name(info[i].dtype),
			.bits = eq_dtype_bits(info[i].dtype), .ndim = info[i].ndim,
			.shape = info[i].dims, .n_bytes = info[i].n_bytes,
			.stored = info[i].stored, .lossy = info[i].lossy,
			.name_len = info[i].name_len,
		};
	*out = f;
	return 0;
}

void eqfs_file_close(struct eqfs_file *f)
{
	if (!f)
		return;
	eq_archive_close(f->archive);
	free(f);
}

size_t eqfs_file_count(const struct eqfs_file *f)
{
	return f->n;
}

const struct eqfs_tensor *eqfs_file_tensor(const struct eqfs_file *f, size_t i)
{
	return i < f->n ? &f->tensor[i] : NULL;
}

const char *eqfs_file_header(const struct eqfs_file *f, size_t *len)
{
	/* The prefix is the length of the text, then the text. */
	*len = (size_t)eq_archive_info(f->archive)->prefix_len - 8;
	return (const char *)eq_archive_prefix(f->archive) + 8;
}
