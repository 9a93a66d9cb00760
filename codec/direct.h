/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing a large file front to back, past the page cache (O_DIRECT): the kernel
 * neither copies it nor finds pages for it, which costs more than all the coding.
 * A thread writes while the caller fills the next buffer, so that nobody waits for
 * the disk unless it is slower than we are. One caller at a time.
 */
#ifndef EQ_DIRECT_H
#define EQ_DIRECT_H

#include <stddef.h>
#include <stdint.h>

#define EQ_DIRECT_LEAST (UINT64_C(32) << 20) /* of a file; less is not worth it */

struct eq_direct;

/* Write fd like that, from its beginning. -ENOTSUP: this filesystem does not; else -ENOMEM
 * or what else keeps us from it. Whatever the failure, fd can be written as usual. fd stays
 * the caller's, who until eq_direct_end writes nothing to it but by these functions. */
int eq_direct_begin(int fd, struct eq_direct **out);
/* Write `len` bytes at `at`, not before the end of what was; what lies between is zero.
 * They are copied. An error may be that of an earlier write. */
int eq_direct_put(struct eq_direct *d, const void *data, size_t len, uint64_t at);
/* Go back to `at`: the file ends there, and what comes next is put there or behind. */
int eq_direct_back(struct eq_direct *d, uint64_t at);
/* All is in the file (not yet synced), which is an ordinary one again: 0 or -errno. */
int eq_direct_end(struct eq_direct *d);
/* Release it, NULL or not, in whatever state; what was not written then is lost. */
void eq_direct_free(struct eq_direct *d);

#endif
