/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compact.h"
#include "fs.h"

void eq_stats_init(struct eq_stats *s)
{
	/* The coarse clock is that of the times of files, which are held against it. */
	clock_gettime(CLOCK_REALTIME_COARSE, &s->start);
	clock_gettime(CLOCK_MONOTONIC, &s->mono);
}

void eq_stats_read(struct eq_stats *s, enum eq_served what, int64_t n)
{
	eq_count(&s->reads[what], 1);
	if (n < 0)
		eq_count(&s->read_errors[what], 1);
	else
		eq_count(&s->read_bytes[what], (uint64_t)n);
}

void eq_stats_store(struct eq_stats *s, const struct stat *was, const struct stat *now)
{
	int64_t logical = 0, physical = 0;

	if (was) {
		logical -= was->st_size;
		physical -= (int64_t)was->st_blocks * 512;
	}
	if (now) {
		logical += now->st_size;
		physical += (int64_t)now->st_blocks * 512;
	}
	atomic_fetch_add_explicit(&s->files, !!now - !!was, memory_order_relaxed);
	atomic_fetch_add_explicit(&s->logical, logical, memory_order_relaxed);
	atomic_fetch_add_explicit(&s->physical, physical, memory_order_relaxed);
}

/* ---- the text ------------------------------------------------------------------ */

/* HELP and TYPE, once before the samples of a metric. */
static void head(FILE *f, const char *name, const char *type, const char *help)
{
	fprintf(f, "# HELP eqfs_%s %s\n# TYPE eqfs_%s %s\n", name, help, name, type);
}

static void counter(FILE *f, const char *name, const char *help, uint64_t value)
{
	head(f, name, "counter", help);
	fprintf(f, "eqfs_%s %" PRIu64 "\n", name, value);
}

static void gauge(FILE *f, const char *name, const char *help, uint64_t value)
{
	head(f, name, "gauge", help);
	fprintf(f, "eqfs_%s %" PRIu64 "\n", name, value);
}

static void seconds(FILE *f, const char *name, const char *type, const char *help, double value)
{
	head(f, name, type, help);
	fprintf(f, "eqfs_%s %.3f\n", name, value);
}

static void by_kind(FILE *f, const char *name, const char *help, const _Atomic uint64_t value[2])
{
	head(f, name, "counter", help);
	fprintf(f, "eqfs_%s{file=\"archive\"} %" PRIu64 "\n", name, value[EQ_SERVED_ARCHIVE]);
	fprintf(f, "eqfs_%s{file=\"plain\"} %" PRIu64 "\n", name, value[EQ_SERVED_PLAIN]);
}

/* What a label may not hold as it is becomes an escape. */
static void label(FILE *f, const char *name, const char *value)
{
	fprintf(f, "%s=\"", name);
	for (; *value; value++) {
		if (*value == '\n')
			fputs("\\n", f);
		else if (*value == '"' || *value == '\\')
			fprintf(f, "\\%c", *value);
		else /* the format wants UTF-8, a pattern may be anything */
			putc((unsigned char)*value < 0x80 ? *value : '?', f);
	}
	putc('"', f);
}

static void put_mount(FILE *f, struct eq_fs *fs)
{
	const struct eq_stats *s = &fs->stats;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	head(f, "info", "gauge", "Version, back end that decodes, and policy.");
	fputs("eqfs_info{", f);
	label(f, "version", PACKAGE_VERSION);
	putc(',', f);
	label(f, "backend", eq_backend_name(fs->m->backend));
	putc(',', f);
	label(f, "isa", eq_cpu_isa());
	putc(',', f);
	label(f, "policy", fs->policy);
	putc(',', f);
	label(f, "mode", fs->m->read_only ? "ro" : "rw");
	fputs("} 1\n", f);
	seconds(f, "start_time_seconds", "gauge", "When the store was mounted, since the epoch.",
		(double)s->start.tv_sec + (double)s->start.tv_nsec / 1e9);
	seconds(f, "uptime_seconds", "gauge", "How long it has been mounted.",
		(double)(now.tv_sec - s->mono.tv_sec) +
			(double)(now.tv_nsec - s->mono.tv_nsec) / 1e9);
}

static void put_requests(FILE *f, const struct eq_stats *s)
{
	by_kind(f, "read_requests_total", "Requests to read that eqfs has answered.", s->reads);
	by_kind(f, "read_bytes_total",
		"Bytes read from eqfs; what the kernel had cached is not among them.", s->read_bytes);
	by_kind(f, "read_errors_total", "Requests to read that failed.", s->read_errors);
	counter(f, "write_requests_total", "Requests to write.", s->writes);
	counter(f, "written_bytes_total", "Bytes written.", s->written_bytes);
	counter(f, "passed_files_total", "Opens of files that the kernel serves without eqfs; none of "
		"the above counts these.", s->passed);
}

static void put_queue(FILE *f, struct eq_fs *fs)
{
	const struct eq_stats *s = &fs->stats;
	struct eq_queue_stats q;

	eq_compact_stats(fs->compact, &q);
	gauge(f, "queue_files", "Files that wait to be looked at and encoded.", q.files);
	gauge(f, "queue_bytes", "Bytes in them, when they were queued.", q.bytes);
	gauge(f, "encoding_files", "Files being encoded.", q.encoding);
	gauge(f, "encoding_bytes", "Bytes in them.", q.current_bytes);
	head(f, "encoding_progress_ratio", "gauge", "Part of them that is done with.");
	fprintf(f, "eqfs_encoding_progress_ratio %.4f\n", q.progress);
	counter(f, "encoded_files_total", "Files that were encoded.", s->encoded);
	counter(f, "encoded_input_bytes_total", "Bytes of these files.", s->encoded_in);
	counter(f, "encoded_output_bytes_total", "Bytes of their archives.", s->encoded_out);
	seconds(f, "encode_seconds_total", "counter",
		"Time that took, with the comparison and the sync.", (double)s->encoded_ns / 1e9);
	counter(f, "encode_failed_files_total",
		"Files that were not encoded because something failed.", s->failed);
	counter(f, "encode_skipped_files_total",
		"Files that were looked at and stay plain: no safetensors, or not smaller.",
		s->skipped);
	counter(f, "encode_interrupted_files_total",
		"Encodes that were given up because the file changed or eqfs ended.", s->put_off);
	counter(f, "restored_files_total", "Archives made plain files again, for writers.",
		s->restored);
	counter(f, "restored_bytes_total", "Bytes of these files.", s->restored_bytes);
}

static void put_cache(FILE *f, struct eq_fs *fs)
{
	struct eq_cache_stats c;

	eq_cache_stats(fs->cache, &c);
	counter(f, "cache_hits_total", "Extents that readers found decoded or being decoded.",
		c.hits);
	counter(f, "cache_misses_total", "Extents that readers had to decode.", c.misses);
	counter(f, "cache_evictions_total", "Decoded extents that made room for others.",
		c.evictions);
	gauge(f, "cache_bytes", "Memory that decoded extents take.", c.bytes);
	gauge(f, "cache_limit_bytes", "What they may take; those in use may come on top.", c.limit);
	counter(f, "decode_ahead_extents_total", "Extents decoded before a reader asked.", c.ahead);
	counter(f, "decode_ahead_hits_total", "Those of them that a reader then asked for.",
		c.ahead_hits);
	counter(f, "decoded_bytes_total", "Bytes decoded for readers.", c.decoded_bytes);
	counter(f, "decode_errors_total", "Extents that could not be read or decoded.", c.failed);
}

static void put_hot(FILE *f, struct eq_fs *fs)
{
	struct eq_hot_stats h;

	eq_hot_stats(fs->hot, &h);
	gauge(f, "hot_files", "Archives that are kept decoded as a whole, or soon will be.", h.files);
	gauge(f, "hot_bytes", "Memory they take.", h.bytes);
	gauge(f, "hot_limit_bytes", "What they may take.", h.limit);
	counter(f, "hot_made_files_total", "Archives decoded as a whole.", h.made);
	counter(f, "hot_dropped_files_total", "Those that were dropped again.", h.dropped);
}

static uint64_t not_negative(int64_t v)
{
	return v < 0 ? 0 : (uint64_t)v;
}

static void put_store(FILE *f, const struct eq_stats *s)
{
	gauge(f, "store_known", "1 once the walk after mounting is done; the sums below count what "
	      "it saw and what the mount changed since.", s->walked);
	gauge(f, "store_files", "Regular files in the store, archives included.",
	      not_negative(s->files));
	gauge(f, "store_archives", "Archives among them.", not_negative(s->archives));
	gauge(f, "store_logical_bytes", "Bytes of the files as the mount shows them.",
	      not_negative(s->logical));
	gauge(f, "store_physical_bytes", "Bytes they take on disk.", not_negative(s->physical));
}

char *eq_stats_text(struct eq_fs *fs, size_t *len)
{
	char *text = NULL;
	FILE *f = open_memstream(&text, len);
	bool bad;

	if (!f)
		return NULL;
	put_mount(f, fs);
	put_store(f, &fs->stats);
	put_queue(f, fs);
	put_requests(f, &fs->stats);
	put_cache(f, fs);
	put_hot(f, fs);
	bad = ferror(f);
	if (fclose(f) || bad) {
		free(text);
		return NULL;
	}
	return text;
}
