/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Buffers for decoded extents. Those of the usual sizes lie side by side in huge pages,
 * where the kernel, which looks up each page of a reply, finds them in less time. The
 * caller locks.
 */
#ifndef EQ_SLAB_H
#define EQ_SLAB_H

#include <stddef.h>
#include <stdint.h>

struct eq_slab;

#define EQ_SLAB_SIZES 4

/* Zero-initialised, and empty again after as many eq_slab_put as eq_slab_get. */
struct eq_slabs {
	struct eq_slab *open[EQ_SLAB_SIZES]; /* with room left, of each size */
};

struct eq_room {
	uint8_t *data;          /* aligned to 64; NULL: no memory */
	size_t size;
	struct eq_slab *slab;
};

struct eq_room eq_slab_get(struct eq_slabs *s, size_t size);
void eq_slab_put(struct eq_slabs *s, const struct eq_room *r);

#endif
