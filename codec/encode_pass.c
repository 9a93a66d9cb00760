/* SPDX-License-Identifier: Apache-2.0 */
/* Parallel passes over a tensor's chunks, with serial work beside them. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "encode_priv.h"

struct pass_group {
	const struct eq_pass *p;
	uint32_t g, first, n;
	int status[EQ_MAX_SERIAL];
};

static void pass_task(void *arg, size_t i)
{
	struct pass_group *x = arg;

	if (i < x->p->n_serial)
		x->status[i] = x->p->serial[i](x->p->arg, x->g);
	else
		x->p->each(x->p->arg, x->first + (uint32_t)(i - x->p->n_serial));
}

int eq_pass_run(struct eq_encoder *e, const struct eq_pass *p)
{
	struct pass_group x = { .p = p };
	unsigned i;
	int rc;

	for (; x.first < p->n_chunks; x.first += x.n, x.g++) {
		x.n = p->n_chunks - x.first < p->group ? p->n_chunks - x.first : p->group;
		eq_pool_for(e->run->pool, p->n_serial + (p->each ? x.n : 0), pass_task, &x);
		for (i = 0; i < p->n_serial; i++)
			if (x.status[i])
				return eq_encode_fail(e, x.status[i]);
		rc = eq_encode_progress(e);
		if (rc)
			return rc;
	}
	return 0;
}

struct emit {
	struct eq_encoder *e;
	const struct eq_emit *m;
	uint32_t n_chunks, group;
	size_t slot;            /* bytes of a slot */
	uint8_t *base;          /* 2 * group slots, of groups in turn */
	struct eq_built *built; /* of each slot */
};

static size_t slot_of(const struct emit *x, uint32_t chunk)
{
	return chunk / x->group % 2 * x->group + chunk % x->group;
}

static void emit_each(void *arg, uint32_t chunk)
{
	struct emit *x = arg;
	size_t i = slot_of(x, chunk);
	uint8_t *out = x->base + i * x->slot;
	struct eq_built *b = &x->built[i];

	b->data = out;
	b->len = (uint32_t)x->m->encode(x->m->arg, chunk, out, out + eq_align(x->m->bound, 64));
	b->xxh3 = XXH3_64bits(out, b->len);
}

/* Chunks of a group, of which the first is `first`. */
struct emit_group {
	struct emit *x;
	uint32_t first;
};

static void group_each(void *arg, size_t i)
{
	const struct emit_group *y = arg;

	emit_each(y->x, y->first + (uint32_t)i);
}

static void group_seal(void *arg, size_t i)
{
	const struct emit_group *y = arg;
	size_t at = slot_of(y->x, y->first) + i;
	struct eq_built *b = &y->x->built[at];

	b->data = y->x->base + at * y->x->slot;
	b->xxh3 = XXH3_64bits(b->data, b->len);
}

/* Serial: encode group g at once, or else one by one. */
static int emit_at_once(void *arg, uint32_t g)
{
	struct emit *x = arg;
	struct emit_group y = { x, g * x->group };
	uint32_t n = x->n_chunks - y.first < x->group ? x->n_chunks - y.first : x->group;
	size_t at = slot_of(x, y.first);
	int rc = x->m->encode_group(x->m->arg, y.first, n, x->base + at * x->slot, x->slot,
				    &x->built[at]);

	if (rc < 0)
		return rc;
	eq_pool_for(x->e->run->pool, n, rc == EQ_ONE_BY_ONE ? group_each : group_seal, &y);
	return 0;
}

/* Serial: write the group before g. */
static int emit_write(void *arg, uint32_t g)
{
	struct emit *x = arg;
	uint64_t bytes = eq_chunk_bytes_of(x->m->t), left;
	uint32_t chunk, n;
	int rc;

	if (g == 0)
		return 0;
	chunk = (g - 1) * x->group;
	n = x->n_chunks - chunk < x->group ? x->n_chunks - chunk : x->group;
	rc = eq_build_chunks(x->e->build, &x->built[slot_of(x, chunk)], n);
	left = x->m->t->end - x->m->t->begin - chunk * bytes;
	x->e->done += left < n * bytes ? left : n * bytes;
	return rc;
}

static int emit_serial0(void *arg, uint32_t g)
{
	struct emit *x = arg;

	return x->m->serial[0](x->m->arg, g);
}

static int emit_serial1(void *arg, uint32_t g)
{
	struct emit *x = arg;

	return x->m->serial[1](x->m->arg, g);
}

int eq_emit_run(struct eq_encoder *e, const struct eq_emit *m)
{
	uint64_t bytes = eq_chunk_bytes_of(m->t), n_bytes = m->t->end - m->t->begin;
	struct emit x = { .e = e, .m = m };
	struct eq_pass p = { .serial = { emit_write, emit_serial0, emit_serial1 },
			     .n_serial = 1 + m->n_serial, .each = emit_each, .arg = &x };
	int rc;

	if (m->encode_group) {
		p.each = NULL;
		p.serial[p.n_serial++] = emit_at_once;
	}
	x.n_chunks = p.n_chunks = (uint32_t)((n_bytes + bytes - 1) / bytes);
	x.group = p.group = (uint32_t)(EQ_GROUP_BYTES / bytes);
	if (x.group > x.n_chunks)
		x.group = p.group = x.n_chunks;
	x.slot = eq_align(m->bound, 64) + eq_align(m->scratch, 64);
	rc = eq_buffer_reserve(&e->out, &e->out_size, 2 * x.group * x.slot, false);
	x.base = e->out;
	x.built = calloc(2 * x.group, sizeof(x.built[0]));
	if (!rc && !x.built)
		rc = -ENOMEM;
	if (!rc)
		rc = eq_pass_run(e, &p);
	if (!rc)
		rc = emit_write(&x, (x.n_chunks + x.group - 1) / x.group);
	if (!rc)
		rc = eq_encode_progress(e);
	free(x.built);
	return rc ? eq_encode_fail(e, rc) : 0;
}
