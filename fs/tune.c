/* SPDX-License-Identifier: Apache-2.0 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tune.h"

#define MAX_THREADS 32

void eq_tune_conn(struct fuse_conn_info *conn)
{
	conn->max_background = 64;
	conn->congestion_threshold = 48;
}

struct fuse_loop_config *eq_tune_loop(void)
{
	struct fuse_loop_config *config = fuse_loop_cfg_create();

	if (config) {
		fuse_loop_cfg_set_max_threads(config, MAX_THREADS);
		fuse_loop_cfg_set_idle_threads(config, MAX_THREADS);
	}
	return config;
}

int eq_tune_read_ahead(const char *mountpoint)
{
	char path[64];
	struct statx sx;
	int fd, rc = 0;

	/* Without a request to ourselves: who waits for his own answer cannot be
	 * killed. */
	if (statx(AT_FDCWD, mountpoint, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, 0, &sx))
		return -errno;
	snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", sx.stx_dev_major,
		 sx.stx_dev_minor);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, EQ_READ_AHEAD_KB, sizeof(EQ_READ_AHEAD_KB) - 1) < 0)
		rc = -errno;
	close(fd);
	return rc;
}
