/* SPDX-License-Identifier: Apache-2.0 */
/* What is written past the page cache is what would have been written through it. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "codec_util.h"
#include "direct.h"

#define MOST ((size_t)40 << 20)

static struct {
	char path[4096];
	int fd;
	uint8_t *want, *got;    /* MOST bytes */
	size_t end;
	struct eq_direct *d;
} f;

static void put(size_t len, size_t gap)
{
	size_t i;

	assert_true(f.end + gap + len <= MOST);
	memset(f.want + f.end, 0, gap);
	f.end += gap;
	for (i = 0; i < len; i++)
		f.want[f.end + i] = (uint8_t)(rand() >> 7);
	assert_int_equal(eq_direct_put(f.d, f.want + f.end, len, f.end), 0);
	f.end += len;
}

static void back(size_t to)
{
	f.end = to;
	assert_int_equal(eq_direct_back(f.d, to), 0);
}

static void anew(void)
{
	eq_direct_free(f.d);
	assert_int_equal(ftruncate(f.fd, 0), 0);
	assert_int_equal(eq_direct_begin(f.fd, &f.d), 0);
	f.end = 0;
}

static void check_end(void)
{
	assert_int_equal(eq_direct_end(f.d), 0);
	assert_int_equal(fcntl(f.fd, F_GETFL) & O_DIRECT, 0);
	assert_int_equal(lseek(f.fd, 0, SEEK_END), f.end);
	assert_int_equal(pread(f.fd, f.got, MOST, 0), f.end);
	assert_memory_equal(f.got, f.want, f.end);
}

static void test_pieces(void **state)
{
	size_t end;

	(void)state;
	check_end(); /* nothing at all */
	for (end = 1; end <= MOST; end = end * 3 + 4095) {
		anew();
		while (f.end < end) {
			size_t left = end - f.end, len = 1 + (size_t)rand() % (3 << 20);

			put(len < left ? len : left, 0);
			left = end - f.end;
			if (left && rand() % 3 == 0)
				put(1, (size_t)rand() % left % 9000);
		}
		check_end();
	}
}

static void test_whole_buffers(void **state)
{
	(void)state;
	put((size_t)4 << 20, 0);
	put((size_t)8 << 20, (size_t)4 << 20);
	check_end();
}

/* In the buffer, in the file, between two blocks of it, all but a byte, all. */
static void test_back(void **state)
{
	static const size_t to[] = { ((size_t)9 << 20) - 777, ((size_t)5 << 20) + 12345, 4096, 1, 0 };
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(to) / sizeof(to[0]); i++) {
		anew();
		put((size_t)9 << 20, 0);
		back(to[i]);
		put(5000, 100);
		check_end();
	}
}

static void test_order(void **state)
{
	(void)state;
	put(100, 0);
	assert_int_equal(eq_direct_put(f.d, "x", 1, 99), -EINVAL);
}

/* No room: it is said, sooner or later, and nobody waits for ever. */
static void test_no_room(void **state)
{
	const struct rlimit small = { .rlim_cur = (rlim_t)6 << 20, .rlim_max = RLIM_INFINITY };
	struct rlimit old;
	int rc = 0, i;

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	for (i = 0; i < 20 && !rc; i++)
		rc = eq_direct_put(f.d, f.want, (size_t)4 << 20, (uint64_t)i << 22);
	if (!rc)
		rc = eq_direct_end(f.d);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_int_equal(rc, -EFBIG);
	assert_true(i > 2);
}

static int begin(void **state)
{
	const char *tmp = getenv("TMPDIR");

	(void)state;
	snprintf(f.path, sizeof(f.path), "%s/eqfs-unit-XXXXXX", tmp ? tmp : "/var/tmp");
	f.fd = mkstemp(f.path);
	f.end = 0;
	f.want = malloc(MOST);
	f.got = malloc(MOST);
	return f.fd < 0 || !f.want || !f.got || eq_direct_begin(f.fd, &f.d);
}

static int end(void **state)
{
	(void)state;
	eq_direct_free(f.d);
	f.d = NULL;
	free(f.want);
	free(f.got);
	close(f.fd);
	return unlink(f.path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_pieces, begin, end),
		cmocka_unit_test_setup_teardown(test_whole_buffers, begin, end),
		cmocka_unit_test_setup_teardown(test_back, begin, end),
		cmocka_unit_test_setup_teardown(test_order, begin, end),
		cmocka_unit_test_setup_teardown(test_no_room, begin, end),
	};
	void *none = NULL;
	int rc;

	signal(SIGXFSZ, SIG_IGN);
	rc = begin(&none);
	end(&none);
	if (rc) {
		printf("no direct I/O here\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
