/* SPDX-License-Identifier: Apache-2.0 */
/* Finding and loading eqfs-cuda.so. Plain C: the program has no part of CUDA. */
#include "config.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend_encode.h"
#include "gpu_load.h"

#define MODULE "eqfs-cuda.so"
#define NAME_UNOPENED "cuda (not opened yet)"   /* the device, until it is wanted */

/* A GPU's back end with what it takes to let go of it. */
struct loaded {
	struct eq_backend backend;
	struct eq_gpu_open open;
	const struct eq_gpu_abi *abi;
	void *handle;
	pthread_mutex_t lock;
	const struct eq_backend *inner; /* under the lock, as is the next */
	int error;              /* why there is no inner one */
};

static void log_stderr(void *arg, const char *line)
{
	(void)arg;
	fprintf(stderr, "%s: %s\n", program_invocation_short_name, line);
}

/* The module in the directory of the running program: a build tree. */
static bool beside_program(char *path, size_t size)
{
	ssize_t n = readlink("/proc/self/exe", path, size);
	char *slash;

	if (n <= 0 || (size_t)n >= size)
		return false;
	path[n] = '\0';
	slash = strrchr(path, '/');
	if (!slash || (size_t)(slash + 1 - path) + sizeof(MODULE) > size)
		return false;
	strcpy(slash + 1, MODULE);
	return access(path, R_OK) == 0;
}

static int module_open(void **handle, struct eq_error *err)
{
	const char *path = secure_getenv("EQFS_CUDA_MODULE"), *why;
	char beside[PATH_MAX];

	if (!path || !*path)
		path = beside_program(beside, sizeof(beside)) ? beside : PKGLIBDIR "/" MODULE;
	*handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (*handle)
		return 0;
	if (access(path, R_OK))
		return eq_fail(err, -ENOENT, "%s: %s", path, strerror(errno));
	why = dlerror();
	return eq_fail(err, -ENOENT, "%s", why ? why : "cannot load the GPU module");
}

static int module_check(void *handle, const struct eq_gpu_abi **out, struct eq_error *err)
{
	eq_gpu_module_fn *fn;
	void *symbol = dlsym(handle, EQ_GPU_SYMBOL);

	*out = NULL;
	if (!symbol)
		return eq_fail(err, -ENOENT, MODULE ": not a module of eqfs");
	memcpy(&fn, &symbol, sizeof(fn)); /* C has no cast for this */
	*out = fn();
	if ((*out)->abi != EQ_GPU_ABI || (*out)->backend_abi != EQ_BACKEND_ABI ||
	    (*out)->table_size != sizeof(struct eq_table) ||
	    (*out)->plan_size != sizeof(struct eq_plan) ||
	    (*out)->job_size != sizeof(struct eq_decode_job))
		return eq_fail(err, -ENOENT, MODULE ": of another version of eqfs");
	return 0;
}

static void set_name(struct loaded *l, const struct eq_backend *as)
{
	__atomic_store_n(&l->backend.name, eq_backend_name(as), __ATOMIC_RELAXED);
}

/* Open the device, once. */
static int device_open(struct loaded *l, const struct eq_backend **out, struct eq_error *err)
{
	char text[256] = "";
	int rc;

	pthread_mutex_lock(&l->lock);
	if (!l->inner && !l->error) {
		l->error = l->abi->open(&l->open, &l->inner, text, sizeof(text));
		if (l->error)
			eq_fail(err, l->error, "GPU: %s", text);
		else
			set_name(l, l->inner);
	}
	*out = l->inner;
	rc = l->error;
	pthread_mutex_unlock(&l->lock);
	return rc;
}

/* What device_open says goes to the log. */
static int loaded_inner(struct loaded *l, const struct eq_backend **inner)
{
	struct eq_error err = { "" };
	int rc = device_open(l, inner, &err);

	if (rc)
		set_name(l, eq_backend_cpu());
	if (rc && err.text[0])
		l->open.log(l->open.log_arg, err.text);
	return rc;
}

static int loaded_decode(void *ctx, struct eq_decode_job *jobs, size_t n)
{
	const struct eq_backend *inner;
	int rc = loaded_inner(ctx, &inner);

	if (rc)
		return rc;
	rc = inner->decode(inner->ctx, jobs, n);
	if (rc) /* as will all that follow: from now on it is the CPU that does the work */
		set_name(ctx, eq_backend_cpu());
	return rc;
}

static int loaded_encode(void *ctx, struct eq_encode_job *jobs, size_t n)
{
	const struct eq_backend *inner;
	int rc = loaded_inner(ctx, &inner);

	if (!rc && !inner->encoder)
		rc = -ENOTSUP;
	return rc ? rc : inner->encoder->encode(inner->ctx, jobs, n);
}

static int loaded_quantiser(void *ctx, const struct eq_quantiser_tensor *t,
			    struct eq_quantiser **out)
{
	const struct eq_backend *inner;
	int rc = loaded_inner(ctx, &inner);

	*out = NULL;
	if (!rc && !inner->encoder)
		rc = -ENOTSUP;
	return rc ? rc : inner->encoder->quantiser(inner->ctx, t, out);
}

static const struct eq_backend_encoder loaded_encoder = { loaded_encode, loaded_quantiser };

static int gpu_load(const struct eq_gpu_options *o, int device, const struct eq_backend **out,
		    struct eq_error *err)
{
	struct loaded *l = calloc(1, sizeof(*l));
	int rc;

	if (!l)
		return eq_fail(err, -ENOMEM, "GPU: out of memory");
	l->backend = (struct eq_backend){ EQ_BACKEND_ABI, NAME_UNOPENED, loaded_decode, l,
					  &loaded_encoder };
	l->open = (struct eq_gpu_open){ .device = device, .mem_limit = o->mem_limit,
					.cpu = eq_backend_cpu(),
					.log = o->log ? o->log : log_stderr,
					.log_arg = o->log_arg };
	pthread_mutex_init(&l->lock, NULL);
	rc = module_open(&l->handle, err);
	if (rc)
		goto free;
	rc = module_check(l->handle, &l->abi, err);
	if (rc == 0 && !o->later)
		rc = device_open(l, out, err);
	if (rc)
		goto close;
	*out = &l->backend;
	return 0;
close:
	dlclose(l->handle);
free:
	pthread_mutex_destroy(&l->lock);
	free(l);
	*out = NULL;
	return rc;
}

int eq_gpu_backend(const struct eq_gpu_options *o, const struct eq_backend **out,
		   struct eq_error *err)
{
	int device = -1, rc;
	char *end;

	*out = NULL;
	if (strcmp(o->spec, "off") == 0) {
		*out = eq_backend_cpu();
		return 0;
	}
	if (strcmp(o->spec, "auto") != 0) {
		unsigned long n = strtoul(o->spec, &end, 10);

		if (*o->spec < '0' || *o->spec > '9' || *end || n > 1023)
			return eq_fail(err, -EINVAL, "gpu=%s: not auto, off or a number", o->spec);
		device = (int)n;
	}
	rc = gpu_load(o, device, out, err);
	if (device >= 0 || rc == 0 || rc == -EINVAL)
		return rc;
	*out = eq_backend_cpu(); /* "auto": it was worth a try */
	return 0;
}

bool eq_gpu_is(const struct eq_backend *be)
{
	return be->decode == loaded_decode;
}

int eq_gpu_loading(const struct eq_backend *be, const struct eq_gpu_load_abi **load,
		   const struct eq_backend **inner, struct eq_error *err)
{
	struct loaded *l = be->ctx;
	int rc;

	*load = NULL;
	*inner = NULL;
	if (!eq_gpu_is(be))
		return eq_fail(err, -ENOTSUP, "%s: not a GPU", be->name);
	rc = device_open(l, inner, err);
	if (rc == 0)
		*load = l->abi->load;
	return rc;
}

int eq_gpu_bench(const struct eq_backend *be, struct eq_decode_job *jobs, size_t n,
		 unsigned copies, unsigned runs, struct eq_gpu_measure *out)
{
	const struct eq_backend *inner;
	struct eq_error err;
	struct loaded *l = be->ctx;
	int rc;

	if (!eq_gpu_is(be))
		return -ENOTSUP;
	rc = device_open(l, &inner, &err);
	return rc ? rc : l->abi->measure(inner, jobs, n, copies, runs, out);
}

int eq_gpu_bench_encode(const struct eq_backend *be, struct eq_encode_job *jobs, size_t n,
			unsigned copies, unsigned runs, struct eq_gpu_measure_encode *out)
{
	const struct eq_backend *inner;
	struct loaded *l = be->ctx;
	struct eq_error err;
	int rc;

	if (!eq_gpu_is(be))
		return -ENOTSUP;
	rc = device_open(l, &inner, &err);
	return rc ? rc : l->abi->measure_encode(inner, jobs, n, copies, runs, out);
}

void eq_gpu_release(const struct eq_backend *be)
{
	struct loaded *l;

	if (!be || !eq_gpu_is(be))
		return;
	l = be->ctx;
	if (l->inner)
		l->abi->close(l->inner);
	dlclose(l->handle);
	pthread_mutex_destroy(&l->lock);
	free(l);
}
