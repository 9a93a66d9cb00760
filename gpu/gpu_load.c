/* SPDX-License-Identifier: Apache-2.0 */
/* Finding and loading eqfs-cuda.so. Plain C: the program has no part of CUDA. */
#include "config.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu_load.h"

#define MODULE "eqfs-cuda.so"

/* A GPU's back end with what it takes to let go of it. */
struct loaded {
	struct eq_backend backend;      /* first, so that one is the other */
	const struct eq_backend *inner;
	const struct eq_gpu_abi *abi;
	void *handle;
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

static int loaded_decode(void *ctx, struct eq_decode_job *jobs, size_t n)
{
	const struct loaded *l = ctx;

	return l->inner->decode(l->inner->ctx, jobs, n);
}

static int gpu_load(int device, uint64_t mem_limit, void (*log)(void *arg, const char *line),
		    void *log_arg, const struct eq_backend **out, struct eq_error *err)
{
	struct eq_gpu_open o = { .device = device, .mem_limit = mem_limit,
				 .cpu = eq_backend_cpu(), .log = log ? log : log_stderr,
				 .log_arg = log_arg };
	struct loaded *l = calloc(1, sizeof(*l));
	char text[256] = "";
	int rc;

	if (!l)
		return eq_fail(err, -ENOMEM, "GPU: out of memory");
	rc = module_open(&l->handle, err);
	if (rc)
		goto free;
	rc = module_check(l->handle, &l->abi, err);
	if (rc)
		goto close;
	rc = l->abi->open(&o, &l->inner, text, sizeof(text));
	if (rc) {
		eq_fail(err, rc, "GPU: %s", text);
		goto close;
	}
	l->backend = (struct eq_backend){ EQ_BACKEND_ABI, l->inner->name, loaded_decode, l };
	*out = &l->backend;
	return 0;
close:
	dlclose(l->handle);
free:
	free(l);
	return rc;
}

int eq_gpu_backend(const char *spec, uint64_t mem_limit,
		   void (*log)(void *arg, const char *line), void *log_arg,
		   const struct eq_backend **out, struct eq_error *err)
{
	int device = -1, rc;
	char *end;

	*out = NULL;
	if (strcmp(spec, "off") == 0) {
		*out = eq_backend_cpu();
		return 0;
	}
	if (strcmp(spec, "auto") != 0) {
		unsigned long n = strtoul(spec, &end, 10);

		if (*spec < '0' || *spec > '9' || *end || n > 1023)
			return eq_fail(err, -EINVAL, "gpu=%s: not auto, off or a number", spec);
		device = (int)n;
	}
	rc = gpu_load(device, mem_limit, log, log_arg, out, err);
	if (device >= 0 || rc == 0 || rc == -EINVAL)
		return rc;
	*out = eq_backend_cpu(); /* "auto": it was worth a try */
	return 0;
}

bool eq_gpu_is(const struct eq_backend *be)
{
	return be->decode == loaded_decode;
}

int eq_gpu_bench(const struct eq_backend *be, struct eq_decode_job *jobs, size_t n,
		 unsigned copies, unsigned runs, struct eq_gpu_measure *out)
{
	const struct loaded *l = be->ctx;

	return eq_gpu_is(be) ? l->abi->measure(l->inner, jobs, n, copies, runs, out) : -ENOTSUP;
}

void eq_gpu_release(const struct eq_backend *be)
{
	struct loaded *l;

	if (!be || !eq_gpu_is(be))
		return;
	l = be->ctx;
	l->abi->close(l->inner);
	dlclose(l->handle);
	free(l);
}
