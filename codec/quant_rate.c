/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rate control: one lambda for all tensors of a file, so that the last bit
 * spent buys the same error everywhere. The size is a falling function of
 * lambda; it is found on a grid of lambdas by bisection and false position, on
 * few rows of the sample and then, from there, on more. What a row needs depends
 * on its norm more than on anything else: of rows in the order of their norms each
 * n-th stands for all.
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
#include "quant_ops.h"

#define GRID 128                /* lambdas an octave */
#define GRID_LOW (-9 * GRID)    /* 2^-9: finer adds bits but no quality */
#define GRID_HIGH (24 * GRID)   /* 2^24: everything zero */
#define USUAL_SLOPE 0.5         /* bits an octave */
#define CLOSE 0.002             /* bits that do not matter */
#define PART 16                 /* few rows are a 16th of more */
#define NEAR 0.01               /* bits of which the slope is enough known */

#define SMALL (1 << 18)         /* units of which no part is looked at first */

/* Units of the sample that are coded: a quarter of what the file has, within these. */
#define CODED_LEAST (UINT64_C(1) << 20)
#define CODED_MOST (UINT64_C(4) << 20)

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

enum look { FEW, MORE };

struct rate_one {
	const struct eq_rate_tensor *t;
	double l1;              /* of the sample, scaled up to the tensor */
	struct eq_quant_tensor rows[2];
	void *copy[2];          /* of them, unless it is the sample itself */
	double bytes;
	int status;
};

struct rate_job {
	enum eq_qformat format;
	double lambda;
	uint64_t divide[2];     /* rows of samples for each that is looked at */
	enum look look;
	struct eq_pool *pool;
	struct rate_one *one;
};

#define KEYS 4096               /* of norms: octaves, in 16 parts */

/* The rows of a sample, by their norms. NULL if there is no memory. */
static uint64_t *rows_in_order(const struct eq_quant_tensor *s)
{
	const struct eq_quant_ops *ops = eq_quant_ops_get();
	size_t row_bytes = s->k * eq_quant_unit(s->dtype);
	uint64_t *place = calloc(KEYS + 1, sizeof(*place)), *order = malloc(s->rows * sizeof(*order));
	uint16_t *key = malloc(s->rows * sizeof(*key));

	for (uint64_t i = 0; place && order && key && i < s->rows; i++) {
		struct eq_quant_lanes lanes = { { 0 } };
		uint32_t top = 0;

		ops->scan((const uint8_t *)s->w + i * row_bytes, s->dtype, s->k, &top, &lanes);
		key[i] = (uint16_t)(eq_float_bits((float)eq_quant_lanes_sum(&lanes)) >> 19);
		place[key[i] + 1]++;
	}
	if (place && order && key) {
		for (unsigned i = 0; i < KEYS; i++)
			place[i + 1] += place[i];
		for (uint64_t i = 0; i < s->rows; i++)
			order[place[key[i]]++] = i;
	} else {
		free(order);
		order = NULL;
	}
	free(place);
	free(key);
	return order;
}

/* Take each n-th row, in that order. */
static int rows_take(struct rate_one *one, enum look look, uint64_t n, const uint64_t *order)
{
	const struct eq_quant_tensor *s = &one->t->sample;
	uint64_t rows = s->rows / n ? s->rows / n : 1;
	size_t row_bytes = s->k * eq_quant_unit(s->dtype);
	uint8_t *copy = malloc(rows * row_bytes);

	if (!copy)
		return -ENOMEM;
	for (uint64_t i = 0; i < rows; i++)
		memcpy(copy + i * row_bytes,
		       (const uint8_t *)s->w + order[(2 * i + 1) * s->rows / (2 * rows)] * row_bytes,
		       row_bytes);
	one->copy[look] = copy;
	one->rows[look].w = copy;
	one->rows[look].rows = rows;
	return 0;
}

static void rate_rows(void *arg, size_t index)
{
	const struct rate_job *job = arg;
	struct rate_one *one = &job->one[index];
	uint64_t *order = NULL;
	int rc = 0;

	for (int look = FEW; look <= MORE && one->t && !rc; look++) {
		one->rows[look] = one->t->sample;
		if (job->divide[look] == 1 || one->t->sample.rows <= 1)
			continue;
		if (!order)
			order = rows_in_order(&one->t->sample);
		rc = order ? rows_take(one, look, job->divide[look], order) : -ENOMEM;
	}
	free(order);
	one->status = rc;
}

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

static int rate_all(struct rate_job *job, size_t n, void (*run)(void *job, size_t index))
{
	int rc = 0;

	eq_pool_for(job->pool, n, run, job);
	for (size_t i = 0; i < n && !rc; i++)
		rc = job->one[i].status;
	return rc;
}

/* Size of a tensor, from some of its rows. */
static void rate_size(void *arg, size_t index)
{
	struct rate_job *job = arg;
	struct rate_one *one = &job->one[index];
	const struct eq_quant_tensor *t = &one->rows[job->look];
	struct eq_quant_result r;
	uint16_t *scale;

	if (!one->t)
		return;
	scale = malloc(t->rows * sizeof(*scale));
	if (!scale) {
		one->status = -ENOMEM;
		return;
	}
	one->status = eq_quant_search(t, job->format, job->lambda, one->l1, one->t->rows * t->k,
				      job->pool, scale);
	if (!one->status)
		one->status = eq_quant_apply(t, job->format, scale, job->pool, NULL, NULL, &r);
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
	int rc;

	job->lambda = lambda_of(i);
	rc = rate_all(job, n, rate_size);
	if (rc)
		return rc;
	for (size_t t = 0; t < n; t++) {
		const struct rate_one *one = &job->one[t];

		if (!one->t)
			continue;
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

/* A bracket around a grid point of which the size is known. */
static struct bracket bracket_at(int i, double bits, double want)
{
	struct bracket b = { .at = { GRID_LOW - 1, GRID_HIGH + 1 } };

	b.at[bits < want] = i;
	b.bits[bits < want] = bits;
	return b;
}

/*
 * Narrow the bracket down: until its ends are no more than `width` apart or one is no
 * further than `close` from what is wanted.
 */
static int bracket_close(struct rate_job *job, size_t n, struct bracket *b, double want, int width,
			 double close)
{
	int side = bracket_nearest(b, want), i, rc;
	double bits = b->bits[side];

	for (unsigned round = 1; b->at[1] - b->at[0] > width && !(fabs(bits - want) < close); round++) {
		/* the line can be misled, halving cannot */
		i = round % 3 ? bracket_next(b, want) :
				b->at[0] + (b->at[1] - b->at[0]) / 2;
		rc = rate_bits(job, n, i, &bits);
		if (rc)
			return rc;
		side = bits < want;
		b->at[side] = i;
		b->bits[side] = bits;
	}
	return 0;
}

/* The grid point nearest to what is wanted by the line through an end that is close to
 * it, and the size there. */
static int bracket_end(const struct bracket *b, double want, double *bits)
{
	int side = bracket_nearest(b, want), steps;
	double slope = USUAL_SLOPE / GRID;

	if (bracket_known(b, 0) && bracket_known(b, 1) && b->bits[0] > b->bits[1])
		slope = (b->bits[0] - b->bits[1]) / (b->at[1] - b->at[0]);
	*bits = b->bits[side];
	if (!(fabs(*bits - want) < NEAR))
		return b->at[side];
	steps = (int)lrint((*bits - want) / slope);
	if (b->at[side] + steps <= b->at[0] || b->at[side] + steps >= b->at[1])
		return b->at[side];
	*bits -= steps * slope;
	return b->at[side] + steps;
}

/* How many rows of the samples are looked at. */
static void rate_divide(struct rate_job *job, size_t n)
{
	uint64_t units = 0, sampled = 0, coded;

	for (size_t i = 0; i < n; i++) {
		const struct eq_rate_tensor *t = job->one[i].t;

		sampled += t ? t->sample.rows * t->sample.k : 0;
		units += t ? t->rows * t->sample.k : 0;
	}
	coded = units / 4;
	coded = coded < CODED_LEAST ? CODED_LEAST : coded > CODED_MOST ? CODED_MOST : coded;
	job->divide[MORE] = sampled > coded ? sampled / coded : 1;
	job->divide[FEW] = job->divide[MORE] * (sampled / job->divide[MORE] > SMALL ? PART : 1);
}

/* A bracket, one of whose ends is near `bits` or of the grid. */
static int rate_search(struct rate_job *job, size_t n, double bits, struct bracket *b)
{
	/* lambda 4 gives about 4 bits, and half a bit less with each octave */
	int at = (int)((8 - 2 * bits) * GRID) + 2 * GRID, rc;
	bool once = job->divide[FEW] == job->divide[MORE];
	double found;

	at = at < GRID_LOW ? GRID_LOW : at > GRID_HIGH ? GRID_HIGH : at;
	for (job->look = once ? MORE : FEW;; job->look = MORE) {
		rc = rate_bits(job, n, at, &found);
		if (rc)
			return rc;
		*b = bracket_at(at, found, bits);
		if (job->look == MORE)
			return bracket_close(job, n, b, bits, 1, NEAR);
		rc = bracket_close(job, n, b, bits, GRID / 8, CLOSE);
		if (rc)
			return rc;
		at = b->at[bracket_nearest(b, bits)];
	}
}

int eq_rate_find(const struct eq_rate_tensor *t, size_t n, enum eq_qformat format,
		 double bits, struct eq_pool *pool, struct eq_rate_result *out)
{
	struct rate_job job = { .format = format, .pool = pool };
	struct bracket b;
	int rc = 0;

	memset(out, 0, sizeof(*out));
	job.one = calloc(n ? n : 1, sizeof(*job.one));
	if (!job.one)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		job.one[i].t = &t[i];
	rc = rate_all(&job, n, rate_norm);
	rate_divide(&job, n);
	if (!rc)
		rc = rate_all(&job, n, rate_rows);
	if (!rc)
		rc = rate_search(&job, n, bits, &b);
	if (rc)
		goto out;
	out->lambda = lambda_of(bracket_end(&b, bits, &out->bits));
	if (!bracket_known(&b, 0) && b.at[1] == GRID_LOW)
		out->status = EQ_RATE_BELOW;
	else if (!bracket_known(&b, 1) && b.at[0] == GRID_HIGH)
		out->status = EQ_RATE_ABOVE;
out:
	for (size_t i = 0; i < n; i++) {
		free(job.one[i].copy[FEW]);
		free(job.one[i].copy[MORE]);
	}
	free(job.one);
	return rc;
}
