/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of libeqfs share. */
#ifndef EQ_LIB_PRIV_H
#define EQ_LIB_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "backend.h"
#include "eqcodec.h"
#include "gpu_load.h"
#include "libeqfs.h"

struct eqfs_file {
	struct eq_archive *archive;
	size_t n;
	struct eqfs_tensor tensor[];
};

struct eqfs_device {
	_Atomic(size_t) refs;   /* the one open, and one for each piece of memory */
	pid_t process;          /* that opened it */
	int number;
	unsigned threads;
	uint64_t staging;
	struct eq_pool *pool;
	void (*log)(void *arg, const char *line);
	void *log_arg;
	/* NULL for the host. */
	const struct eq_backend *gpu, *inner;
	const struct eq_gpu_load_abi *load;
	pthread_mutex_t lock;   /* and what is below it */
	pthread_cond_t changed;
	size_t feeds;           /* in use, or being tried for */
	uint64_t puts;          /* so many came back */
};

/*
 * A feed of the device, see gpu_abi.h. When there is no room for one more but some
 * are in use: with `wait`, one of those as soon as it comes back, else -ENOMEM. Who
 * waits must hold none.
 */
int eq_lib_feed_get(struct eqfs_device *d, size_t size, bool wait, struct eq_gpu_feed **out);
void eq_lib_feed_put(struct eqfs_device *d, struct eq_gpu_feed *f);

/* The public error is the codec's. */
static inline struct eq_error *eq_lib_error(struct eqfs_error *err)
{
	return (struct eq_error *)(void *)err;
}

#endif
