/* SPDX-License-Identifier: Apache-2.0 */
/* What benchmarks of the device take: memory, and a stopwatch. */
#ifndef EQ_GPU_MEASURE_CUH
#define EQ_GPU_MEASURE_CUH

#include <algorithm>
#include <cuda_runtime.h>
#include <vector>

namespace {

/* Device memory that goes when it is out of scope. */
struct device_memory {
	void *p = nullptr;
	size_t size = 0;

	~device_memory() { cudaFree(p); }

	cudaError_t get(size_t n)
	{
		size = n;
		return cudaMalloc(&p, n);
	}

	template <typename T> cudaError_t put(const std::vector<T> &v)
	{
		cudaError_t rc = get(v.size() * sizeof(T));

		return rc ? rc : cudaMemcpy(p, v.data(), size, cudaMemcpyHostToDevice);
	}
};

/* Median seconds of what `fn` puts on the default stream. */
template <typename F> cudaError_t median(unsigned runs, double *out, F fn)
{
	std::vector<float> ms;
	cudaEvent_t begin, end;
	cudaError_t rc = cudaEventCreate(&begin);

	if (rc)
		return rc;
	rc = cudaEventCreate(&end);
	for (unsigned i = 0; i < runs + 2 && !rc; i++) {
		float t = 0;

		rc = cudaEventRecord(begin);
		if (!rc)
			rc = fn();
		if (!rc)
			rc = cudaEventRecord(end);
		if (!rc)
			rc = cudaEventSynchronize(end);
		if (!rc)
			rc = cudaEventElapsedTime(&t, begin, end);
		if (i >= 2) /* the first ones warm up */
			ms.push_back(t);
	}
	cudaEventDestroy(begin);
	cudaEventDestroy(end);
	std::sort(ms.begin(), ms.end());
	*out = rc ? 0 : ms[ms.size() / 2] / 1000.0;
	return rc;
}

} // namespace

#endif
