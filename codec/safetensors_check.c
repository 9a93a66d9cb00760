/* SPDX-License-Identifier: Apache-2.0 */
/* The tensors of a header against each other and the file: sizes, names, places. */
#include "safetensors_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"
#include "xxh3.h"

struct eq_st_shown eq_st_show(const void *name, size_t len)
{
	struct eq_st_shown s;
	size_t n = len;

	if (len >= sizeof(s.text))
		n = eq_utf8_valid(name, sizeof(s.text) - 4);
	memcpy(s.text, name, n);
	for (size_t i = 0; i < n; i++)
		if (s.text[i] == '\0')
			s.text[i] = '?';
	strcpy(s.text + n, n < len ? "..." : "");
	return s;
}

static int fail_st(const struct eq_st_tensor *t, const char *file, struct eq_error *err,
		   const char *cause)
{
	return eq_fail(err, EQ_ENOTST, "%s: tensor '%s': %s", file,
		       eq_st_show(t->name, t->name_len).text, cause);
}

/* shape x dtype against data_offsets, overflow in the reference's order: a zero
 * behind a product that overflows does not mend it. */
static int check_size(const struct eq_st_tensor *t, const char *file,
		      struct eq_error *err)
{
	uint64_t bits = 1;

	if (t->end < t->begin)
		return fail_st(t, file, err, "data_offsets: end before begin");
	for (unsigned i = 0; i <= t->ndim; i++) {
		const uint64_t factor = i < t->ndim ? t->dims[i] : eq_dtype_bits(t->dtype);

		if (__builtin_mul_overflow(bits, factor, &bits))
			return fail_st(t, file, err, "its size overflows 64 bits");
	}
	if (bits % 8)
		return fail_st(t, file, err, "its size is not a whole number of bytes");
	if (bits / 8 != t->end - t->begin)
		return eq_fail(err, EQ_ENOTST,
			       "%s: tensor '%s': shape and dtype make %llu bytes, data_offsets %llu",
			       file, eq_st_show(t->name, t->name_len).text,
			       (unsigned long long)(bits / 8),
			       (unsigned long long)(t->end - t->begin));
	return 0;
}

struct name_hash {
	uint64_t hash;
	const struct eq_st_tensor *t;
};

static int compare_names(const struct eq_st_tensor *a, const struct eq_st_tensor *b)
{
	const uint32_t n = a->name_len < b->name_len ? a->name_len : b->name_len;
	const int c = memcmp(a->name, b->name, n);

	return c ? c : (a->name_len > b->name_len) - (a->name_len < b->name_len);
}

static int compare_hashes(const void *x, const void *y)
{
	const struct name_hash *a = x, *b = y;

	if (a->hash != b->hash)
		return a->hash < b->hash ? -1 : 1;
	return compare_names(a->t, b->t);
}

/* By sorting, so that names chosen to collide cost no more than a sort. */
static int check_duplicates(const struct eq_st *st, const char *file,
			    struct eq_error *err)
{
	struct name_hash *h = malloc((st->n_tensors + 1) * sizeof(*h));
	int rc = 0;

	if (!h)
		return eq_fail(err, -ENOMEM, "%s: out of memory", file);
	for (size_t i = 0; i < st->n_tensors; i++) {
		h[i].t = &st->tensors[i];
		h[i].hash = XXH3_64bits(h[i].t->name, h[i].t->name_len);
	}
	qsort(h, st->n_tensors, sizeof(*h), compare_hashes);
	for (size_t i = 1; i < st->n_tensors && !rc; i++)
		if (h[i - 1].hash == h[i].hash && compare_names(h[i - 1].t, h[i].t) == 0)
			rc = fail_st(h[i].t, file, err, "occurs twice");
	free(h);
	return rc;
}

static int compare_offsets(const void *x, const void *y)
{
	const struct eq_st_tensor *a = x, *b = y;

	if (a->begin != b->begin)
		return a->begin < b->begin ? -1 : 1;
	if (a->end != b->end)
		return a->end < b->end ? -1 : 1;
	return compare_names(a, b);
}

/* Most files list their tensors in order; glibc's qsort does not notice. */
static void sort_by_offset(struct eq_st *st)
{
	size_t i = 1;

	while (i < st->n_tensors && compare_offsets(&st->tensors[i - 1], &st->tensors[i]) < 0)
		i++;
	if (i < st->n_tensors)
		qsort(st->tensors, st->n_tensors, sizeof(*st->tensors), compare_offsets);
}

/* The tensors, sorted, must tile the data. */
static int check_tiling(const struct eq_st *st, const char *file, struct eq_error *err)
{
	const uint64_t data = st->file_size - st->prefix_len;
	uint64_t at = 0;

	for (size_t i = 0; i < st->n_tensors; i++) {
		const struct eq_st_tensor *t = &st->tensors[i];

		if (t->begin != at)
			return eq_fail(err, EQ_ENOTST,
				       "%s: tensor '%s': begins at %llu, %s %llu", file,
				       eq_st_show(t->name, t->name_len).text,
				       (unsigned long long)t->begin,
				       t->begin < at ? "overlaps the one before, which ends at" :
						       "leaves a hole after",
				       (unsigned long long)at);
		at = t->end;
	}
	if (at != data)
		return eq_fail(err, EQ_ENOTST,
			       "%s: its tensors take %llu bytes, the file has %llu for them",
			       file, (unsigned long long)at, (unsigned long long)data);
	return 0;
}

int eq_st_check(struct eq_st *st, const char *file, struct eq_error *err)
{
	int rc = check_duplicates(st, file, err);

	for (size_t i = 0; i < st->n_tensors && !rc; i++)
		rc = check_size(&st->tensors[i], file, err);
	if (rc)
		return rc;
	sort_by_offset(st);
	return check_tiling(st, file, err);
}
