/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every file that the kernel knows of costs a descriptor, and the kernel forgets
 * nothing unless it needs the memory. When there are many, a thread asks it to forget
 * those that nobody uses.
 */
#ifndef EQ_TRIM_H
#define EQ_TRIM_H

#include "fs.h"

struct eq_trim;

/* Start the thread (fs->trim); the limit of open files is final. 0 or -errno. */
int eq_trim_create(struct eq_fs *fs);
/* For a request that may add a node, and holds no lock: wait, a second at most, while
 * there are far too many. */
void eq_trim_pace(struct eq_fs *fs);
/* Have it end, while requests are still answered. */
void eq_trim_cancel(struct eq_trim *t);
/* Has it ended? Does not wait. */
bool eq_trim_ended(struct eq_trim *t);
/* Once it has ended. NULL is fine. */
void eq_trim_free(struct eq_trim *t);

#endif
