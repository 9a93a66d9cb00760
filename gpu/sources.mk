# SPDX-License-Identifier: Apache-2.0
# gpu/: decoding and encoding on a GPU. One file a line.
# Part of the programs: finds and loads the module.
EQ_GPU_SOURCES = \
	gpu/gpu_abi.h \
	gpu/gpu_load.c \
	gpu/gpu_load.h
# The module eqfs-cuda.so, made by nvcc.
EQ_CUDA_FILES = \
	gpu/gpu_context.cu \
	gpu/gpu_enc_kernels.cu \
	gpu/gpu_encode.cu \
	gpu/gpu_feed.cu \
	gpu/gpu_kernels.cu \
	gpu/gpu_measure.cu \
	gpu/gpu_measure_encode.cu \
	gpu/gpu_module.cu \
	gpu/gpu_quantise.cu
EQ_CUDA_DEPS = \
	gpu/eqfs-cuda.map \
	gpu/gpu_enc_quant.h \
	gpu/gpu_enc_row.h \
	gpu/gpu_enc_search.h \
	gpu/gpu_enc_task.h \
	gpu/gpu_enc_warp.h \
	gpu/gpu_encode.cuh \
	gpu/gpu_kernels.cuh \
	gpu/gpu_lane.cuh \
	gpu/gpu_measure.cuh \
	gpu/gpu_module.cuh \
	gpu/gpu_planes.h \
	gpu/gpu_quant.h \
	gpu/gpu_task.h \
	gpu/gpu_warp.h
