/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walk through a store after mounting: sizes are added up, files that an
 * earlier mount could not get round to are queued, and what a crash has left is
 * swept. A read-only mount only adds up.
 */
#ifndef EQ_SCAN_H
#define EQ_SCAN_H

#include "fs.h"

/* Start in the background (fs->scan). 0 or -errno. */
int eq_scan_create(struct eq_fs *fs);
/* Have it stop where it is. */
void eq_scan_cancel(struct eq_scan *s);
/* Has it ended? Does not wait. */
bool eq_scan_ended(struct eq_scan *s);
/* Once it has ended. NULL is fine. */
void eq_scan_free(struct eq_scan *s);
/* Remove temporary files that nobody uses from a directory. Returns how many
 * other entries there are ("." and ".." aside), or -errno. */
long eq_scan_sweep(int dirfd);

#endif
