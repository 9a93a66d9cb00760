/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a mount counts, and its text in the exposition format of Prometheus.
 * Counters are bumped without a lock, from any thread.
 */
#ifndef EQ_STATS_H
#define EQ_STATS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <time.h>

struct eq_fs;

enum eq_served { EQ_SERVED_ARCHIVE, EQ_SERVED_PLAIN };

struct eq_stats {
	struct timespec start, mono;    /* of the mount, by both clocks */
	/* By enum eq_served. */
	_Atomic uint64_t reads[2], read_bytes[2], read_errors[2];
	_Atomic uint64_t writes, written_bytes;
	_Atomic uint64_t passed;        /* opens that the kernel serves by itself */
	/* The background. Nanoseconds of successful encodes, the comparison included. */
	_Atomic uint64_t encoded, encoded_in, encoded_out, encoded_ns;
	_Atomic uint64_t failed, skipped, put_off;
	_Atomic uint64_t restored, restored_bytes;
	/* The store, as far as known: see eq_stats_store. */
	_Atomic int64_t files, archives, logical, physical;
	_Atomic bool walked;            /* the walk after mounting is done */
};

static inline void eq_count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

void eq_stats_init(struct eq_stats *s);
/* One request to read has got n bytes, or failed (n < 0). */
void eq_stats_read(struct eq_stats *s, enum eq_served what, int64_t n);
/*
 * A regular file of the store becomes another one, in the sums over the store:
 * its logical size in st_size, its room in st_blocks. NULL: it is new, or goes.
 */
void eq_stats_store(struct eq_stats *s, const struct stat *was, const struct stat *now);

/* The text, malloc'ed; NULL: no memory. Takes locks of the cache and the queue. */
char *eq_stats_text(struct eq_fs *fs, size_t *len);

#endif
