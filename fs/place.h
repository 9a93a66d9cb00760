/* SPDX-License-Identifier: Apache-2.0 */
/* Files that were found by a handle: inside the store, but nobody knows where. */
#ifndef EQ_PLACE_H
#define EQ_PLACE_H

#include "fs.h"

/* Open the parent of a directory as f->fd, O_PATH, with f->st. 0 or -errno. */
int eq_place_up(int dirfd, struct eq_found *f);
/* As eq_node_take, of a directory that was opened without a name. -ESTALE: it is in the store
 * no longer. */
int eq_place_take(struct eq_fs *fs, struct eq_found *f, bool kernel, struct eq_node **out);
/*
 * Of anything else, which was found by its number: one more lookup by the kernel. Only a name
 * says that it is in the store; so -ESTALE: the directory that it was last seen in, which is
 * read for that, has none of it. The caller keeps *file, and does not hold fs->names.
 */
int eq_place_take_file(struct eq_fs *fs, uint64_t id, const struct eq_found *file,
		       struct eq_node **out);
/* As eq_node_place, of a regular file; but one without a place is looked for where it was
 * when the kernel last forgot it. May read that directory; the caller does not hold
 * fs->names. */
int eq_place_find(struct eq_fs *fs, struct eq_node *n, struct eq_node **parent,
		  char name[NAME_MAX + 1]);

#endif
