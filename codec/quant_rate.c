/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rate control: one lambda for all tensors of a file, so that the last bit
 * spent buys the same error everywhere. The size is a falling function of
 * lambda; it is found on a grid of lambdas by bisection, first on a small part
 * of the sample and then, from there, on all of it.
 *
 * Nothing here calls the mathematical library, whose last places differ between
 * processors: logarithms come from a table made with integers, the grid of
 * lambdas from square roots, which IEEE 754 rounds correctly.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "quant.h"

#define GRID 128                /* lambdas an octave */
#define GRID_LOW (-20 * GRID)   /* 2^-20: as fine as the format goes */
#define GRID_HIGH (24 * GRID)   /* 2^24: everything zero */
#define FIRST_PART 16           /* the bisection looks at a 16th of the sample */

/* ---- sampling ------------------------------------------------------------ */

void eq_rate_sample_rows(size_t n, const uint64_t *rows, const uint64_t *k,
			 uint64_t budget, uint64_t *sample)
{
	double total = 0;

	for (size_t i = 0; i < n; i++)
		total += (double)rows[i] * (double)k[i];
	for (size_t i = 0; i < n; i++) {
		double part = total > (double)budget ? (double)budget / total : 1;

		sample[i] = (uint64_t)((double)rows[i] * part + 0.5);
		if (!sample[i])
			sample[i] = 1;
		if (sample[i] > rows[i])
			sample[i] = rows[i];
	}
}

/* ---- size ---------------------------------------------------------------- */

/* log2(4096 / f) for 1 <= f <= 4096 in units of 2^-16, truncated. */
static uint32_t cost_of(uint32_t f)
{
	int shift = __builtin_clz(f) - 19;
	uint64_t x = (uint64_t)f << (shift + 19);       /* 1 <= x / 2^31 < 2 */
	uint32_t log = 0;

	for (int i = 0; i < 16; i++) {
		x = x * x >> 31;
		log = log << 1 | (uint32_t)(x >> 32);
		x >>= x >> 32;
	}
	return ((uint32_t)shift << 16) - log;
}

/* Bits of n symbols coded with their frequencies rounded to 12 bits. */
static double entropy_bits(const uint64_t hist[256], uint64_t n, unsigned *present)
{
	uint32_t f[256], sum = 0;
	unsigned top = 0;
	double bits = 0;

	*present = 0;
	for (unsigned s = 0; s < 256; s++) {
		f[s] = (uint32_t)((double)hist[s] / (double)n * EQ_PROB_SIZE + 0.5);
		if (hist[s]) {
			++*present;
			f[s] = f[s] ? f[s] : 1;
		}
		sum += f[s];
		top = hist[s] > hist[top] ? s : top;
	}
	if (*present < 2)
		return 0;
	/* what rounding gave or took is the commonest symbol's */
	f[top] = (uint32_t)((int32_t)f[top] + EQ_PROB_SIZE - (int32_t)sum);
	for (unsigned s = 0; s < 256; s++)
		if (hist[s])
			bits += (double)hist[s] * cost_of(f[s]) * 0x1p-16;
	return bits;
}

double eq_rate_bytes(const struct eq_rate_tensor *t, const uint64_t hist[256],
		     uint64_t n_outliers)
{
	double units = (double)t->rows * (double)t->sample.k, n = 0;
	double chunks, payload, record, bits, grow;
	unsigned present;

	for (int s = 0; s < 256; s++)
		n += (double)hist[s];
	if (n < 1)
		return 0;
	bits = entropy_bits(hist, (uint64_t)n, &present);
	/* a sample knows its own entropy too well (Miller and Madow) */
	if (present > 1)
		bits += (present - 1) * 0.7213 * (1 - n / units);
	grow = units / n;
	chunks = ceil(units / t->chunk_units);
	/* scales: rows that a chunk border cuts are in both chunks */
	payload = 2 * ((double)t->rows + (chunks - 1) *
		       (t->chunk_units % t->sample.k != 0));
	payload += bits * grow / 8 + 8 * (double)n_outliers * grow;
	/* heads, states, words that leave half a word unused in each lane, and
	 * half of the alignment of each part */
	payload += chunks * (3 * 16 + (present > 1 ? 128 + 8 : 0) + 7);
	payload = ceil(payload / EQ_PAYLOAD_ALIGN) * EQ_PAYLOAD_ALIGN;
	record = (double)t->overhead + 8 + 40 + 4.0 * present + 16 * chunks;
	if (present > 1)
		record += 8 + 32 + 2.0 * present;
	return payload + record;
}

/* ---- search -------------------------------------------------------------- */

struct rate_one {
	const struct eq_rate_tensor *t;
	double l1;              /* of the sample, scaled up to the tensor */
	double bytes;
	int status;
};

struct rate_job {
	enum eq_qformat format;
	double lambda;
	uint64_t divide;        /* look at the first 1 / divide of each sample */
	struct eq_pool *pool;
	struct rate_one *one;
};

static void rate_norm(void *arg, size_t index)
{
	struct rate_job *job = arg;
	struct rate_one *one = &job->one[index];
	const struct eq_quant_tensor *s = &one->t->sample;
	bool finite;

	one->status = eq_quant_l1(s, job->pool, &one->l1, &finite);
	if (!finite)
		one->t = NULL;
	else
		one->l1 *= (double)one->t->rows / (double)s->rows;
}

/* Size of a tensor, from its sample or a part of it. */
static void rate_size(void *arg, size_t index)
{
	struct rate_job *job = arg;
	struct rate_one *one = &job->one[index];
	struct eq_quant_tensor part;
	struct eq_quant_result r;
	uint16_t *scale;

	if (!one->t)
		return;
	part = one->t->sample;
	part.rows = (part.rows + job->divide - 1) / job->divide;
	scale = malloc(part.rows * sizeof(*scale));
	if (!scale) {
		one->status = -ENOMEM;
		return;
	}
	one->status = eq_quant_search(&part, job->format, job->lambda, one->l1,
				      one->t->rows * part.k, job->pool, scale);
	if (!one->status)
		one->status = eq_quant_apply(&part, job->format, scale, job->pool,
					     NULL, NULL, &r);
	free(scale);
	if (one->status)
		return;
	one->bytes = eq_rate_bytes(one->t, r.hist, r.n_outliers);
	eq_quant_result_fini(&r);
}

/* 2^(i / GRID); GRID is a power of two. */
static double lambda_of(int i)
{
	double x = ldexp(1, i >> 7), root = 2;

	for (int bit = GRID / 2; bit; bit /= 2) {
		root = sqrt(root);
		if (i & bit)
			x *= root;
	}
	return x;
}

static int rate_bits(struct rate_job *job, size_t n, int i, double *bits)
{
	double bytes = 0, units = 0;

	job->lambda = lambda_of(i);
	eq_pool_for(job->pool, n, rate_size, job);
	for (size_t t = 0; t < n; t++) {
		const struct rate_one *one = &job->one[t];

		if (!one->t)
			continue;
		if (one->status)
			return one->status;
		bytes += one->bytes;
		units += (double)one->t->rows * (double)one->t->sample.k;
	}
	if (!(units > 0))
		return -EINVAL;
	*bits = 8 * bytes / units;
	return 0;
}

/*
 * Narrow [*lo, *hi] down to neighbours with bits(lo) >= want > bits(hi), by
 * bisection; with `near` also by looking where it should be first.
 */
struct bracket {
	int lo, hi;
	double bits_lo, bits_hi;
};

static int bracket_try(struct rate_job *job, size_t n, struct bracket *b, int i,
		       double want)
{
	double bits;
	int rc = rate_bits(job, n, i, &bits);

	if (rc)
		return rc;
	if (bits >= want) {
		b->lo = i;
		b->bits_lo = bits;
	} else {
		b->hi = i;
		b->bits_hi = bits;
	}
	return 0;
}

static int bisect(struct rate_job *job, size_t n, struct bracket *b, double want,
		  int width)
{
	while (b->hi - b->lo > width) {
		int i = b->lo + (b->hi - b->lo) / 2, rc;

		rc = bracket_try(job, n, b, i, want);
		if (rc)
			return rc;
	}
	return 0;
}

/* Widen steps around a guess until want is between, then bisect. */
static int bracket_near(struct rate_job *job, size_t n, struct bracket *b, int guess,
			double want)
{
	int step = 2, i = guess, rc;

	b->lo = GRID_LOW - 1;
	b->hi = GRID_HIGH + 1;
	for (;;) {
		i = i < GRID_LOW ? GRID_LOW : i > GRID_HIGH ? GRID_HIGH : i;
		rc = bracket_try(job, n, b, i, want);
		if (rc)
			return rc;
		if (b->lo == i && b->hi > GRID_HIGH && i < GRID_HIGH)
			i += step;
		else if (b->hi == i && b->lo < GRID_LOW && i > GRID_LOW)
			i -= step;
		else
			break;
		step *= 2;
	}
	if (b->lo < GRID_LOW || b->hi > GRID_HIGH)
		return 0;
	return bisect(job, n, b, want, 1);
}

int eq_rate_find(const struct eq_rate_tensor *t, size_t n, enum eq_qformat format,
		 double bits, struct eq_pool *pool, struct eq_rate_result *out)
{
	struct rate_job job = { .format = format, .pool = pool };
	struct bracket b = { .lo = GRID_LOW, .hi = GRID_HIGH };
	uint64_t units = 0;
	int rc = 0;

	memset(out, 0, sizeof(*out));
	job.one = calloc(n ? n : 1, sizeof(*job.one));
	if (!job.one)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		job.one[i].t = &t[i];
		units += t[i].sample.rows * t[i].sample.k;
	}
	eq_pool_for(pool, n, rate_norm, &job);
	for (size_t i = 0; i < n && !rc; i++)
		rc = job.one[i].status;
	if (rc)
		goto out;

	job.divide = units > 1 << 18 ? FIRST_PART : 1;
	rc = bisect(&job, n, &b, bits, GRID / 16);
	if (rc)
		goto out;
	job.divide = 1;
	rc = bracket_near(&job, n, &b, (b.lo + b.hi) / 2, bits);
	if (rc)
		goto out;
	if (b.lo < GRID_LOW) {
		out->status = EQ_RATE_BELOW;
		out->lambda = lambda_of(b.hi);
		out->bits = b.bits_hi;
	} else if (b.hi > GRID_HIGH) {
		out->status = EQ_RATE_ABOVE;
		out->lambda = lambda_of(b.lo);
		out->bits = b.bits_lo;
	} else {
		bool lo = b.bits_lo - bits < bits - b.bits_hi;

		out->lambda = lambda_of(lo ? b.lo : b.hi);
		out->bits = lo ? b.bits_lo : b.bits_hi;
	}
out:
	free(job.one);
	return rc;
}
