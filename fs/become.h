/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When a plain file and its archive have changed places, the node goes on as the other
 * one, so that its handles and names stay good. It cannot while somebody has open what
 * goes; then the name gets another node, which is to have the numbers of this one when
 * it goes, too.
 */
#ifndef EQ_BECOME_H
#define EQ_BECOME_H

#include "fs.h"

/* NAME in parent is the archive of the plain file n now. The caller holds fs->names for
 * writing. Is n the archive? */
bool eq_become_archive(struct eq_fs *fs, struct eq_node *n, struct eq_node *parent,
		       const char *name);
/* Tell the kernel of it, without a lock, and not from a request's thread. */
void eq_become_tell(struct eq_fs *fs, struct eq_node *n, bool same, struct eq_node *parent,
		    const char *name);
/* NAME in parent is the plain file fd (O_PATH, taken over) of the archive n now; apart: n
 * stays the archive. Likewise under fs->names. 0 or -errno. */
int eq_become_plain(struct eq_fs *fs, struct eq_node *n, struct eq_node *parent, const char *name,
		    int fd, bool apart);

#endif
