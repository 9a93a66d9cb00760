/* SPDX-License-Identifier: Apache-2.0 */
/* eqar status: the statistics of mounts, for people and as JSON. */
#include "config.h"

#include "eqar.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FSTYPE "fuse.eqfs"
#define STATS ".eqfs/stats"
#define PREFIX "eqfs_"
#define MAX_TEXT ((size_t)1 << 20)
#define MAX_INTERVAL 3600.0
#define MAX_VALUE 9e18                  /* bytes, and what else fits 64 bits */
#define ANSWER_MS 3000          /* until a mount is taken to hang */

static const char help[] =
"Usage: eqar status [OPTION]... [MOUNT]...\n"
"Show what eqfs is doing at each MOUNT (any path in it; default: all there are):\n"
"queue, cache, bytes, logical and physical size of the store.\n"
"\n"
"  -i, --interval=SEC   measure rates over this time\n"
"  -q, --quiet          no output: only the exit status tells that it answers\n"
"  -v, --verbose        every counter\n"
"      --json           a JSON object a mount, on a line\n"
"      --help           this text\n";

static const struct option long_options[] = {
	{ "interval", required_argument, NULL, 'i' },
	{ "quiet", no_argument, NULL, 'q' },
	{ "verbose", no_argument, NULL, 'v' },
	{ "json", no_argument, NULL, EQ_OPT_JSON },
	{ "help", no_argument, NULL, EQ_OPT_HELP },
	{ NULL, 0, NULL, 0 },
};

struct status {
	struct eq_common common;
	double interval;
	bool failed;
};

struct mount {
	char *point, *store;    /* store: as the list of mounts names it */
};

/* ---- reading ----------------------------------------------------------------- */

/* Copy what .eqfs/stats says, or an errno and nothing else. */
static void copy_stats(const char *point, int out)
{
	char *path, buf[4096];
	ssize_t n = -1;
	int fd = -1, error;

	if (asprintf(&path, "%s/" STATS, point) >= 0)
		fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
	while (fd >= 0 && (n = read(fd, buf, sizeof(buf))) > 0)
		if (write(out, buf, (size_t)n) != n)
			break;
	error = errno;
	if (n < 0)
		(void)!write(out, &error, sizeof(error));
}

/* All that comes until the end, malloc'ed; NULL and errno, ETIMEDOUT among them. */
static char *collect(int fd, size_t *len)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char *text = malloc(MAX_TEXT + 1);
	ssize_t n = -1;
	int rc = 1;

	*len = 0;
	while (text && *len < MAX_TEXT && (rc = poll(&p, 1, ANSWER_MS)) > 0) {
		n = read(fd, text + *len, MAX_TEXT - *len);
		if (n <= 0)
			break;
		*len += (size_t)n;
	}
	if (text && n == 0) {
		text[*len] = 0;
		return text;
	}
	if (rc == 0)
		errno = ETIMEDOUT;
	else if (text && *len == MAX_TEXT)
		errno = EFBIG;
	free(text);
	return NULL;
}

/*
 * What .eqfs/stats says, malloc'ed; NULL and errno. Another process reads it: who waits
 * for a mount that hangs can perhaps not be killed, and need not be waited for.
 */
static char *ask(const char *point)
{
	int ends[2], error = 0;
	char *text = NULL;
	size_t len = 0;
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC))
		return NULL;
	fflush(stdout); /* or the child has it as well */
	pid = fork();
	if (pid == 0) {
		close(STDOUT_FILENO); /* who reads these need not wait for us either */
		close(STDERR_FILENO);
		copy_stats(point, ends[1]);
		_exit(0);
	}
	close(ends[1]);
	if (pid > 0)
		text = collect(ends[0], &len);
	error = errno;
	close(ends[0]);
	if (pid > 0 && !text)
		kill(pid, SIGKILL);
	else if (pid > 0)
		waitpid(pid, NULL, 0);
	if (text && len == sizeof(error)) {
		memcpy(&error, text, sizeof(error));
		free(text);
		text = NULL;
	}
	errno = error;
	return text;
}

/* The line of a sample: "eqfs_NAME value" or "eqfs_NAME{labels} value", or NULL. */
static const char *sample(const char *text, const char *name)
{
	size_t n = strlen(name);

	for (; text; text = strchr(text, '\n')) {
		text += *text == '\n';
		if (!strncmp(text, PREFIX, sizeof(PREFIX) - 1) &&
		    !strncmp(text + sizeof(PREFIX) - 1, name, n) &&
		    strchr(" {", text[sizeof(PREFIX) - 1 + n]))
			return text;
	}
	return NULL;
}

/* 0 when a mount does not know the name, or says nonsense. */
static double value(const char *text, const char *name)
{
	const char *s = sample(text, name);
	double v = s ? strtod(s + sizeof(PREFIX) - 1 + strlen(name), NULL) : 0;

	return v >= 0 && v <= MAX_VALUE ? v : 0;
}

static double labelled(const char *text, const char *name, const char *label)
{
	char full[96];

	snprintf(full, sizeof(full), "%s{file=\"%s\"}", name, label);
	return value(text, full);
}

/* A label of eqfs_info, unescaped; "" if there is none. */
static void info(const char *text, const char *label, char *out, size_t size)
{
	const char *s = sample(text, "info"), *end = s ? strchr(s, '\n') : NULL;
	char key[32];
	size_t n = 0;

	snprintf(key, sizeof(key), "%s=\"", label);
	s = s ? strstr(s, key) : NULL;
	if (s && end && s < end)
		for (s += strlen(key); *s != '"' && s < end && n + 1 < size; s++) {
			if (*s == '\\')
				s++;
			out[n++] = *s == 'n' && s[-1] == '\\' ? ' ' : *s;
		}
	out[n] = 0;
}

/* ---- for people ---------------------------------------------------------------- */

static void size_row(const char *label, double bytes, const char *behind)
{
	char size[EQ_CLI_SIZE];

	printf("%s%s%s", label, eq_cli_size(size, (uint64_t)bytes), behind);
}

static void row(const char *what)
{
	printf("  %-10s  ", what);
}

/* Somebody else's mount may say anything. */
static void put_line(const char *text)
{
	eq_cli_put(text, strlen(text));
	putchar('\n');
}

static double part(double a, double of)
{
	return of > 0 ? a / of : 0;
}

static void put_duration(double s)
{
	unsigned long t = (unsigned long)s;

	if (t >= 86400)
		printf("%lu d ", t / 86400);
	printf("%lu:%02lu:%02lu", t / 3600 % 24, t / 60 % 60, t % 60);
}

static void put_work(const char *t)
{
	double in = value(t, "encoded_input_bytes_total"), out = value(t, "encoded_output_bytes_total");
	double rate = part(in, value(t, "encode_seconds_total"));
	double todo = value(t, "queue_bytes") + value(t, "encoding_bytes") *
		      (1 - value(t, "encoding_progress_ratio"));

	row("queue");
	printf("%.0f files, ", value(t, "queue_files"));
	size_row("", value(t, "queue_bytes"), "");
	if (value(t, "encoding_files") > 0) {
		size_row("; encoding ", value(t, "encoding_bytes"), "");
		printf(", %.0f%% done", 100 * value(t, "encoding_progress_ratio"));
	}
	if (todo > 0 && rate > 0) {
		fputs("; about ", stdout);
		put_duration(todo / rate + 1);
		fputs(" to go", stdout);
	}
	putchar('\n');
	row("encoded");
	printf("%.0f files", value(t, "encoded_files_total"));
	if (in > 0) {
		size_row(", ", in, " -> ");
		size_row("", out, "");
		printf(" (%.1f%%)", 100 * part(out, in));
		size_row(" at ", rate, "/s");
	}
	printf("; %.0f left plain, %.0f failed, %.0f restored\n",
	       value(t, "encode_skipped_files_total"), value(t, "encode_failed_files_total"),
	       value(t, "restored_files_total"));
}

static void put_reading(const char *t)
{
	double hits = value(t, "cache_hits_total"), all = hits + value(t, "cache_misses_total");
	double errors = labelled(t, "read_errors_total", "archive") +
			labelled(t, "read_errors_total", "plain");

	row("read");
	size_row("", labelled(t, "read_bytes_total", "archive"), " of archives, ");
	size_row("", labelled(t, "read_bytes_total", "plain"), " of plain files");
	printf("; %.0f errors\n", errors);
	row("written");
	size_row("", value(t, "written_bytes_total"), "\n");
	row("cache");
	size_row("", value(t, "cache_bytes"), " of ");
	size_row("", value(t, "cache_limit_bytes"), "");
	printf("; %.1f%% hits, %.1f%% of what was decoded ahead used\n", 100 * part(hits, all),
	       100 * part(value(t, "decode_ahead_hits_total"), value(t, "decode_ahead_extents_total")));
}

static void put_text(const struct mount *m, const char *t)
{
	char policy[512], backend[64], mode[8], version[32];
	double logical = value(t, "store_logical_bytes"), physical = value(t, "store_physical_bytes");

	info(t, "policy", policy, sizeof(policy));
	info(t, "backend", backend, sizeof(backend));
	info(t, "mode", mode, sizeof(mode));
	info(t, "version", version, sizeof(version));
	eq_cli_put(m->point, strlen(m->point));
	fputs(": ", stdout);
	eq_cli_put(m->store, strlen(m->store));
	fputs(", ", stdout);
	eq_cli_put(mode, strlen(mode));
	fputs(", up ", stdout);
	put_duration(value(t, "uptime_seconds"));
	fputs(", eqfs ", stdout);
	put_line(version);
	row("policy");
	put_line(policy);
	row("back end");
	put_line(backend);
	row("store");
	printf("%.0f files, %.0f of them archives: ", value(t, "store_files"),
	       value(t, "store_archives"));
	size_row("", logical, " logical, ");
	size_row("", physical, " physical");
	printf(" (%.1f%%)%s\n", 100 * part(physical, logical),
	       value(t, "store_known") > 0 ? "" : ", still counting");
	put_work(t);
	put_reading(t);
}

/* ---- rates ------------------------------------------------------------------- */

static double read_bytes(const char *t)
{
	return labelled(t, "read_bytes_total", "archive") + labelled(t, "read_bytes_total", "plain");
}

static double written_bytes(const char *t)
{
	return value(t, "written_bytes_total");
}

static double decoded_bytes(const char *t)
{
	return value(t, "decoded_bytes_total");
}

static double encoded_bytes(const char *t)
{
	return value(t, "encoded_input_bytes_total");
}

static const struct {
	const char *name;
	double (*get)(const char *text);
} rates[] = {
	{ "read", read_bytes },
	{ "decoded", decoded_bytes },
	{ "written", written_bytes },
	{ "encoded", encoded_bytes },
};

#define N_RATES (sizeof(rates) / sizeof(rates[0]))

/* Bytes a second of rates[i] between two texts. */
static double rate(const char *before, const char *now, size_t i)
{
	double time = value(now, "uptime_seconds") - value(before, "uptime_seconds");

	return part(rates[i].get(now) - rates[i].get(before), time);
}

static void put_rates(const char *before, const char *now)
{
	row("now");
	for (size_t i = 0; i < N_RATES; i++) {
		printf("%s%s ", i ? ", " : "", rates[i].name);
		size_row("", rate(before, now, i), "/s");
	}
	putchar('\n');
}

/* ---- JSON ------------------------------------------------------------------------ */

/* eqfs_x_total{file="archive"} becomes x_archive. */
static void json_key(char out[128], const char *s)
{
	static const char total[] = "_total", file[] = "{file=\"";
	size_t n = strcspn(s, " {"), k;
	const char *label = s + n;

	n -= n >= sizeof(total) && !strncmp(s + n - sizeof(total) + 1, total, sizeof(total) - 1) ?
	     sizeof(total) - 1 : 0;
	n = n < 64 ? n : 64;
	memcpy(out, s, n);
	if (!strncmp(label, file, sizeof(file) - 1)) {
		label += sizeof(file) - 1;
		k = strcspn(label, "\"");
		k = k < 48 ? k : 48;
		out[n++] = '_';
		memcpy(out + n, label, k);
		n += k;
	}
	out[n] = 0;
}

static void put_json(const struct mount *m, const char *before, const char *t)
{
	static const char *const labels[] = { "version", "backend", "isa", "policy", "mode" };
	cJSON *o = eq_cli_json_new();
	const char *line, *end;
	char buf[512], key[128];

	eq_cli_json_string(o, "mount", m->point, strlen(m->point));
	eq_cli_json_string(o, "store", m->store, strlen(m->store));
	for (size_t i = 0; i < sizeof(labels) / sizeof(labels[0]); i++) {
		info(t, labels[i], buf, sizeof(buf));
		eq_cli_json_string(o, labels[i], buf, strlen(buf));
	}
	for (line = t; *line; line = end + 1) {
		end = strchrnul(line, '\n');
		if (!strncmp(line, PREFIX, sizeof(PREFIX) - 1) &&
		    strncmp(line, PREFIX "info{", sizeof(PREFIX "info{") - 1)) {
			const char *v = memrchr(line, ' ', (size_t)(end - line));

			json_key(key, line + sizeof(PREFIX) - 1);
			if (v)
				eq_cli_json_number(o, key, strtod(v, NULL));
		}
		if (!*end)
			break;
	}
	for (size_t i = 0; before && i < N_RATES; i++) {
		snprintf(key, sizeof(key), "%s_bytes_per_second", rates[i].name);
		eq_cli_json_number(o, key, rate(before, t, i));
	}
	eq_cli_json_print(o);
}

static void put_all(const char *t)
{
	for (; *t; t = *t ? strchrnul(t, '\n') : t) {
		t += *t == '\n';
		if (!strncmp(t, PREFIX, sizeof(PREFIX) - 1)) {
			fputs("  ", stdout);
			eq_cli_put(t, strcspn(t, "\n"));
			putchar('\n');
		}
	}
}

/* ---- mounts ------------------------------------------------------------------------ */

static void show(struct status *s, const struct mount *m)
{
	char *before = NULL, *now = ask(m->point);
	struct timespec t = { (time_t)s->interval,
			      (long)((s->interval - (double)(time_t)s->interval) * 1e9) };

	if (now && s->interval > 0) {
		before = now;
		nanosleep(&t, NULL);
		now = ask(m->point);
	}
	if (!now || !sample(now, "info")) {
		eq_cli_error("%s/" STATS ": %s", m->point,
			     now ? "not the statistics of eqfs" : strerror(errno));
		s->failed = true;
	} else if (s->common.json) {
		put_json(m, before, now);
	} else if (!s->common.quiet) {
		put_text(m, now);
		if (before)
			put_rates(before, now);
		if (s->common.verbose)
			put_all(now);
	}
	free(before);
	free(now);
}

/* \ooo in the kernel's list of mounts stands for a byte. */
static void unescape(char *s)
{
	char *out = s;

	for (; *s; s++)
		if (s[0] == '\\' && s[1] && s[2] && s[3]) {
			*out++ = (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
			s += 3;
		} else {
			*out++ = *s;
		}
	*out = 0;
}

/* Show the mounts that are asked for: the one with this device number, or (NULL)
 * all. Returns how many there were. */
static size_t show_mounts(struct status *s, const dev_t *dev)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	unsigned major, minor;
	char *line = NULL, *rest, *root;
	struct mount m;
	size_t room = 0, n = 0;

	while (f && getline(&line, &room, f) > 0) {
		root = m.point = m.store = NULL;
		rest = strstr(line, " - ");
		/* Another root: part of a mount, which is shown elsewhere. */
		if (rest && sscanf(line, "%*u %*u %u:%u %ms %ms", &major, &minor, &root,
				   &m.point) == 4 &&
		    !strcmp(root, "/") && sscanf(rest, " - " FSTYPE " %ms", &m.store) == 1 &&
		    (!dev || *dev == makedev(major, minor))) {
			unescape(m.point);
			unescape(m.store);
			if (n++ == 0 || !dev)
				show(s, &m);
		}
		free(root);
		free(m.point);
		free(m.store);
	}
	free(line);
	if (f)
		fclose(f);
	return n;
}

static void show_path(struct status *s, const char *path)
{
	struct statx st;
	dev_t dev;

	/* Without asking the mount, which may hang. */
	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, 0, &st)) {
		eq_cli_error("%s: %s", path, strerror(errno));
		s->failed = true;
		return;
	}
	dev = makedev(st.stx_dev_major, st.stx_dev_minor);
	if (!show_mounts(s, &dev)) {
		eq_cli_error("%s: not in a mount of eqfs", path);
		s->failed = true;
	}
}

int eq_cmd_status(int argc, char **argv)
{
	struct status s = { .failed = false };
	bool done = false;
	char *end;
	int opt;

	while ((opt = getopt_long(argc, argv, "i:qv", long_options, NULL)) != -1) {
		if (opt == 'i') {
			s.interval = strtod(optarg, &end);
			if (*end || end == optarg || !(s.interval > 0 && s.interval <= MAX_INTERVAL)) {
				eq_cli_error("%s: not a number of seconds", optarg);
				return eq_cli_usage("eqar status");
			}
		} else if (!eq_common_option(&s.common, opt, optarg, help, &done)) {
			return eq_cli_usage("eqar status");
		}
		if (done)
			return EQ_EXIT_OK;
	}
	for (int i = optind; i < argc; i++)
		show_path(&s, argv[i]);
	if (optind == argc && !show_mounts(&s, NULL)) {
		eq_cli_error("nothing is mounted by eqfs");
		s.failed = true;
	}
	return s.failed ? EQ_EXIT_FAIL : EQ_EXIT_OK;
}
