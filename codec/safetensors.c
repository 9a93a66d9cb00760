/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Header of a safetensors file. The language accepted is that of the reference
 * (safetensors/src/tensor.rs: read_metadata, HashMetadata, Metadata::validate,
 * by way of serde and serde_json), corners included:
 *   - a tensor is an object with dtype, shape and data_offsets (each once, other
 *     members are skipped) or the array of the three values;
 *   - a dtype is a string, or an object of one member that is null;
 *   - an integer is written without sign, fraction and exponent, below 2^64.
 * It is narrower in what eqar.5 limits, with EQ_ELIMIT (more than 64 dimensions,
 * names over 65536 bytes, more than 4194304 tensors), and in one other thing:
 * two tensors of one name. The format forbids them; the reference does not
 * look and keeps the last, so that readers would see different files.
 *
 * The text is gone through twice: once to check and count, once to fill exactly
 * what was counted. It must not change meanwhile, so no shared mapping.
 */
#include "eqcodec.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format.h"
#include "json_scan.h"
#include "safetensors_priv.h"
#include "utf8.h"

#define LENGTH_SIZE 8           /* of the length before the JSON */

struct parser {
	struct eq_json j;
	const char *file;
	struct eq_error *err;
	struct eq_st *st;       /* NULL in the counting pass */
	size_t n_tensors, n_dims, name_bytes;
	uint64_t *dims;         /* where the filling pass goes on */
	char *names;
};

struct entry {                  /* a tensor being read */
	struct eq_json_str name;
	int dtype;
	unsigned ndim;
	uint64_t dims[EQ_MAX_DIMS];
	uint64_t offset[2];
};

/* ---- messages ------------------------------------------------------------ */

static int fail_json(struct parser *p)
{
	return eq_fail(p->err, EQ_ENOTST, "%s: byte %zu of the header: %s", p->file,
		       (size_t)(p->j.p - p->j.base), p->j.why);
}

static int fail_tensor(struct parser *p, const struct entry *e, int rc,
		       const char *cause)
{
	return eq_fail(p->err, rc, "%s: tensor '%s': %s", p->file,
		       eq_st_show(e->name.raw, e->name.raw_len).text, cause);
}

/* The scanner's complaint inside a tensor: a wrong type, or bad JSON. */
static int fail_value(struct parser *p, const struct entry *e, const char *what)
{
	return eq_fail(p->err, EQ_ENOTST, "%s: tensor '%s': %s: %s (byte %zu of the header)",
		       p->file, eq_st_show(e->name.raw, e->name.raw_len).text, what, p->j.why,
		       (size_t)(p->j.p - p->j.base));
}

/* ---- a tensor's entry ---------------------------------------------------- */

static int read_dtype(struct parser *p, struct entry *e)
{
	struct eq_json_str s;
	char name[16];
	const bool object = eq_json_peek(&p->j) == '{';
	bool first = true;

	if (object) {
		if (eq_json_open(&p->j, '{') < 0)
			return fail_value(p, e, "dtype");
		const int more = eq_json_more(&p->j, '{', &first);

		if (more == 0)
			return fail_tensor(p, e, EQ_ENOTST, "dtype: empty object");
		if (more < 0 || eq_json_key(&p->j, &s) < 0 || eq_json_null(&p->j) < 0)
			return fail_value(p, e, "dtype");
		if (eq_json_more(&p->j, '{', &first) != 0)
			return fail_tensor(p, e, EQ_ENOTST,
					   "dtype: an object of more than one member");
	} else if (eq_json_string(&p->j, &s) < 0) {
		return fail_value(p, e, "dtype");
	}

	e->dtype = -1;
	if (s.len <= sizeof(name)) {
		eq_json_decode(&s, name);
		e->dtype = eq_dtype_parse(name, s.len);
	}
	if (e->dtype < 0)
		return eq_fail(p->err, EQ_ENOTST, "%s: tensor '%s': unknown dtype '%s'",
			       p->file, eq_st_show(e->name.raw, e->name.raw_len).text,
			       eq_st_show(s.raw, s.raw_len).text);
	return 0;
}

static int read_integer(struct parser *p, struct entry *e, const char *what,
			uint64_t *out)
{
	bool is_u64;

	if (eq_json_number(&p->j, &is_u64, out) < 0)
		return fail_value(p, e, what);
	if (!is_u64) {
		p->j.why = "not an unsigned 64-bit integer";
		return fail_value(p, e, what);
	}
	return 0;
}

/* An array of up to max integers; beyond that it fails with rc and excess. */
static int read_integers(struct parser *p, struct entry *e, const char *what,
			 uint64_t *out, unsigned max, unsigned *n, int rc,
			 const char *excess)
{
	bool first = true;
	int more;

	*n = 0;
	if (eq_json_open(&p->j, '[') < 0)
		return fail_value(p, e, what);
	while ((more = eq_json_more(&p->j, '[', &first)) > 0) {
		uint64_t v;
		const int bad = read_integer(p, e, what, &v);

		if (bad)
			return bad;
		if (*n == max)
			return fail_tensor(p, e, rc, excess);
		out[(*n)++] = v;
	}
	return more < 0 ? fail_value(p, e, what) : 0;
}

static int read_shape(struct parser *p, struct entry *e)
{
	return read_integers(p, e, "shape", e->dims, EQ_MAX_DIMS, &e->ndim, EQ_ELIMIT,
			     "more than 64 dimensions");
}

static int read_offsets(struct parser *p, struct entry *e)
{
	static const char two[] = "data_offsets: not two numbers";
	unsigned n;
	const int rc = read_integers(p, e, "data_offsets", e->offset, 2, &n, EQ_ENOTST,
				     two);

	return rc ? rc : n < 2 ? fail_tensor(p, e, EQ_ENOTST, two) : 0;
}

/* The values of a tensor, in the order of the array form. */
static const struct field {
	const char *name;
	int (*read)(struct parser *p, struct entry *e);
	const char *missing, *twice;
} fields[] = {
	{ "dtype", read_dtype, "no dtype", "dtype twice" },
	{ "shape", read_shape, "no shape", "shape twice" },
	{ "data_offsets", read_offsets, "no data_offsets", "data_offsets twice" },
};
#define N_FIELDS (sizeof(fields) / sizeof(fields[0]))

static int read_object(struct parser *p, struct entry *e)
{
	bool first = true, seen[N_FIELDS] = { false };
	struct eq_json_str key;
	int more, rc;

	if (eq_json_open(&p->j, '{') < 0)
		return fail_value(p, e, "entry");
	while ((more = eq_json_more(&p->j, '{', &first)) > 0) {
		size_t f = 0;

		if (eq_json_key(&p->j, &key) < 0)
			return fail_value(p, e, "entry");
		while (f < N_FIELDS && !eq_json_equal(&key, fields[f].name))
			f++;
		if (f == N_FIELDS) {
			if (eq_json_skip(&p->j) < 0)
				return fail_value(p, e, "entry");
			continue;
		}
		if (seen[f])
			return fail_tensor(p, e, EQ_ENOTST, fields[f].twice);
		seen[f] = true;
		rc = fields[f].read(p, e);
		if (rc)
			return rc;
	}
	if (more < 0)
		return fail_value(p, e, "entry");
	for (size_t f = 0; f < N_FIELDS; f++)
		if (!seen[f])
			return fail_tensor(p, e, EQ_ENOTST, fields[f].missing);
	return 0;
}

static int read_array(struct parser *p, struct entry *e)
{
	bool first = true;
	int more, rc;

	if (eq_json_open(&p->j, '[') < 0)
		return fail_value(p, e, "entry");
	for (size_t f = 0; f < N_FIELDS; f++) {
		more = eq_json_more(&p->j, '[', &first);
		if (more < 0)
			return fail_value(p, e, "entry");
		if (more == 0)
			return fail_tensor(p, e, EQ_ENOTST, fields[f].missing);
		rc = fields[f].read(p, e);
		if (rc)
			return rc;
	}
	more = eq_json_more(&p->j, '[', &first);
	if (more < 0)
		return fail_value(p, e, "entry");
	return more ? fail_tensor(p, e, EQ_ENOTST, "an array of more than three values") : 0;
}

static int read_tensor(struct parser *p, const struct eq_json_str *name)
{
	struct entry e;
	int rc;

	e.name = *name;
	if (name->len > EQ_MAX_NAME)
		return fail_tensor(p, &e, EQ_ELIMIT, "its name is longer than 65536 bytes");
	if (p->n_tensors == EQ_MAX_TENSORS)
		return eq_fail(p->err, EQ_ELIMIT, "%s: more than %u tensors", p->file,
			       EQ_MAX_TENSORS);
	rc = eq_json_peek(&p->j) == '[' ? read_array(p, &e) : read_object(p, &e);
	if (rc)
		return rc;

	if (p->st) {
		struct eq_st_tensor *t = &p->st->tensors[p->n_tensors];

		t->name = p->names;
		t->name_len = (uint32_t)name->len;
		t->dtype = (uint8_t)e.dtype;
		t->ndim = (uint8_t)e.ndim;
		t->dims = p->dims;
		t->begin = e.offset[0];
		t->end = e.offset[1];
		memcpy(p->dims, e.dims, e.ndim * sizeof(e.dims[0]));
		eq_json_decode(name, p->names);
		p->names[name->len] = '\0';
		p->dims += e.ndim;
		p->names += name->len + 1;
	}
	p->n_tensors++;
	p->n_dims += e.ndim;
	p->name_bytes += name->len + 1;
	return 0;
}

/* ---- the whole header ---------------------------------------------------- */

/* null, or strings by name; here the reference takes a name twice. */
static int read_metadata(struct parser *p)
{
	struct eq_json_str s;
	bool first = true;
	int more;

	if (eq_json_peek(&p->j) == 'n')
		return eq_json_null(&p->j) < 0 ? fail_json(p) : 0;
	if (eq_json_open(&p->j, '{') < 0)
		goto bad;
	while ((more = eq_json_more(&p->j, '{', &first)) > 0)
		if (eq_json_key(&p->j, &s) < 0 || eq_json_string(&p->j, &s) < 0)
			goto bad;
	if (more == 0)
		return 0;
bad:
	return eq_fail(p->err, EQ_ENOTST, "%s: __metadata__: %s (byte %zu of the header)",
		       p->file, p->j.why, (size_t)(p->j.p - p->j.base));
}

static int read_header(struct parser *p, const void *text, size_t len)
{
	bool first = true, metadata = false;
	struct eq_json_str key;
	int more, rc;

	p->n_tensors = p->n_dims = p->name_bytes = 0;
	eq_json_init(&p->j, text, len);
	if (eq_json_open(&p->j, '{') < 0)
		return fail_json(p);
	while ((more = eq_json_more(&p->j, '{', &first)) > 0) {
		if (eq_json_key(&p->j, &key) < 0)
			return fail_json(p);
		if (eq_json_equal(&key, "__metadata__")) {
			if (metadata)
				return eq_fail(p->err, EQ_ENOTST, "%s: __metadata__ twice",
					       p->file);
			metadata = true;
			rc = read_metadata(p);
		} else {
			rc = read_tensor(p, &key);
		}
		if (rc)
			return rc;
	}
	return more < 0 || eq_json_finish(&p->j) < 0 ? fail_json(p) : 0;
}

/* ---- interface ----------------------------------------------------------- */

/* Check the length field against the file before anything is allocated by it. */
static int check_length(const uint8_t *field, uint64_t file_size, const char *file,
			uint64_t *prefix_len, struct eq_error *err)
{
	uint64_t n = 0;

	for (int i = LENGTH_SIZE - 1; i >= 0; i--)
		n = n << 8 | field[i];
	if (n > EQ_MAX_JSON)
		return eq_fail(err, EQ_ENOTST, "%s: header of %llu bytes, more than %u", file,
			       (unsigned long long)n, EQ_MAX_JSON);
	if (n > file_size - LENGTH_SIZE)
		return eq_fail(err, EQ_ENOTST,
			       "%s: header of %llu bytes goes beyond the end of the file", file,
			       (unsigned long long)n);
	*prefix_len = LENGTH_SIZE + n;
	return 0;
}

static int fail_short(const char *file, struct eq_error *err)
{
	return eq_fail(err, EQ_ENOTST, "%s: shorter than 8 bytes", file);
}

int eq_st_parse(const void *prefix, uint64_t prefix_len, uint64_t file_size,
		const char *name, struct eq_st **out, struct eq_error *err)
{
	const uint8_t *text = (const uint8_t *)prefix + LENGTH_SIZE;
	struct parser p = { .file = name, .err = err };
	uint64_t expected = 0;
	int rc;

	*out = NULL;
	if (prefix_len < LENGTH_SIZE || file_size < LENGTH_SIZE)
		return fail_short(name, err);
	rc = check_length(prefix, file_size, name, &expected, err);
	if (rc)
		return rc;
	if (expected != prefix_len)
		return eq_fail(err, EQ_ENOTST, "%s: header of %llu bytes where %llu were given",
			       name, (unsigned long long)(expected - LENGTH_SIZE),
			       (unsigned long long)(prefix_len - LENGTH_SIZE));

	const size_t len = (size_t)(prefix_len - LENGTH_SIZE);
	const size_t valid = eq_utf8_valid(text, len);

	if (valid < len)
		return eq_fail(err, EQ_ENOTST, "%s: byte %zu of the header: not UTF-8", name,
			       valid);
	rc = read_header(&p, text, len);
	if (rc)
		return rc;

	struct eq_st *st = calloc(1, sizeof(*st));

	if (!st)
		goto no_memory;
	st->prefix_len = prefix_len;
	st->file_size = file_size;
	st->n_tensors = p.n_tensors;
	st->tensors = calloc(p.n_tensors + 1, sizeof(*st->tensors));
	p.dims = malloc(p.n_dims * sizeof(*p.dims) + p.name_bytes + 1);
	st->arena = p.dims;
	if (!st->tensors || !st->arena)
		goto no_memory;
	p.names = (char *)(p.dims + p.n_dims);
	p.st = st;
	rc = read_header(&p, text, len);
	if (!rc)
		rc = eq_st_check(st, name, err);
	if (rc) {
		eq_st_free(st);
		return rc;
	}
	*out = st;
	return 0;

no_memory:
	eq_st_free(st);
	return eq_fail(err, -ENOMEM, "%s: out of memory", name);
}

/* All of [0, len), or an error; the file must not end before. */
static int read_all(int fd, uint8_t *buf, size_t len, const char *file,
		    struct eq_error *err)
{
	size_t done = 0;

	while (done < len) {
		const ssize_t n = pread(fd, buf + done, len - done, (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			const int rc = -errno;

			return eq_fail(err, rc, "%s: read: %s", file, eq_strerror(rc));
		}
		if (n == 0)
			return eq_fail(err, EQ_ENOTST, "%s: ended while its header was read",
				       file);
		done += (size_t)n;
	}
	return 0;
}

int eq_st_read(int fd, const char *name, struct eq_st **out, uint8_t **prefix,
	       struct eq_error *err)
{
	uint8_t field[LENGTH_SIZE], *bytes;
	uint64_t len = 0, size;
	struct stat sb;
	int rc;

	*out = NULL;
	if (prefix)
		*prefix = NULL;
	if (fstat(fd, &sb) < 0) {
		rc = -errno;
		return eq_fail(err, rc, "%s: fstat: %s", name, eq_strerror(rc));
	}
	size = sb.st_size > 0 ? (uint64_t)sb.st_size : 0;
	if (size < LENGTH_SIZE)
		return fail_short(name, err);
	rc = read_all(fd, field, sizeof(field), name, err);
	if (!rc)
		rc = check_length(field, size, name, &len, err);
	if (rc)
		return rc;

	bytes = malloc((size_t)len);
	if (!bytes)
		return eq_fail(err, -ENOMEM, "%s: out of memory", name);
	rc = read_all(fd, bytes, (size_t)len, name, err);
	if (!rc)
		rc = eq_st_parse(bytes, len, size, name, out, err);
	if (!rc && prefix) {
		*prefix = bytes;
		return 0;
	}
	free(bytes);
	return rc;
}

void eq_st_free(struct eq_st *st)
{
	if (!st)
		return;
	free(st->tensors);
	free(st->arena);
	free(st);
}
