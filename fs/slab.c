/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "slab.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define LEAST ((size_t)128 << 10)       /* chunks have 128 Ki units of 1 to 8 bytes */
#define ALIGN 64

/* A huge page, cut into places of one size; on a list while some are free. */
struct eq_slab {
	struct eq_slab *before, *after;
	uint8_t *page;
	unsigned vacant;        /* a bit each */
};

/* The number of the size among the usual ones, or -1. */
static int kind_of(size_t size)
{
	for (int i = 0; i < EQ_SLAB_SIZES; i++)
		if (size == LEAST << i)
			return i;
	return -1;
}

static unsigned all_places(size_t size)
{
	return (1u << (HUGE_PAGE / size)) - 1;
}

static void list_add(struct eq_slab **list, struct eq_slab *b)
{
	b->before = NULL;
	b->after = *list;
	if (b->after)
		b->after->before = b;
	*list = b;
}

static void list_del(struct eq_slab **list, struct eq_slab *b)
{
	*(b->before ? &b->before->after : list) = b->after;
	if (b->after)
		b->after->before = b->before;
}

/* An aligned page: of twice as much, what lies before and behind goes back. */
static uint8_t *page_map(void)
{
	uint8_t *p = mmap(NULL, 2 * HUGE_PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t skip;

	if (p == MAP_FAILED)
		return NULL;
	skip = -(uintptr_t)p % HUGE_PAGE;
	if (skip)
		munmap(p, skip);
	munmap(p + skip + HUGE_PAGE, HUGE_PAGE - skip);
	madvise(p + skip, HUGE_PAGE, MADV_HUGEPAGE); /* or it has small ones */
	return p + skip;
}

static struct eq_slab *slab_new(size_t size)
{
	struct eq_slab *b = malloc(sizeof(*b));

	if (!b)
		return NULL;
	b->page = page_map();
	b->vacant = all_places(size);
	if (!b->page) {
		free(b);
		return NULL;
	}
	return b;
}

struct eq_room eq_slab_get(struct eq_slabs *s, size_t size)
{
	struct eq_room r = { .size = size };
	int kind = kind_of(size);
	unsigned place;

	if (kind < 0) {
		r.data = aligned_alloc(ALIGN, size);
		return r;
	}
	r.slab = s->open[kind];
	if (!r.slab) {
		r.slab = slab_new(size);
		if (!r.slab)
			return r;
		list_add(&s->open[kind], r.slab);
	}
	place = (unsigned)__builtin_ctz(r.slab->vacant);
	r.slab->vacant &= ~(1u << place);
	if (!r.slab->vacant)
		list_del(&s->open[kind], r.slab);
	r.data = r.slab->page + place * size;
	return r;
}

void eq_slab_put(struct eq_slabs *s, const struct eq_room *r)
{
	struct eq_slab *b = r->slab;
	struct eq_slab **list;

	if (!b) {
		free(r->data);
		return;
	}
	list = &s->open[kind_of(r->size)];
	if (!b->vacant)
		list_add(list, b);
	b->vacant |= 1u << (size_t)(r->data - b->page) / r->size;
	if (b->vacant == all_places(r->size)) {
		list_del(list, b);
		munmap(b->page, HUGE_PAGE);
		free(b);
	}
}
