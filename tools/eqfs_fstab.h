/* SPDX-License-Identifier: Apache-2.0 */
/* What eqfs does for mount(8) and fstab(5). */
#ifndef EQ_EQFS_FSTAB_H
#define EQ_EQFS_FSTAB_H

#include <fuse_opt.h>
#include <stdbool.h>

#include "eqcodec.h"

/* Has mount(8) started us, under the name mount.SOMETHING? */
bool eq_fstab_called(void);
/*
 * The command line as eqfs has it, to be freed with fuse_opt_free_args. That of
 * mount(8) is another one: flags that mean something else there are
 * translated or left out. 0; 1: nothing is to be done; -EINVAL (said) or -ENOMEM.
 */
int eq_fstab_args(int argc, char **argv, struct fuse_args *out);
/* Is this mount option for mount(8), systemd or the kernel's defaults alone? */
bool eq_fstab_ignores(const char *option);
/* Become this user, with all of its groups, for good. 0, or an error with a message. */
int eq_fstab_become(const char *user, struct eq_error *err);

#endif
