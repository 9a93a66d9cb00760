/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include "cli.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "utf8.h"

#define MAX_COLUMNS 500         /* of a progress line */
#define LABEL_LEAST 8           /* of which so many are the label's, at the details' cost */
#define TAIL_SIZE 96
#define RATE_SECONDS 5

/* ---- messages ------------------------------------------------------------ */

/* C1 as well (U+0080 to U+009F), which some terminals obey in UTF-8. */
static void put_plain(FILE *f, const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];
		bool c1 = c == 0xc2 && i + 1 < len && (text[i + 1] & 0xe0) == 0x80;

		putc(c < 0x20 || c == 0x7f || c1 ? '?' : c, f);
		i += c1;
	}
}

/* Is stderr a terminal that can take a line back? */
static bool can_redraw(void)
{
	const char *term = getenv("TERM");

	return isatty(STDERR_FILENO) && term && strcmp(term, "dumb");
}

void eq_cli_error(const char *fmt, ...)
{
	char text[2 * PATH_MAX] = ""; /* memory may be what is missing */
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	/* A progress line may stand there. */
	if (can_redraw())
		fputs("\r\033[K", stderr);
	/* One line, whatever a file name holds. */
	fprintf(stderr, "%s: ", program_invocation_short_name);
	put_plain(stderr, text, strlen(text));
	putc('\n', stderr);
}

int eq_cli_usage(const char *command)
{
	fprintf(stderr, "Try '%s --help' for more information.\n", command);
	return EQ_EXIT_USAGE;
}

static bool json_lost;          /* an object could not be printed */
static int output_errno;        /* why something could not be written */

int eq_cli_finish(int status)
{
	errno = output_errno;
	if (fflush(stdout) || ferror(stdout)) {
		eq_cli_error("standard output: %s",
			     strerror(errno ? errno : EIO));
		return EQ_EXIT_FAIL;
	}
	return json_lost && status == EQ_EXIT_OK ? EQ_EXIT_FAIL : status;
}

int eq_cli_parse_uint(const char *text, unsigned min, unsigned max,
		      unsigned *out)
{
	unsigned long v;
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || *end || v < min || v > max)
		return -EINVAL;
	*out = (unsigned)v;
	return 0;
}

const char *eq_cli_size(char buf[EQ_CLI_SIZE], uint64_t bytes)
{
	static const char units[][4] = { "KiB", "MiB", "GiB", "TiB",
					 "PiB", "EiB" };
	double v = (double)bytes / 1024;
	size_t u = 0;

	if (bytes < 1024) {
		snprintf(buf, EQ_CLI_SIZE, "%u B", (unsigned)bytes);
		return buf;
	}
	/* 999.5 would be printed as 1000: that belongs to the next unit. */
	while (v >= 999.5 && u + 1 < sizeof(units) / sizeof(units[0])) {
		v /= 1024;
		u++;
	}
	if (v < 9.995) {
		unsigned n = (unsigned)(v * 100 + 0.5);

		snprintf(buf, EQ_CLI_SIZE, "%u.%02u %s", n / 100, n % 100,
			 units[u]);
	} else if (v < 99.95) {
		unsigned n = (unsigned)(v * 10 + 0.5);

		snprintf(buf, EQ_CLI_SIZE, "%u.%u %s", n / 10, n % 10,
			 units[u]);
	} else {
		snprintf(buf, EQ_CLI_SIZE, "%u %s", (unsigned)(v + 0.5),
			 units[u]);
	}
	return buf;
}

void eq_cli_put(const char *text, size_t len)
{
	put_plain(stdout, text, len);
}

/* ---- JSON ---------------------------------------------------------------- */

/* cJSON's functions leave out what they have no memory for, and few say so. */
static bool json_incomplete;

static void *json_alloc(size_t n)
{
	void *p = malloc(n);

	json_incomplete |= !p;
	return p;
}

cJSON *eq_cli_json_new(void)
{
	cJSON_Hooks hooks = { .malloc_fn = json_alloc, .free_fn = free };

	cJSON_InitHooks(&hooks);
	return cJSON_CreateObject();
}

void eq_cli_json_number(cJSON *obj, const char *key, double value)
{
	if (isfinite(value))
		cJSON_AddNumberToObject(obj, key, value);
	else
		cJSON_AddNullToObject(obj, key);
}

/* cJSON's strings end at NUL and pass any byte on, so we write the literal. */
cJSON *eq_cli_json_text(const char *s, size_t len)
{
	const unsigned char *in = (const unsigned char *)s;
	char *lit = json_alloc(6 * len + 3), *o = lit;
	cJSON *item;

	if (!lit)
		return NULL;
	*o++ = '"';
	for (size_t i = 0; i < len;) {
		uint32_t ch;
		size_t n = eq_utf8_next(in + i, len - i, &ch);

		if (ch > 0x10ffff) {
			o = stpcpy(o, "\xef\xbf\xbd");
		} else if (in[i] < 0x20 || in[i] == 0x7f) {
			o += sprintf(o, "\\u%04x", in[i]);
		} else if (in[i] == '"' || in[i] == '\\') {
			*o++ = '\\';
			*o++ = (char)in[i];
		} else {
			memcpy(o, in + i, n);
			o += n;
		}
		i += n;
	}
	strcpy(o, "\"");
	item = cJSON_CreateRaw(lit);
	free(lit);
	return item;
}

void eq_cli_json_string(cJSON *obj, const char *key, const char *s, size_t len)
{
	cJSON_AddItemToObject(obj, key, eq_cli_json_text(s, len));
}

int eq_cli_json_print(cJSON *obj)
{
	char *text = obj ? cJSON_PrintUnformatted(obj) : NULL;

	cJSON_Delete(obj);
	if (json_incomplete) {
		cJSON_free(text);
		text = NULL;
	}
	json_incomplete = false;
	if (!text) {
		json_lost = true;
		eq_cli_error("%s", strerror(ENOMEM));
		return -ENOMEM;
	}
	/* Who reads along a pipe wants each file when it is done. */
	if ((puts(text) == EOF || fflush(stdout)) && !output_errno)
		output_errno = errno;
	cJSON_free(text);
	return 0;
}

/* ---- progress ------------------------------------------------------------ */

void eq_cli_progress_init(struct eq_cli_progress *p, bool quiet)
{
	*p = (struct eq_cli_progress){ .label = "" };
	p->on = !quiet && can_redraw();
}

void eq_cli_progress_file(struct eq_cli_progress *p, const char *label)
{
	p->label = label;
	p->phase[0] = 0;
}

void eq_cli_progress_clear(struct eq_cli_progress *p)
{
	if (p->shown)
		fputs("\r\033[K", stderr);
	p->shown = false;
}

static double seconds_between(const struct timespec *a,
			      const struct timespec *b)
{
	return (double)(b->tv_sec - a->tv_sec) +
	       1e-9 * (double)(b->tv_nsec - a->tv_nsec);
}

/* Columns a byte takes on a terminal; of UTF-8, the first counts for the character. */
static size_t columns(unsigned char c)
{
	return c < 0x80 ? 1 : c < 0xc0 ? 0 : c < 0xe0 ? 1 : 2;
}

/* The end of a path tells more than its beginning. */
static const char *label_end(const char *label, size_t room)
{
	const char *s = label + strlen(label), *from = s;
	size_t n;

	while (s > label) {
		n = columns((unsigned char)*--s);
		if (n > room || label + strlen(label) - s > MAX_COLUMNS)
			break;
		room -= n;
		if (n)
			from = s;
	}
	return from;
}

/* What stands behind the label; the time left goes last, where room is scarce. */
static int line_tail(char out[TAIL_SIZE], const struct eq_cli_progress *p, uint64_t done,
		     uint64_t total, double rate, unsigned details)
{
	int n = snprintf(out, TAIL_SIZE, ": %s", p->phase);

	if (total)
		n += snprintf(out + n, TAIL_SIZE - (size_t)n, " %3u%%",
			      (unsigned)((double)done * 100 / (double)total));
	if (rate > 0 && details > 1)
		n += snprintf(out + n, TAIL_SIZE - (size_t)n, "  %.0f MB/s", rate / 1e6);
	if (rate > 0 && details > 0 && total >= done) {
		uint64_t s = (uint64_t)((double)(total - done) / rate + 0.5);

		n += snprintf(out + n, TAIL_SIZE - (size_t)n, "  %llu:%02u:%02u left",
			      (unsigned long long)(s / 3600), (unsigned)(s / 60 % 60),
			      (unsigned)(s % 60));
	}
	return n;
}

static void draw(struct eq_cli_progress *p, uint64_t done, uint64_t total, double rate)
{
	char tail[TAIL_SIZE], line[2 * MAX_COLUMNS + 2 * TAIL_SIZE];
	size_t len, width = 80;
	const char *label;
	struct winsize ws;
	unsigned details = 2;
	FILE *f;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col > 0)
		width = ws.ws_col;
	if (width > MAX_COLUMNS)
		width = MAX_COLUMNS;
	width--; /* the cursor stays on the line */
	do
		len = (size_t)line_tail(tail, p, done, total, rate, details);
	while (len + LABEL_LEAST > width && details--);
	label = label_end(p->label, width > len ? width - len : 0);
	f = fmemopen(line, sizeof(line), "w"); /* stderr would write byte by byte */
	if (!f)
		return;
	putc('\r', f);
	put_plain(f, label, strlen(label));
	fprintf(f, "%.*s\033[K", (int)width, tail);
	len = (size_t)ftell(f);
	fclose(f);
	fwrite(line, 1, len, stderr);
	p->shown = true;
}

static void phase_begin(struct eq_cli_progress *p, const char *what, uint64_t done,
			const struct timespec *now)
{
	snprintf(p->phase, sizeof(p->phase), "%s", what);
	p->from = p->next = (struct eq_cli_mark){ *now, done };
}

/* Bytes a second; 0: the first instants say nothing about the rest. */
static double rate_of(struct eq_cli_progress *p, uint64_t done, const struct timespec *now)
{
	double elapsed;

	if (seconds_between(&p->next.at, now) >= RATE_SECONDS) {
		p->from = p->next;
		p->next = (struct eq_cli_mark){ *now, done };
	}
	elapsed = seconds_between(&p->from.at, now);
	return elapsed > 0.5 && done > p->from.done ? (double)(done - p->from.done) / elapsed : 0;
}

int eq_cli_progress_step(void *arg, const char *what, uint64_t done,
			 uint64_t total)
{
	struct eq_cli_progress *p = arg;
	struct timespec now;

	if (eq_cli_signal())
		return 1;
	if (!p->on)
		return 0;
	clock_gettime(CLOCK_MONOTONIC, &now);
	if (strncmp(p->phase, what, sizeof(p->phase) - 1))
		phase_begin(p, what, done, &now);
	if (!p->shown || seconds_between(&p->drawn, &now) >= 0.2) {
		draw(p, done, total, rate_of(p, done, &now));
		p->drawn = now;
	}
	return 0;
}

void eq_cli_progress_phase(struct eq_cli_progress *p, const char *what)
{
	if (!p->on)
		return;
	snprintf(p->phase, sizeof(p->phase), "%s", what);
	draw(p, 0, 0, 0);
}

/* ---- signals ------------------------------------------------------------- */

/* A handler has no argument of ours: this is the one variable it may set.
 * Atomic because the codec's threads poll it. */
static atomic_int signal_seen;

static void on_signal(int sig)
{
	signal_seen = sig;
}

void eq_cli_catch_signals(void)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction old, sa = { .sa_handler = on_signal };

	sigemptyset(&sa.sa_mask);
	sa.sa_flags = SA_RESTART;
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		if (sigaction(signals[i], NULL, &old) == 0 &&
		    old.sa_handler != SIG_IGN)
			sigaction(signals[i], &sa, NULL);
	signal(SIGXFSZ, SIG_IGN);
}

int eq_cli_signal(void)
{
	return signal_seen;
}

void eq_cli_die_of_signal(void)
{
	int sig = signal_seen;

	if (!sig)
		return;
	signal(sig, SIG_DFL);
	raise(sig);
	_exit(128 + sig);
}
