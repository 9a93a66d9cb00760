/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoding ahead of readers. A loader that reads with one thread, or faults one
 * mapped page after the other, gets the bytes behind its last request decoded by
 * threads of their own before it asks.
 */
#ifndef EQ_PREFETCH_H
#define EQ_PREFETCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arc.h"
#include "cache.h"

struct eq_ahead;

/* n_threads workers, and no reader more than `window` bytes ahead. 0 or -errno. */
int eq_ahead_create(struct eq_arcs *arcs, struct eq_cache *cache, unsigned n_threads,
		    uint64_t window, struct eq_ahead **out);
/* Have the workers end, each after what it is at. */
void eq_ahead_cancel(struct eq_ahead *a);
/* Have they ended? Does not wait. */
bool eq_ahead_ended(struct eq_ahead *a);
/* Once they have ended, and no stream is left. NULL is fine. */
void eq_ahead_free(struct eq_ahead *a);

/* What is known of one open file's reader: zero-initialised, and then private. */
struct eq_stream {
	uint64_t next;          /* end of what it read, the furthest */
	uint64_t ahead;         /* end of what is decoded, or being decoded */
	uint64_t to;            /* end of what should be */
	uint64_t window;        /* bytes to be ahead; 0: not sequential */
	struct eq_arc *arc;
	struct eq_stream *before, *after; /* of those with something to decode */
	bool listed;
};

/* The reader asks for [off, off + len): note it, and have decoded what comes next. */
void eq_ahead_note(struct eq_ahead *a, struct eq_stream *s, struct eq_arc *arc, uint64_t off,
		   size_t len);
/* The stream ends; the caller's reference to the archive was needed until now. */
void eq_ahead_forget(struct eq_ahead *a, struct eq_stream *s);

#endif
