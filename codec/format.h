/* SPDX-License-Identifier: Apache-2.0 */
/*
 * On-disk structures of the eqar archive, version 1. man/eqar.5 is normative;
 * this file only gives its fields C names. All integers are little-endian and
 * are read in place, so hosts must be little-endian (configure checks).
 */
#ifndef EQ_FORMAT_H
#define EQ_FORMAT_H

#include <assert.h>
#include <stdint.h>

#define EQ_MAGIC "\x89"            \
		 "EQAR\r\n\x1a"
#define EQ_MAGIC_END "EQARend\n"
#define EQ_FORMAT_MAJOR 1
#define EQ_FORMAT_MINOR 0

/* Limits of the format (eqar.5, LIMITS). */
#define EQ_MAX_JSON 100000000u
#define EQ_MAX_TENSORS 4194304u
#define EQ_MAX_DIMS 64
#define EQ_MAX_NAME 65536u
#define EQ_MAX_CHUNK_UNITS 1048576u
#define EQ_MAX_CHUNK_BYTES 8388608u
#define EQ_CHUNK_EXTRA 65536u
#define EQ_MAX_TABLES 64
#define EQ_MAX_INDEX (UINT64_C(1) << 32)
#define EQ_PREFIX_RATIO 64
#define EQ_PREFIX_FREE 4096

#define EQ_PAYLOAD_ALIGN 4096
#define EQ_PART_ALIGN 16
#define EQ_GROUP 128            /* rANS symbols a group */
#define EQ_LANES 32
#define EQ_RANS_L 65536u        /* lower bound of a state */
#define EQ_PROB_BITS 12
#define EQ_PROB_SIZE 4096

struct eq_disk_header {
	uint8_t magic[8];
	uint16_t major, minor;
	uint32_t incompat;
	uint8_t zero[40];
	uint64_t xxh3;
};
static_assert(sizeof(struct eq_disk_header) == 64, "file header");

struct eq_disk_trailer {
	uint64_t index_off, index_len, index_xxh3, archive_len;
	uint16_t major, minor;
	uint32_t incompat;
	uint8_t zero[8];
	uint64_t xxh3;
	uint8_t magic[8];
};
static_assert(sizeof(struct eq_disk_trailer) == 64, "trailer");

enum {
	EQ_SEC_FILE = 1,
	EQ_SEC_PREFIX = 2,
	EQ_SEC_PROVENANCE = 3,
	EQ_SEC_TENSORS = 4,
	EQ_SEC_CRITICAL = 1, /* flag */
};

struct eq_disk_section {
	uint32_t type, flags;
	uint64_t len;
};
static_assert(sizeof(struct eq_disk_section) == 16, "section");

enum { EQ_FILE_LOSSY = 1 };

struct eq_disk_file {
	uint64_t size, prefix_len;
	int64_t mtime_s;
	uint32_t mtime_ns, flags;
	uint8_t sha256[32];
	double lambda, bits;
	uint64_t quant_params, quant_bytes;
	double relative_l1, snr_db;
	uint32_t encoder;
	uint8_t qformat;
	uint8_t zero[11];
};
static_assert(sizeof(struct eq_disk_file) == 128, "FILE");

enum { EQ_PREFIX_STORED = 0, EQ_PREFIX_ZSTD = 1 };

struct eq_disk_prefix {
	uint64_t len;
	uint32_t method, zero;
};
static_assert(sizeof(struct eq_disk_prefix) == 16, "PREFIX");

enum { EQ_TENSOR_LOSSY = 1, EQ_TENSOR_NONFINITE = 2 };
enum { EQ_TRANSFORM_NONE = 0, EQ_TRANSFORM_ROTATED = 1 };
enum { EQ_SCALE_NONE = 0, EQ_SCALE_BF16 = 1, EQ_SCALE_F32 = 2 };

struct eq_disk_tensor {
	uint32_t record_len, name_len;
	char codec[8];
	uint64_t n_bytes, payload_off, payload_len, content_xxh3;
	uint32_t n_chunks, chunk_units;
	uint8_t dtype, ndim, unit, transform, qformat, scale_dtype;
	uint16_t flags;
	uint32_t param_len, zero0;
	double relative_l1, snr_db;
	uint64_t row_units, const_value;
	uint8_t zero1[24];
};
static_assert(sizeof(struct eq_disk_tensor) == 128, "tensor record");

struct eq_disk_chunk {
	uint32_t len, zero;
	uint64_t xxh3;
};
static_assert(sizeof(struct eq_disk_chunk) == 16, "chunk entry");

enum {
	EQ_PART_EMPTY = 0,
	EQ_PART_RAW = 1,
	EQ_PART_CONST = 2,
	EQ_PART_RANS = 3,
	EQ_PART_PAIR = 4,
	EQ_PART_OUTLIERS = 5,
	EQ_PART_DEPENDENT = 6,
};

struct eq_disk_part {
	uint8_t kind, arg;
	uint16_t zero0;
	uint32_t n_words, n_entries, zero1;
};
static_assert(sizeof(struct eq_disk_part) == 16, "part head");

struct eq_disk_outlier {
	uint32_t pos, bits;
};
static_assert(sizeof(struct eq_disk_outlier) == 8, "outlier");

struct eq_disk_params {
	uint16_t n_freq, n_value;
	uint32_t zero;
};
static_assert(sizeof(struct eq_disk_params) == 8, "parameters");

enum { EQ_TABLE_SINGLE = 1, EQ_TABLE_PAIR = 2 };

struct eq_disk_freq {
	uint8_t mode, zero0;
	uint16_t n_sym;
	uint32_t zero1;
};
static_assert(sizeof(struct eq_disk_freq) == 8, "frequency table");

struct eq_disk_value {
	uint32_t n_sym, zero;
	uint8_t bitmap[32];
};
static_assert(sizeof(struct eq_disk_value) == 40, "value table");

static inline uint64_t eq_align(uint64_t x, uint64_t a)
{
	return (x + a - 1) / a * a;
}

#endif
