/* SPDX-License-Identifier: Apache-2.0 */
/* How much memory there is, as /proc and the control groups of made-up machines say. */
#include <config.h>

#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "memory.h"

#define MIB (UINT64_C(1) << 20)

static char root[] = "/tmp/eqfs-memory-XXXXXX";

static void make(const char *name, const char *text)
{
	char path[512], *at;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", root, name);
	for (at = path + strlen(root); (at = strchr(at + 1, '/')); *at = '/') {
		*at = '\0';
		mkdir(path, 0700);
	}
	f = fopen(path, "we");
	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static int set_up(void **state)
{
	(void)state;
	memcpy(root + strlen(root) - 6, "XXXXXX", 6);
	if (!mkdtemp(root))
		return -1;
	make("proc/meminfo", "MemTotal: 4096000 kB\nMemAvailable:    1024000 kB\n");
	return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

static int tear_down(void **state)
{
	(void)state;
	return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void test_no_groups(void **state)
{
	(void)state;
	assert_int_equal(eq_memory_available(root), 1000 * MIB);
	make("proc/meminfo", "MemTotal: 4096000 kB\n");
	assert_true(eq_memory_available(root) >= UINT64_MAX >> 10 << 10);
}

/* The group in use, one above it with less, and "max". */
static void test_version_2(void **state)
{
	(void)state;
	make("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
	     "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
	make("proc/self/cgroup", "0::/system.slice/eqfs@x.service\n");
	make("sys/fs/cgroup/system.slice/eqfs@x.service/memory.max", "max\n");
	assert_int_equal(eq_memory_available(root), 1000 * MIB);
	make("sys/fs/cgroup/system.slice/eqfs@x.service/memory.max", "314572800\n");
	make("sys/fs/cgroup/system.slice/eqfs@x.service/memory.current", "209715200\n");
	assert_int_equal(eq_memory_available(root), 100 * MIB);
	make("sys/fs/cgroup/system.slice/eqfs@x.service/memory.stat",
	     "anon 1\nfile 104857600\ninactive_file 52428800\nactive_file 20971520\n");
	assert_int_equal(eq_memory_available(root), 170 * MIB);
	make("sys/fs/cgroup/system.slice/memory.max", "419430400\n");
	make("sys/fs/cgroup/system.slice/memory.current", "398458880\n");
	assert_int_equal(eq_memory_available(root), 20 * MIB);
	make("sys/fs/cgroup/system.slice/memory.current", "524288000\n");
	assert_int_equal(eq_memory_available(root), 0);
}

/* Beside others, with numbers that mean no limit; seen whole, or our group alone. */
static void test_version_1(void **state)
{
	(void)state;
	make("proc/self/mountinfo",
	     "31 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
	     "32 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
	     "33 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
	make("proc/self/cgroup", "3:cpu:/other\n2:memory:/docker/7\n0::/\n");
	make("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
	make("sys/fs/cgroup/memory/docker/7/memory.limit_in_bytes", "268435456\n");
	make("sys/fs/cgroup/memory/docker/7/memory.usage_in_bytes", "209715200\n");
	make("sys/fs/cgroup/memory/docker/7/memory.stat",
	     "inactive_file 0\nactive_file 0\ntotal_inactive_file 10485760\ntotal_active_file 0\n");
	assert_int_equal(eq_memory_available(root), 66 * MIB);
	make("proc/self/mountinfo",
	     "32 30 0:29 /docker/7 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
	make("sys/fs/cgroup/memory/memory.limit_in_bytes", "134217728\n");
	make("sys/fs/cgroup/memory/memory.usage_in_bytes", "104857600\n");
	assert_int_equal(eq_memory_available(root), 28 * MIB);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_no_groups, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_version_2, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_version_1, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
