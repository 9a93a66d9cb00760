/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lossless coding of a stretch of tensors that lie one behind the other, in one
 * reading. The stretch is cut into blocks of whole chunks, and a block goes
 * through stages: it is read, and how its tensors are coded is settled; its chunks
 * are encoded in parallel while its bytes are hashed; its chunks are written. The
 * stages of three blocks run at the same time, so that neither the hash, which is
 * as fast as one core, nor the disk keeps the others waiting.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "encode_device.h"
#include "encode_priv.h"
#include "xxh3.h"

#define BLOCK_ITEMS 128u        /* chunks of a block, at most */
#define BLOCK_BYTES (UINT64_C(4) << 20) /* little enough for caches to keep it */
#define BLOCKS 3
#define SERIAL 5                /* stages that are one task */
/* Beyond what the sample promised by this share, a tensor is coded again. */
#define MISJUDGED 1.01
#define SLACK_BYTES 4096

/* A tensor on its way. */
struct passage {
	const struct eq_st_tensor *t;
	uint32_t n_chunks;
	enum eq_codec_id codec;
	struct eq_coding *coding;       /* codec planes */
	struct eq_encode_plan plan;     /* the same for a device, once one is to do it */
	uint64_t size;          /* that the sample promises */
	uint64_t content;       /* XXH3, once all of it was seen */
	uint8_t first[8];
	atomic_uint tables;     /* that chunks use */
};

/* A chunk of it; or all of an empty tensor. */
struct item {
	struct passage *p;
	uint32_t chunk;
	size_t at, len;         /* in the block's input */
	size_t out;             /* room in its output */
	struct eq_built built;
};

struct block {
	uint64_t off;           /* in the file */
	size_t len, n;
	struct item item[BLOCK_ITEMS];
};

struct scratch {
	struct scratch *next;
};

struct stream {
	struct eq_encoder *e;
	struct passage *passage;
	size_t n;
	size_t at;              /* passage and chunk that the next block begins with */
	uint32_t chunk;
	struct block *block[BLOCKS];    /* in turn */
	uint8_t *in[2], *out[2];        /* of blocks in turn */
	size_t in_size[2], out_size[2];
	XXH3_state_t *xxh;
	pthread_mutex_t lock;
	struct scratch *scratch;        /* free ones */
	uint32_t g;             /* the block to be encoded */
	bool device;            /* which a device does */
	int status[SERIAL];     /* of the serial stages */
	atomic_int choose_status;
};

static struct block *block_of(const struct stream *s, uint32_t g)
{
	return s->block[g % BLOCKS];
}

/* ---- stages ------------------------------------------------------------------ */

/* The next block: its chunks and their place in the file. */
static void block_plan(struct stream *s, struct block *b)
{
	b->len = b->n = 0;
	while (s->at < s->n && b->n < BLOCK_ITEMS) {
		struct passage *p = &s->passage[s->at];
		struct item *i = &b->item[b->n];
		uint64_t full = eq_chunk_bytes_of(p->t), begin = p->t->begin + s->chunk * full;
		uint64_t len = p->t->end - begin < full ? p->t->end - begin : full;

		if (b->n && b->len + len > BLOCK_BYTES)
			return;
		if (!b->n)
			b->off = s->e->st->prefix_len + begin;
		*i = (struct item){ .p = p, .chunk = s->chunk, .at = b->len, .len = len };
		b->len += len;
		b->n++;
		if (++s->chunk >= p->n_chunks) {
			s->chunk = 0;
			s->at++;
		}
	}
}

/* Settle how the tensor is coded. */
static int passage_choose(struct stream *s, struct passage *p)
{
	struct eq_sample sample;
	int rc;

	p->codec = EQ_CODEC_RAW;
	if (p->t->begin == p->t->end)
		return 0;
	rc = eq_sample_tensor(s->e, p->t, NULL, EQ_SAMPLE_EACH, &sample);
	if (!rc && !sample.varies && sample.h.sampled) {
		eq_sample_fini(&sample);
		rc = eq_sample_tensor(s->e, p->t, NULL, EQ_SAMPLE_ALL, &sample);
	}
	if (rc)
		return rc;
	memcpy(p->first, sample.first, sizeof(p->first));
	if (!sample.varies) {
		p->codec = EQ_CODEC_CONST;
	} else {
		p->coding = malloc(sizeof(*p->coding));
		if (p->coding)
			rc = eq_choose_lossless(s->e, p->t, &sample, p->coding, &p->codec, &p->size);
		else
			rc = -ENOMEM;
	}
	eq_sample_fini(&sample);
	return rc;
}

static void item_choose(struct stream *s, const struct item *i)
{
	int rc = i->chunk ? 0 : passage_choose(s, i->p);

	if (rc)
		atomic_store_explicit(&s->choose_status, rc, memory_order_relaxed);
}

static int block_read(struct stream *s, uint32_t g)
{
	const struct block *b = block_of(s, g);

	eq_input_ahead(s->e, b->off);
	return b->len ? eq_input_read(s->e, s->in[g % 2], b->len, b->off) : 0;
}

static int block_hash_file(struct stream *s, uint32_t g)
{
	SHA256_Update(&s->e->sha, s->in[g % 2], block_of(s, g)->len);
	return 0;
}

static int block_hash_content(struct stream *s, uint32_t g)
{
	struct block *b = block_of(s, g);
	size_t i;

	for (i = 0; i < b->n; i++) {
		struct passage *p = b->item[i].p;

		if (b->item[i].chunk == 0)
			XXH3_64bits_reset(s->xxh);
		XXH3_64bits_update(s->xxh, s->in[g % 2] + b->item[i].at, b->item[i].len);
		if (b->item[i].chunk + 1 >= p->n_chunks)
			p->content = XXH3_64bits_digest(s->xxh);
	}
	return 0;
}

/* Memory for the planes of one chunk, whichever is free: it is warm. */
static struct scratch *scratch_get(struct stream *s)
{
	struct scratch *x;

	pthread_mutex_lock(&s->lock);
	x = s->scratch;
	if (x)
		s->scratch = x->next;
	pthread_mutex_unlock(&s->lock);
	return x ? x : aligned_alloc(64, EQ_SCRATCH_BYTES);
}

static void scratch_put(struct stream *s, struct scratch *x)
{
	pthread_mutex_lock(&s->lock);
	x->next = s->scratch;
	s->scratch = x;
	pthread_mutex_unlock(&s->lock);
}

static void item_encoded(struct item *i, uint8_t *out, size_t len)
{
	i->built.data = out;
	i->built.len = (uint32_t)len;
	i->built.xxh3 = XXH3_64bits(out, len);
	if (i->p->codec == EQ_CODEC_PLANES)
		eq_atomic_max(&i->p->tables, eq_chunk_tables(i->p->coding, out));
}

static void item_encode(struct stream *s, struct item *i)
{
	struct passage *p = i->p;
	uint8_t *out = s->out[s->g % 2] + i->out;
	struct scratch *x;

	if (p->codec == EQ_CODEC_CONST || !i->len)
		return;
	x = scratch_get(s);
	if (!x)
		return; /* and no length */
	item_encoded(i, out, eq_lossless_chunk(p->codec, p->coding, i->chunk,
					       s->in[s->g % 2] + i->at, i->len, out, (uint8_t *)x));
	scratch_put(s, x);
}

/* ---- by a device ---------------------------------------------------------------- */

/* The chunks of planes in a block, all at once. */
struct at_once {
	struct stream *s;
	struct eq_encode_job job[BLOCK_ITEMS];
	struct item *item[BLOCK_ITEMS];
	size_t n;
};

static int at_once_plan(struct at_once *a, struct block *b)
{
	struct stream *s = a->s;
	size_t i;
	int rc;

	for (i = 0; i < b->n; i++) {
		struct passage *p = b->item[i].p;
		struct eq_encode_job *j = &a->job[a->n];

		if (p->codec != EQ_CODEC_PLANES)
			continue;
		rc = p->plan.table ? 0 : eq_device_plan(p->coding, &p->plan);
		if (rc)
			return rc;
		*j = (struct eq_encode_job){
			.plan = &p->plan, .n_units = (uint32_t)(b->item[i].len / p->coding->unit),
			.units = s->in[s->g % 2] + b->item[i].at,
			.out = s->out[s->g % 2] + b->item[i].out,
		};
		eq_device_parts(p->coding, b->item[i].chunk, j->part);
		a->item[a->n++] = &b->item[i];
	}
	return 0;
}

static void at_once_encoded(void *arg, size_t i)
{
	const struct at_once *a = arg;

	item_encoded(a->item[i], a->job[i].out, a->job[i].len);
}

static void at_once_encode(void *arg, size_t i)
{
	const struct at_once *a = arg;

	item_encode(a->s, a->item[i]);
}

static int block_device(struct stream *s, uint32_t g)
{
	struct at_once *a;
	int rc;

	if (!s->device)
		return 0;
	a = malloc(sizeof(*a));
	if (!a)
		return -ENOMEM;
	a->s = s;
	a->n = 0;
	rc = at_once_plan(a, block_of(s, g));
	if (!rc && a->n)
		eq_pool_for(s->e->run->pool, a->n,
			    eq_device_encode(s->e, a->job, a->n) ? at_once_encoded : at_once_encode, a);
	free(a);
	return rc;
}

static void passage_fini(struct passage *p)
{
	free((void *)(uintptr_t)p->plan.table);
	free(p->coding);
	p->plan.table = NULL;
	p->coding = NULL;
}

/* All chunks are written: end the tensor, or code it again from all its units. */
static int passage_end(struct stream *s, struct passage *p)
{
	struct eq_encoder *e = s->e;
	struct eq_disk_tensor *r = eq_build_record(e->build);
	uint8_t params[EQ_PARAMS_MAX];
	int rc;

	if (p->codec == EQ_CODEC_PLANES && p->coding->sampled &&
	    (double)r->payload_len > MISJUDGED * (double)p->size + SLACK_BYTES) {
		e->done -= r->n_bytes;
		rc = eq_build_restart(e->build);
		if (!rc)
			rc = eq_encode_lossless(e, p->t, NULL, 0);
		if (!rc && r->content_xxh3 != p->content)
			rc = eq_fail(e->err, -EBUSY, "%s: changed while it was read", e->name);
	} else {
		if (p->t->begin == p->t->end) {
			memcpy(r->codec, eq_codec_name(EQ_CODEC_RAW), 8);
			r->snr_db = __builtin_inf();
		} else {
			eq_lossless_record(r, p->codec, p->coding, atomic_load(&p->tables), p->first,
					   params);
		}
		r->content_xxh3 = p->content;
		rc = eq_build_tensor_end(e->build, params);
	}
	passage_fini(p);
	return rc;
}

/* Write a tensor's chunks of this block, items i to end. */
static int passage_write(struct stream *s, const struct item *i, const struct item *end)
{
	struct eq_built built[BLOCK_ITEMS];
	struct passage *p = i->p;
	size_t n = 0;

	if (i->chunk == 0)
		eq_build_tensor(s->e->build, p->t);
	for (; i < end; i++) {
		s->e->done += i->len;
		if (p->codec == EQ_CODEC_CONST || !i->len)
			continue;
		built[n++] = i->built;
	}
	return n ? eq_build_chunks(s->e->build, built, n) : 0;
}

static int block_write(struct stream *s, uint32_t g)
{
	const struct block *b = block_of(s, g);
	size_t i, end;
	int rc = 0;

	for (i = 0; i < b->n && !rc; i = end) {
		struct passage *p = b->item[i].p;

		for (end = i + 1; end < b->n && b->item[end].p == p; end++)
			;
		rc = passage_write(s, &b->item[i], &b->item[end]);
		if (!rc && b->item[end - 1].chunk + 1 >= p->n_chunks)
			rc = passage_end(s, p);
	}
	return rc;
}

/* ---- the pipeline ---------------------------------------------------------------- */

/* The longest first. */
static void stream_task(void *arg, size_t i)
{
	struct stream *s = arg;
	struct block *now = block_of(s, s->g), *next = block_of(s, s->g + 1);

	if (i == 0)
		s->status[i] = block_hash_file(s, s->g);
	else if (i == 1)
		s->status[i] = s->g ? block_write(s, s->g - 1) : 0;
	else if (i == 2)
		s->status[i] = block_read(s, s->g + 1);
	else if (i == 3)
		s->status[i] = block_hash_content(s, s->g);
	else if (i == 4)
		s->status[i] = block_device(s, s->g);
	else if (i < SERIAL + next->n)
		item_choose(s, &next->item[i - SERIAL]);
	else if (!s->device || now->item[i - SERIAL - next->n].p->codec != EQ_CODEC_PLANES)
		item_encode(s, &now->item[i - SERIAL - next->n]);
}

/* Room for what encoding block g gives. */
static int block_room(struct stream *s, uint32_t g)
{
	struct block *b = block_of(s, g);
	size_t i, size = 0;

	for (i = 0; i < b->n; i++) {
		b->item[i].out = size;
		size += eq_align(eq_lossless_bound(b->item[i].p->codec, b->item[i].p->coding,
						   b->item[i].len), 64);
	}
	return eq_buffer_reserve(&s->out[g % 2], &s->out_size[g % 2], size, true);
}

/* Plan block g and make room for its bytes. */
static int block_begin(struct stream *s, uint32_t g)
{
	block_plan(s, block_of(s, g));
	return eq_buffer_reserve(&s->in[g % 2], &s->in_size[g % 2], block_of(s, g)->len,
				 true);
}

static int stream_step(struct stream *s)
{
	unsigned i;
	int rc;

	rc = block_begin(s, s->g + 1);
	if (!rc)
		rc = block_room(s, s->g);
	if (rc)
		return rc;
	s->device = s->e->device != NULL;
	eq_pool_for(s->e->run->pool, SERIAL + block_of(s, s->g)->n + block_of(s, s->g + 1)->n,
		    stream_task, s);
	rc = atomic_load(&s->choose_status);
	for (i = 0; i < SERIAL && !rc; i++)
		rc = s->status[i];
	return rc ? rc : eq_encode_progress(s->e);
}

static void choose_task(void *arg, size_t i)
{
	struct stream *s = arg;

	item_choose(s, &block_of(s, s->g)->item[i]);
}

static int stream_run(struct stream *s)
{
	int rc;

	rc = block_begin(s, 0);
	if (rc)
		return rc;
	eq_pool_for(s->e->run->pool, block_of(s, 0)->n, choose_task, s);
	rc = atomic_load(&s->choose_status);
	if (!rc)
		rc = block_read(s, 0);
	for (; !rc && block_of(s, s->g)->n; s->g++)
		rc = stream_step(s);
	if (!rc && s->g)
		rc = block_write(s, s->g - 1);
	return rc ? rc : eq_encode_progress(s->e);
}

static int stream_init(struct stream *s, const struct eq_st_tensor *t, size_t n)
{
	size_t i;

	pthread_mutex_init(&s->lock, NULL);
	s->n = n;
	s->passage = calloc(n, sizeof(s->passage[0]));
	s->xxh = XXH3_createState();
	if (!s->passage || !s->xxh)
		return -ENOMEM;
	for (i = 0; i < BLOCKS; i++) {
		s->block[i] = calloc(1, sizeof(*s->block[i]));
		if (!s->block[i])
			return -ENOMEM;
	}
	for (i = 0; i < n; i++) {
		uint64_t full = eq_chunk_bytes_of(&t[i]);

		s->passage[i].t = &t[i];
		s->passage[i].n_chunks = (uint32_t)((t[i].end - t[i].begin + full - 1) / full);
	}
	return 0;
}

static void stream_fini(struct stream *s)
{
	struct scratch *x;
	size_t i;

	while ((x = s->scratch)) {
		s->scratch = x->next;
		free(x);
	}
	for (i = 0; s->passage && i < s->n; i++)
		passage_fini(&s->passage[i]);
	for (i = 0; i < BLOCKS; i++)
		free(s->block[i]);
	for (i = 0; i < 2; i++) {
		free(s->in[i]);
		free(s->out[i]);
	}
	XXH3_freeState(s->xxh);
	free(s->passage);
	pthread_mutex_destroy(&s->lock);
}

int eq_encode_stream(struct eq_encoder *e, const struct eq_st_tensor *t, size_t n)
{
	struct stream s = { .e = e };
	int rc = stream_init(&s, t, n);

	if (!rc)
		rc = stream_run(&s);
	stream_fini(&s);
	return rc ? eq_encode_fail(e, rc) : 0;
}
