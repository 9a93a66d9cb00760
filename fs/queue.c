/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include "eqcodec.h"
#include "queue.h"

bool eq_wait_due(const struct eq_wait *w, const struct timespec *now)
{
	return eq_time_compare(&w->due, now) <= 0;
}

void eq_queue_add(struct eq_queue *q, struct eq_wait *w)
{
	struct eq_wait *at = q->last;

	while (at && !eq_wait_due(at, &w->due))
		at = at->prev;
	w->prev = at;
	w->next = at ? at->next : q->first;
	*(at ? &at->next : &q->first) = w;
	*(w->next ? &w->next->prev : &q->last) = w;
	w->listed = true;
	q->files++;
	q->bytes += w->bytes;
}

bool eq_queue_del(struct eq_queue *q, struct eq_wait *w)
{
	if (!w->listed)
		return false;
	*(w->prev ? &w->prev->next : &q->first) = w->next;
	*(w->next ? &w->next->prev : &q->last) = w->prev;
	w->prev = w->next = NULL;
	w->listed = false;
	q->files--;
	q->bytes -= w->bytes;
	return true;
}
