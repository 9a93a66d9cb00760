/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose context is current. cudaSetDevice would change the device of the caller's
 * thread, and to set it back would make a context on the first device for callers
 * that never used one. So the module holds the primary context of its device, and
 * has it on top of the thread's stack while it is at work.
 */
#include <dlfcn.h>
#include <cuda.h>

#include "gpu_module.cuh"

/* The driver's own functions; the runtime, which is loaded already, has it open. */
static struct driver {
	decltype(&cuDevicePrimaryCtxRetain) retain;
	decltype(&cuDevicePrimaryCtxRelease) release;
	decltype(&cuCtxPushCurrent) push;
	decltype(&cuCtxPopCurrent) pop;
} driver;

#define NAME(x) #x
#define SYMBOL(x) NAME(x)      /* as cuda.h has it, with a version */

static bool driver_find(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW);

	if (!lib)
		return false;
	*(void **)&driver.retain = dlsym(lib, SYMBOL(cuDevicePrimaryCtxRetain));
	*(void **)&driver.release = dlsym(lib, SYMBOL(cuDevicePrimaryCtxRelease));
	*(void **)&driver.push = dlsym(lib, SYMBOL(cuCtxPushCurrent));
	*(void **)&driver.pop = dlsym(lib, SYMBOL(cuCtxPopCurrent));
	return driver.retain && driver.release && driver.push && driver.pop;
}

/* Errors have the same numbers in both. */
cudaError_t eq_gpu_context_get(int device, CUctx_st **out)
{
	static const bool found = driver_find();

	*out = NULL;
	return found ? (cudaError_t)driver.retain(out, device) : cudaErrorInsufficientDriver;
}

void eq_gpu_context_put(int device)
{
	driver.release(device);
}

eq_gpu_scope::eq_gpu_scope(CUctx_st *context)
	: rc((cudaError_t)driver.push(context))
{
}

eq_gpu_scope::~eq_gpu_scope()
{
	CUcontext top;

	if (!rc)
		driver.pop(&top);
}
