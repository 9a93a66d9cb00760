/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of a device as a DLPack tensor. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib_priv.h"

/* The structures of DLPack 1.0, whose layout is its ABI. */
enum { DL_CPU = 1, DL_CUDA = 2 };
enum { DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4, DL_COMPLEX = 5, DL_BOOL = 6 };

struct dl_tensor {
	void *data;
	int32_t device_type, device_id;
	int32_t ndim;
	uint8_t code, bits;
	uint16_t lanes;
	int64_t *shape, *strides;       /* in elements */
	uint64_t byte_offset;
};

struct dl_managed {
	struct dl_tensor tensor;
	void *ctx;
	void (*deleter)(struct dl_managed *self);
};

struct dl_versioned {
	uint32_t major, minor;
	void *ctx;
	void (*deleter)(struct dl_versioned *self);
	uint64_t flags;
	struct dl_tensor tensor;
};

/* All of it in one piece; only one of the first two is given away. */
struct owned {
	struct dl_managed managed;
	struct dl_versioned versioned;
	struct eqfs_device *device;
	void *memory;
	int64_t dims[];                 /* shape, then strides */
};

static void owned_free(struct owned *o)
{
	eqfs_device_free(o->device, o->memory);
	free(o);
}

static void managed_delete(struct dl_managed *self)
{
	owned_free(self->ctx);
}

static void versioned_delete(struct dl_versioned *self)
{
	owned_free(self->ctx);
}

static const struct dl_type {
	const char *name;
	uint8_t code;
} types[] = {
	{ "BOOL", DL_BOOL }, { "U8", DL_UINT }, { "U16", DL_UINT }, { "U32", DL_UINT },
	{ "U64", DL_UINT }, { "I8", DL_INT }, { "I16", DL_INT }, { "I32", DL_INT },
	{ "I64", DL_INT }, { "F16", DL_FLOAT }, { "F32", DL_FLOAT }, { "F64", DL_FLOAT },
	{ "BF16", DL_BFLOAT }, { "C64", DL_COMPLEX },
};

static uint8_t type_code(const char *dtype)
{
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		if (strcmp(types[i].name, dtype) == 0)
			return types[i].code;
	return DL_UINT; /* of 8 bits */
}

/* Shape and strides of rows one after the other; false when they are too large. */
static bool dims_fill(const uint64_t *shape, uint32_t n, int64_t *dims)
{
	uint64_t stride = 1;

	for (uint32_t i = n; i-- > 0;) {
		if (shape[i] > INT64_MAX || stride > INT64_MAX)
			return false;
		dims[i] = (int64_t)shape[i];
		dims[n + i] = (int64_t)stride;
		if (__builtin_mul_overflow(stride, shape[i] ? shape[i] : 1, &stride))
			return false;
	}
	return true;
}

int eqfs_dlpack(struct eqfs_device *d, const struct eqfs_tensor *t, void *memory, int versioned,
		void **out, struct eqfs_error *err)
{
	/* Elements that are no whole bytes have no shape in bytes. */
	const uint64_t *shape = t->bits % 8 ? &t->n_bytes : t->shape;
	uint32_t n = t->bits % 8 ? 1 : t->ndim;
	struct owned *o = calloc(1, sizeof(*o) + 2 * (size_t)n * sizeof(o->dims[0]));
	struct dl_tensor dl;

	*out = NULL;
	if (!o)
		return eq_fail(eq_lib_error(err), -ENOMEM, "%s: out of memory", t->name);
	if (!dims_fill(shape, n, o->dims)) {
		free(o);
		return eq_fail(eq_lib_error(err), -EINVAL, "%s: too large for DLPack", t->name);
	}
	dl = (struct dl_tensor){ .data = memory, .device_type = d->load ? DL_CUDA : DL_CPU,
				 .device_id = d->load ? d->number : 0, .ndim = (int32_t)n,
				 .code = type_code(t->dtype),
				 .bits = (uint8_t)(t->bits % 8 ? 8 : t->bits), .lanes = 1,
				 .shape = o->dims, .strides = o->dims + n };
	o->managed = (struct dl_managed){ dl, o, managed_delete };
	o->versioned = (struct dl_versioned){ 1, 0, o, versioned_delete, 0, dl };
	o->device = d;
	o->memory = memory;
	*out = versioned ? (void *)&o->versioned : (void *)&o->managed;
	return 0;
}
