/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Buffers for decoded extents. Those of the usual sizes lie side by side in huge pages,
 * where the kernel, which looks up each page of a reply, finds them in less time. The
 * caller locks.
 */
#ifndef EQ_SLAB_H
#define EQ_SLAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct eq_slab;

#define EQ_SLAB_SIZES 4
#define EQ_SLAB_PLACES 16       /* of the smallest size, in a huge page */
#define EQ_SLAB_BYTES ((size_t)2 << 20)

/* Zero-initialised, and empty again after as many eq_slab_put as eq_slab_get. */
struct eq_slabs {
	/* With room left, of each size: less than half of it, and half or more. */
	struct eq_slab *part[EQ_SLAB_SIZES][2];
	size_t held;            /* bytes: whole huge pages, and other buffers */
	size_t loose;           /* freed to malloc(), which may still have them */
};

struct eq_room {
	uint8_t *data;          /* aligned to 64; NULL: no memory */
	size_t size;
	struct eq_slab *slab;   /* NULL: from malloc() */
};

/* How many bytes eq_slab_get() with `huge` would add to those held. */
size_t eq_slab_growth(const struct eq_slabs *s, size_t size, bool huge);
/* huge: it may take a new huge page. owner, not NULL, is whose the buffer is. */
struct eq_room eq_slab_get(struct eq_slabs *s, size_t size, bool huge, void *owner);
void eq_slab_put(struct eq_slabs *s, const struct eq_room *r);
/*
 * Two pages of a size that are both half empty are one too many. Finds such a page
 * all owners of which are idle, not the one that is being filled, and returns how many
 * they are; 0: there is none. When they have put theirs, the page is gone.
 */
unsigned eq_slab_spare(const struct eq_slabs *s, bool (*idle)(const void *owner),
		       void *owner[EQ_SLAB_PLACES]);

#endif
