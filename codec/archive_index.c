/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and validating the index of an archive (eqar.5, LAYOUT). */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "archive_priv.h"
#include "model.h"

static const char codec_names[][8] = {
	[EQ_CODEC_RAW] = "raw",
	[EQ_CODEC_CONST] = "const",
	[EQ_CODEC_ZSTD] = "zstd",
	[EQ_CODEC_PLANES] = "planes",
	[EQ_CODEC_QUANT] = "quant",
};

int eq_codec_find(const char name[8])
{
	size_t i;

	for (i = 0; i < sizeof(codec_names) / sizeof(codec_names[0]); i++)
		if (!memcmp(name, codec_names[i], 8))
			return (int)i;
	return -1;
}

const char *eq_codec_name(enum eq_codec_id id)
{
	return codec_names[id];
}

static bool all_zero(const uint8_t *p, size_t n)
{
	while (n--)
		if (*p++)
			return false;
	return true;
}

static int bad(const struct eq_archive *a, struct eq_error *err, const char *what)
{
	return eq_fail(err, EQ_ECORRUPT, "%s: corrupt index: %s", a->name, what);
}

/* ---- tensors ----------------------------------------------------------------- */

struct walk {
	const uint8_t *p, *end;
	uint64_t payload_end;   /* of the last payload */
	uint64_t logical;       /* bytes so far */
	uint64_t n_chunks;      /* so far */
	size_t name_bytes;
	bool lossy;
};

static int bad_tensor(const struct eq_archive *a, const struct eq_disk_tensor *r,
		      struct eq_error *err, const char *what)
{
	return eq_fail(err, EQ_ECORRUPT, "%s: tensor '%.*s': corrupt record: %s", a->name,
		       (int)(r->name_len < 128 ? r->name_len : 128),
		       (const char *)(r + 1) + 8 * r->ndim, what);
}

static int check_shape(const struct eq_archive *a, const struct eq_disk_tensor *r,
		       struct eq_error *err)
{
	const uint64_t *dims = (const void *)(r + 1);
	uint64_t n = 1;
	unsigned bits = eq_dtype_bits(r->dtype);
	int i;

	if (!bits)
		return bad_tensor(a, r, err, "unknown dtype");
	if (r->unit != eq_dtype_unit(r->dtype))
		return bad_tensor(a, r, err, "unit does not fit the dtype");
	for (i = 0; i < r->ndim; i++)
		if (__builtin_mul_overflow(n, dims[i], &n))
			return bad_tensor(a, r, err, "shape overflows");
	if (__builtin_mul_overflow(n, (uint64_t)bits, &n) || n % 8 || n / 8 != r->n_bytes)
		return bad_tensor(a, r, err, "length does not fit dtype and shape");
	return 0;
}

/* What the codec demands of the other fields. */
static int check_codec(const struct eq_archive *a, const struct eq_disk_tensor *r,
		       enum eq_codec_id codec, struct eq_error *err)
{
	bool coded = codec == EQ_CODEC_PLANES || codec == EQ_CODEC_QUANT;
	bool quant = codec == EQ_CODEC_QUANT;
	uint64_t units = r->n_bytes / r->unit;

	if (codec == EQ_CODEC_CONST || r->n_bytes == 0) {
		if (r->n_chunks || r->chunk_units || r->payload_off || r->payload_len)
			return bad_tensor(a, r, err, "payload where none belongs");
		if (codec != (r->n_bytes ? EQ_CODEC_CONST : EQ_CODEC_RAW))
			return bad_tensor(a, r, err, "codec of an empty tensor");
	} else {
		if (r->chunk_units == 0 || r->chunk_units % EQ_GROUP || r->n_chunks == 0)
			return bad_tensor(a, r, err, "chunk size");
		if (r->chunk_units > EQ_MAX_CHUNK_UNITS ||
		    (uint64_t)r->chunk_units * r->unit > EQ_MAX_CHUNK_BYTES)
			return eq_fail(err, EQ_ELIMIT, "%s: chunks of %" PRIu32
				       " units exceed the limit", a->name, r->chunk_units);
		if (r->n_chunks != (units + r->chunk_units - 1) / r->chunk_units)
			return bad_tensor(a, r, err, "number of chunks");
	}
	if (codec != EQ_CODEC_CONST && r->const_value)
		return bad_tensor(a, r, err, "constant of another codec");
	if (r->unit < 8 && r->const_value >> 8 * r->unit)
		return bad_tensor(a, r, err, "constant wider than a unit");
	if (r->transform > EQ_TRANSFORM_ROTATED || (r->transform && codec != EQ_CODEC_PLANES) ||
	    (r->transform && r->unit == 1))
		return bad_tensor(a, r, err, "transform");
	if (!coded && r->param_len)
		return bad_tensor(a, r, err, "parameters of another codec");
	if (quant != !!(r->flags & EQ_TENSOR_LOSSY) || quant != (r->scale_dtype != EQ_SCALE_NONE) ||
	    quant != (r->row_units != 0) || (!quant && r->qformat) ||
	    r->scale_dtype > EQ_SCALE_F32)
		return bad_tensor(a, r, err, "quantisation fields");
	if (quant && (units % r->row_units ||
		      (r->dtype != EQ_F16 && r->dtype != EQ_BF16 && r->dtype != EQ_F32)))
		return bad_tensor(a, r, err, "quantised shape or dtype");
	return 0;
}

static int check_payload(struct eq_archive *a, const struct eq_disk_tensor *r, struct walk *w,
			 const struct eq_disk_chunk *c, uint64_t *off, enum eq_codec_id codec,
			 struct eq_error *err)
{
	uint64_t pos = r->payload_off, end = pos, left = r->n_bytes, full, len;
	uint32_t i;

	if (!r->n_chunks)
		return 0;
	if (pos % EQ_PAYLOAD_ALIGN || pos < w->payload_end || pos < EQ_PAYLOAD_ALIGN ||
	    pos > a->index_off || r->payload_len > a->index_off - pos)
		return bad_tensor(a, r, err, "payload out of place");
	full = (uint64_t)r->chunk_units * r->unit;
	for (i = 0; i < r->n_chunks; i++) {
		len = left < full ? left : full;
		left -= len;
		pos = eq_align(end, EQ_PART_ALIGN);
		if (c[i].zero || c[i].len == 0 || (codec == EQ_CODEC_RAW && c[i].len != len))
			return bad_tensor(a, r, err, "chunk entry");
		if (c[i].len > len + EQ_CHUNK_EXTRA)
			return eq_fail(err, EQ_ELIMIT, "%s: chunk of %" PRIu32
				       " bytes exceeds the limit", a->name, c[i].len);
		off[i] = pos;
		end = pos + c[i].len;
	}
	if (end - r->payload_off != r->payload_len)
		return bad_tensor(a, r, err, "chunks do not fill the payload");
	w->payload_end = end;
	return 0;
}

void eq_plan_of_record(struct eq_plan *plan, const struct eq_disk_tensor *r,
		       enum eq_codec_id codec)
{
	*plan = (struct eq_plan){
		.codec = codec, .unit = r->unit, .transform = r->transform, .dtype = r->dtype,
		.scale_dtype = r->scale_dtype, .chunk_units = r->chunk_units,
		.n_units = r->n_bytes / r->unit, .row_units = r->row_units,
		.const_value = r->const_value,
	};
}

/* Lengths only: enough to walk from record to record and to size the arrays. */
static int check_extent(const struct eq_archive *a, const struct walk *w,
			struct eq_error *err)
{
	const struct eq_disk_tensor *r = (const void *)w->p;
	uint64_t room = (uint64_t)(w->end - w->p), need;

	if (room < sizeof(*r) || r->record_len > room)
		return bad(a, err, "records run past the end");
	if (r->ndim > EQ_MAX_DIMS || r->name_len > EQ_MAX_NAME)
		return eq_fail(err, EQ_ELIMIT, "%s: %s of a tensor exceeds the limit", a->name,
			       r->ndim > EQ_MAX_DIMS ? "number of dimensions" : "name");
	need = sizeof(*r) + 8u * r->ndim + eq_align(r->name_len, 8) + r->param_len +
	       (uint64_t)r->n_chunks * sizeof(struct eq_disk_chunk);
	if (r->record_len != need || need % 8)
		return bad(a, err, "length of a tensor's record");
	return 0;
}

static int load_tensor(struct eq_archive *a, size_t i, struct walk *w, struct eq_error *err)
{
	const struct eq_disk_tensor *r = (const void *)w->p;
	struct eq_tensor_info *t = &a->tensors[i];
	struct eq_tensor_priv *p = &a->priv[i];
	const uint8_t *q = (const uint8_t *)(r + 1);
	struct eq_plan plan;
	int codec, rc;

	codec = eq_codec_find(r->codec);
	if (codec < 0)
		return eq_fail(err, EQ_EUNSUP, "%s: tensor '%.*s': unsupported codec '%.8s'",
			       a->name, (int)(r->name_len < 128 ? r->name_len : 128),
			       (const char *)q + 8 * r->ndim, r->codec);
	if (r->zero0 || !all_zero(r->zero1, sizeof(r->zero1)) ||
	    r->flags & ~(EQ_TENSOR_LOSSY | EQ_TENSOR_NONFINITE))
		return bad_tensor(a, r, err, "reserved field is set");
	if (isnan(r->relative_l1) || isnan(r->snr_db) || r->relative_l1 < 0)
		return bad_tensor(a, r, err, "error figures");
	rc = check_shape(a, r, err);
	if (!rc)
		rc = check_codec(a, r, (enum eq_codec_id)codec, err);
	if (rc)
		return rc;

	t->dims = (const uint64_t *)q;
	q += 8 * r->ndim;
	t->name = memcpy(a->names + w->name_bytes, q, r->name_len);
	t->name_len = r->name_len;
	w->name_bytes += r->name_len + 1;
	q += eq_align(r->name_len, 8);
	memcpy(t->codec, r->codec, 8);
	t->dtype = r->dtype;
	t->ndim = r->ndim;
	t->begin = w->logical;
	t->n_bytes = r->n_bytes;
	t->stored = r->payload_len + r->record_len;
	t->params = r->n_bytes / eq_dtype_bits(r->dtype) * 8 +
		    r->n_bytes % eq_dtype_bits(r->dtype) * 8 / eq_dtype_bits(r->dtype);
	t->lossy = r->flags & EQ_TENSOR_LOSSY;
	t->nonfinite = r->flags & EQ_TENSOR_NONFINITE;
	t->relative_l1 = r->relative_l1;
	t->snr_db = r->snr_db;
	t->n_chunks = r->n_chunks;
	t->chunk_bytes = (uint64_t)r->chunk_units * r->unit;
	w->lossy |= t->lossy;

	p->rec = r;
	p->codec = (enum eq_codec_id)codec;
	p->params = q;
	p->chunks = (const void *)(q + r->param_len);
	p->chunk_off = a->chunk_off + w->n_chunks;
	rc = check_payload(a, r, w, p->chunks, a->chunk_off + w->n_chunks, p->codec, err);
	if (rc)
		return rc;
	eq_plan_of_record(&plan, r, p->codec);
	rc = eq_plan_check(&plan, p->params, r->param_len);
	if (rc)
		return eq_fail(err, rc, "%s: tensor '%.128s': parameters: %s", a->name, t->name,
			       eq_strerror(rc));
	w->n_chunks += r->n_chunks;
	if (__builtin_add_overflow(w->logical, r->n_bytes, &w->logical))
		return bad(a, err, "sizes overflow");
	w->p += r->record_len;
	return 0;
}

static int load_tensors(struct eq_archive *a, const uint8_t *body, uint64_t len, bool lossy,
			struct eq_error *err)
{
	struct walk w = { .p = body + 8, .end = body + len, .logical = a->info.prefix_len };
	uint64_t n_chunks = 0, names = 0;
	uint32_t n, zero;
	size_t i;
	int rc;

	if (len < 8)
		return bad(a, err, "TENSORS too short");
	memcpy(&n, body, 4);
	memcpy(&zero, body + 4, 4);
	if (n > EQ_MAX_TENSORS)
		return eq_fail(err, EQ_ELIMIT, "%s: %" PRIu32 " tensors exceed the limit", a->name, n);
	if (zero || n > len / sizeof(struct eq_disk_tensor))
		return bad(a, err, "number of tensors");
	/* First pass: what the arrays need is bounded by bytes that are there. */
	for (i = 0; i < n; i++) {
		const struct eq_disk_tensor *r = (const void *)w.p;

		rc = check_extent(a, &w, err);
		if (rc)
			return rc;
		n_chunks += r->n_chunks;
		names += r->name_len + 1;
		w.p += r->record_len;
	}
	if (w.p != w.end)
		return bad(a, err, "bytes after the last tensor");
	a->info.n_tensors = n;
	a->tensors = calloc(n ? n : 1, sizeof(a->tensors[0]));
	a->priv = calloc(n ? n : 1, sizeof(a->priv[0]));
	a->names = calloc(1, names ? names : 1);
	a->chunk_off = calloc(n_chunks ? n_chunks : 1, sizeof(a->chunk_off[0]));
	if (!a->tensors || !a->priv || !a->names || !a->chunk_off)
		return eq_fail(err, -ENOMEM, "%s: out of memory", a->name);
	w.p = body + 8;
	for (i = 0; i < n; i++) {
		rc = load_tensor(a, i, &w, err);
		if (rc)
			return rc;
	}
	if (w.logical != a->info.size)
		return bad(a, err, "tensors do not add up to the size of the file");
	if (w.lossy != lossy)
		return bad(a, err, "lossy flag");
	return 0;
}

/* ---- the other sections --------------------------------------------------------- */

static int load_file(struct eq_archive *a, const uint8_t *body, uint64_t len, bool *lossy,
		     struct eq_error *err)
{
	const struct eq_disk_file *f = (const void *)body;

	if (len != sizeof(*f))
		return bad(a, err, "length of FILE");
	if (!all_zero(f->zero, sizeof(f->zero)) || f->flags & ~(uint32_t)EQ_FILE_LOSSY ||
	    f->mtime_ns >= 1000000000 || f->prefix_len < 8 || f->prefix_len > f->size ||
	    f->size > INT64_MAX || isnan(f->lambda) || isnan(f->bits) ||
	    isnan(f->relative_l1) || isnan(f->snr_db))
		return bad(a, err, "field of FILE out of range");
	if (f->prefix_len > 8 + (uint64_t)EQ_MAX_JSON)
		return eq_fail(err, EQ_ELIMIT, "%s: header of %" PRIu64 " bytes exceeds the limit",
			       a->name, f->prefix_len);
	a->info = (struct eq_file_info){
		.size = f->size, .stored = a->info.stored, .prefix_len = f->prefix_len,
		.mtime_s = f->mtime_s, .mtime_ns = f->mtime_ns,
		.lossy = f->flags & EQ_FILE_LOSSY, .qformat = (enum eq_qformat)f->qformat,
		.lambda = f->lambda, .bits = f->bits,
		.quant_params = f->quant_params, .quant_bytes = f->quant_bytes,
		.relative_l1 = f->relative_l1, .snr_db = f->snr_db, .encoder = f->encoder,
		.provenance = "",
	};
	memcpy(a->info.sha256, f->sha256, 32);
	*lossy = a->info.lossy;
	return 0;
}

static int load_prefix(struct eq_archive *a, const uint8_t *body, uint64_t len,
		       struct eq_error *err)
{
	const struct eq_disk_prefix *p = (const void *)body;
	uint64_t n = a->info.prefix_len, stored = len - sizeof(*p);
	size_t got;

	if (len < sizeof(*p) || p->zero || p->len != n)
		return bad(a, err, "PREFIX");
	if (p->method > EQ_PREFIX_ZSTD)
		return eq_fail(err, EQ_EUNSUP, "%s: unsupported method %" PRIu32 " of the header",
			       a->name, p->method);
	if (p->method == EQ_PREFIX_STORED ? stored != n
					  : n > EQ_PREFIX_RATIO * stored + EQ_PREFIX_FREE)
		return bad(a, err, "length of PREFIX");
	a->prefix = malloc(n);
	if (!a->prefix)
		return eq_fail(err, -ENOMEM, "%s: out of memory", a->name);
	if (p->method == EQ_PREFIX_STORED) {
		memcpy(a->prefix, p + 1, n);
		return 0;
	}
	/* One frame: zstd itself would go on with a second one. */
	if (ZSTD_findFrameCompressedSize(p + 1, stored) != stored)
		return bad(a, err, "PREFIX is not one frame");
	got = ZSTD_decompress(a->prefix, n, p + 1, stored);
	if (ZSTD_getErrorCode(got) == ZSTD_error_memory_allocation)
		return eq_fail(err, -ENOMEM, "%s: out of memory", a->name);
	if (ZSTD_isError(got) || got != n)
		return bad(a, err, "PREFIX does not decompress");
	return 0;
}

static int load_provenance(struct eq_archive *a, const uint8_t *body, uint64_t len,
			   struct eq_error *err)
{
	a->provenance = malloc(len + 1);
	if (!a->provenance)
		return eq_fail(err, -ENOMEM, "%s: out of memory", a->name);
	memcpy(a->provenance, body, len);
	a->provenance[len] = 0;
	a->info.provenance = a->provenance;
	return 0;
}

static int load_section(struct eq_archive *a, const struct eq_disk_section *s, bool *lossy,
			struct eq_error *err)
{
	const uint8_t *body = (const uint8_t *)(s + 1);

	switch (s->type) {
	case EQ_SEC_FILE:
		return load_file(a, body, s->len, lossy, err);
	case EQ_SEC_PREFIX:
		return load_prefix(a, body, s->len, err);
	case EQ_SEC_PROVENANCE:
		return load_provenance(a, body, s->len, err);
	default:
		return load_tensors(a, body, s->len, *lossy, err);
	}
}

static int load_sections(struct eq_archive *a, struct eq_error *err)
{
	const uint8_t *p = a->index, *end = a->index + a->index_len;
	uint32_t last = 0, seen = 0;
	bool lossy = false;
	int rc;

	while (p < end) {
		const struct eq_disk_section *s = (const void *)p;

		if ((uint64_t)(end - p) < sizeof(*s) ||
		    s->len > (uint64_t)(end - p) - sizeof(*s) || s->flags & ~(uint32_t)EQ_SEC_CRITICAL)
			return bad(a, err, "section");
		p += sizeof(*s) + eq_align(s->len, 8);
		if (s->type < EQ_SEC_FILE || s->type > EQ_SEC_TENSORS) {
			if (s->flags & EQ_SEC_CRITICAL)
				return eq_fail(err, EQ_EUNSUP, "%s: unsupported section of type %" PRIu32,
					       a->name, s->type);
			continue;
		}
		if (s->type <= last || !!(s->flags & EQ_SEC_CRITICAL) !=
					       (s->type != EQ_SEC_PROVENANCE) ||
		    (s->type != EQ_SEC_FILE && !seen))
			return bad(a, err, "sections out of order");
		last = s->type;
		seen |= 1u << s->type;
		rc = load_section(a, s, &lossy, err);
		if (rc)
			return rc;
	}
	if ((seen | 1u << EQ_SEC_PROVENANCE) != (1u << EQ_SEC_FILE | 1u << EQ_SEC_PREFIX |
						 1u << EQ_SEC_PROVENANCE | 1u << EQ_SEC_TENSORS))
		return bad(a, err, "a section is missing");
	return 0;
}

/* ---- header and trailer ----------------------------------------------------------- */

static int check_version(const struct eq_archive *a, uint16_t major, uint32_t incompat,
			 struct eq_error *err)
{
	if (major != EQ_FORMAT_MAJOR)
		return eq_fail(err, EQ_EUNSUP, "%s: unsupported archive version %u", a->name, major);
	if (incompat)
		return eq_fail(err, EQ_EUNSUP, "%s: unsupported archive features %#" PRIx32, a->name,
			       incompat);
	return 0;
}

/* Of another version even the reserved fields may mean something. */
static int check_header(const struct eq_archive *a, const struct eq_disk_header *h,
			struct eq_error *err)
{
	int rc;

	if (!eq_checksum_ok(h, offsetof(struct eq_disk_header, xxh3), h->xxh3))
		return eq_fail(err, EQ_ECORRUPT, "%s: corrupt file header: checksum", a->name);
	rc = check_version(a, h->major, h->incompat, err);
	if (!rc && !all_zero(h->zero, sizeof(h->zero)))
		rc = eq_fail(err, EQ_ECORRUPT, "%s: corrupt file header: reserved field", a->name);
	return rc;
}

static int check_trailer(struct eq_archive *a, const struct eq_disk_trailer *t,
			 struct eq_error *err)
{
	int rc;

	if (memcmp(t->magic, EQ_MAGIC_END, 8))
		return eq_fail(err, EQ_ECORRUPT, "%s: truncated archive: no trailer", a->name);
	if (!eq_checksum_ok(t, offsetof(struct eq_disk_trailer, xxh3), t->xxh3))
		return eq_fail(err, EQ_ECORRUPT, "%s: corrupt trailer: checksum", a->name);
	rc = check_version(a, t->major, t->incompat, err);
	if (rc)
		return rc;
	if (!all_zero(t->zero, sizeof(t->zero)))
		return eq_fail(err, EQ_ECORRUPT, "%s: corrupt trailer: reserved field", a->name);
	if (t->archive_len != a->info.stored)
		return eq_fail(err, EQ_ECORRUPT, "%s: archive of %" PRIu64 " bytes should have %" PRIu64,
			       a->name, a->info.stored, t->archive_len);
	if (t->index_len > EQ_MAX_INDEX)
		return eq_fail(err, EQ_ELIMIT, "%s: index exceeds the limit", a->name);
	if (t->index_off % 8 || t->index_off < sizeof(struct eq_disk_header) || t->index_len % 8 ||
	    t->index_len > a->info.stored - sizeof(*t) ||
	    t->index_off != a->info.stored - sizeof(*t) - t->index_len)
		return eq_fail(err, EQ_ECORRUPT, "%s: corrupt trailer: place of the index", a->name);
	a->index_off = t->index_off;
	a->index_len = t->index_len;
	return 0;
}

int eq_index_load(struct eq_archive *a, struct eq_error *err)
{
	struct eq_disk_header h;
	struct eq_disk_trailer t;
	int rc;

	memset(&h, 0, sizeof(h));
	rc = a->info.stored < sizeof(h.magic) ? EQ_ENOTEQAR :
	     eq_read_full(a->fd, &h, a->info.stored < sizeof(h) ? a->info.stored : sizeof(h), 0);
	if (!rc && memcmp(h.magic, EQ_MAGIC, 8))
		rc = EQ_ENOTEQAR;
	if (rc)
		return eq_fail(err, rc, "%s: %s", a->name, eq_strerror(rc));
	if (a->info.stored < sizeof(h) + sizeof(t))
		return eq_fail(err, EQ_ECORRUPT, "%s: truncated archive: %" PRIu64 " bytes", a->name,
			       a->info.stored);
	rc = check_header(a, &h, err);
	if (rc)
		return rc;
	rc = eq_read_full(a->fd, &t, sizeof(t), a->info.stored - sizeof(t));
	if (rc)
		return eq_fail(err, rc, "%s: %s", a->name, eq_strerror(rc));
	rc = check_trailer(a, &t, err);
	if (rc)
		return rc;
	a->index = malloc(a->index_len ? a->index_len : 1);
	if (!a->index)
		return eq_fail(err, -ENOMEM, "%s: out of memory", a->name);
	rc = eq_read_full(a->fd, a->index, a->index_len, a->index_off);
	if (rc)
		return eq_fail(err, rc, "%s: %s", a->name, eq_strerror(rc));
	if (!eq_checksum_ok(a->index, a->index_len, t.index_xxh3))
		return eq_fail(err, EQ_ECORRUPT, "%s: corrupt index: checksum", a->name);
	return load_sections(a, err);
}

int eq_archive_peek(int fd, uint64_t *size)
{
	struct {
		struct eq_disk_section head;
		struct eq_disk_file file;
	} first;
	struct eq_disk_trailer t;
	struct stat st;
	int rc;

	*size = 0;
	if (fstat(fd, &st))
		return -errno;
	if (st.st_size < (off_t)(sizeof(struct eq_disk_header) + sizeof(first) + sizeof(t)))
		return EQ_ENOTEQAR;
	rc = eq_read_full(fd, &t, sizeof(t), (uint64_t)st.st_size - sizeof(t));
	if (rc)
		return rc;
	if (memcmp(t.magic, EQ_MAGIC_END, 8) ||
	    !eq_checksum_ok(&t, offsetof(struct eq_disk_trailer, xxh3), t.xxh3) ||
	    t.archive_len != (uint64_t)st.st_size ||
	    t.index_off > t.archive_len - sizeof(t) - sizeof(first))
		return EQ_ECORRUPT;
	rc = eq_read_full(fd, &first, sizeof(first), t.index_off);
	if (!rc && (first.head.type != EQ_SEC_FILE || first.head.len < sizeof(first.file) ||
		    first.file.size > INT64_MAX))
		rc = EQ_ECORRUPT;
	if (!rc)
		*size = first.file.size;
	return rc;
}
