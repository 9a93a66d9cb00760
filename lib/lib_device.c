/* SPDX-License-Identifier: Apache-2.0 */
/* Devices and their memory. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "lib_priv.h"

#define THREADS_MAX 16u
#define DEFAULT_STAGING (UINT64_C(256) << 20)
#define LEAST_MEMORY (UINT64_C(32) << 20)       /* that the module is content with */

static void device_put(struct eqfs_device *d)
{
	/* Threads and GPU have stayed with the process that opened it, which will end them. */
	if (atomic_fetch_sub(&d->refs, 1) != 1 || d->process != getpid())
		return;
	eq_gpu_release(d->gpu);
	eq_pool_free(d->pool);
	pthread_cond_destroy(&d->changed);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

static int gpu_open(struct eqfs_device *d, struct eq_error *err)
{
	char spec[16];
	const struct eq_gpu_options o = { .spec = spec,
					  .mem_limit = d->staging < LEAST_MEMORY ? LEAST_MEMORY :
										   d->staging,
					  .log = d->log, .log_arg = d->log_arg };
	int rc;

	snprintf(spec, sizeof(spec), "%d", d->number);
	rc = eq_gpu_backend(&o, &d->gpu, err);
	return rc ? rc : eq_gpu_loading(d->gpu, &d->load, &d->inner, err);
}

static void log_stderr(void *arg, const char *line)
{
	(void)arg;
	fprintf(stderr, "eqfs: %s\n", line);
}

int eqfs_device_open(const struct eqfs_options *o, struct eqfs_device **out,
		     struct eqfs_error *err)
{
	struct eqfs_device *d;
	int rc = 0;

	*out = NULL;
	if (o->device < EQFS_HOST)
		return eq_fail(eq_lib_error(err), -EINVAL, "device %d: no such number", o->device);
	d = calloc(1, sizeof(*d));
	if (!d)
		return eq_fail(eq_lib_error(err), -ENOMEM, "device %d: out of memory", o->device);
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->changed, NULL);
	d->refs = 1;
	d->process = getpid();
	d->number = o->device;
	d->threads = o->threads ? o->threads : eq_cpu_count();
	if (!o->threads && d->threads > THREADS_MAX)
		d->threads = THREADS_MAX;
	d->staging = o->staging ? o->staging : DEFAULT_STAGING;
	d->log = o->log ? o->log : log_stderr;
	d->log_arg = o->log_arg;
	/* The caller's thread is one of them; 0 workers would be "as many as fit". */
	if (d->threads > 1)
		rc = eq_pool_create(d->threads - 1, &d->pool);
	if (rc)
		eq_fail(eq_lib_error(err), rc, "device %d: cannot start threads", o->device);
	else if (o->device != EQFS_HOST)
		rc = gpu_open(d, eq_lib_error(err));
	if (rc)
		device_put(d);
	else
		*out = d;
	return rc;
}

void eqfs_device_close(struct eqfs_device *d)
{
	if (d)
		device_put(d);
}

int eqfs_device_alloc(struct eqfs_device *d, size_t size, void **out, struct eqfs_error *err)
{
	int rc = 0;

	*out = NULL;
	if (d->load)
		rc = d->load->alloc(d->inner, size ? size : 1, out);
	else if (size > SIZE_MAX - 64 || !(*out = aligned_alloc(64, (size + 64) / 64 * 64)))
		rc = -ENOMEM;
	if (rc)
		return eq_fail(eq_lib_error(err), rc, "device %d: %zu bytes: %s", d->number, size,
			       eq_strerror(rc));
	atomic_fetch_add(&d->refs, 1);
	return 0;
}

void eqfs_device_free(struct eqfs_device *d, void *p)
{
	if (!p)
		return;
	if (d->load)
		d->load->free(d->inner, p);
	else
		free(p);
	device_put(d);
}

/* A try of eq_lib_feed_get failed. With `wait`: is it worth another one, once
 * something has changed? */
static bool try_failed(struct eqfs_device *d, uint64_t puts, bool wait)
{
	bool again;

	pthread_mutex_lock(&d->lock);
	if (--d->feeds == 0)
		pthread_cond_broadcast(&d->changed);
	while (wait && d->feeds && d->puts == puts)
		pthread_cond_wait(&d->changed, &d->lock);
	again = wait && d->puts != puts;
	pthread_mutex_unlock(&d->lock);
	return again;
}

int eq_lib_feed_get(struct eqfs_device *d, size_t size, bool wait, struct eq_gpu_feed **out)
{
	uint64_t puts;
	int rc;

	do {
		pthread_mutex_lock(&d->lock);
		puts = d->puts;
		d->feeds++;
		pthread_mutex_unlock(&d->lock);
		rc = d->load->feed_get(d->inner, size, out);
	} while (rc && try_failed(d, puts, wait && rc == -ENOMEM));
	return rc;
}

void eq_lib_feed_put(struct eqfs_device *d, struct eq_gpu_feed *f)
{
	d->load->feed_put(d->inner, f);
	pthread_mutex_lock(&d->lock);
	d->feeds--;
	d->puts++;
	pthread_cond_broadcast(&d->changed);
	pthread_mutex_unlock(&d->lock);
}
