# SPDX-License-Identifier: Apache-2.0
# codec/: the archive and its codecs. One file a line.
EQ_CODEC_SOURCES = \
	codec/dtype.c \
	codec/error.c \
	codec/json_scan.c \
	codec/json_scan.h \
	codec/policy.c \
	codec/policy_select.c \
	codec/safetensors.c \
	codec/safetensors_check.c \
	codec/safetensors_priv.h \
	codec/utf8.c \
	codec/utf8.h \
	codec/attributes.c \
	codec/archive_build.c \
	codec/archive_index.c \
	codec/archive_plan.c \
	codec/archive_priv.h \
	codec/archive_read.c \
	codec/archive_scan.c \
	codec/archive_verify.c \
	codec/buffer.c \
	codec/encode.c \
	codec/encode_choose.c \
	codec/encode_device.c \
	codec/encode_device.h \
	codec/encode_lossless.c \
	codec/encode_pass.c \
	codec/encode_priv.h \
	codec/sha256.h \
	codec/encode_quant.c \
	codec/encode_sample.c \
	codec/encode_stream.c \
	codec/estimate.c \
	codec/backend.h \
	codec/backend_encode.h \
	codec/backend_cpu.c \
	codec/backend_simple.c \
	codec/backend_simple.h \
	codec/chunk_dec.h \
	codec/chunk_layout.c \
	codec/chunk_units.c \
	codec/coding.c \
	codec/coding.h \
	codec/coding_tables.c \
	codec/coding_tables.h \
	codec/cpu.c \
	codec/cpu.h \
	codec/dequant.c \
	codec/direct.c \
	codec/direct.h \
	codec/floats.h \
	codec/eqcodec.h \
	codec/format.h \
	codec/kernels.h \
	codec/model.c \
	codec/model.h \
	codec/open.c \
	codec/pool.c \
	codec/quant.c \
	codec/quant.h \
	codec/quant_eight.c \
	codec/quant_eight.h \
	codec/quant_eights.h \
	codec/quant_level.h \
	codec/quant_ops.c \
	codec/quant_ops.h \
	codec/quant_rate.c \
	codec/quant_row.c \
	codec/quant_row.h \
	codec/quant_search.c \
	codec/quant_search.h \
	codec/quant_vec.h \
	codec/rans.c \
	codec/rans.h \
	codec/shrink.c \
	codec/split.c \
	codec/tmpfile.c \
	codec/xxh3.h

EQ_AVX2_SOURCES = \
	codec/split_avx2.c \
	codec/rans_avx2.c \
	codec/quant_avx2.c
EQ_AVX512_SOURCES = \
	codec/split_avx512.c \
	codec/rans_avx512.c \
	codec/quant_avx512.c
EQ_NEON_SOURCES = \
	codec/split_neon.c \
	codec/rans_neon.c
