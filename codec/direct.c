/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include "direct.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "archive_priv.h"

#define BUFFERS 4u              /* in turns: one is filled, the others wait for the disk */
#define BUFFER_BYTES ((size_t)4 << 20)

struct eq_direct {
	int fd;
	size_t align;           /* of offsets and lengths */
	uint8_t *base;
	uint64_t off[BUFFERS];  /* where in the file each goes */
	uint64_t filled, written; /* buffers so far, under the lock: in turns, mod BUFFERS */
	size_t fill;            /* of buffer `filled` */
	int status;             /* the first failure */
	bool running, stop;
	pthread_mutex_t lock;
	pthread_cond_t change;
	pthread_t thread;
};

static uint8_t *buffer_of(const struct eq_direct *d, uint64_t i)
{
	return d->base + i % BUFFERS * BUFFER_BYTES;
}

static int direct_set(int fd, bool on)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT))
		return -errno;
	return 0;
}

/* What offsets must be a multiple of; 0: this file cannot be written directly, or not
 * from buffers of ours, which lie as huge pages do. */
static size_t direct_align(int fd)
{
#ifdef STATX_DIOALIGN
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 &&
	    st.stx_mask & STATX_DIOALIGN && st.stx_dio_mem_align <= BUFFER_BYTES / 2)
		return st.stx_dio_offset_align;
#else
	(void)fd;
#endif
	return 0;
}

static int write_buffer(struct eq_direct *d, uint64_t i)
{
	int rc = eq_write_full(d->fd, buffer_of(d, i), BUFFER_BYTES, d->off[i % BUFFERS]);

	if (rc == -EINVAL && direct_set(d->fd, false) == 0) /* it is asking for more than it said */
		rc = eq_write_full(d->fd, buffer_of(d, i), BUFFER_BYTES, d->off[i % BUFFERS]);
	return rc;
}

static void *writer(void *arg)
{
	struct eq_direct *d = arg;
	int rc;

	pthread_mutex_lock(&d->lock);
	for (;;) {
		while (d->written == d->filled && !d->stop)
			pthread_cond_wait(&d->change, &d->lock);
		if (d->stop)
			break;
		rc = d->status;
		pthread_mutex_unlock(&d->lock);
		if (!rc)
			rc = write_buffer(d, d->written);
		pthread_mutex_lock(&d->lock);
		d->status = rc;
		d->written++;
		pthread_cond_broadcast(&d->change);
	}
	pthread_mutex_unlock(&d->lock);
	return NULL;
}

/* Until no more than `most` buffers wait to be written. */
static int wait_written(struct eq_direct *d, uint64_t most)
{
	int rc;

	pthread_mutex_lock(&d->lock);
	while (d->filled - d->written > most)
		pthread_cond_wait(&d->change, &d->lock);
	rc = d->status;
	pthread_mutex_unlock(&d->lock);
	return rc;
}

/* The buffer is full: hand it over, and go on with one that is free. */
static int next_buffer(struct eq_direct *d)
{
	uint64_t end = d->off[d->filled % BUFFERS] + BUFFER_BYTES;
	int rc;

	pthread_mutex_lock(&d->lock);
	d->filled++;
	pthread_cond_broadcast(&d->change);
	pthread_mutex_unlock(&d->lock);
	rc = wait_written(d, BUFFERS - 1);
	d->fill = 0;
	d->off[d->filled % BUFFERS] = end;
	return rc;
}

/* Copy, or fill with zeros if data is NULL. */
static int append(struct eq_direct *d, const uint8_t *data, uint64_t len)
{
	int rc = 0;

	while (len && !rc) {
		size_t room = BUFFER_BYTES - d->fill, n = len < room ? (size_t)len : room;
		uint8_t *to = buffer_of(d, d->filled) + d->fill;

		if (data) {
			memcpy(to, data, n);
			data += n;
		} else {
			memset(to, 0, n);
		}
		d->fill += n;
		len -= n;
		if (d->fill == BUFFER_BYTES)
			rc = next_buffer(d);
	}
	return rc;
}

static uint64_t position(const struct eq_direct *d)
{
	return d->off[d->filled % BUFFERS] + d->fill;
}

int eq_direct_put(struct eq_direct *d, const void *data, size_t len, uint64_t at)
{
	uint64_t pos = position(d);
	int rc = at < pos ? -EINVAL : append(d, NULL, at - pos);

	return rc ? rc : append(d, data, len);
}

int eq_direct_back(struct eq_direct *d, uint64_t at)
{
	uint64_t begin = d->off[d->filled % BUFFERS];
	int rc;

	if (at >= begin) {
		d->fill = (size_t)(at - begin);
		return 0;
	}
	rc = wait_written(d, 0);
	if (rc)
		return rc;
	begin = at - at % d->align;
	d->off[d->filled % BUFFERS] = begin;
	d->fill = (size_t)(at - begin);
	if (d->fill)
		rc = eq_read_full(d->fd, buffer_of(d, d->filled), d->align, begin);
	return rc ? rc : ftruncate(d->fd, (off_t)at) ? -errno : 0;
}

int eq_direct_begin(int fd, struct eq_direct **out)
{
	struct eq_direct *d = calloc(1, sizeof(*d));
	int rc = -ENOMEM;

	*out = NULL;
	if (!d)
		return rc;
	d->fd = fd;
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->change, NULL);
	d->align = direct_align(fd);
	if (!d->align || BUFFER_BYTES % d->align) {
		rc = -ENOTSUP;
		goto fail;
	}
	d->base = eq_buffer_alloc(BUFFERS * BUFFER_BYTES); /* aligned as pages are */
	if (!d->base)
		goto fail;
	rc = direct_set(fd, true);
	if (rc)
		goto fail;
	rc = -pthread_create(&d->thread, NULL, writer, d);
	if (rc)
		goto fail;
	d->running = true;
	*out = d;
	return 0;
fail:
	eq_direct_free(d);
	return rc;
}

/* The writer is gone, and the file an ordinary one. */
static void direct_stop(struct eq_direct *d)
{
	if (d->running) {
		pthread_mutex_lock(&d->lock);
		d->stop = true;
		pthread_cond_broadcast(&d->change);
		pthread_mutex_unlock(&d->lock);
		pthread_join(d->thread, NULL);
	}
	d->running = false;
	direct_set(d->fd, false);
}

int eq_direct_end(struct eq_direct *d)
{
	int rc = wait_written(d, 0);

	direct_stop(d);
	if (!rc)
		rc = eq_write_full(d->fd, buffer_of(d, d->filled), d->fill,
				   d->off[d->filled % BUFFERS]);
	return rc;
}

void eq_direct_free(struct eq_direct *d)
{
	if (!d)
		return;
	direct_stop(d);
	pthread_cond_destroy(&d->change);
	pthread_mutex_destroy(&d->lock);
	free(d->base);
	free(d);
}
