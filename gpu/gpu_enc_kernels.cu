/* SPDX-License-Identifier: Apache-2.0 */
/* The encoding kernels: a warp a part of a chunk, a warp a row or two. */
#include "gpu_lane.cuh"
#include "gpu_enc_search.h"
#include "gpu_enc_warp.h"
#include "gpu_encode.cuh"

#define ROW_WARPS 4             /* in a block */
#define PLACE_WARPS 4           /* in a block, and blocks a part */
#define PLACE_BLOCKS 4
#define HIST_BLOCKS 1024
#define LONG_BLOCKS 1024

/* ---- parts -------------------------------------------------------------------- */

template <unsigned UNIT>
static __device__ void encode_part(const struct eq_gpu_enc_task *t, struct eq_encode_table *table)
{
	if (t->kind == EQ_PART_RANS)
		eq_warp_encode(t, table, UNIT, false);
	else if (t->kind == EQ_PART_PAIR)
		eq_warp_encode(t, table, UNIT, true);
	else
		eq_warp_plain(t, UNIT);
}

static __global__ void __launch_bounds__(32) encode_parts(const struct eq_gpu_enc_task *tasks)
{
	__shared__ struct eq_encode_table table;
	const struct eq_gpu_enc_task t = tasks[blockIdx.x];

	switch (t.log2_unit) {
	case 0:
		encode_part<1>(&t, &table);
		break;
	case 1:
		encode_part<2>(&t, &table);
		break;
	case 2:
		encode_part<4>(&t, &table);
		break;
	default:
		encode_part<8>(&t, &table);
	}
}

static __global__ void __launch_bounds__(32 * PLACE_WARPS)
place_parts(const struct eq_gpu_enc_task *tasks)
{
	const struct eq_gpu_enc_task t = tasks[blockIdx.x];
	uint32_t warp = blockIdx.y * PLACE_WARPS + threadIdx.x / 32;

	switch (t.log2_unit) {
	case 0:
		eq_warp_place(&t, 1, warp, PLACE_WARPS * PLACE_BLOCKS);
		break;
	case 1:
		eq_warp_place(&t, 2, warp, PLACE_WARPS * PLACE_BLOCKS);
		break;
	case 2:
		eq_warp_place(&t, 4, warp, PLACE_WARPS * PLACE_BLOCKS);
		break;
	default:
		eq_warp_place(&t, 8, warp, PLACE_WARPS * PLACE_BLOCKS);
	}
}

/* What there will be to copy goes to the host by its own stores: a copy would keep those
 * behind it, of other streams, waiting for the kernels here. */
static __global__ void __launch_bounds__(32)
place_offsets(struct eq_gpu_enc_done *done, unsigned n, struct eq_gpu_enc_done *host)
{
	eq_warp_offsets(done, n);
	__syncwarp();
	for (unsigned i = threadIdx.x; host && i < n; i += 32)
		host[i] = done[i];
}

cudaError_t eq_enc_launch(const struct eq_gpu_enc_task *tasks, struct eq_gpu_enc_done *done,
			  unsigned n, struct eq_gpu_enc_done *host, cudaStream_t stream)
{
	encode_parts<<<n, 32, 0, stream>>>(tasks);
	place_offsets<<<1, 32, 0, stream>>>(done, n, host);
	place_parts<<<dim3(n, PLACE_BLOCKS), 32 * PLACE_WARPS, 0, stream>>>(tasks);
	return cudaGetLastError();
}

/* ---- rows --------------------------------------------------------------------- */

static __device__ uint64_t this_warp(void)
{
	return (uint64_t)blockIdx.x * ROW_WARPS + threadIdx.x / 32;
}

template <int DTYPE>
static __global__ void __launch_bounds__(32 * ROW_WARPS) norm_rows(const struct eq_gpu_rows r)
{
	eq_warp_norm(&r, this_warp(), DTYPE);
}

template <int DTYPE, bool FP8>
static __global__ void __launch_bounds__(32 * ROW_WARPS) quantise_rows(const struct eq_gpu_rows r)
{
	eq_warp_quantise(&r, this_warp(), DTYPE, FP8);
}

extern __shared__ uint64_t eq_row_memory[];

template <bool FP8>
static __global__ void __launch_bounds__(32) search_rows(const struct eq_gpu_rows r)
{
	eq_warp_search(&r, blockIdx.x, (struct eq_row_bins *)eq_row_memory, FP8);
}

template <int DTYPE, bool FP8>
static __global__ void __launch_bounds__(32) search_sorted(const struct eq_gpu_rows r)
{
	struct eq_row_sorter *m = (struct eq_row_sorter *)eq_row_memory;

	eq_warp_search_sorted(&r, blockIdx.x, m, (unsigned char *)(m + 1), DTYPE, FP8);
}

/* Rows that do not fit into shared memory: a block has room in that of the symbols,
 * which are not there yet. */
template <int DTYPE, bool FP8>
static __global__ void __launch_bounds__(32) search_long(const struct eq_gpu_rows r)
{
	struct eq_row_sorter *m = (struct eq_row_sorter *)eq_row_memory;
	unsigned char *room = r.symbols + blockIdx.x * eq_row_sorted_bytes(r.k);

	for (uint64_t row = blockIdx.x; row < r.rows; row += gridDim.x)
		eq_warp_search_sorted(&r, row, m, room, DTYPE, FP8);
}

static __global__ void count_symbols(const unsigned char *symbols, uint64_t n, uint32_t *hist)
{
	__shared__ uint32_t own[256];

	own[threadIdx.x] = 0;
	__syncthreads();
	eq_warp_hist(symbols, n, own, blockIdx.x * 8u + threadIdx.x / 32, gridDim.x * 8u);
	__syncthreads();
	if (own[threadIdx.x])
		atomicAdd(&hist[threadIdx.x], own[threadIdx.x]);
}

typedef void rows_fn(const struct eq_gpu_rows);

/* By dtype, and for fp8. */
static rows_fn *const norms[3] = { norm_rows<EQ_BF16>, norm_rows<EQ_F16>, norm_rows<EQ_F32> };
static rows_fn *const searches[2] = { search_rows<false>, search_rows<true> };
/* Not of bfloat16. */
static rows_fn *const sorted_searches[2][2] = {
	{ search_sorted<EQ_F16, false>, search_sorted<EQ_F16, true> },
	{ search_sorted<EQ_F32, false>, search_sorted<EQ_F32, true> },
};
static rows_fn *const long_searches[2][2] = {
	{ search_long<EQ_F16, false>, search_long<EQ_F16, true> },
	{ search_long<EQ_F32, false>, search_long<EQ_F32, true> },
};
static rows_fn *const quantises[3][2] = {
	{ quantise_rows<EQ_BF16, false>, quantise_rows<EQ_BF16, true> },
	{ quantise_rows<EQ_F16, false>, quantise_rows<EQ_F16, true> },
	{ quantise_rows<EQ_F32, false>, quantise_rows<EQ_F32, true> },
};

static int dtype_index(int dtype)
{
	return dtype == EQ_BF16 ? 0 : dtype == EQ_F16 ? 1 : 2;
}

/* A warp has two rows. */
static unsigned row_blocks(const struct eq_gpu_rows *r)
{
	return (unsigned)((r->rows + 2 * ROW_WARPS - 1) / (2 * ROW_WARPS));
}

cudaError_t eq_norm_launch(const struct eq_gpu_rows *r, int dtype, cudaStream_t stream)
{
	norms[dtype_index(dtype)]<<<row_blocks(r), 32 * ROW_WARPS, 0, stream>>>(*r);
	return cudaGetLastError();
}

/* Shared memory that a block may have. */
static cudaError_t shared_limit(size_t *most)
{
	int device, value = 0;
	cudaError_t rc = cudaGetDevice(&device);

	if (!rc)
		rc = cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
	*most = (size_t)value;
	return rc;
}

static cudaError_t search_sorted_launch(const struct eq_gpu_rows *r, int dtype, bool fp8,
					cudaStream_t stream)
{
	size_t room = eq_row_sorted_bytes(r->k), shared = sizeof(struct eq_row_sorter), most;
	uint64_t blocks = r->rows * r->k / room;
	cudaError_t rc = shared_limit(&most);
	int type = dtype_index(dtype) - 1;

	if (rc)
		return rc;
	if (shared + room <= most) {
		sorted_searches[type][fp8]<<<(unsigned)r->rows, 32, shared + room, stream>>>(*r);
		return cudaGetLastError();
	}
	if (!blocks)
		return cudaErrorNotSupported;
	blocks = blocks < LONG_BLOCKS ? blocks : LONG_BLOCKS;
	long_searches[type][fp8]<<<(unsigned)blocks, 32, shared, stream>>>(*r);
	return cudaGetLastError();
}

cudaError_t eq_search_launch(const struct eq_gpu_rows *r, int dtype, bool fp8, cudaStream_t stream)
{
	if (!eq_row_has_sums(dtype, r->k))
		return cudaErrorNotSupported;
	if (dtype != EQ_BF16)
		return search_sorted_launch(r, dtype, fp8, stream);
	searches[fp8]<<<(unsigned)r->rows, 32, sizeof(struct eq_row_bins), stream>>>(*r);
	return cudaGetLastError();
}

cudaError_t eq_quantise_launch(const struct eq_gpu_rows *r, int dtype, bool fp8, uint32_t *hist,
			       cudaStream_t stream)
{
	quantises[dtype_index(dtype)][fp8]<<<row_blocks(r), 32 * ROW_WARPS, 0, stream>>>(*r);
	count_symbols<<<HIST_BLOCKS, 256, 0, stream>>>(r->symbols, r->rows * r->k, hist);
	return cudaGetLastError();
}

/* Let a kernel have most of an SM's memory as shared, `bytes` of it in a block. */
static cudaError_t prefer_shared(rows_fn *fn, size_t bytes)
{
	cudaError_t rc = cudaFuncSetAttribute(fn, cudaFuncAttributePreferredSharedMemoryCarveout,
					      cudaSharedmemCarveoutMaxShared);

	if (!rc)
		rc = cudaFuncSetAttribute(fn, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
	return rc;
}

cudaError_t eq_enc_kernels_init(void)
{
	size_t most;
	cudaError_t rc = shared_limit(&most);

	for (int fp8 = 0; fp8 < 2 && !rc; fp8++) {
		rc = prefer_shared(searches[fp8], sizeof(struct eq_row_bins));
		for (int type = 0; type < 2 && !rc; type++)
			rc = prefer_shared(sorted_searches[type][fp8], most);
	}
	return rc;
}
