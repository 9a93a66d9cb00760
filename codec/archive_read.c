/* SPDX-License-Identifier: Apache-2.0 */
/* Opening archives and random access to the file inside. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "archive_priv.h"
#include "model.h"

/* Extents handed to the back end at once, and stored bytes read at once. */
#define BATCH_JOBS 64
#define BATCH_BYTES (UINT64_C(32) << 20)
#define PREAD_EXTENTS 8
#define SCRATCH_LEAST ((size_t)1 << 20)

int eq_read_full(int fd, void *buf, size_t len, uint64_t off)
{
	uint8_t *p = buf;
	ssize_t n;

	while (len) {
		n = pread(fd, p, len, (off_t)off);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return EQ_ECORRUPT;
		p += n;
		off += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

int eq_archive_open(int fd, const char *name, struct eq_archive **out, struct eq_error *err)
{
	struct eq_archive *a;
	struct stat st;
	int rc;

	*out = NULL;
	if (fstat(fd, &st))
		return eq_fail(err, -errno, "%s: %s", name, eq_strerror(-errno));
	if (!S_ISREG(st.st_mode))
		return eq_fail(err, EQ_ENOTEQAR, "%s: not a regular file", name);
	a = calloc(1, sizeof(*a));
	if (!a)
		return eq_fail(err, -ENOMEM, "%s: out of memory", name);
	a->fd = fd;
	pthread_mutex_init(&a->lock, NULL);
	a->info.stored = (uint64_t)st.st_size;
	a->name = strdup(name);
	rc = a->name ? eq_index_load(a, err) : eq_fail(err, -ENOMEM, "%s: out of memory", name);
	if (rc) {
		a->fd = -1;
		eq_archive_close(a);
		return rc;
	}
	*out = a;
	return 0;
}

void eq_archive_close(struct eq_archive *a)
{
	if (!a)
		return;
	eq_archive_plans_free(a);
	while (a->n_scratch)
		free(a->scratch[--a->n_scratch].p);
	if (a->fd >= 0)
		close(a->fd);
	pthread_mutex_destroy(&a->lock);
	free(a->chunk_off);
	free(a->names);
	free(a->priv);
	free(a->tensors);
	free(a->provenance);
	free(a->prefix);
	free(a->index);
	free(a->name);
	free(a);
}

const struct eq_file_info *eq_archive_info(const struct eq_archive *a)
{
	return &a->info;
}

void eq_archive_mtime(const struct eq_archive *a, struct timespec *out)
{
	*out = (struct timespec){ .tv_sec = a->info.mtime_s, .tv_nsec = (long)a->info.mtime_ns };
	(void)eq_mtime_get(a->fd, out);
}

const struct eq_tensor_info *eq_archive_tensors(const struct eq_archive *a)
{
	return a->tensors;
}

const uint8_t *eq_archive_prefix(const struct eq_archive *a)
{
	return a->prefix;
}

/* ---- scratch: buffers for stored bytes, kept between calls ---------------------- */

static int scratch_get(struct eq_archive *a, size_t size, struct eq_scratch *s)
{
	*s = (struct eq_scratch){ NULL, 0 };
	pthread_mutex_lock(&a->lock);
	if (a->n_scratch)
		*s = a->scratch[--a->n_scratch];
	pthread_mutex_unlock(&a->lock);
	if (s->size >= size)
		return 0;
	free(s->p);
	/* Powers of two, so that sizes that differ a little share a buffer. */
	for (s->size = SCRATCH_LEAST; s->size < size;)
		s->size *= 2;
	s->p = aligned_alloc(64, s->size);
	if (!s->p)
		s->size = 0;
	return s->p ? 0 : -ENOMEM;
}

static void scratch_put(struct eq_archive *a, struct eq_scratch *s)
{
	pthread_mutex_lock(&a->lock);
	if (s->p && a->n_scratch < EQ_SCRATCH_MAX) {
		a->scratch[a->n_scratch++] = *s;
		s->p = NULL;
	}
	pthread_mutex_unlock(&a->lock);
	free(s->p);
}

/* ---- extents -------------------------------------------------------------------- */

/* The last tensor that begins at or before off (off is beyond the prefix). */
static size_t tensor_at(const struct eq_archive *a, uint64_t off)
{
	size_t lo = 0, hi = a->info.n_tensors, mid;

	while (hi - lo > 1) {
		mid = lo + (hi - lo) / 2;
		if (a->tensors[mid].begin <= off)
			lo = mid;
		else
			hi = mid;
	}
	return lo;
}

int eq_archive_locate(const struct eq_archive *a, uint64_t off, struct eq_extent *out)
{
	const struct eq_tensor_info *t;
	uint64_t begin = 0, n_bytes = a->info.prefix_len, step = EQ_SLICE, k;
	size_t i;

	*out = (struct eq_extent){ .tensor = -1 };
	if (off >= a->info.size)
		return -EINVAL;
	if (off >= n_bytes) {
		i = tensor_at(a, off);
		t = &a->tensors[i];
		out->tensor = (int64_t)i;
		begin = t->begin;
		n_bytes = t->n_bytes;
		if (t->chunk_bytes)
			step = t->chunk_bytes;
	}
	k = (off - begin) / step;
	out->chunk = (uint32_t)k;
	out->begin = begin + k * step;
	out->len = n_bytes - k * step < step ? n_bytes - k * step : step;
	return 0;
}

/* ---- decoding -------------------------------------------------------------------- */

static void fill_const(uint8_t *out, size_t len, uint64_t value, unsigned unit)
{
	size_t done;

	memcpy(out, &value, len < unit ? len : unit);
	for (done = unit; done < len; done *= 2)
		memcpy(out + done, out, len - done < done ? len - done : done);
}

/* Prefix and const tensors need no stored bytes. */
static bool decode_simple(struct eq_archive *a, struct eq_extent_job *j)
{
	const struct eq_disk_tensor *r;

	if (j->ext.tensor < 0) {
		memcpy(j->out, a->prefix + j->ext.begin, j->ext.len);
	} else if (a->priv[j->ext.tensor].codec == EQ_CODEC_CONST) {
		r = a->priv[j->ext.tensor].rec;
		fill_const(j->out, j->ext.len, r->const_value, r->unit);
	} else {
		return false;
	}
	j->status = 0;
	return true;
}

static void chunk_failed(const struct eq_archive *a, struct eq_extent_job *j, int status,
			 const char *what, struct eq_error *err)
{
	j->status = eq_fail(err, status, "%s: tensor '%.128s': chunk %" PRIu32 ": %s", a->name,
			    a->tensors[j->ext.tensor].name, j->ext.chunk, what);
}

static const struct eq_disk_chunk *chunk_of(const struct eq_archive *a, const struct eq_extent *e)
{
	return &a->priv[e->tensor].chunks[e->chunk];
}

static uint64_t chunk_begin(const struct eq_archive *a, const struct eq_extent *e)
{
	return a->priv[e->tensor].chunk_off[e->chunk];
}

/* Does y's chunk follow x's in the file, so that one read fetches both? */
static bool adjacent(const struct eq_extent *x, const struct eq_extent *y)
{
	return y->tensor == x->tensor && y->chunk == x->chunk + 1;
}

/* One run of chunks is in memory, this one at `at`: check it, and make it a job. */
static bool chunk_job(struct eq_archive *a, struct eq_extent_job *j, const uint8_t *at,
		      struct eq_decode_job *d, struct eq_error *err)
{
	const struct eq_disk_chunk *c = chunk_of(a, &j->ext);
	const struct eq_disk_tensor *r = a->priv[j->ext.tensor].rec;

	if (!eq_checksum_ok(at, c->len, c->xxh3)) {
		chunk_failed(a, j, EQ_ECORRUPT, "checksum mismatch", err);
		return false;
	}
	j->status = eq_archive_plan(a, (size_t)j->ext.tensor, &d->plan, err);
	if (j->status)
		return false;
	d->in = at;
	d->in_len = c->len;
	d->first_unit = (uint64_t)j->ext.chunk * r->chunk_units;
	d->n_units = (uint32_t)(j->ext.len / r->unit);
	d->out = j->out;
	d->status = 0;
	return true;
}

size_t eq_archive_stored(const struct eq_archive *a, const struct eq_extent *e)
{
	return e->tensor < 0 || a->priv[e->tensor].codec == EQ_CODEC_CONST ? 0 : chunk_of(a, e)->len;
}

size_t eq_archive_fetch_room(const struct eq_archive *a, const struct eq_extent *e)
{
	/* Each may need an aligned run of its own. */
	return eq_align(eq_archive_stored(a, e), EQ_PART_ALIGN) + EQ_SLACK + 64;
}

size_t eq_archive_fetch(struct eq_archive *a, struct eq_extent_job *jobs, size_t n, uint8_t *buf,
			struct eq_decode_job *out, uint32_t *which, struct eq_error *err)
{
	size_t i, k, run, n_out = 0;

	/* One run of neighbours at a time. */
	for (i = 0; i < n; i += run) {
		uint64_t begin = chunk_begin(a, &jobs[i].ext), end;
		int rc;

		for (run = 1; i + run < n && adjacent(&jobs[i + run - 1].ext, &jobs[i + run].ext);)
			run++;
		end = chunk_begin(a, &jobs[i + run - 1].ext) + chunk_of(a, &jobs[i + run - 1].ext)->len;
		rc = eq_read_full(a->fd, buf, end - begin, begin);
		for (k = i; k < i + run; k++) {
			const uint8_t *at = buf + (chunk_begin(a, &jobs[k].ext) - begin);

			if (rc)
				chunk_failed(a, &jobs[k], rc, eq_strerror(rc), err);
			else if (chunk_job(a, &jobs[k], at, &out[n_out], err))
				which[n_out++] = (uint32_t)k;
		}
		buf += eq_align(end - begin + EQ_SLACK, 64);
	}
	return n_out;
}

int eq_archive_verdict(struct eq_archive *a, struct eq_extent_job *j, int status,
		       struct eq_error *err)
{
	eq_archive_plan_put(a, (size_t)j->ext.tensor);
	j->status = status;
	if (status)
		chunk_failed(a, j, status,
			     status == EQ_ECORRUPT ? "corrupt data" : eq_strerror(status), err);
	return status;
}

/* At most BATCH_JOBS, fetched to buf. */
static void batch_decode(struct eq_archive *a, const struct eq_backend *be,
			 struct eq_extent_job *jobs, size_t n, uint8_t *buf, struct eq_error *err)
{
	struct eq_decode_job job[BATCH_JOBS];
	uint32_t which[BATCH_JOBS];
	size_t fetched = eq_archive_fetch(a, jobs, n, buf, job, which, err), i;

	if (!fetched)
		return;
	if (be->decode(be->ctx, job, fetched) && be != eq_backend_cpu()) {
		be = eq_backend_cpu(); /* the device is gone or full */
		be->decode(be->ctx, job, fetched);
	}
	for (i = 0; i < fetched; i++)
		eq_archive_verdict(a, &jobs[which[i]], job[i].status, err);
}

int eq_archive_decode(struct eq_archive *a, const struct eq_backend *be, struct eq_extent_job *jobs,
		      size_t n, struct eq_error *err)
{
	struct eq_scratch s;
	size_t i = 0, k, need, cnt;
	int rc, first = 0;

	if (!be)
		be = eq_backend_cpu();
	while (i < n) {
		if (decode_simple(a, &jobs[i])) {
			i++;
			continue;
		}
		need = 0;
		for (cnt = 0; i + cnt < n && cnt < BATCH_JOBS; cnt++) {
			struct eq_extent *e = &jobs[i + cnt].ext;

			if (e->tensor < 0 || a->priv[e->tensor].codec == EQ_CODEC_CONST ||
			    (cnt && need > BATCH_BYTES))
				break;
			need += eq_archive_fetch_room(a, e);
			jobs[i + cnt].status = 0;
		}
		rc = scratch_get(a, need, &s);
		if (rc) {
			for (k = i; k < i + cnt; k++)
				chunk_failed(a, &jobs[k], rc, eq_strerror(rc), err);
		} else {
			batch_decode(a, be, jobs + i, cnt, s.p, err);
		}
		scratch_put(a, &s);
		for (k = i; k < i + cnt && !first; k++)
			first = jobs[k].status;
		i += cnt;
	}
	return first;
}

/* ---- pread ------------------------------------------------------------------------ */

/* Decode up to PREAD_EXTENTS extents that cover [off, end); whole ones straight
 * into the caller's buffer, others through `spill`. Returns bytes done. */
static ssize_t pread_step(struct eq_archive *a, const struct eq_backend *be, uint8_t *buf,
			  uint64_t off, uint64_t end, uint8_t **spill, struct eq_error *err)
{
	struct eq_extent_job jobs[PREAD_EXTENTS];
	bool partial[PREAD_EXTENTS];
	uint64_t pos = off, from, to;
	size_t n = 0, i, n_spill = 0;
	int rc;

	for (; n < PREAD_EXTENTS && pos < end; n++) {
		struct eq_extent *e = &jobs[n].ext;

		eq_archive_locate(a, pos, e);
		partial[n] = e->begin < off || e->begin + e->len > end;
		if (!partial[n]) {
			jobs[n].out = buf + (e->begin - off);
		} else {
			/* Only the first and the last extent can be partial. */
			free(spill[n_spill]);
			spill[n_spill] = aligned_alloc(64, eq_align(e->len, 64));
			if (!spill[n_spill])
				return eq_fail(err, -ENOMEM, "%s: out of memory", a->name);
			jobs[n].out = spill[n_spill++];
		}
		pos = e->begin + e->len;
	}
	rc = eq_archive_decode(a, be, jobs, n, err);
	if (rc)
		return rc;
	if (pos > end)
		pos = end;
	for (i = 0; i < n; i++) {
		struct eq_extent *e = &jobs[i].ext;

		from = e->begin > off ? e->begin : off;
		to = e->begin + e->len < end ? e->begin + e->len : end;
		if (partial[i])
			memcpy(buf + (from - off), (uint8_t *)jobs[i].out + (from - e->begin), to - from);
	}
	return (ssize_t)(pos - off);
}

ssize_t eq_archive_pread(struct eq_archive *a, const struct eq_backend *be, void *buf, size_t len,
			 uint64_t off, struct eq_error *err)
{
	uint8_t *spill[2] = { NULL, NULL };
	uint64_t pos = off, end;
	ssize_t n = 0;

	if (off >= a->info.size)
		return 0;
	if (len > SSIZE_MAX)
		len = SSIZE_MAX;
	end = a->info.size - off < len ? a->info.size : off + len;
	while (pos < end && n >= 0) {
		n = pread_step(a, be, (uint8_t *)buf + (pos - off), pos, end, spill, err);
		if (n > 0)
			pos += (uint64_t)n;
	}
	free(spill[0]);
	free(spill[1]);
	return n < 0 ? n : (ssize_t)(pos - off);
}
