/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lossless coding of one tensor: a pass for the histograms of all its units, and
 * one to encode. This is for tensors that are in memory already, and for those
 * that a sample misjudged; all others go through encode_stream.c.
 */
#include "config.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "encode_priv.h"
#include "xxh3.h"

struct lossless {
	struct eq_encoder *e;
	const struct eq_st_tensor *t;
	const uint8_t *whole;   /* in memory, or NULL */
	uint32_t group;
	uint64_t n_bytes, chunk_bytes;
	enum eq_codec_id codec;
	struct eq_coding *coding;
	XXH3_state_t *xxh;
	atomic_uint tables;     /* that chunks use */
};

static uint64_t group_bytes(const struct lossless *l, uint32_t g)
{
	uint64_t full = l->group * l->chunk_bytes, at = g * full;

	if (at >= l->n_bytes)
		return 0;
	return l->n_bytes - at < full ? l->n_bytes - at : full;
}

static const uint8_t *group_data(const struct lossless *l, uint32_t g)
{
	if (l->whole)
		return l->whole + g * l->group * l->chunk_bytes;
	return l->e->keep + g % 2 * l->group * l->chunk_bytes;
}

static int read_group(struct lossless *l, uint32_t g)
{
	uint64_t len = group_bytes(l, g), full = l->group * l->chunk_bytes;

	if (!len || l->whole)
		return 0;
	return eq_input_read(l->e, l->e->keep + g % 2 * full, len,
			     l->e->st->prefix_len + l->t->begin + g * full);
}

static int read_next(void *arg, uint32_t g)
{
	return read_group(arg, g + 1);
}

static int hash_content(void *arg, uint32_t g)
{
	struct lossless *l = arg;

	XXH3_64bits_update(l->xxh, group_data(l, g), group_bytes(l, g));
	return 0;
}

static size_t encode_chunk(void *arg, uint32_t chunk, uint8_t *out, uint8_t *scratch)
{
	struct lossless *l = arg;
	uint64_t left = l->n_bytes - chunk * l->chunk_bytes;
	size_t len = left < l->chunk_bytes ? left : l->chunk_bytes;
	const uint8_t *d = group_data(l, chunk / l->group) + chunk % l->group * l->chunk_bytes;
	size_t n = eq_lossless_chunk(l->codec, l->coding, chunk, d, len, out, scratch);

	if (l->codec == EQ_CODEC_PLANES)
		eq_atomic_max(&l->tables, eq_chunk_tables(l->coding, out));
	return n;
}

static int write_chunks(struct lossless *l)
{
	struct eq_encoder *e = l->e;
	struct eq_emit m = { .encode = encode_chunk, .serial = { read_next, hash_content },
			     .n_serial = 2, .arg = l, .t = l->t,
			     .bound = eq_lossless_bound(l->codec, l->coding, l->chunk_bytes) };
	int rc = 0;

	if (l->codec == EQ_CODEC_PLANES)
		m.scratch = eq_chunk_scratch(l->coding);
	if (!l->whole)
		rc = eq_buffer_reserve(&e->keep, &e->keep_size, 2 * l->group * l->chunk_bytes, true);
	if (!rc)
		rc = read_group(l, 0);
	return rc ? rc : eq_emit_run(e, &m);
}

static int lossless_run(struct lossless *l, uint16_t flags)
{
	struct eq_disk_tensor *r = eq_build_record(l->e->build);
	uint8_t params[EQ_PARAMS_MAX];
	struct eq_sample s;
	uint64_t size;
	int rc;

	rc = eq_sample_tensor(l->e, l->t, l->whole, EQ_SAMPLE_ALL, &s);
	if (rc)
		return rc;
	eq_build_tensor(l->e->build, l->t);
	l->codec = EQ_CODEC_CONST;
	if (s.varies)
		rc = eq_choose_lossless(l->e, l->t, &s, l->coding, &l->codec, &size);
	eq_sample_fini(&s);
	if (rc)
		return rc;
	if (l->codec == EQ_CODEC_CONST && !l->whole)
		return -EBUSY; /* its sample was not constant */
	if (l->codec != EQ_CODEC_CONST) {
		rc = write_chunks(l);
	} else {
		XXH3_64bits_update(l->xxh, l->whole, l->n_bytes);
		l->e->done += l->n_bytes;
	}
	r->content_xxh3 = XXH3_64bits_digest(l->xxh);
	r->flags = flags;
	eq_lossless_record(r, l->codec, l->coding, atomic_load(&l->tables), s.first, params);
	return rc ? rc : eq_build_tensor_end(l->e->build, params);
}

int eq_encode_lossless(struct eq_encoder *e, const struct eq_st_tensor *t, const uint8_t *whole,
		       uint16_t flags)
{
	struct lossless l = { .e = e, .t = t, .whole = whole, .n_bytes = t->end - t->begin,
			      .chunk_bytes = eq_chunk_bytes_of(t) };
	int rc = -ENOMEM;

	l.group = (uint32_t)(EQ_GROUP_BYTES / l.chunk_bytes);
	l.coding = malloc(sizeof(*l.coding));
	l.xxh = XXH3_createState();
	if (l.coding && l.xxh) {
		XXH3_64bits_reset(l.xxh);
		rc = lossless_run(&l, flags);
	}
	XXH3_freeState(l.xxh);
	free(l.coding);
	return rc ? eq_encode_fail(e, rc) : 0;
}
