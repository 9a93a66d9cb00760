/* SPDX-License-Identifier: Apache-2.0 */
/* Large buffers. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "archive_priv.h"

#define HUGE_PAGE ((size_t)2 << 20)

void *eq_buffer_alloc(size_t size)
{
	void *p;

	if (size < HUGE_PAGE)
		return aligned_alloc(64, eq_align(size, 64));
	size = eq_align(size, HUGE_PAGE);
	p = aligned_alloc(HUGE_PAGE, size);
	if (p)
		madvise(p, size, MADV_HUGEPAGE); /* or it has small ones */
	return p;
}

int eq_buffer_reserve(uint8_t **buf, size_t *have, size_t size, bool dense)
{
	if (*have >= size)
		return 0;
	free(*buf);
	*have = 0;
	*buf = dense ? eq_buffer_alloc(size) : aligned_alloc(64, eq_align(size, 64));
	if (!*buf)
		return -ENOMEM;
	*have = size;
	return 0;
}
