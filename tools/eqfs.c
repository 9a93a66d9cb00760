/* SPDX-License-Identifier: Apache-2.0 */
/* eqfs: mount a store of archives. See eqfs(1). */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <malloc.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"
#include "eqfs.h"
#include "eqfs_fstab.h"
#include "eqfs_point.h"
#include "gpu_load.h"

#define CONFIG ".eqfs.conf"
#define MAX_SECONDS 86400.0
#define MAX_CACHE ((size_t)1 << 46)
#define MIN_CACHE ((size_t)1 << 20)
#define MAX_THREADS 1024

struct options {
	struct eq_policy policy;
	struct eq_mount mount;
	char *store, *mountpoint;       /* as given */
	char **set;                     /* policy options in order, "key=value" */
	size_t n_set;
	char *gpu, *user;               /* as given, or NULL */
	size_t gpu_mem;
	int foreground, debug, verbose, quiet, read_only, help, version;
	bool bad;                       /* said */
	bool misused;                   /* an option's value makes no sense */
};

enum { KEY_POLICY, KEY_SETTLE, KEY_DRAIN, KEY_CACHE, KEY_HOT, KEY_THREADS, KEY_READ_ONLY, KEY_GPU_MEM };

#define FLAG(text, member) { text, offsetof(struct options, member), 1 }

static const struct fuse_opt known[] = {
	FLAG("-f", foreground),
	FLAG("-d", debug),
	FLAG("debug", debug),
	FLAG("-v", verbose),
	FLAG("--verbose", verbose),
	FLAG("-q", quiet),
	FLAG("--quiet", quiet),
	FLAG("-h", help),
	FLAG("--help", help),
	FLAG("-V", version),
	FLAG("--version", version),
	FUSE_OPT_KEY("bits=", KEY_POLICY),
	FUSE_OPT_KEY("lambda=", KEY_POLICY),
	FUSE_OPT_KEY("format=", KEY_POLICY),
	FUSE_OPT_KEY("include=", KEY_POLICY),
	FUSE_OPT_KEY("exclude=", KEY_POLICY),
	FUSE_OPT_KEY("settle=", KEY_SETTLE),
	FUSE_OPT_KEY("drain=", KEY_DRAIN),
	FUSE_OPT_KEY("cache=", KEY_CACHE),
	FUSE_OPT_KEY("hot=", KEY_HOT),
	FUSE_OPT_KEY("threads=", KEY_THREADS),
	{ "gpu=%s", offsetof(struct options, gpu), 0 },
	{ "setuid=%s", offsetof(struct options, user), 0 },
	FUSE_OPT_KEY("gpu-mem=", KEY_GPU_MEM),
	FUSE_OPT_KEY("ro", KEY_READ_ONLY),
	FUSE_OPT_END
};

static int bad(struct options *o, const char *what, const char *value)
{
	eq_cli_error("%s: %s", what, value);
	o->bad = true;
	return 0;
}

/* Bytes, with K, M, G or T behind: 0 or -EINVAL. */
static int parse_size(const char *text, size_t *out)
{
	static const char units[] = "KMGT";
	const char *unit;
	char *end;
	double v;

	if (!isdigit((unsigned char)text[0]))
		return -EINVAL;
	v = strtod(text, &end);
	if (*end) {
		unit = strchr(units, toupper((unsigned char)*end));
		if (!unit || end[1])
			return -EINVAL;
		for (; unit >= units; unit--)
			v *= 1024.0;
	}
	if (!(v >= (double)MIN_CACHE && v <= (double)MAX_CACHE))
		return -EINVAL;
	*out = (size_t)v;
	return 0;
}

static int parse_seconds(const char *text, double *out)
{
	char *end;
	double v;

	if (!isdigit((unsigned char)text[0]) && text[0] != '.')
		return -EINVAL;
	v = strtod(text, &end);
	if (*end || end == text || !(v >= 0 && v <= MAX_SECONDS))
		return -EINVAL;
	*out = v;
	return 0;
}

static int keep_policy(struct options *o, const char *arg)
{
	char **p = realloc(o->set, (o->n_set + 1) * sizeof(*p));

	if (p)
		o->set = p;
	if (!p || !(o->set[o->n_set] = strdup(arg)))
		return bad(o, "out of memory at option", arg);
	o->n_set++;
	return 0;
}

/* 0: eaten, 1: for libfuse, -1: stop. */
static int option(void *data, const char *arg, int key, struct fuse_args *outargs)
{
	struct options *o = data;
	const char *value = strchr(arg, '=');
	size_t size;

	(void)outargs;
	value = value ? value + 1 : "";
	switch (key) {
	case KEY_POLICY:
		return keep_policy(o, arg);
	case KEY_SETTLE:
		if (parse_seconds(value, &o->mount.settle))
			return bad(o, "not a number of seconds", arg);
		return 0;
	case KEY_DRAIN:
		if (parse_seconds(value, &o->mount.drain))
			return bad(o, "not a number of seconds", arg);
		return 0;
	case KEY_CACHE:
		if (parse_size(value, &o->mount.cache_bytes))
			return bad(o, "not a size of 1M or more", arg);
		return 0;
	case KEY_HOT:
		if (parse_size(value, &size))
			return bad(o, "not a size of 1M or more", arg);
		o->mount.hot_bytes = size;
		return 0;
	case KEY_GPU_MEM:
		if (parse_size(value, &o->gpu_mem))
			return bad(o, "not a size of 1M or more", arg);
		return 0;
	case KEY_THREADS:
		if (eq_cli_parse_uint(value, 1, MAX_THREADS, &o->mount.threads))
			return bad(o, "not a number of threads", arg);
		return 0;
	case KEY_READ_ONLY:
		o->read_only = 1;
		return 1;
	case FUSE_OPT_KEY_NONOPT:
		if (!o->store)
			o->store = strdup(arg);
		else if (!o->mountpoint)
			o->mountpoint = strdup(arg);
		else
			return bad(o, "one argument too many", arg);
		return 0;
	default:
		if (arg[0] == '-')
			return bad(o, "unknown option", arg);
		return !eq_fstab_ignores(arg);
	}
}

static void help(void)
{
	puts("Usage: eqfs [OPTION]... STORE MOUNTPOINT\n"
	     "Show the directory STORE at MOUNTPOINT, with its archives as the safetensors\n"
	     "files they hold, and encode what is written there.\n"
	     "\n"
	     "  -f             stay in the foreground, log to stderr\n"
	     "  -d             the same, and show every request\n"
	     "  -v, -q         log more, or errors only\n"
	     "  -h, --help     this text\n"
	     "  -V, --version  the version\n"
	     "  -o OPTION,...  options:\n"
	     "\n"
	     "  bits=N         quantise to N bits a parameter (default: lossless)\n"
	     "  lambda=X       quantise with this weight of the rate\n"
	     "  format=F       of quantised weights: fp8 or int8\n"
	     "  include=GLOB   quantise tensors of this name and no others; may be repeated\n"
	     "  exclude=GLOB   never quantise tensors of this name; may be repeated\n"
	     "  settle=SEC     encode when a file has been quiet that long (default: 2)\n"
	     "  drain=SEC      at a signal, go on encoding what is due that long (default: 5)\n"
	     "  cache=SIZE     memory for decoded data, as 512M or 2G (default: 256M)\n"
	     "  hot=SIZE       memory for archives decoded as a whole (default: none)\n"
	     "  threads=N      to decode and encode (default: one a CPU)\n"
	     "  gpu=GPU        use a GPU: auto, off (default) or its number\n"
	     "  gpu-mem=SIZE   device memory to use at most (default: 256M)\n"
	     "  ro             read-only; such mounts may share a store\n"
	     "  setuid=USER    root only: be this user from the beginning\n"
	     "  allow_other, default_permissions and what else libfuse knows\n"
	     "\n"
	     "The policy (bits to exclude) may also stand in STORE/" CONFIG "; options given\n"
	     "here override it. See eqfs(1).");
}

/* The store's own policy, if it has one. */
static int read_config(struct options *o, struct eq_error *err)
{
	struct stat st;
	char *name;
	int fd, rc;

	fd = eq_open_regular(o->mount.store_fd, CONFIG, &st);
	if (fd == -ENOENT)
		return 0;
	if (asprintf(&name, "%s/" CONFIG, o->store) < 0)
		name = NULL;
	if (fd < 0)
		rc = eq_fail(err, fd, "%s: %s", name ? name : CONFIG,
			     fd == -EINVAL ? "not a regular file" : eq_strerror(fd));
	else
		rc = eq_policy_read(&o->policy, fd, name ? name : CONFIG, err);
	if (fd >= 0)
		close(fd);
	free(name);
	return rc;
}

static int set_policy(struct options *o, struct eq_error *err)
{
	size_t i;
	int rc = read_config(o, err);

	for (i = 0; !rc && i < o->n_set; i++) {
		char *value = strchr(o->set[i], '=');

		*value++ = '\0';
		rc = eq_policy_set(&o->policy, o->set[i], value, err);
		o->misused = rc == -EINVAL;
	}
	return rc;
}

/* A mount that was just taken away may need a moment to let go. */
static int lock_store(struct options *o)
{
	const struct timespec nap = { .tv_nsec = 20000000 };
	int rc, tries = 50;

	while ((rc = eq_store_lock(o->mount.store_fd, o->read_only)) == -EBUSY && --tries)
		nanosleep(&nap, NULL);
	return rc;
}

static int store_fails(struct options *o, int rc, struct eq_error *err)
{
	return eq_fail(err, rc, "%s: %s", o->store, eq_strerror(rc));
}

/* Neither may lie in the other. */
static int check_point(struct options *o, struct eq_error *err)
{
	bool revived;
	int fd = eq_point_open(o->mountpoint, &revived, err), rc;

	if (fd < 0)
		return fd;
	if (revived && !o->quiet)
		fprintf(stderr, "eqfs: %s: took away the mount of an eqfs that was killed\n",
			o->mountpoint);
	rc = eq_store_overlap(o->mount.store_fd, fd);
	close(fd);
	if (rc == 1)
		return eq_fail(err, -EINVAL, "%s: the mountpoint is inside the store %s",
			       o->mountpoint, o->store);
	if (rc == 2)
		return eq_fail(err, -EINVAL, "%s: the store is inside the mountpoint %s", o->store,
			       o->mountpoint);
	return rc ? store_fails(o, rc, err) : 0;
}

static int open_store(struct options *o, struct eq_error *err)
{
	int rc;

	o->mount.store_fd = open(o->store, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (o->mount.store_fd < 0)
		return store_fails(o, -errno, err);
	rc = lock_store(o);
	if (rc == -EBUSY)
		return eq_fail(err, rc, "%s: mounted already by another eqfs", o->store);
	if (rc)
		return eq_fail(err, rc, "%s: cannot be locked: %s", o->store, eq_strerror(rc));
	rc = check_point(o, err);
	if (rc)
		return rc;
	if (!o->read_only && eq_store_above(o->mount.store_fd))
		return eq_fail(err, -EBUSY, "%s: inside a store that is mounted already", o->store);
	o->mount.store = realpath(o->store, NULL);
	o->mount.mountpoint = realpath(o->mountpoint, NULL);
	if (!o->mount.store || !o->mount.mountpoint)
		return eq_fail(err, -errno, "%s: %s", o->mount.store ? o->mountpoint : o->store,
			       eq_strerror(-errno));
	return 0;
}

/* What the list of mounts shows; a later fsname= of the user's counts. */
static int add_fuse_options(struct options *o, struct fuse_args *args)
{
	char *name = NULL, *list = NULL;
	int rc = -1;

	if (asprintf(&name, "fsname=%s", o->mount.store) < 0)
		return -ENOMEM;
	if (fuse_opt_add_opt_escaped(&list, name) == 0 &&
	    fuse_opt_add_opt(&list, "subtype=eqfs") == 0 &&
	    fuse_opt_add_opt(&list, "default_permissions") == 0 &&
	    (!o->debug || fuse_opt_add_opt(&list, "debug") == 0) &&
	    fuse_opt_insert_arg(args, 1, "-o") == 0 && fuse_opt_insert_arg(args, 2, list) == 0)
		rc = 0;
	free(name);
	free(list);
	return rc ? -ENOMEM : 0;
}

/* What is said when the mount is up. */
static int make_banner(struct options *o)
{
	char *policy, *text;
	int rc = 0;

	if (o->quiet || eq_fstab_called())
		return 0;
	policy = eq_policy_text(&o->policy);
	if (!policy || asprintf(&text, "eqfs: %s on %s%s, policy: %s", o->mount.store,
				o->mount.mountpoint, o->read_only ? " (read-only)" : "", policy) < 0)
		rc = -ENOMEM;
	else
		o->mount.banner = text;
	free(policy);
	return rc;
}

/* Any thread; after the mount has gone to the background nobody reads stderr. */
static void log_gpu(void *arg, const char *line)
{
	const struct options *o = arg;

	if (o->mount.foreground)
		fprintf(stderr, "eqfs: %s\n", line);
	else
		syslog(LOG_WARNING, "%s", line);
}

static int mount_store(struct options *o, struct fuse_args *args)
{
	/* The device is opened when it is wanted: eq_mount_run forks first. */
	const struct eq_gpu_options gpu = { .spec = o->gpu ? o->gpu : "off",
					    .mem_limit = o->gpu_mem, .later = true,
					    .log = log_gpu, .log_arg = o };
	struct eq_error err = { "" };
	int rc;

	rc = o->user ? eq_fstab_become(o->user, &err) : 0;
	if (!rc)
		rc = open_store(o, &err);
	if (!rc)
		rc = set_policy(o, &err);
	if (!rc)
		rc = add_fuse_options(o, args);
	if (!rc) {
		rc = eq_gpu_backend(&gpu, &o->mount.backend, &err);
		o->misused = rc == -EINVAL;
	}
	if (!rc)
		rc = make_banner(o);
	if (rc) {
		eq_cli_error("%s", err.text[0] ? err.text : eq_strerror(rc));
		eq_gpu_release(o->mount.backend);
		return o->misused ? eq_cli_usage("eqfs") : EQ_EXIT_FAIL;
	}
	o->mount.args = args;
	o->mount.policy = &o->policy;
	o->mount.read_only = o->read_only;
	o->mount.foreground = o->foreground || o->debug;
	o->mount.level = o->quiet ? EQ_LOG_ERROR : EQ_LOG_WARN;
	if (o->verbose)
		o->mount.level = EQ_LOG_INFO;
	if (o->debug)
		o->mount.level = EQ_LOG_DEBUG;
	rc = eq_mount_run(&o->mount);
	eq_gpu_release(o->mount.backend);
	return rc ? EQ_EXIT_FAIL : EQ_EXIT_OK;
}

int main(int argc, char **argv)
{
	struct options o = { .mount = { .cache_bytes = EQ_DEFAULT_CACHE,
					.settle = EQ_DEFAULT_SETTLE, .drain = EQ_DEFAULT_DRAIN,
					.store_fd = -1 } };
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	int status = EQ_EXIT_USAGE, rc;

	/* Extents come and go: keep their memory rather than have the kernel clear
	 * new pages each time. */
	mallopt(M_MMAP_THRESHOLD, 64 << 20);
	mallopt(M_TRIM_THRESHOLD, 256 << 20);
	eq_policy_init(&o.policy);
	rc = eq_fstab_args(argc, argv, &args);
	if (rc > 0) {
		status = EQ_EXIT_OK;
	} else if (rc || fuse_opt_parse(&args, &o, known, option) || o.bad) {
		eq_cli_usage("eqfs");
	} else if (o.help) {
		help();
		status = EQ_EXIT_OK;
	} else if (o.version) {
		printf("eqfs (eqfs) %s, libfuse %s, %s\n", PACKAGE_VERSION, fuse_pkgversion(),
		       eq_cpu_isa());
		status = EQ_EXIT_OK;
	} else if (!o.mountpoint) {
		eq_cli_error("missing %s", o.store ? "mountpoint" : "store and mountpoint");
		eq_cli_usage("eqfs");
	} else {
		status = mount_store(&o, &args);
	}
	while (o.n_set)
		free(o.set[--o.n_set]);
	free(o.set);
	free((char *)o.mount.store);
	free((char *)o.mount.mountpoint);
	free((char *)o.mount.banner);
	free(o.user);
	free(o.gpu);
	free(o.store);
	free(o.mountpoint);
	if (o.mount.store_fd >= 0)
		close(o.mount.store_fd);
	eq_policy_fini(&o.policy);
	fuse_opt_free_args(&args);
	return eq_cli_finish(status);
}
