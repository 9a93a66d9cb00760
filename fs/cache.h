/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoded extents of archives, within a limit of bytes. An extent is decoded
 * once, however many want it at the same time. All functions are for any thread.
 */
#ifndef EQ_CACHE_H
#define EQ_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "arc.h"

struct eq_cache;

/* Whole huge pages count against the limit, even if most of one is free. What is being
 * used may come on top, and what malloc() has not yet given back: 64 MiB at most.
 * pool and backend are borrowed. *out is NULL on -ENOMEM. */
int eq_cache_create(size_t limit, struct eq_pool *pool, const struct eq_backend *backend,
		    struct eq_cache **out);
void eq_cache_free(struct eq_cache *c);

/* Decoded bytes that stay where they are until released. */
struct eq_piece {
	const uint8_t *data;
	size_t len;
	struct eq_extent_entry *entry; /* NULL: belong to the archive */
};

#define EQ_PIECES 32

/*
 * The bytes from off on, at most len (which is > 0), inside the file: at most
 * EQ_PIECES consecutive pieces, so perhaps fewer bytes than len. What is missing is decoded in
 * parallel. Returns the number of pieces, or an error with a message; then
 * nothing is held.
 */
int eq_cache_get(struct eq_cache *c, struct eq_arc *arc, uint64_t off, size_t len,
		 struct eq_piece pieces[EQ_PIECES], struct eq_error *err);
/*
 * once: the kernel keeps these bytes itself, so that they will hardly be asked
 * for again. An extent all of which was released so is the first to go.
 */
void eq_cache_release(struct eq_cache *c, struct eq_piece *pieces, int n, bool once);

struct eq_cache_stats {
	uint64_t hits, misses;          /* of readers, extents */
	uint64_t evictions;
	uint64_t ahead, ahead_hits;     /* loaded before a reader came; and then wanted */
	uint64_t decoded_bytes, failed; /* failed: extents */
	uint64_t bytes, limit;
};
void eq_cache_stats(struct eq_cache *c, struct eq_cache_stats *out);

/* How many extents the back end likes to decode in one call. */
size_t eq_cache_batch(const struct eq_cache *c);
/* Have the extents in [off, end) decoded, on this thread and no more than a batch,
 * that are not there and nobody is at. Errors are left to the reader who meets
 * them. */
void eq_cache_load(struct eq_cache *c, struct eq_arc *arc, uint64_t off, uint64_t end);

#endif
