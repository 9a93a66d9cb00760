/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pass over the whole logical file: windows of some MiB are decoded in
 * parallel while the consumers (hashes, comparison, output) work on the window
 * before, so that the serial ones cost no time of their own.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "archive_priv.h"

#define WINDOW_BYTES (UINT64_C(4) << 20) /* little enough for caches to keep it */
#define WINDOW_EXTENTS 1024
#define GROUP 4                 /* extents decoded by one task */
#define MAX_CONSUMERS 4

struct scan {
	struct eq_archive *a;
	const struct eq_backend *be;
	const struct eq_consumer *consumers;
	size_t n_consumers;
	struct eq_window *decode, *consume;     /* either may be empty */
	int status[MAX_CONSUMERS];
};

static void window_free(struct eq_window *w)
{
	free(w->buf);
	free(w->jobs);
	free(w->errs);
}

static int window_alloc(struct eq_window *w)
{
	/* An extent may be as long as a chunk may be, and starts aligned. */
	w->buf = eq_buffer_alloc(WINDOW_BYTES + EQ_MAX_CHUNK_BYTES);
	w->jobs = calloc(WINDOW_EXTENTS, sizeof(w->jobs[0]));
	w->errs = calloc(WINDOW_EXTENTS, sizeof(w->errs[0]));
	return w->buf && w->jobs && w->errs ? 0 : -ENOMEM;
}

/* Lay the extents from `begin` on into w. */
static void window_plan(const struct eq_archive *a, struct eq_window *w, uint64_t begin)
{
	struct eq_extent_job *j;

	w->begin = begin;
	w->len = 0;
	w->n = 0;
	while (w->n < WINDOW_EXTENTS && w->len < WINDOW_BYTES) {
		j = &w->jobs[w->n];
		if (eq_archive_locate(a, begin + w->len, &j->ext))
			break;
		j->out = w->buf + w->len;
		w->errs[w->n++].text[0] = 0;
		w->len += j->ext.len;
	}
}

static void scan_task(void *arg, size_t i)
{
	struct scan *s = arg;
	struct eq_window *w = s->decode;
	struct eq_error err;
	size_t k, end;

	if (i < s->n_consumers) {
		if (s->consume->n)
			s->status[i] = s->consumers[i].fn(s->consumers[i].arg, s->consume);
		return;
	}
	k = (i - s->n_consumers) * GROUP;
	end = k + GROUP < w->n ? k + GROUP : w->n;
	if (eq_archive_decode(s->a, s->be, w->jobs + k, end - k, &err) == 0)
		return;
	for (; k < end; k++) /* one by one, for a message each */
		if (w->jobs[k].status)
			eq_archive_decode(s->a, s->be, &w->jobs[k], 1, &w->errs[k]);
}

int eq_archive_scan(struct eq_archive *a, const struct eq_run *run, const char *what,
		    const struct eq_consumer *consumers, size_t n)
{
	struct eq_window win[2];
	struct scan s = { .a = a, .be = run->backend, .consumers = consumers, .n_consumers = n };
	uint64_t next = 0;
	unsigned turn = 0;
	size_t i;
	int rc;

	memset(win, 0, sizeof(win));
	rc = window_alloc(&win[0]);
	if (!rc)
		rc = window_alloc(&win[1]);
	while (!rc) {
		s.decode = &win[turn];
		s.consume = &win[!turn];
		window_plan(a, s.decode, next);
		if (!s.decode->n && !s.consume->n)
			break;
		next += s.decode->len;
		eq_pool_for(run->pool, n + (s.decode->n + GROUP - 1) / GROUP, scan_task, &s);
		for (i = 0; i < n && !rc; i++)
			rc = s.status[i];
		if (!rc && run->progress && run->progress(run->progress_arg, what, s.consume->begin +
								      s.consume->len, a->info.size))
			rc = -ECANCELED;
		s.consume->n = 0;
		turn = !turn;
	}
	window_free(&win[0]);
	window_free(&win[1]);
	return rc;
}
