/* SPDX-License-Identifier: Apache-2.0 */
/* The directory to mount at. */
#ifndef EQ_EQFS_POINT_H
#define EQ_EQFS_POINT_H

#include <stdbool.h>

#include "eqcodec.h"

/*
 * A descriptor (O_PATH) of the directory, to be closed by the caller, or an error with a
 * message. An eqfs that was killed leaves a mount that answers nobody: such a one is taken
 * away first, and *revived says so. The caller holds the store's lock, or a mount that is
 * just being made could be met.
 */
int eq_point_open(const char *path, bool *revived, struct eq_error *err);

#endif
