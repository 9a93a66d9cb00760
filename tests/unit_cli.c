/* SPDX-License-Identifier: Apache-2.0 */
/* The progress line, on a terminal of our own: what it says, and that it fits. */
#include "config.h"

#include <fcntl.h>
#include <pty.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli.h"

#define MB UINT64_C(1000000)

static struct {
	int master, slave, saved;
	char line[2000];        /* what the terminal got last */
} tty;

static void width_set(unsigned short columns)
{
	const struct winsize ws = { .ws_row = 25, .ws_col = columns };

	assert_int_equal(ioctl(tty.slave, TIOCSWINSZ, &ws), 0);
}

/* What was written to the terminal since. */
static const char *shown(void)
{
	ssize_t n = read(tty.master, tty.line, sizeof(tty.line) - 1);

	tty.line[n > 0 ? n : 0] = 0;
	return tty.line;
}

/* A step, as if so many seconds had passed; so many that what really passes does not count. */
static const char *step(struct eq_cli_progress *p, double age, const char *what, uint64_t done,
			uint64_t total)
{
	p->drawn.tv_sec -= 1;
	p->from.at.tv_sec -= (time_t)age;
	p->next.at.tv_sec -= (time_t)age;
	assert_int_equal(eq_cli_progress_step(p, what, done, total), 0);
	return shown();
}

static void begin(struct eq_cli_progress *p, const char *label)
{
	eq_cli_progress_init(p, false);
	assert_true(p->on);
	eq_cli_progress_file(p, label);
}

static void test_figures(void **state)
{
	struct eq_cli_progress p;

	(void)state;
	width_set(80);
	begin(&p, "dir/model");
	assert_string_equal(step(&p, 0, "encode", 100 * MB, 606100 * MB),
			    "\rdir/model: encode   0%\033[K");
	/* The first 100 were there when it began to count. */
	assert_string_equal(step(&p, 1000, "encode", 500100 * MB, 606100 * MB),
			    "\rdir/model: encode  82%  500 MB/s  0:03:32 left\033[K");
	/* What was long ago counts no more. */
	assert_string_equal(step(&p, 1000, "encode", 600100 * MB, 606100 * MB),
			    "\rdir/model: encode  99%  100 MB/s  0:01:00 left\033[K");
	/* The next phase begins anew. */
	assert_string_equal(step(&p, 0, "verify", 0, 11200000 * MB),
			    "\rdir/model: verify   0%\033[K");
	assert_string_equal(step(&p, 100000, "verify", 10000000 * MB, 11200000 * MB),
			    "\rdir/model: verify  89%  100 MB/s  3:20:00 left\033[K");
	eq_cli_progress_phase(&p, "sync");
	assert_string_equal(shown(), "\rdir/model: sync\033[K");
	eq_cli_progress_clear(&p);
	assert_string_equal(shown(), "\r\033[K");
	eq_cli_progress_clear(&p); /* there is none */
	assert_string_equal(shown(), "");
}

static void test_seldom(void **state)
{
	struct eq_cli_progress p;

	(void)state;
	width_set(80);
	begin(&p, "m");
	assert_string_not_equal(step(&p, 0, "encode", 1, 9), "");
	assert_int_equal(eq_cli_progress_step(&p, "encode", 2, 9), 0);
	assert_string_equal(shown(), "");
}

static void test_width(void **state)
{
	static const char *const labels[] = {
		"m", "a/very/long/path/to/a/model/that/no/terminal/has/room/for/model.safetensors",
		"g\xc3\xb6\xc3\xb6\xc3\xb6\xc3\xb6\xc3\xb6\xc3\xb6\xc3\xb6\xc3\xb6\xc3\xb6\xc3\xb6" "d",
		"\xe6\xa8\xa1\xe5\x9e\x8b\xe6\xa8\xa1\xe5\x9e\x8b\xe6\xa8\xa1\xe5\x9e\x8b",
		"\x80\x80\x80", "",
	};
	struct eq_cli_progress p;
	unsigned short width;
	size_t i, n, used;
	const char *s;

	(void)state;
	for (i = 0; i < sizeof(labels) / sizeof(labels[0]); i++) {
		for (width = 1; width < 130; width++) {
			width_set(width);
			begin(&p, labels[i]);
			step(&p, 0, "encode", 0, 9000 * MB);
			s = step(&p, 3, "encode", 3000 * MB, 9000 * MB);
			n = strlen(s);
			assert_true(n >= 4 && s[0] == '\r' && !strcmp(s + n - 3, "\033[K"));
			if ((s[1] & 0xc0) == 0x80) /* begins with a whole character */
				assert_int_equal((unsigned char)labels[i][0], 0x80);
			for (used = 0, s++; strcmp(s, "\033[K"); s++) /* Chinese takes two */
				used += (*s & 0x80) == 0 || (*s & 0xe0) == 0xc0 ? 1 :
					(*s & 0xc0) == 0x80 ? 0 : 2;
			assert_true(used < width || used == 0);
			if (width > 24)
				assert_non_null(strstr(tty.line, "encode  33%"));
			assert_int_equal(width > 35, strstr(tty.line, " left") != NULL);
			assert_true(width < 50 || strstr(tty.line, " MB/s  "));
		}
	}
}

static void test_quiet(void **state)
{
	struct eq_cli_progress p;

	(void)state;
	eq_cli_progress_init(&p, true);
	assert_false(p.on);
	assert_string_equal(step(&p, 0, "encode", 1, 9), "");
	eq_cli_progress_phase(&p, "sync");
	assert_string_equal(shown(), "");
	setenv("TERM", "dumb", 1);
	eq_cli_progress_init(&p, false);
	setenv("TERM", "xterm", 1);
	assert_false(p.on);
}

/* The test's own messages go where they went. */
static int to_terminal(void **state)
{
	(void)state;
	fflush(stderr);
	return dup2(tty.slave, STDERR_FILENO) < 0;
}

static int from_terminal(void **state)
{
	(void)state;
	return dup2(tty.saved, STDERR_FILENO) < 0;
}

static int terminal_open(void)
{
	struct termios raw;

	setenv("TERM", "xterm", 1);
	tty.saved = dup(STDERR_FILENO);
	if (tty.saved < 0 || openpty(&tty.master, &tty.slave, NULL, NULL, NULL) ||
	    tcgetattr(tty.slave, &raw))
		return -1;
	cfmakeraw(&raw);
	return tcsetattr(tty.slave, TCSANOW, &raw) ||
	       fcntl(tty.master, F_SETFL, O_NONBLOCK);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_figures, to_terminal, from_terminal),
		cmocka_unit_test_setup_teardown(test_seldom, to_terminal, from_terminal),
		cmocka_unit_test_setup_teardown(test_width, to_terminal, from_terminal),
		cmocka_unit_test_setup_teardown(test_quiet, to_terminal, from_terminal),
	};

	if (terminal_open()) {
		printf("no pseudo-terminals here\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
