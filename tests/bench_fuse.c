/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ceiling of bench_mount.py: a filesystem of one file whose bytes lie in memory,
 * served by the same libfuse with the settings of eqfs.
 *
 *     bench_fuse MOUNTPOINT NAME SIZE WINDOW
 *
 * The file has SIZE bytes. They repeat after WINDOW bytes: with SIZE the file is all
 * in memory, with less its bytes come from buffers that stay in the processor's
 * cache and lie in huge pages, like those of our decoder: the kernel reads these faster
 * than the memory of a file.
 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tune.h"

#define INO 2
#define TIMEOUT 3600.0
#define HUGE_PAGE ((size_t)2 << 20)
#define REQUEST ((size_t)1 << 20)       /* the window is longer by that */

static struct {
	const char *mountpoint, *name;
	size_t size, window;
	char *data;
	_Atomic bool tuned;
} fs;

static void attr(fuse_ino_t ino, struct stat *st)
{
	memset(st, 0, sizeof(*st));
	st->st_ino = ino;
	st->st_nlink = 1;
	st->st_mode = ino == INO ? S_IFREG | 0444 : S_IFDIR | 0555;
	st->st_size = ino == INO ? (off_t)fs.size : 0;
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	(void)userdata;
	eq_tune_conn(conn);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param e = { .ino = INO, .attr_timeout = TIMEOUT,
				      .entry_timeout = TIMEOUT };

	if (parent != FUSE_ROOT_ID || strcmp(name, fs.name)) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	attr(INO, &e.attr);
	fuse_reply_entry(req, &e);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;

	(void)fi;
	attr(ino, &st);
	fuse_reply_attr(req, &st, TIMEOUT);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	if (!atomic_exchange(&fs.tuned, true) && eq_tune_read_ahead(fs.mountpoint))
		fprintf(stderr, "bench_fuse: the kernel's readahead stays as it is\n");
	fi->keep_cache = 1;
	fuse_reply_open(req, fi);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		    struct fuse_file_info *fi)
{
	size_t at = (size_t)off;

	(void)ino, (void)fi;
	if (at >= fs.size)
		size = 0;
	else if (size > fs.size - at)
		size = fs.size - at;
	if (size > REQUEST)
		fuse_reply_err(req, EINVAL);
	else
		fuse_reply_buf(req, fs.data + at % fs.window, size);
}

static const struct fuse_lowlevel_ops ops = {
	.init = op_init,
	.lookup = op_lookup,
	.getattr = op_getattr,
	.open = op_open,
	.read = op_read,
};

static int serve(struct fuse_session *se)
{
	struct fuse_loop_config *config = eq_tune_loop();
	int rc = -1;

	if (config && fuse_set_signal_handlers(se) == 0) {
		if (fuse_session_mount(se, fs.mountpoint) == 0) {
			rc = fuse_session_loop_mt(se, config);
			fuse_session_unmount(se);
		}
		fuse_remove_signal_handlers(se);
	}
	fuse_loop_cfg_destroy(config);
	return rc < 0;
}

int main(int argc, char **argv)
{
	char *options[] = { argv[0], "-ofsname=bench_fuse,ro", NULL };
	struct fuse_args args = FUSE_ARGS_INIT(2, options);
	struct fuse_session *se;
	size_t room;
	int rc;

	if (argc != 5) {
		fprintf(stderr, "usage: bench_fuse MOUNTPOINT NAME SIZE WINDOW\n");
		return 2;
	}
	fs.mountpoint = argv[1];
	fs.name = argv[2];
	fs.size = strtoull(argv[3], NULL, 10);
	fs.window = strtoull(argv[4], NULL, 10);
	room = (fs.window + REQUEST + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
	fs.data = fs.window ? aligned_alloc(HUGE_PAGE, room) : NULL;
	if (!fs.data) {
		fprintf(stderr, "bench_fuse: no memory for %s bytes\n", argv[4]);
		return 1;
	}
	if (fs.window < fs.size)
		madvise(fs.data, room, MADV_HUGEPAGE);
	memset(fs.data, 0x5a, room);
	se = fuse_session_new(&args, &ops, sizeof(ops), NULL);
	rc = se ? serve(se) : 1;
	if (se)
		fuse_session_destroy(se);
	free(fs.data);
	return rc;
}
