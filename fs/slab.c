/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <malloc.h>
#include <stdlib.h>
#include <sys/mman.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

#include "slab.h"

#define HUGE_PAGE EQ_SLAB_BYTES
/* Left to malloc() at most when a page is mapped, and otherwise: then it is likely to
 * be used again, and giving it back costs faults. */
#define LOOSE ((size_t)4 << 20)
#define LOOSE_MOST ((size_t)64 << 20)
#define LEAST ((size_t)128 << 10)       /* chunks have 128 Ki units of 1 to 8 bytes */
#define ALIGN 64

/* A huge page, cut into places of one size; on a list while some are free. */
struct eq_slab {
	struct eq_slab *before, *after;
	uint8_t *page;
	unsigned kind;          /* the number of the size of a place */
	unsigned vacant;        /* a bit each */
	void *owner[EQ_SLAB_PLACES]; /* of each place, NULL: vacant */
};

/* The number of the size among the usual ones, or -1. */
static int kind_of(size_t size)
{
	for (int i = 0; i < EQ_SLAB_SIZES; i++)
		if (size == LEAST << i)
			return i;
	return -1;
}

static unsigned all_places(unsigned kind)
{
	return (1u << (HUGE_PAGE / (LEAST << kind))) - 1;
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

/* The list that it belongs on; NULL: on none, it is full. */
static struct eq_slab **list_of(struct eq_slabs *s, const struct eq_slab *b)
{
	size_t room = (size_t)__builtin_popcount(b->vacant) * (LEAST << b->kind);

	return room ? &s->part[b->kind][room >= HUGE_PAGE / 2] : NULL;
}

static void set_vacant(struct eq_slabs *s, struct eq_slab *b, unsigned vacant)
{
	struct eq_slab **from = list_of(s, b), **to;

	b->vacant = vacant;
	to = list_of(s, b);
	if (from == to)
		return;
	if (from)
		list_del(from, b);
	if (to)
		list_add(to, b);
}

/* What malloc() keeps of buffers that are gone comes on top of all others. */
static void tidy(struct eq_slabs *s, size_t most)
{
	if (s->loose <= most)
		return;
	malloc_trim(0);
	s->loose = 0;
}

static struct eq_slab *slab_new(struct eq_slabs *s, unsigned kind)
{
	struct eq_slab *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	tidy(s, LOOSE);
	b->page = page_map();
	if (!b->page) {
		free(b);
		return NULL;
	}
	ASAN_POISON_MEMORY_REGION(b->page, HUGE_PAGE);
	b->kind = kind;
	s->held += HUGE_PAGE;
	set_vacant(s, b, all_places(kind));
	return b;
}

static void slab_free(struct eq_slabs *s, struct eq_slab *b)
{
	set_vacant(s, b, 0);
	ASAN_UNPOISON_MEMORY_REGION(b->page, HUGE_PAGE);
	munmap(b->page, HUGE_PAGE);
	free(b);
	s->held -= HUGE_PAGE;
}

/* One with a place of that size, the fuller ones first. */
static struct eq_slab *with_room(const struct eq_slabs *s, size_t size)
{
	int kind = kind_of(size);

	if (kind < 0)
		return NULL;
	return s->part[kind][0] ? s->part[kind][0] : s->part[kind][1];
}

size_t eq_slab_growth(const struct eq_slabs *s, size_t size, bool huge)
{
	if (with_room(s, size))
		return 0;
	return huge && kind_of(size) >= 0 ? HUGE_PAGE : size;
}

struct eq_room eq_slab_get(struct eq_slabs *s, size_t size, bool huge, void *owner)
{
	struct eq_room r = { .size = size, .slab = with_room(s, size) };
	unsigned place;

	if (!r.slab && huge && kind_of(size) >= 0) {
		r.slab = slab_new(s, (unsigned)kind_of(size));
		if (!r.slab)
			return r;
	}
	if (!r.slab) {
		tidy(s, LOOSE_MOST);
		r.data = aligned_alloc(ALIGN, size);
		if (r.data)
			s->held += size;
		return r;
	}
	place = (unsigned)__builtin_ctz(r.slab->vacant);
	set_vacant(s, r.slab, r.slab->vacant & ~(1u << place));
	r.slab->owner[place] = owner;
	r.data = r.slab->page + place * size;
	ASAN_UNPOISON_MEMORY_REGION(r.data, size);
	return r;
}

void eq_slab_put(struct eq_slabs *s, const struct eq_room *r)
{
	struct eq_slab *b = r->slab;
	size_t place;

	if (!b) {
		free(r->data);
		s->held -= r->size;
		s->loose += r->size;
		return;
	}
	place = (size_t)(r->data - b->page) / r->size;
	b->owner[place] = NULL;
	ASAN_POISON_MEMORY_REGION(r->data, r->size);
	set_vacant(s, b, b->vacant | 1u << place);
	if (b->vacant == all_places(b->kind))
		slab_free(s, b);
}

/* Its owners, when all are idle; otherwise 0. */
static unsigned idle_owners(const struct eq_slab *b, bool (*idle)(const void *owner),
			    void *owner[EQ_SLAB_PLACES])
{
	unsigned n = 0;

	for (unsigned i = 0; i < EQ_SLAB_PLACES; i++) {
		if (!b->owner[i])
			continue;
		if (!idle(b->owner[i]))
			return 0;
		owner[n++] = b->owner[i];
	}
	return n;
}

unsigned eq_slab_spare(const struct eq_slabs *s, bool (*idle)(const void *owner),
		       void *owner[EQ_SLAB_PLACES])
{
	const struct eq_slab *b;
	unsigned n;

	for (int i = 0; i < EQ_SLAB_SIZES; i++)
		for (b = s->part[i][1] ? s->part[i][1]->after : NULL; b; b = b->after) {
			n = idle_owners(b, idle, owner);
			if (n)
				return n;
		}
	return 0;
}
