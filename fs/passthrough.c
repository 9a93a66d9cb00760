/* SPDX-License-Identifier: Apache-2.0 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <sys/ioctl.h>

#include "passthrough.h"

#ifdef HAVE_FUSE_PASSTHROUGH

/* As FUSE_DEV_IOC_BACKING_CLOSE in newer <linux/fuse.h>. */
#define BACKING_CLOSE _IOW(229, 2, uint32_t)

void eq_pass_init(struct eq_fs *fs, struct fuse_conn_info *conn)
{
	if (!(conn->capable & FUSE_CAP_PASSTHROUGH)) {
		eq_log(&fs->log, EQ_LOG_INFO, "plain files go by eqfs: the kernel has no passthrough");
		return;
	}
	if (!fs->privileged) { /* the kernel would refuse each file */
		eq_log(&fs->log, EQ_LOG_INFO, "plain files go by eqfs: passthrough is for root");
		return;
	}
	conn->want |= FUSE_CAP_PASSTHROUGH;
	conn->max_backing_stack_depth = 1;
	fs->pass = true;
	eq_log(&fs->log, EQ_LOG_INFO, "plain files are passed through by the kernel");
}

/* Under n->lock. Not by libfuse's function, which wants a request: an open that was
 * interrupted has none any more. */
static void forget_backing(struct eq_fs *fs, struct eq_node *n)
{
	uint32_t id = (uint32_t)n->backing;

	if (id)
		(void)ioctl(fuse_session_fd(fs->se), BACKING_CLOSE, &id);
	n->backing = 0;
}

static int new_backing(fuse_req_t req, struct eq_fs *fs, int fd)
{
	int id = fuse_passthrough_open(req, fd);

	if (id <= 0 && atomic_exchange(&fs->pass, false))
		eq_log(&fs->log, EQ_LOG_WARN, "no more passthrough, the kernel has refused it: %s",
		       eq_strerror(-errno));
	return id > 0 ? id : 0;
}

void eq_pass_open(fuse_req_t req, struct eq_fs *fs, struct eq_file *f, int fd,
		  struct fuse_file_info *fi)
{
	struct eq_node *n = f->node;
	/* What was an archive when it was opened may be about to change. */
	bool settled;

	pthread_mutex_lock(&n->lock);
	settled = !f->arc || (n->archive && !n->unsettled);
	/* Whoever mapped it to write shares the file below with who comes now. */
	if (!n->opens++ && fs->pass && fd >= 0 && (!n->writers || n->written_past) && settled)
		n->backing = new_backing(req, fs, fd);
	f->opened = true;
	if (n->backing) {
		f->passed = true;
		n->written_past |= f->writer;
		fi->backing_id = n->backing;
		fi->keep_cache = 0; /* it has none */
		eq_count(&fs->stats.passed, 1);
	}
	pthread_mutex_unlock(&n->lock);
}

void eq_pass_close(struct eq_fs *fs, struct eq_file *f)
{
	struct eq_node *n = f->node;

	if (!f->opened)
		return;
	pthread_mutex_lock(&n->lock);
	f->opened = false;
	if (--n->opens == 0)
		forget_backing(fs, n);
	pthread_mutex_unlock(&n->lock);
}

bool eq_pass_held(struct eq_node *n)
{
	bool held;

	pthread_mutex_lock(&n->lock);
	held = n->opens && n->backing;
	n->unsettled = true;
	pthread_mutex_unlock(&n->lock);
	return held;
}

void eq_pass_back(struct eq_node *n)
{
	pthread_mutex_lock(&n->lock);
	n->unsettled = false;
	pthread_mutex_unlock(&n->lock);
}

#else /* libfuse before 3.17 */

void eq_pass_init(struct eq_fs *fs, struct fuse_conn_info *conn)
{
	(void)conn;
	eq_log(&fs->log, EQ_LOG_INFO, "plain files go by eqfs: its libfuse has no passthrough");
}

void eq_pass_open(fuse_req_t req, struct eq_fs *fs, struct eq_file *f, int fd,
		  struct fuse_file_info *fi)
{
	(void)req, (void)fs, (void)f, (void)fd, (void)fi;
}

void eq_pass_close(struct eq_fs *fs, struct eq_file *f)
{
	(void)fs, (void)f;
}

bool eq_pass_held(struct eq_node *n)
{
	(void)n;
	return false;
}

void eq_pass_back(struct eq_node *n)
{
	(void)n;
}

#endif
