/* SPDX-License-Identifier: Apache-2.0 */
/* A plain file is replaced by its archive, unless somebody may be writing to it. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "codec_util.h"
#include "eqcodec.h"

#define HEADER "{\"w\":{\"dtype\":\"BF16\",\"shape\":[99996],\"data_offsets\":[0,199992]}}"
#define SIZE (8 + sizeof(HEADER) - 1 + 199992)

enum what { NOTHING, OPEN, MAP, STORE, HIDE, CHMOD };

static struct {
	char path[4096];
	int dir;
	char *mapped;
	int fd;                 /* of the writer; -1: closed */
} world = { .fd = -1 };

/* Somebody opens the file for writing; what remains of that is what is said. */
static void write_to_it(enum what what)
{
	struct stat st;

	if (what == NOTHING)
		return;
	assert_int_equal(fstatat(world.dir, "m", &st, 0), 0);
	if (what == CHMOD) {
		assert_int_equal(fchmodat(world.dir, "m", 0640, 0), 0);
		return;
	}
	world.fd = openat(world.dir, "m", O_RDWR | O_CLOEXEC);
	assert_true(world.fd >= 0);
	if (what == OPEN)
		return;
	world.mapped = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, world.fd, 0);
	assert_ptr_not_equal(world.mapped, MAP_FAILED);
	close(world.fd);
	world.fd = -1;
	if (what == MAP)
		return;
	world.mapped[SIZE - 1] ^= 1;
	munmap(world.mapped, SIZE);
	world.mapped = NULL;
	if (what == HIDE) { /* what it has stored, from those who look at the time */
		const struct timespec times[2] = { st.st_atim, st.st_mtim };

		assert_int_equal(utimensat(world.dir, "m", times, 0), 0);
	}
}

static void let_go(void)
{
	if (world.fd >= 0)
		close(world.fd);
	if (world.mapped)
		munmap(world.mapped, SIZE);
	world.fd = -1;
	world.mapped = NULL;
}

static void make_it(void)
{
	static const uint64_t len = sizeof(HEADER) - 1;
	static uint8_t zeros[SIZE - 8 - sizeof(HEADER) + 1];
	int fd = openat(world.dir, "m", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, &len, 8), 8);
	assert_int_equal(write(fd, HEADER, len), len);
	assert_int_equal(write(fd, zeros, sizeof(zeros)), sizeof(zeros));
	close(fd);
}

static int at_once(void *arg, const char *what, uint64_t done, uint64_t total)
{
	enum what *todo = arg;

	if (*todo == HIDE && (strcmp(what, "verify") || done < total))
		return 0; /* the comparison would find it */
	write_to_it(*todo);
	*todo = NOTHING;
	return 0;
}

static bool there(const char *name)
{
	return faccessat(world.dir, name, F_OK, 0) == 0;
}

/* Shrink it with a writer who comes before or during that. */
static void check(enum what before, enum what during, int expected)
{
	struct eq_run run = { .progress = at_once, .progress_arg = &during };
	struct eq_error err = { "" };
	bool chmod = during == CHMOD;
	struct eq_policy policy;
	struct eq_summary sum;
	struct stat st;
	int rc;

	make_it();
	write_to_it(before);
	eq_policy_init(&policy);
	rc = eq_shrink(world.dir, "m", &policy, &run, NULL, &sum, &err);
	eq_policy_fini(&policy);
	let_go();
	if (rc != expected)
		fail_msg("%d instead of %d: %s", rc, expected, err.text);
	assert_int_equal(during, NOTHING);
	assert_int_equal(there("m"), expected != 0);
	assert_int_equal(there("m.eqar"), expected == 0);
	assert_int_equal(fstatat(world.dir, expected ? "m" : "m.eqar", &st, 0), 0);
	assert_int_equal(st.st_mode & 0777, chmod ? 0640 : 0600);
	assert_int_equal(unlinkat(world.dir, expected ? "m" : "m.eqar", 0), 0);
}

static void test_unwritten(void **state)
{
	(void)state;
	check(NOTHING, NOTHING, 0);
}

static void need_leases(void)
{
	int fd, lease;

	make_it();
	fd = openat(world.dir, "m", O_RDONLY | O_CLOEXEC);
	lease = fcntl(fd, F_SETLEASE, F_RDLCK);
	close(fd);
	if (lease) {
		print_message("no leases here\n");
		skip();
	}
}

static void test_written(void **state)
{
	(void)state;
	need_leases();
	check(OPEN, NOTHING, -EBUSY);
	check(MAP, NOTHING, -EBUSY);
	check(NOTHING, OPEN, -EBUSY);
	check(NOTHING, MAP, -EBUSY);
	check(STORE, NOTHING, 0);
}

/* Its times show that, where there are no leases either. */
static void test_changed(void **state)
{
	(void)state;
	check(NOTHING, STORE, -EBUSY);
	check(NOTHING, HIDE, -EBUSY);
}

/* Attributes that are set meanwhile are no write, though that also changes a time. */
static void test_attributes(void **state)
{
	(void)state;
	need_leases();
	check(NOTHING, CHMOD, 0);
}

static int setup(void **state)
{
	const char *tmp = getenv("TMPDIR");

	(void)state;
	signal(SIGIO, SIG_IGN);
	snprintf(world.path, sizeof(world.path), "%s/eqfs-unit-XXXXXX", tmp ? tmp : "/var/tmp");
	if (!mkdtemp(world.path))
		return -1;
	world.dir = open(world.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return world.dir < 0 ? -1 : 0;
}

static int teardown(void **state)
{
	(void)state;
	unlinkat(world.dir, "m", 0);
	unlinkat(world.dir, "m.eqar", 0);
	close(world.dir);
	return rmdir(world.path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unwritten), cmocka_unit_test(test_written),
		cmocka_unit_test(test_changed), cmocka_unit_test(test_attributes),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
