/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the command-line programs share: messages, sizes for people, numbers,
 * JSON, the progress line, signals. Nothing here is thread-safe unless said.
 */
#ifndef EQ_CLI_H
#define EQ_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cjson/cJSON.h>

/* Exit statuses, as coreutils has them. */
enum { EQ_EXIT_OK = 0, EQ_EXIT_FAIL = 1, EQ_EXIT_USAGE = 2 };

/* "PROGRAM: text" and a line feed on stderr, control characters as '?'. */
void eq_cli_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* "Try 'COMMAND --help' ..." on stderr; returns EQ_EXIT_USAGE. */
int eq_cli_usage(const char *command);
/* Flush stdout; what could not be written is a failure that must be said.
 * Returns status, or EQ_EXIT_FAIL. */
int eq_cli_finish(int status);

/* A decimal number within [min, max], nothing else: 0 or -EINVAL. */
int eq_cli_parse_uint(const char *text, unsigned min, unsigned max,
		      unsigned *out);

/* "17 B", "1.50 GiB". */
#define EQ_CLI_SIZE 40
const char *eq_cli_size(char buf[EQ_CLI_SIZE], uint64_t bytes);
/* Text for a terminal: control characters as '?', written to stdout. */
void eq_cli_put(const char *text, size_t len);

/* ---- JSON: one object a line -------------------------------------------- */

/* The object; there is one at a time. NULL is as good as any: printing it says so. */
cJSON *eq_cli_json_new(void);
/* A number, or null where JSON has none (NaN, infinity). */
void eq_cli_json_number(cJSON *obj, const char *key, double value);
/* A string of any bytes: what is not UTF-8 becomes U+FFFD, NUL is kept. */
cJSON *eq_cli_json_text(const char *s, size_t len);
void eq_cli_json_string(cJSON *obj, const char *key, const char *s, size_t len);
/* Print obj on a line of stdout and release it. 0, or -ENOMEM (said, and not forgotten by
 * eq_cli_finish) if there was not memory enough for all that was added. */
int eq_cli_json_print(cJSON *obj);

/* ---- progress ------------------------------------------------------------ */

struct eq_cli_mark {
	struct timespec at;
	uint64_t done;
};

/*
 * One line on stderr when that is a terminal, redrawn at most five times a
 * second, never longer than the terminal is wide. The rate is that of the last
 * five to ten seconds, or since the beginning of the phase `what`.
 */
struct eq_cli_progress {
	const char *label;      /* borrowed: the file */
	bool on, shown;
	char phase[16];
	struct timespec drawn;
	struct eq_cli_mark from, next; /* the rate counts from the one, then the other */
};

/* quiet: draw nothing, but still notice signals. */
void eq_cli_progress_init(struct eq_cli_progress *p, bool quiet);
/* The next file begins. */
void eq_cli_progress_file(struct eq_cli_progress *p, const char *label);
/* Take the line off the screen: before other output, and at the end. */
void eq_cli_progress_clear(struct eq_cli_progress *p);
/* An eq_progress_fn; arg is the struct above. Nonzero after a signal. */
int eq_cli_progress_step(void *arg, const char *what, uint64_t done,
			 uint64_t total);
/* Show that phase `what`, of which nothing is known, begins. */
void eq_cli_progress_phase(struct eq_cli_progress *p, const char *what);

/* ---- signals ------------------------------------------------------------- */

/*
 * From here on SIGINT, SIGTERM and SIGHUP are noted and acted on between two
 * pieces of work, so that temporary files are removed. Those that were ignored
 * stay ignored. SIGXFSZ is ignored: the write then fails, with a message.
 */
void eq_cli_catch_signals(void);
/* The signal that came, or 0. From any thread. */
int eq_cli_signal(void);
/* Die of the signal that came, so that the parent sees it; returns if none. */
void eq_cli_die_of_signal(void);

#endif
