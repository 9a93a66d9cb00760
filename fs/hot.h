/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hot archives: decoded as a whole, once, into sealed memory files. The kernel
 * passes readers through to them where it can; we read from them where not. They
 * are made in the background after an archive was opened, within a limit of
 * bytes, and go in the order of their last use. All functions are for any thread.
 */
#ifndef EQ_HOT_H
#define EQ_HOT_H

#include <stdint.h>
#include <sys/stat.h>

#include "arc.h"

struct eq_fs;
struct eq_hot;
struct eq_hot_copy;

/* limit > 0. fs is borrowed; of it the pool, back end, archives and log. 0 or -errno. */
int eq_hot_create(struct eq_fs *fs, uint64_t limit, struct eq_hot **out);
/* Have the thread end that makes copies; what it is making comes to nothing. */
void eq_hot_cancel(struct eq_hot *h);
/* Has it ended? Does not wait. */
bool eq_hot_ended(struct eq_hot *h);
/* Once it has ended. No copy may be in use, but by the kernel. NULL is fine. */
void eq_hot_free(struct eq_hot *h);

/*
 * The copy of an archive that is being opened, with a reference; or NULL, and
 * then one is made for those who come later, if there is room for it. Copies in use, also
 * by a mapping that has outlived its file, are never dropped, so there may be no room.
 */
struct eq_hot_copy *eq_hot_get(struct eq_hot *h, struct eq_arc *arc);
void eq_hot_put(struct eq_hot *h, struct eq_hot_copy *copy);
/* Of the memory file, which holds the logical file from offset 0; owned by the copy. */
int eq_hot_fd(const struct eq_hot_copy *copy);

/* The archive with this device and inode number has gone. */
void eq_hot_gone(struct eq_hot *h, dev_t dev, ino_t ino);

struct eq_hot_stats {
	uint64_t files, bytes;  /* there or being made */
	uint64_t limit;
	uint64_t made, dropped;
};
void eq_hot_stats(struct eq_hot *h, struct eq_hot_stats *out); /* h NULL: all zero */

#endif
