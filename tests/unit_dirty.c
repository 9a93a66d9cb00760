/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file without a name gets one while its last writer goes: in whatever step that
 * happens, it is to be encoded. The library's locks are taken through a function of ours
 * (--wrap), which makes the link as one of them is about to be taken.
 */
#define _GNU_SOURCE
#include <config.h>

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cmocka.h>

#include "compact_priv.h"

#define MOST_LOCKS 100

static struct {
	char path[256];
	int dir, fd;
	struct eq_policy policy;
	struct eq_mount m;
	struct eq_compact c;
	struct eq_fs fs;
	struct eq_node *n;
	unsigned left;          /* locks until the link is made; 0: no link */
} world;

int __real_pthread_mutex_lock(pthread_mutex_t *lock);
int __wrap_pthread_mutex_lock(pthread_mutex_t *lock);

static bool is_free(pthread_mutex_t *lock)
{
	return pthread_mutex_trylock(lock) == 0 && pthread_mutex_unlock(lock) == 0;
}

/* As eq_op_link does. */
static void make_link(void)
{
	char path[EQ_PROC_SIZE];

	eq_proc_path(path, world.fd);
	assert_int_equal(linkat(AT_FDCWD, path, world.dir, "m", AT_SYMLINK_FOLLOW), 0);
	eq_dirty_set(&world.fs, world.n);
	assert_int_equal(eq_node_move(&world.fs.nodes, world.n, world.fs.nodes.root, "m"), 0);
	eq_compact_seen(&world.fs, world.n);
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *lock)
{
	/* Another thread would have to wait for these first. */
	if (world.left && is_free(&world.n->lock) && is_free(&world.c.lock) &&
	    is_free(&world.fs.nodes.lock) && --world.left == 0)
		make_link();
	return __real_pthread_mutex_lock(lock);
}

/* A file without a name that is open for writing, and was written to. */
static void make_nameless(void)
{
	struct eq_found f = { .archive = false };
	char path[EQ_PROC_SIZE];

	world.fd = openat(world.dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	assert_true(world.fd >= 0);
	eq_proc_path(path, world.fd);
	f.fd = open(path, O_PATH | O_CLOEXEC);
	assert_true(f.fd >= 0 && fstat(f.fd, &f.st) == 0);
	assert_int_equal(eq_node_take(&world.fs.nodes, &f, NULL, NULL, false, &world.n), 0);
	assert_int_equal(eq_writer_begin(&world.fs, world.n), 0);
	eq_dirty_set(&world.fs, world.n);
}

/* Has the filesystem what it takes? */
static bool able(void)
{
	int fd = openat(world.dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	bool is = fd >= 0 && fsetxattr(fd, EQ_XATTR_QUEUED, "", 0, 0) == 0;

	if (fd >= 0)
		close(fd);
	return is;
}

static bool marked(void)
{
	return fgetxattr(world.fd, EQ_XATTR_QUEUED, NULL, 0) >= 0;
}

static void check_due(bool due)
{
	assert_int_equal(marked(), due);
	assert_int_equal(world.n->dirty, due);
	assert_int_equal(world.n->wait.listed, due);
	assert_int_equal(world.c.queue.files, due);
}

static void test_linked_as_it_is_closed(void **state)
{
	unsigned step;
	bool linked = true;

	(void)state;
	if (!able()) {
		print_message("no files without a name, or no attributes, here\n");
		skip();
	}
	for (step = 1; linked; step++) {
		assert_true(step < MOST_LOCKS);
		make_nameless();
		world.left = step;
		eq_writer_end(&world.fs, world.n);
		linked = world.left == 0;
		world.left = 0;
		check_due(linked);
		if (linked)
			assert_int_equal(unlinkat(world.dir, "m", 0), 0);
		eq_compact_drop(&world.fs, world.n);
		check_due(false);
		eq_node_unref(&world.fs.nodes, world.n);
		close(world.fd);
	}
	assert_true(step > 3); /* there were some steps */
}

static int setup(void **state)
{
	const char *tmp = getenv("TMPDIR");

	(void)state;
	snprintf(world.path, sizeof(world.path), "%s/eqfs-unit-XXXXXX", tmp ? tmp : "/var/tmp");
	if (!mkdtemp(world.path))
		return -1;
	world.dir = open(world.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	eq_policy_init(&world.policy);
	world.m = (struct eq_mount){ .policy = &world.policy, .settle = 3600 };
	world.fs.m = &world.m;
	world.fs.compact = &world.c;
	world.c.fs = &world.fs;
	pthread_mutex_init(&world.c.lock, NULL);
	eq_cond_init_monotonic(&world.c.wake);
	pthread_rwlock_init(&world.fs.names, NULL);
	return world.dir < 0 ? -1 : eq_nodes_init(&world.fs.nodes, world.dir);
}

static int teardown(void **state)
{
	(void)state;
	eq_nodes_fini(&world.fs.nodes);
	pthread_rwlock_destroy(&world.fs.names);
	pthread_cond_destroy(&world.c.wake);
	pthread_mutex_destroy(&world.c.lock);
	eq_policy_fini(&world.policy);
	unlinkat(world.dir, "m", 0);
	close(world.dir);
	return rmdir(world.path);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_linked_as_it_is_closed) };

	return cmocka_run_group_tests(tests, setup, teardown);
}
