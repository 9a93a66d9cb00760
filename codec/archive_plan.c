/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans of an open archive's tensors: built when they are wanted, kept for the next
 * chunk, and given up when there are many. The tables of a tensor may take a thousand
 * times the room of what they are made from, and an archive may have millions of them.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "archive_priv.h"
#include "model.h"

#define KEPT_BYTES (UINT64_C(64) << 20) /* an archive, beside what is in use */

struct eq_held_plan {
	struct eq_plan plan;
	struct eq_held_plan *prev, *next; /* of those in no use, the longest so first */
	size_t tensor;
	uint64_t bytes;
	unsigned pins;
};

static void idle_add(struct eq_archive *a, struct eq_held_plan *h)
{
	h->next = NULL;
	h->prev = a->idle_last;
	*(h->prev ? &h->prev->next : &a->idle_first) = h;
	a->idle_last = h;
}

static void idle_del(struct eq_archive *a, struct eq_held_plan *h)
{
	*(h->prev ? &h->prev->next : &a->idle_first) = h->next;
	*(h->next ? &h->next->prev : &a->idle_last) = h->prev;
}

static void held_free(struct eq_archive *a, struct eq_held_plan *h)
{
	a->priv[h->tensor].plan = NULL;
	a->plan_bytes -= h->bytes;
	eq_plan_fini(&h->plan);
	free(h);
}

static int held_build(struct eq_archive *a, size_t i, struct eq_held_plan **out)
{
	const struct eq_tensor_priv *p = &a->priv[i];
	struct eq_held_plan *h = calloc(1, sizeof(*h));
	int rc;

	*out = NULL;
	if (!h)
		return -ENOMEM;
	eq_plan_of_record(&h->plan, p->rec, p->codec);
	rc = eq_plan_init(&h->plan, p->params, p->rec->param_len);
	if (rc) {
		free(h);
		return rc;
	}
	h->tensor = i;
	h->bytes = sizeof(*h) + h->plan.n_tables * sizeof(struct eq_table);
	a->priv[i].plan = *out = h;
	a->plan_bytes += h->bytes;
	return 0;
}

int eq_archive_plan(struct eq_archive *a, size_t i, const struct eq_plan **out,
		    struct eq_error *err)
{
	struct eq_held_plan *h;
	int rc = 0;

	pthread_mutex_lock(&a->lock);
	h = a->priv[i].plan;
	if (!h)
		rc = held_build(a, i, &h);
	else if (!h->pins)
		idle_del(a, h);
	if (h)
		h->pins++;
	pthread_mutex_unlock(&a->lock);
	if (rc)
		eq_fail(err, rc, "%s: tensor '%.128s': parameters: %s", a->name,
			a->tensors[i].name, eq_strerror(rc));
	*out = h ? &h->plan : NULL;
	return rc;
}

void eq_archive_plan_put(struct eq_archive *a, size_t i)
{
	struct eq_held_plan *h;

	pthread_mutex_lock(&a->lock);
	h = a->priv[i].plan;
	if (--h->pins == 0)
		idle_add(a, h);
	while (a->plan_bytes > KEPT_BYTES && (h = a->idle_first)) {
		idle_del(a, h);
		held_free(a, h);
	}
	pthread_mutex_unlock(&a->lock);
}

void eq_archive_plans_free(struct eq_archive *a)
{
	size_t i;

	for (i = 0; a->priv && i < a->info.n_tensors; i++)
		if (a->priv[i].plan)
			held_free(a, a->priv[i].plan);
}
