/* SPDX-License-Identifier: Apache-2.0 */
/* Decoding a whole archive: to check it, to compare it, to restore the file. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "archive_priv.h"
#include "direct.h"
#include "floats.h"
#include "sha256.h"
#include "xxh3.h"

/* Sums are compared with what the encoder wrote; only their order differs. */
#define ERROR_TOLERANCE 1e-6

int eq_write_full(int fd, const void *buf, size_t len, uint64_t off)
{
	const uint8_t *p = buf;
	ssize_t n;

	while (len) {
		n = pwrite(fd, p, len, (off_t)off);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		off += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

/* ---- hashes of what comes out ------------------------------------------------------ */

struct hashes {
	struct eq_archive *a;
	XXH3_state_t *xxh;
	size_t tensor;          /* whose content xxh holds */
	bool open, damaged;     /* a tensor is begun; a chunk of it failed */
	bool any_damage;
	bool with_sha;          /* not if it is lossy */
	SHA256_CTX sha;
	void (*report)(void *arg, const char *line);
	void *report_arg;
	int status;             /* of the first failure */
	struct eq_error *err;
};

/* Note a failure; it ends the scan unless somebody wants to hear of them all. */
static int found(struct hashes *h, int rc, const struct eq_error *e)
{
	if (!h->status) {
		h->status = rc;
		eq_fail(h->err, rc, "%s", e->text);
	}
	if (!h->report || rc == -ENOMEM) /* which is no damage */
		return rc;
	h->report(h->report_arg, e->text);
	return 0;
}

static int content_close(struct hashes *h)
{
	const struct eq_tensor_info *t = &h->a->tensors[h->tensor];
	struct eq_error e;

	if (!h->open)
		return 0;
	h->open = false;
	if (h->damaged || XXH3_64bits_digest(h->xxh) == h->a->priv[h->tensor].rec->content_xxh3)
		return 0;
	return found(h, eq_fail(&e, EQ_ECORRUPT, "%s: tensor '%.128s': decoded data has the wrong hash",
				h->a->name, t->name), &e);
}

static int hash_content(void *arg, struct eq_window *w)
{
	struct hashes *h = arg;
	size_t i;
	int rc;

	for (i = 0; i < w->n; i++) {
		struct eq_extent_job *j = &w->jobs[i];

		if (j->ext.tensor < 0)
			continue;
		if (!h->open || (size_t)j->ext.tensor != h->tensor) {
			rc = content_close(h);
			if (rc)
				return rc;
			h->open = true;
			h->damaged = false;
			h->tensor = (size_t)j->ext.tensor;
			XXH3_64bits_reset(h->xxh);
		}
		if (j->status) {
			h->damaged = h->any_damage = true;
			rc = found(h, j->status, &w->errs[i]);
			if (rc)
				return rc;
		} else {
			XXH3_64bits_update(h->xxh, j->out, j->ext.len);
		}
	}
	return 0;
}

static int hash_sha(void *arg, struct eq_window *w)
{
	struct hashes *h = arg;

	SHA256_Update(&h->sha, w->buf, w->len);
	return 0;
}

static int hashes_begin(struct hashes *h, struct eq_archive *a, bool sha, struct eq_error *err)
{
	h->a = a;
	h->err = err;
	h->xxh = XXH3_createState();
	if (!h->xxh)
		return -ENOMEM;
	h->with_sha = sha && !a->info.lossy;
	SHA256_Init(&h->sha);
	return 0;
}

/* The last tensor and the hash of the whole. */
static int hashes_end(struct hashes *h)
{
	uint8_t sha[SHA256_DIGEST_LENGTH];
	struct eq_error e;
	int rc = content_close(h);

	if (rc || !h->with_sha || h->any_damage)
		return rc;
	SHA256_Final(sha, &h->sha);
	if (!memcmp(sha, h->a->info.sha256, sizeof(sha)))
		return 0;
	return found(h, eq_fail(&e, EQ_ECORRUPT, "%s: decoded file has the wrong SHA-256", h->a->name),
		     &e);
}

static void hashes_fini(struct hashes *h)
{
	XXH3_freeState(h->xxh);
}

/* ---- comparison with a plain file ---------------------------------------------------- */

struct sums {
	double abs, abs_err, sq, sq_err;
};

struct compare {
	struct eq_archive *a;
	int fd;
	const char *name;
	uint8_t *buf;           /* of the plain file, as long as a window's */
	size_t size;
	size_t tensor;          /* whose sums these are */
	bool open, identical;
	bool exact;             /* lossy tensors are to be as they are decoded */
	struct sums one, all;
	struct eq_error *err;
};

static bool near(double x, double y)
{
	return x == y || fabs(x - y) <= ERROR_TOLERANCE * (fabs(y) + 1e-6);
}

static double relative_l1(const struct sums *s)
{
	return s->abs > 0 ? s->abs_err / s->abs : 0;
}

static double snr_db(const struct sums *s)
{
	return s->sq_err > 0 ? 10 * log10(s->sq / s->sq_err) : INFINITY;
}

static int compare_close(struct compare *c)
{
	const struct eq_tensor_info *t = &c->a->tensors[c->tensor];

	if (!c->open)
		return 0;
	c->open = false;
	c->all.abs += c->one.abs;
	c->all.abs_err += c->one.abs_err;
	c->all.sq += c->one.sq;
	c->all.sq_err += c->one.sq_err;
	if (near(relative_l1(&c->one), t->relative_l1))
		return 0;
	return eq_fail(c->err, EQ_EDIFFER, "%s: tensor '%.128s': relative error against %s is %.6g, "
		       "the archive says %.6g", c->a->name, t->name, c->name, relative_l1(&c->one),
		       t->relative_l1);
}

static void sums_add(struct sums *s, const uint8_t *x, const uint8_t *y, size_t len, int dtype)
{
	size_t n = len / eq_dtype_unit(dtype), i;

	for (i = 0; i < n; i++) {
		double w = eq_float_at(x, dtype, i), d = w - eq_float_at(y, dtype, i);

		s->abs += fabs(w);
		s->abs_err += fabs(d);
		s->sq += w * w;
		s->sq_err += d * d;
	}
}

static int compare_extent(struct compare *c, const struct eq_extent_job *j, const uint8_t *plain)
{
	const struct eq_tensor_info *t = j->ext.tensor < 0 ? NULL : &c->a->tensors[j->ext.tensor];
	const uint8_t *got = j->out;
	uint64_t k;
	int rc;

	if (j->status)
		return 0; /* reported already */
	if (t && t->lossy && !c->exact) {
		if (!c->open || c->tensor != (size_t)j->ext.tensor) {
			rc = compare_close(c);
			if (rc)
				return rc;
			c->open = true;
			c->tensor = (size_t)j->ext.tensor;
			c->one = (struct sums){ 0 };
		}
		sums_add(&c->one, plain, got, j->ext.len, t->dtype);
		if (c->one.abs_err > 0)
			c->identical = false;
		return 0;
	}
	if (!memcmp(plain, got, j->ext.len))
		return 0;
	for (k = 0; plain[k] == got[k]; k++)
		;
	return eq_fail(c->err, EQ_EDIFFER, "%s: differs from %s at byte %" PRIu64 " (%s%.128s)",
		       c->a->name, c->name, j->ext.begin + k, t ? "tensor " : "header",
		       t ? t->name : "");
}

static int compare_window(void *arg, struct eq_window *w)
{
	struct compare *c = arg;
	size_t i;
	int rc;

	if (c->size < w->len) {
		free(c->buf);
		c->size = w->len;
		c->buf = malloc(c->size);
		if (!c->buf)
			return -ENOMEM;
	}
	rc = eq_read_full(c->fd, c->buf, w->len, w->begin);
	if (rc)
		return eq_fail(c->err, rc, "%s: %s", c->name, eq_strerror(rc));
	for (i = 0; i < w->n && !rc; i++)
		rc = compare_extent(c, &w->jobs[i], c->buf + (w->jobs[i].ext.begin - w->begin));
	return rc;
}

static int compare_begin(struct compare *c, struct eq_archive *a, int fd, const char *name,
			 struct eq_error *err)
{
	struct stat st;

	*c = (struct compare){ .a = a, .fd = fd, .name = name, .identical = true, .err = err };
	if (fstat(fd, &st))
		return eq_fail(err, -errno, "%s: %s", name, eq_strerror(-errno));
	if ((uint64_t)st.st_size != a->info.size)
		return eq_fail(err, EQ_EDIFFER, "%s: has %" PRIu64 " bytes, %s has %" PRIu64, name,
			       (uint64_t)st.st_size, a->name, a->info.size);
	return 0;
}

/* ---- the header inside against the records ------------------------------------------- */

static int check_records(const struct eq_archive *a, struct eq_error *err)
{
	struct eq_st *st;
	size_t i;
	int rc = eq_st_parse(a->prefix, a->info.prefix_len, a->info.size, a->name, &st, err);

	if (rc)
		return rc == -ENOMEM ? rc : EQ_ECORRUPT;
	if (st->n_tensors != a->info.n_tensors)
		rc = eq_fail(err, EQ_ECORRUPT, "%s: header and index disagree on the number of tensors",
			     a->name);
	for (i = 0; i < st->n_tensors && !rc; i++) {
		const struct eq_st_tensor *s = &st->tensors[i];
		const struct eq_tensor_info *t = &a->tensors[i];

		if (s->name_len != t->name_len || memcmp(s->name, t->name, s->name_len) ||
		    s->dtype != t->dtype || s->ndim != t->ndim ||
		    (s->ndim && memcmp(s->dims, t->dims, 8u * s->ndim)) ||
		    s->end - s->begin != t->n_bytes)
			rc = eq_fail(err, EQ_ECORRUPT, "%s: header and index disagree on tensor '%.128s'",
				     a->name, t->name);
	}
	eq_st_free(st);
	return rc;
}

/* ---- public ---------------------------------------------------------------------------- */

/* VERIFY: the archive, and perhaps what it was made of. COMPARE: the latter, without the
 * hash of the whole. MATCH: likewise, with what was made of the archive. */
enum purpose { VERIFY, COMPARE, MATCH };

static int verify(struct eq_archive *a, int against_fd, const char *against_name,
		  enum purpose purpose, const struct eq_run *run, struct eq_compare *cmp,
		  void (*report)(void *arg, const char *line), void *report_arg,
		  struct eq_error *err)
{
	struct eq_consumer consumers[3];
	struct eq_error cmp_err = { "" };
	struct compare c = { .fd = -1 };
	struct hashes h = { .report = report, .report_arg = report_arg };
	size_t n = 0;
	int rc;

	rc = check_records(a, err);
	if (!rc)
		rc = hashes_begin(&h, a, purpose == VERIFY, err);
	if (!rc && against_fd >= 0)
		rc = compare_begin(&c, a, against_fd, against_name, err);
	if (rc)
		goto out;
	c.exact = purpose == MATCH;
	consumers[n++] = (struct eq_consumer){ hash_content, &h };
	if (h.with_sha)
		consumers[n++] = (struct eq_consumer){ hash_sha, &h };
	if (against_fd >= 0) {
		c.err = &cmp_err; /* consumers run side by side */
		consumers[n++] = (struct eq_consumer){ compare_window, &c };
	}
	rc = eq_archive_scan(a, run, "verify", consumers, n);
	if (!rc)
		rc = hashes_end(&h);
	if (!rc)
		rc = h.status;
	if (!rc && against_fd >= 0)
		rc = compare_close(&c);
	if (rc && !h.status)
		eq_fail(err, rc, "%s", cmp_err.text[0] ? cmp_err.text : eq_strerror(rc));
	if (cmp)
		*cmp = (struct eq_compare){ c.identical && !rc, relative_l1(&c.all), snr_db(&c.all) };
out:
	free(c.buf);
	hashes_fini(&h);
	return rc;
}

int eq_archive_verify(struct eq_archive *a, int against_fd, const char *against_name,
		      const struct eq_run *run, struct eq_compare *cmp,
		      void (*report)(void *arg, const char *line), void *report_arg,
		      struct eq_error *err)
{
	return verify(a, against_fd, against_name, VERIFY, run, cmp, report, report_arg, err);
}

int eq_archive_compare(struct eq_archive *a, int fd, const char *name, const struct eq_run *run,
		       struct eq_error *err)
{
	return verify(a, fd, name, COMPARE, run, NULL, NULL, NULL, err);
}

int eq_archive_match(struct eq_archive *a, int fd, const char *name, const struct eq_run *run,
		     struct eq_error *err)
{
	return verify(a, fd, name, MATCH, run, NULL, NULL, NULL, err);
}

struct output {
	int fd;
	struct eq_direct *direct; /* or NULL */
};

static int output_window(void *arg, struct eq_window *w)
{
	const struct output *o = arg;
	int rc;

	if (o->direct)
		return eq_direct_put(o->direct, w->buf, w->len, w->begin);
	rc = eq_write_full(o->fd, w->buf, w->len, w->begin);
	/* Begin to store what will have to be synced in the end. */
	if (!rc)
		sync_file_range(o->fd, (off_t)w->begin, (off_t)w->len, SYNC_FILE_RANGE_WRITE);
	return rc;
}

int eq_archive_unpack(struct eq_archive *a, int out_fd, const struct eq_run *run,
		      struct eq_error *err)
{
	struct hashes h = { .report = NULL };
	struct output o = { .fd = out_fd };
	struct eq_consumer consumers[3] = { { hash_content, &h }, { output_window, &o },
					    { hash_sha, &h } };
	int rc;

	rc = hashes_begin(&h, a, true, err);
	if (!rc && ftruncate(out_fd, (off_t)a->info.size))
		rc = -errno;
	if (!rc && run->direct && a->info.size >= EQ_DIRECT_LEAST)
		(void)eq_direct_begin(out_fd, &o.direct);
	if (!rc)
		rc = eq_archive_scan(a, run, "unpack", consumers, h.with_sha ? 3 : 2);
	if (!rc && o.direct)
		rc = eq_direct_end(o.direct);
	if (!rc)
		rc = hashes_end(&h);
	if (rc && !h.status)
		eq_fail(err, rc, "%s: %s", a->name, eq_strerror(rc));
	eq_direct_free(o.direct);
	hashes_fini(&h);
	return rc;
}
