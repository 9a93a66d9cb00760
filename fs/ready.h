/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Going to the background, and telling whoever waits that the mount is up: the
 * process that was started, and systemd.
 */
#ifndef EQ_READY_H
#define EQ_READY_H

#include <stdatomic.h>
#include <stdbool.h>

#include "log.h"

struct eq_ready {
	bool background;
	int pipe;               /* the one who waits reads the other end; -1: none */
	const char *banner;     /* a line for stderr, or NULL */
	_Atomic bool up;
};

/*
 * Fork, unless foreground. In the child, and in the foreground, *parent is false,
 * and stderr is the caller's until the mount is up. In the parent it is true, when
 * the child has got ready (0) or has ended before (-EIO; it has said why). Else
 * -errno. Before there are threads.
 */
int eq_ready_begin(struct eq_ready *r, bool foreground, const char *banner, bool *parent);
/* The mount is up: say so, and leave the terminal, if in the background. Once. */
void eq_ready_now(struct eq_ready *r, struct eq_log *log);
/* The mount begins to end. */
void eq_ready_stopping(void);

#endif
