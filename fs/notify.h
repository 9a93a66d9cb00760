/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel is told without having asked. */
#ifndef EQ_NOTIFY_H
#define EQ_NOTIFY_H

#include "fs.h"

/*
 * The name in parent stands for something else than n from now on, and n is of no use
 * any more: the kernel is to look the name up again and to forget n. Best effort;
 * what it believes it forgets after EQ_TIMEOUT anyhow. Not from a request's thread,
 * and no lock may be held.
 */
void eq_notify_replaced(struct eq_fs *fs, struct eq_node *parent, const char *name,
			struct eq_node *n);
#define EQ_NOTIFY_MAX 64

/* The kernel is to forget these nodes, at most EQ_NOTIFY_MAX, if nobody uses them; older
 * ones keep directories. Likewise. */
void eq_notify_unused(struct eq_fs *fs, struct eq_node **n, size_t count);
/* What the kernel has cached of the contents of n is to go, too. Waits for readers of it.
 * Likewise. */
void eq_notify_emptied(struct eq_fs *fs, struct eq_node *n);
/* The attributes of n have changed without a request. Likewise. */
void eq_notify_changed(struct eq_fs *fs, struct eq_node *n);

#endif
