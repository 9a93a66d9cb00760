/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rate control: one lambda for all tensors of a file, so that the last bit
 * spent buys the same error everywhere. The size is a falling function of
 * lambda; it is found on a grid of lambdas by bisection and false position,
 * first on a small part of the sample and then, from there, on all of it.
 *
 * Nothing here uses what the mathematical library may round differently on
 * another processor: sizes come from integers (model.c), the grid of lambdas
 * from square roots, which IEEE 754 rounds correctly.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "quant.h"

#define GRID 128                /* lambdas an octave */
#define GRID_LOW (-9 * GRID)    /* 2^-9: finer adds bits but no quality */
#define GRID_HIGH (24 * GRID)   /* 2^24: everything zero */
#define USUAL_SLOPE 0.5         /* bits an octave */
#define CLOSE 0.002             /* bits that do not matter */
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

double eq_rate_bytes(const struct eq_rate_tensor *t, const uint64_t hist[256],
		     uint64_t n_outliers)
{
	double units = (double)t->rows * (double)t->sample.k, n = 0;
	double chunks, payload, record, bits = 0, grow;
	uint8_t table[EQ_FREQ_MAX];
	unsigned present = 0;
	struct eq_freq freq;

	for (int s = 0; s < 256; s++) {
		n += (double)hist[s];
		present += hist[s] > 0;
	}
	if (!present)
		return 0;
	if (present > 1) {
		bits = (double)eq_freq_fit_quant(hist, &freq);
		/* a sample knows its own entropy too well (Miller and Madow) */
		bits += (present - 1) * 0.7213 * (1 - n / units);
	}
	grow = units / n;
	chunks = ceil(units / t->chunk_units);
	/* scales: rows that a chunk border cuts are in both chunks */
	payload = 2 * ((double)t->rows + (chunks - 1) *
		       (t->chunk_units % t->sample.k != 0));
	payload += bits * grow / 8 + 8 * (double)n_outliers * grow;
	/* heads, states, words that leave half a word unused in each lane, and
	 * half of the alignment of each part */
	payload += chunks * (3 * 16 + (present > 1 ? 128 + 8 : 0) + 7);
	record = (double)t->overhead + 8 + 40 + 4.0 * present + 16 * chunks;
	if (present > 1)
		record += (double)eq_freq_write(&freq, table);
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
	int whole = i >= 0 ? i / GRID : -((GRID - 1 - i) / GRID);
	double x = ldexp(1, whole), root = 2;

	for (int bit = GRID / 2; bit; bit /= 2) {
		root = sqrt(root);
		if ((i - whole * GRID) & bit)
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

/* Grid points with bits[0] >= want > bits[1]; outside the grid to begin with,
 * where nothing is known. */
struct bracket {
	int at[2];
	double bits[2];
};

static bool bracket_known(const struct bracket *b, int side)
{
	return b->at[side] >= GRID_LOW && b->at[side] <= GRID_HIGH;
}

/* Where to look next: by the line through both ends, or through one of them
 * with the slope that is usual. At least one step from either. */
static int bracket_next(const struct bracket *b, double want)
{
	double slope = USUAL_SLOPE / GRID, x;
	int side = bracket_known(b, 0) ? 0 : 1;

	if (bracket_known(b, 0) && bracket_known(b, 1))
		slope = (b->bits[0] - b->bits[1]) / (b->at[1] - b->at[0]);
	x = b->at[side] + (b->bits[side] - want) / slope;
	if (!(x > b->at[0] + 1))
		return b->at[0] + 1;
	return x < b->at[1] - 1 ? (int)x : b->at[1] - 1;
}

/* The end that is nearer to what is wanted, of those that are known. */
static int bracket_nearest(const struct bracket *b, double want)
{
	if (!bracket_known(b, 0) || !bracket_known(b, 1))
		return !bracket_known(b, 0);
	return b->bits[0] - want > want - b->bits[1];
}

/*
 * Look at `i` first, then narrow the bracket down: until its ends are no more
 * than `width` apart or one is close enough to what is wanted.
 */
static int bracket_close(struct rate_job *job, size_t n, struct bracket *b, int i,
			 double want, int width)
{
	*b = (struct bracket){ .at = { GRID_LOW - 1, GRID_HIGH + 1 } };
	for (unsigned round = 1;; round++) {
		double bits;
		int rc = rate_bits(job, n, i, &bits), side = bits < want;

		if (rc)
			return rc;
		b->at[side] = i;
		b->bits[side] = bits;
		if (b->at[1] - b->at[0] <= width || fabs(bits - want) < CLOSE)
			return 0;
		/* the line can be misled, halving cannot */
		i = round % 3 ? bracket_next(b, want) :
				b->at[0] + (b->at[1] - b->at[0]) / 2;
	}
}

int eq_rate_find(const struct eq_rate_tensor *t, size_t n, enum eq_qformat format,
		 double bits, struct eq_pool *pool, struct eq_rate_result *out)
{
	struct rate_job job = { .format = format, .pool = pool };
	struct bracket b;
	uint64_t units = 0;
	int rc = 0, side;

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

	/* lambda 4 gives about 4 bits, and half a bit less with each octave */
	side = (int)((8 - 2 * bits) * GRID) + 2 * GRID;
	side = side < GRID_LOW ? GRID_LOW : side > GRID_HIGH ? GRID_HIGH : side;
	job.divide = units > 1 << 18 ? FIRST_PART : 1;
	rc = bracket_close(&job, n, &b, side, bits, job.divide > 1 ? GRID / 8 : 1);
	if (!rc && job.divide > 1) {
		side = bracket_nearest(&b, bits);
		job.divide = 1;
		rc = bracket_close(&job, n, &b, b.at[side], bits, 1);
	}
	if (rc)
		goto out;
	side = bracket_nearest(&b, bits);
	out->lambda = lambda_of(b.at[side]);
	out->bits = b.bits[side];
	if (!bracket_known(&b, 0) && b.at[1] == GRID_LOW)
		out->status = EQ_RATE_BELOW;
	else if (!bracket_known(&b, 1) && b.at[0] == GRID_HIGH)
		out->status = EQ_RATE_ABOVE;
out:
	free(job.one);
	return rc;
}
