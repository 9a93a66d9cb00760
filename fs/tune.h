/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The settings of a FUSE session that reads fast. They stand apart so that the
 * benchmark's in-memory filesystem, the ceiling, is served with the same ones.
 */
#ifndef EQ_TUNE_H
#define EQ_TUNE_H

#include <fuse_lowlevel.h>

#define EQ_READ_AHEAD_KB "4096"

/* Settings that are negotiated; to be called by the init operation. */
void eq_tune_conn(struct fuse_conn_info *conn);
/* How the multithreaded loop runs; to be destroyed by the caller. NULL: no memory. */
struct fuse_loop_config *eq_tune_loop(void);
/*
 * Have the kernel read ahead EQ_READ_AHEAD_KB, which cannot be negotiated. Asks the
 * filesystem nothing, so that its own threads may call it once it is mounted.
 * 0 or -errno, as for who may not.
 */
int eq_tune_read_ahead(const char *mountpoint);

#endif
