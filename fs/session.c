/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Life of a mount. A thread of its own waits for signals, because the worker
 * that encodes must be stopped while requests are still being answered: it may
 * be telling the kernel of a swap, and the kernel may have to wait for one of
 * our answers before it listens.
 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "caps.h"
#include "compact.h"
#include "ops.h"
#include "scan.h"
#include "trim.h"
#include "tune.h"

/* Bytes to decode ahead of a reader. What the CPU decodes should still be in its caches
 * when it is copied; a device wants several launches at once. */
#define CPU_WINDOW ((uint64_t)8 << 20)
#define DEVICE_WINDOW ((uint64_t)32 << 20)
#define STOP_SECONDS 10.0       /* for threads to notice that they should end */
#define HURRY_SECONDS 1.0       /* the same, after a second signal */
#define NAP_MS 5
#define MEMORY_NAP_MS 100       /* for memory to come */
#define START_SECONDS 10        /* for the kernel to ask for something */

struct session {
	struct eq_fs fs;
	pthread_t main, signals;
	sigset_t set;
	_Atomic bool ending;    /* the loop is to return */
	_Atomic bool ended;     /* it has */
	bool up;                /* fs is initialised */
	_Atomic bool asked;     /* somebody wants the end, by a signal */
	bool hurry;             /* a second signal has come */
	bool stuck;             /* a thread beside the loop did not stop and still uses fs */
};

/* ---- the store ----------------------------------------------------------------- */

int eq_store_lock(int store_fd, bool read_only)
{
	if (flock(store_fd, (read_only ? LOCK_SH : LOCK_EX) | LOCK_NB) == 0)
		return 0;
	return errno == EWOULDBLOCK ? -EBUSY : -errno;
}

static bool same(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Is `inner` the directory `outer` or below it? 1, 0 or -errno. */
static int below(int inner, int outer)
{
	struct stat want, at, up;
	int fd, next, rc = 0;

	if (fstat(outer, &want))
		return -errno;
	fd = openat(inner, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &at))
		rc = -errno;
	while (!rc && !same(&at, &want)) {
		next = openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (next < 0 || fstat(next, &up))
			rc = -errno;
		if (!rc && same(&at, &up)) {
			close(next);
			break; /* the root */
		}
		close(fd);
		fd = next;
		at = up;
	}
	if (!rc)
		rc = same(&at, &want);
	if (fd >= 0)
		close(fd);
	return rc;
}

int eq_store_overlap(int store_fd, int mountpoint_fd)
{
	int rc = below(mountpoint_fd, store_fd);

	if (rc)
		return rc;
	rc = below(store_fd, mountpoint_fd);
	return rc > 0 ? 2 : rc;
}

/* ---- readahead ------------------------------------------------------------------ */

void eq_session_tune(struct eq_fs *fs)
{
	int rc;

	if (atomic_load_explicit(&fs->tuned, memory_order_relaxed) ||
	    atomic_exchange(&fs->tuned, true))
		return;
	rc = eq_tune_read_ahead(fs->m->mountpoint);
	if (rc)
		eq_log(&fs->log, EQ_LOG_INFO, "the kernel reads ahead what it likes (%s)",
		       eq_strerror(rc));
	else
		eq_log(&fs->log, EQ_LOG_INFO, "the kernel reads ahead " EQ_READ_AHEAD_KB " KiB");
}

/* ---- threads beside the loop ------------------------------------------------- */

static bool drained(struct session *s)
{
	return eq_compact_ended(s->fs.compact);
}

/* Have the threads beside the loop, which use fs, come to an end? */
static bool stopped(struct session *s)
{
	return (!s->fs.trim || eq_trim_ended(s->fs.trim)) &&
	       (!s->fs.scan || eq_scan_ended(s->fs.scan)) &&
	       (!s->fs.hot || eq_hot_ended(s->fs.hot)) &&
	       (!s->fs.ahead || eq_ahead_ended(s->fs.ahead)) &&
	       (!s->fs.compact || eq_compact_ended(s->fs.compact));
}

/* Wait until it is done, for so many seconds, or until one more signal comes: who
 * sends that does not want to wait any longer. */
static bool wait_for(struct session *s, bool (*done)(struct session *s), double seconds)
{
	const struct timespec nap = { .tv_nsec = NAP_MS * 1000000 };
	double left = s->hurry && seconds > HURRY_SECONDS ? HURRY_SECONDS : seconds;

	for (; !done(s); left -= NAP_MS / 1e3) {
		if (left <= 0)
			return false;
		if (sigtimedwait(&s->set, NULL, &nap) > 0) {
			s->hurry = true;
			left = 0;
		}
	}
	return true;
}

static void stop_worker(struct session *s, double drain)
{
	struct eq_fs *fs = &s->fs;

	if (fs->compact && drain > 0) {
		eq_compact_drain(fs->compact);
		if (!wait_for(s, drained, drain))
			eq_log(&fs->log, EQ_LOG_INFO, "the next mount encodes what is left");
	}
	fs->ending = true;
	if (fs->trim)
		eq_trim_cancel(fs->trim);
	if (fs->scan)
		eq_scan_cancel(fs->scan);
	if (fs->hot)
		eq_hot_cancel(fs->hot);
	if (fs->ahead)
		eq_ahead_cancel(fs->ahead);
	if (fs->compact)
		eq_compact_cancel(fs->compact);
	s->stuck = !wait_for(s, stopped, STOP_SECONDS);
	if (s->stuck)
		eq_log(&fs->log, EQ_LOG_WARN, "work in the background does not end: leaving it");
}

static void wake(int sig)
{
	(void)sig;
}

/* Make the loop return: it looks at its flag only when its wait is interrupted. */
static bool stop_loop(struct session *s)
{
	s->ending = true;
	fuse_session_exit(s->fs.se);
	pthread_kill(s->main, SIGUSR2);
	return s->ended;
}

/* End the process, with threads that are caught. Requests that somebody waits for are
 * cut off first, or a thread of ours that waits for him in the kernel would wait on. */
static void leave(struct session *s)
{
	const char *point = s->fs.m->mountpoint;

	if (umount2(point, MNT_FORCE) && (errno != EBUSY || umount2(point, MNT_DETACH)))
		fuse_session_unmount(s->fs.se);
	_exit(EXIT_FAILURE);
}

static void *signals(void *arg)
{
	const struct timespec start = { .tv_sec = START_SECONDS };
	struct session *s = arg;
	int sig = sigtimedwait(&s->set, NULL, &start);

	if (sig < 0 && (s->fs.ready.up || errno != EAGAIN) && sigwait(&s->set, &sig))
		return NULL;
	if (sig < 0) { /* libfuse has lost its first request, and there is only one */
		stop_worker(s, 0);
		wait_for(s, stop_loop, STOP_SECONDS);
		return NULL;
	}
	eq_ready_stopping();
	if (s->ended) { /* unmounted: nobody would see that we are still at it */
		stop_worker(s, 0);
		return NULL;
	}
	s->asked = true;
	eq_log(&s->fs.log, EQ_LOG_INFO, "%s: unmounting", strsignal(sig));
	stop_worker(s, s->fs.m->drain);
	if (!wait_for(s, stop_loop, STOP_SECONDS)) {
		eq_log(&s->fs.log, EQ_LOG_WARN, "a request does not end: leaving it");
		leave(s);
	}
	return NULL;
}

/* ---- one mount ----------------------------------------------------------------- */

/* Each file that the kernel knows of takes a descriptor. */
static void raise_files(const struct eq_log *log)
{
	struct rlimit r, most;
	unsigned long n = 0;
	FILE *f;

	if (getrlimit(RLIMIT_NOFILE, &r))
		return;
	f = fopen("/proc/sys/fs/nr_open", "re");
	if (f && fscanf(f, "%lu", &n) == 1 && n > r.rlim_max) {
		most.rlim_cur = most.rlim_max = n;
		if (setrlimit(RLIMIT_NOFILE, &most) == 0) /* we may, as root */
			r = most;
	}
	if (f)
		fclose(f);
	r.rlim_cur = r.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &r))
		eq_log(log, EQ_LOG_INFO, "cannot raise the limit of open files: %s",
		       eq_strerror(-errno));
}

static int fs_init(struct eq_fs *fs, const struct eq_mount *m)
{
	unsigned threads = m->threads ? m->threads : eq_cpu_count();
	/* Copying for the reader takes a core, too: where it has to share with those that
	 * decode ahead, all wait for it before long. */
	unsigned ahead = threads > 1 ? threads - 1 : 1;
	pthread_rwlockattr_t attr;
	uint64_t window;
	int rc;

	fs->privileged = geteuid() == 0;
	eq_stats_init(&fs->stats);
	eq_arcs_init(&fs->arcs);
	pthread_mutex_init(&fs->handles_lock, NULL);
	/* Or a stream of look-ups would keep a swap waiting for ever. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&fs->names, &attr);
	pthread_rwlockattr_destroy(&attr);
	fs->policy = eq_policy_text(m->policy);
	rc = fs->policy ? eq_nodes_init(&fs->nodes, m->store_fd) : -ENOMEM;
	if (!rc)
		rc = -pthread_key_create(&fs->scratch, free);
	if (!rc && threads > 1)
		rc = eq_pool_create(threads - 1, &fs->pool);
	if (!rc)
		rc = eq_cache_create(m->cache_bytes, fs->pool, m->backend, &fs->cache);
	window = m->backend == eq_backend_cpu() ? CPU_WINDOW : DEVICE_WINDOW;
	if (window > m->cache_bytes / 4)
		window = m->cache_bytes / 4;
	if (!rc)
		rc = eq_ahead_create(&fs->arcs, fs->cache, ahead, window, &fs->ahead);
	if (!rc && m->hot_bytes)
		rc = eq_hot_create(fs, m->hot_bytes, &fs->hot);
	return rc;
}

static void fs_fini(struct eq_fs *fs)
{
	if (fs->compact)
		eq_compact_free(fs->compact);
	eq_trim_free(fs->trim);
	eq_scan_free(fs->scan);
	eq_handles_drop(fs);
	eq_ahead_free(fs->ahead);
	pthread_mutex_destroy(&fs->handles_lock);
	eq_hot_free(fs->hot);
	eq_cache_free(fs->cache);
	eq_pool_free(fs->pool);
	eq_nodes_fini(&fs->nodes);
	eq_arcs_fini(&fs->arcs);
	pthread_rwlock_destroy(&fs->names);
	free(fs->policy);
	eq_log_fini(&fs->log);
}

static void *unwind(void *arg)
{
	pthread_exit(arg);
}

/*
 * libfuse ends its threads by pthread_cancel, for which glibc loads a library when it
 * is first wanted, and aborts when there is no memory left for it. Load it now.
 */
static int load_unwinder(void)
{
	pthread_t thread;
	int rc = -pthread_create(&thread, NULL, unwind, NULL);

	if (!rc)
		pthread_join(thread, NULL);
	return rc;
}

/*
 * libfuse gives a mount up when it has no memory for a request, of which it has taken
 * none then: it is asked to go on. A mount that is not up yet may fail.
 */
static int loop(struct session *s, struct fuse_loop_config *config)
{
	const struct timespec nap = { .tv_nsec = MEMORY_NAP_MS * 1000000 };
	bool said = false;
	int rc;

	for (;;) {
		rc = fuse_session_loop_mt(s->fs.se, config);
		if (rc == -1) /* no thread */
			rc = -EAGAIN;
		if ((rc != -ENOMEM && rc != -EAGAIN) || !s->fs.ready.up)
			return rc;
		if (s->ending)
			return 0;
		if (!said)
			eq_log(&s->fs.log, EQ_LOG_WARN, "requests have to wait: %s", eq_strerror(rc));
		said = true;
		nanosleep(&nap, NULL);
		fuse_session_reset(s->fs.se);
	}
}

static int serve(struct session *s)
{
	struct fuse_loop_config *config = eq_tune_loop();
	struct sigaction act = { .sa_handler = wake };
	int rc;

	if (!config)
		return -ENOMEM;
	sigaction(SIGUSR2, &act, NULL);
	s->main = pthread_self();
	rc = load_unwinder();
	if (!rc)
		rc = -pthread_create(&s->signals, NULL, signals, s);
	if (rc)
		goto out;
	rc = loop(s, config);
	s->ended = true;
	pthread_kill(s->signals, SIGTERM); /* if it is still waiting */
	pthread_join(s->signals, NULL);
out:
	fuse_loop_cfg_destroy(config);
	return rc;
}

/* Threads, the background among them, and the loop. */
static int run(struct session *s)
{
	struct eq_fs *fs = &s->fs;
	int rc = fs_init(fs, fs->m);

	s->up = true;
	if (!rc) /* first, as the others look at its mark */
		rc = eq_trim_create(fs);
	if (!rc && !fs->m->read_only)
		rc = eq_compact_create(fs);
	if (!rc)
		rc = eq_scan_create(fs);
	if (!rc)
		eq_virtual_check(fs);
	if (!rc)
		rc = serve(s);
	if (!s->stuck && !stopped(s)) /* only when something failed */
		stop_worker(s, 0);
	if (!rc && !fs->ready.up && !s->asked)
		rc = -ENOTCONN;
	if (rc)
		eq_log(&fs->log, EQ_LOG_ERROR, "%s: %s", fs->m->store, eq_strerror(rc));
	return rc;
}

int eq_mount_run(const struct eq_mount *m)
{
	struct session s = { .stuck = false };
	struct fuse_lowlevel_ops ops;
	struct eq_fs *fs = &s.fs;
	bool parent;
	int rc;

	fs->m = m;
	eq_log_init(&fs->log, m->level);
	/* Everything happens in the child, so that it can fail where that shows. */
	rc = eq_ready_begin(&fs->ready, m->foreground, m->banner, &parent);
	if (parent)
		return rc;
	if (rc) {
		eq_log(&fs->log, EQ_LOG_ERROR, "cannot go to the background: %s", eq_strerror(rc));
		return rc;
	}
	umask(0);
	raise_files(&fs->log);
	/* From here on only the signals' thread hears of them. */
	sigemptyset(&s.set);
	sigaddset(&s.set, SIGTERM);
	sigaddset(&s.set, SIGINT);
	sigaddset(&s.set, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &s.set, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGIO, SIG_IGN); /* of a lease that somebody waits for */
	signal(SIGXFSZ, SIG_IGN); /* such a write fails, no more */
	eq_ops_layer(&ops);
	fs->se = fuse_session_new(m->args, &ops, sizeof(ops), fs);
	if (!fs->se)
		return -EINVAL; /* libfuse has said why */
	rc = -EIO;
	if (fuse_session_mount(fs->se, m->mountpoint))
		goto destroy;
	rc = eq_caps_drop();
	if (rc)
		eq_log(&fs->log, EQ_LOG_ERROR, "cannot give up privileges: %s", eq_strerror(rc));
	else
		rc = run(&s);
	if (s.stuck)
		leave(&s);
	fuse_session_unmount(fs->se);
destroy:
	fuse_session_destroy(fs->se);
	if (s.up)
		fs_fini(fs);
	return rc;
}
