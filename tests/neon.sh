#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# unit_parity with the NEON kernels, cross-compiled and under qemu-user. It links
# only the files it needs, and a stand-in for what it uses of cmocka, so that no
# library for arm64 is asked for.
set -eu
cc=aarch64-linux-gnu-gcc
qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static) &&
	command -v $cc >/dev/null || {
	echo "no $cc or no qemu-aarch64"
	case ,${EQFS_TEST_REQUIRE-}, in *,neon,*) exit 1 ;; esac
	exit 77
}
top=${top_srcdir:?}
T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
trap 'exit 1' HUP INT TERM

cat >"$T/cmocka.h" <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
	const char *name;
	void (*run)(void **state);
};

#define cmocka_unit_test(f) { #f, f }
#define fail_msg(...)                                                       \
	(printf("%s:%d: ", __FILE__, __LINE__), printf(__VA_ARGS__), puts(""), exit(1))
#define assert_true(c) ((c) ? (void)0 : (void)(fail_msg("%s", #c)))
#define assert_int_equal(a, b) assert_true((long long)(a) == (long long)(b))
#define assert_int_not_equal(a, b) assert_true((long long)(a) != (long long)(b))
#define assert_in_range(x, a, b)                                            \
	assert_true((unsigned long long)(x) - (a) <= (unsigned long long)(b) - (a))
#define assert_memory_equal(a, b, n) assert_true(!memcmp(a, b, n))
#define cmocka_run_group_tests(tests, setup, teardown)                      \
	run_tests(tests, sizeof(tests) / sizeof(*(tests)))

static inline int run_tests(const struct CMUnitTest *tests, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		printf("%s\n", tests[i].name);
		fflush(stdout);
		tests[i].run(NULL);
	}
	return n == 0;
}
END

set --
for f in tests/unit_parity codec/model codec/rans codec/split codec/dequant codec/cpu \
	codec/rans_neon codec/split_neon; do
	set -- "$@" "$top/$f.c"
done
$cc -std=gnu11 -O2 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Werror \
	-ffp-contract=off -static -pthread -DHAVE_NEON -I"$T" -I"$top/codec" \
	-o "$T/unit_parity" "$@" -lm
"$qemu" "$T/unit_parity" >"$T/log" || { cat "$T/log"; exit 1; }
cat "$T/log"
# It did test them.
grep -q 'testing neon' "$T/log"
