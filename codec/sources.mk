# SPDX-License-Identifier: Apache-2.0
# codec/: the archive and its codecs. One file a line.
EQ_CODEC_SOURCES = \
	codec/archive_build.c \
	codec/archive_index.c \
	codec/archive_priv.h \
	codec/archive_read.c \
	codec/archive_scan.c \
	codec/archive_verify.c \
	codec/archive_write.c \
	codec/backend.h \
	codec/floats.h \
	codec/eqcodec.h \
	codec/format.h \
	codec/pool.c \
	codec/quant.c \
	codec/quant.h \
	codec/quant_rate.c \
	codec/quant_search.c \
	codec/shrink.c \
	codec/tmpfile.c

EQ_AVX2_SOURCES =
EQ_AVX512_SOURCES =
EQ_NEON_SOURCES =
