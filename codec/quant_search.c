/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scale of a row. Three facts make the search cheap and exact:
 *
 * 1. The units of a row enter the objective by their magnitudes only, and a
 *    bfloat16 magnitude is one of 2^15 bit patterns, in ascending order. With
 *    the number N(p) and the sum S(p) of the units of pattern p or above, the
 *    distortion of a scale s with levels v_j and boundaries b_j = s m_j is
 *
 *      S(0) + sum over j >= 1 of
 *          2 (S(s v_j) - S(b_j)) + s v_j (N(b_j) + N(b_j+1) - 2 N(s v_j))
 *
 *    and the rate is sum v_j (N(b_j) - N(b_j+1)): a few look-ups a level.
 *    Patterns are integers times a power of two, so N, S and the v_j are kept as
 *    integers and their sums are exact, in any order. b_j and s v_j are exact in
 *    float32, since s has 8 significant bits, v_j at most 7 and m_j at most 8.
 *
 * 2. The rate falls as s rises, for each unit. Candidates are tried from the
 *    greatest s downwards, and once the rate alone costs more than the best
 *    objective so far no smaller scale can win.
 *
 * 3. What is never looked up need not be summed: N and S are extended downwards
 *    as the boundaries go down.
 *
 * float16 and float32 units are put into the bin of their leading 16 bits. The
 * objective is then off by the units that share a bin with a boundary, so the
 * best few candidates are measured on the row itself.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant.h"

#define PATTERNS 32768          /* magnitudes */
#define OCTAVE 128              /* patterns with the same exponent */
/* Octaves below the greatest unit that are told apart. The smallest boundary is
 * absmax / 448 * 2^-10 for fp8; for int8 it lets outliers be 2^15 times greater
 * than the rest, and smaller units then count as zeros. Sums fit in 64 bits. */
#define WINDOW 24
#define COARSE 16               /* step of the first pass: 1/8 octave */
#define BASINS 3                /* minima of the first pass that are refined */
#define FINALISTS 6             /* measured exactly, when that is needed */

#define SCALE_MIN 0x0080        /* 2^-126 */
#define SCALE_MAX 0x7e80        /* 2^126 */

struct search {
	struct eq_quant_format f;
	enum eq_qformat format;
	bool exact;             /* patterns stand for single values: bfloat16 */
	double nu;              /* price of rate: cost = distortion + nu * rate */

	uint32_t count[PATTERNS];
	int64_t sum[PATTERNS];  /* if not exact */
	uint32_t n[WINDOW * OCTAVE + 1];        /* N and S, from `low` upwards */
	int64_t s[WINDOW * OCTAVE + 1];

	/* of the row */
	const uint8_t *w;
	int dtype;
	uint64_t k;
	uint32_t top;           /* pattern of the greatest unit */
	uint32_t base;          /* pattern of index 0 of n and s */
	uint32_t low;           /* least index that has been summed */
	float absmax;
	double total;           /* S(0) */
	double unit;            /* value of 1 in s */
	uint32_t outliers;      /* most that are allowed */
};

struct candidate {
	double cost;            /* less that of coding all units as zero */
	uint32_t scale;         /* bfloat16 bits; 0: all units zero */
};

/* ---- the row's statistics ------------------------------------------------ */

/* A unit's float32 magnitude in units of 2^(octave of index 0 - 134). */
static int64_t fixed_of(uint32_t u, uint32_t base)
{
	int32_t e = (int32_t)(u >> 23), eb = (int32_t)(base >> 7);
	int64_t m = u & 0x7fffff;

	if (e)
		m |= 0x800000;
	else
		e = 1;
	e -= eb ? eb : 1;
	if (e >= 16)
		return m << (e - 16);
	return e > -16 ? m >> (16 - e) : 0;
}

static uint32_t magnitude(const struct search *c, uint64_t i)
{
	if (c->dtype == EQ_BF16)
		return (uint32_t)(((const uint16_t *)c->w)[i] & 0x7fff) << 16;
	if (c->dtype == EQ_F16)
		return eq_half_widen(((const uint16_t *)c->w)[i] & 0x7fff);
	return ((const uint32_t *)c->w)[i] & 0x7fffffff;
}

static void row_begin(struct search *c)
{
	uint32_t top = 0, octave;
	double total[16] = { 0 };

	for (uint64_t i = 0; i < c->k; i++) {
		uint32_t u = magnitude(c, i);

		top = u > top ? u : top;
		total[i % 16] += (double)eq_float_of(u);
	}
	for (int w = 8; w; w /= 2)
		for (int i = 0; i < w; i++)
			total[i] += total[i + w];
	c->total = total[0];
	c->absmax = eq_float_of(top);
	c->top = top >> 16;
	octave = top >> 23;
	c->base = octave < WINDOW ? 0 : (octave - WINDOW + 1) * OCTAVE;
	c->unit = ldexp(1, (int)(c->base ? c->base / OCTAVE : 1) - 134);
	c->outliers = c->format == EQ_Q_INT8 ? (uint32_t)(c->k >> 10) : 0;

	if (c->exact)
		for (uint64_t i = 0; i < c->k; i++)
			c->count[((const uint16_t *)c->w)[i] & 0x7fff]++;
	else
		for (uint64_t i = 0; i < c->k; i++) {
			uint32_t u = magnitude(c, i);

			c->count[u >> 16]++;
			c->sum[u >> 16] += fixed_of(u, c->base);
		}
	c->low = c->top + 1 - c->base;
	c->n[c->low] = 0;
	c->s[c->low] = 0;
}

static void row_end(struct search *c)
{
	for (uint64_t i = 0; i < c->k; i++) {
		uint32_t p = magnitude(c, i) >> 16;

		c->count[p] = 0;
		c->sum[p] = 0;
	}
}

/* Sum down to the beginning of the octave of pattern p. */
static void extend(struct search *c, uint32_t p)
{
	uint32_t to = (p - c->base) / OCTAVE * OCTAVE;

	for (uint32_t i = c->low; i-- > to;) {
		uint32_t q = c->base + i, m = c->count[q];

		c->n[i] = c->n[i + 1] + m;
		c->s[i] = c->s[i + 1] +
			  (c->exact ? m * fixed_of(q << 16, c->base) : c->sum[q]);
	}
	c->low = to < c->low ? to : c->low;
}

/* ---- the objective ------------------------------------------------------- */

static uint32_t level(const struct search *c, float t)
{
	return c->format == EQ_Q_FP8 ? eq_level_fp8(t) : eq_level_int8(t);
}

/* Least index whose units are at or above x; the edge of a bin that is nearest
 * to x when bins are not single values. */
static uint32_t index_of(const struct search *c, float x)
{
	uint32_t p = (eq_float_bits(x) + (c->exact ? 0xffff : 0x8000)) >> 16;

	return (p > c->top ? c->top + 1 : p) - c->base;
}

/* The same for the boundary below level j. A unit right on it goes where the
 * float32 product of unit and 1 / scale falls. */
static uint32_t boundary(const struct search *c, unsigned j, float scale, float inv)
{
	float b = c->f.mid[j] * scale, t = b * inv;
	uint32_t i = index_of(c, b);

	if (c->exact && !(eq_float_bits(b) & 0xffff) && i + c->base <= c->top &&
	    (t < c->f.mid[j] || (t == c->f.mid[j] && j & 1)))
		i++;
	return i;
}

/*
 * Cost of a scale, relative to coding all units as zero, and its rate. False if
 * the scale is too small for the format (and so are all smaller ones).
 */
static bool evaluate(struct search *c, uint32_t bits, double *cost, double *rate)
{
	float scale = eq_float_of(bits << 16), inv = 1.0f / scale;
	float first = c->f.mid[1] * scale;
	uint32_t levels = level(c, c->absmax * inv), lo, hi, cut = 0;
	int64_t ds = 0, dn = 0, r = 0;

	*cost = *rate = 0;
	if (c->format == EQ_Q_FP8 && scale * 448 < c->absmax)
		return false;
	if (!levels)
		return true;
	if (eq_float_bits(first) >> 16 < c->base)
		return false;
	extend(c, eq_float_bits(first) >> 16);
	if (levels > c->f.top) {
		levels = c->f.top;
		cut = boundary(c, levels + 1, scale, inv);
		if (c->n[cut] > c->outliers)
			return false;
	}
	lo = boundary(c, 1, scale, inv);
	for (uint32_t j = 1; j <= levels; j++, lo = hi) {
		uint32_t mid = index_of(c, c->f.value[j] * scale);

		if (j < levels)
			hi = boundary(c, j + 1, scale, inv);
		else
			hi = cut ? cut : c->top + 1 - c->base;
		ds += c->s[mid] - c->s[lo];
		dn += c->f.step[j] * ((int64_t)c->n[lo] + c->n[hi] - 2 * (int64_t)c->n[mid]);
		r += c->f.step[j] * ((int64_t)c->n[lo] - c->n[hi]);
	}
	ds *= 2;
	if (cut) {      /* outliers are exact, and have the symbol of the top */
		ds -= c->s[cut];
		r += (int64_t)c->f.step[levels] * c->n[cut];
	}
	*rate = c->nu * (double)r;
	*cost = (double)ds * c->unit + (double)dn * ((double)scale * c->f.unit) + *rate;
	return true;
}

/* The same measured on the units themselves. */
static double measure(const struct search *c, uint32_t bits)
{
	float scale = eq_float_of(bits << 16), inv = 1.0f / scale;
	double d[16] = { 0 };
	int64_t r = 0;

	if (!bits)
		return 0;
	for (uint64_t i = 0; i < c->k; i++) {
		float x = eq_float_of(magnitude(c, i));
		uint32_t q = level(c, x * inv);

		if (q > c->f.top) {
			r += c->f.step[c->f.top];
			continue;
		}
		r += c->f.step[q];
		d[i % 16] += fabs((double)x - (double)c->f.value[q] * (double)scale);
	}
	for (int w = 8; w; w /= 2)
		for (int i = 0; i < w; i++)
			d[i] += d[i + w];
	return d[0] - c->total + c->nu * (double)r;
}

/* ---- the search ---------------------------------------------------------- */

/* Insert into a list of n candidates by ascending cost. */
static void keep(struct candidate *list, unsigned n, double cost, uint32_t scale)
{
	unsigned i = n;

	if (cost >= list[n - 1].cost)
		return;
	for (i = n - 1; i && cost < list[i - 1].cost; i--)
		list[i] = list[i - 1];
	list[i] = (struct candidate){ cost, scale };
}

/* Least bfloat16 scale with which all units are zero, within the range. */
static uint32_t greatest_scale(const struct search *c)
{
	double s = (double)c->absmax / ((double)c->f.mid[1]);
	uint32_t bits;

	if (s >= 0x1p126)
		return SCALE_MAX;
	bits = (eq_float_bits((float)s) >> 16) + 1;
	return bits < SCALE_MIN ? SCALE_MIN : bits;
}

static void refine(struct search *c, struct candidate *list, unsigned n, uint32_t scale)
{
	uint32_t lo = scale - (COARSE - 1), hi = scale + (COARSE - 1);

	lo = (int32_t)lo < SCALE_MIN ? SCALE_MIN : lo;
	hi = hi > SCALE_MAX ? SCALE_MAX : hi;
	for (uint32_t b = hi; b >= lo; b--) {
		double cost, rate;

		if (b == scale)
			continue;
		if (!evaluate(c, b, &cost, &rate))
			break;
		keep(list, n, cost, b);
	}
}

static uint16_t search_row(struct search *c)
{
	/* coding all units as zero costs 0 and is where the list begins */
	struct candidate basin[BASINS] = { { 0, 0 } }, best[FINALISTS] = { { 0, 0 } };
	unsigned n = c->exact ? 1 : FINALISTS;
	double c0 = 0, c1 = 0, least = 0;
	uint32_t b1 = 0, result;

	row_begin(c);
	if (!c->top) {
		row_end(c);
		return 0;
	}
	for (uint32_t b = greatest_scale(c); b >= SCALE_MIN; b -= COARSE) {
		double cost, rate;
		bool more = evaluate(c, b, &cost, &rate);

		if (!more || rate - c->total >= least) {
			more = false;
			cost = INFINITY;
		} else {
			keep(best, n, cost, b);
			least = cost < least ? cost : least;
		}
		if (b1 && c1 < c0 && c1 <= cost)
			keep(basin, BASINS, c1, b1);
		c0 = b1 ? c1 : INFINITY;
		c1 = cost;
		b1 = b;
		if (!more)
			break;
	}
	for (int i = 0; i < BASINS && basin[i].scale; i++)
		refine(c, best, n, basin[i].scale);
	result = best[0].scale;
	if (!c->exact) {
		double cost = measure(c, result);

		for (unsigned i = 1; i < n; i++) {
			double d = measure(c, best[i].scale);

			if (d < cost) {
				cost = d;
				result = best[i].scale;
			}
		}
	}
	row_end(c);
	return (uint16_t)result;
}

/* ---- all rows ------------------------------------------------------------ */

struct search_job {
	const struct eq_quant_tensor *t;
	enum eq_qformat format;
	double nu;
	uint64_t block_rows;
	uint16_t *scale;
	int status;
};

static void search_run(void *arg, size_t index)
{
	struct search_job *job = arg;
	const struct eq_quant_tensor *t = job->t;
	uint64_t row = index * job->block_rows, end = row + job->block_rows;
	size_t row_bytes = t->k * (t->dtype == EQ_F32 ? 4 : 2);
	struct search *c = calloc(1, sizeof(*c));

	if (!c) {
		__atomic_store_n(&job->status, -ENOMEM, __ATOMIC_RELAXED);
		return;
	}
	eq_quant_format_init(&c->f, job->format);
	c->format = job->format;
	c->exact = t->dtype == EQ_BF16;
	c->dtype = t->dtype;
	c->nu = job->nu;
	c->k = t->k;
	if (end > t->rows)
		end = t->rows;
	for (; row < end; row++) {
		c->w = (const uint8_t *)t->w + row * row_bytes;
		job->scale[row] = search_row(c);
	}
	free(c);
}

int eq_quant_search(const struct eq_quant_tensor *t, enum eq_qformat format,
		    double lambda, double l1_total, uint64_t n_total,
		    struct eq_pool *pool, uint16_t *scale)
{
	struct search_job job = { .t = t, .format = format, .scale = scale };

	if (t->k >= UINT64_C(1) << 31)
		return EQ_ELIMIT;
	if (!t->rows || !t->k)
		return 0;
	/* rate(q) = 2^-7 a step, in both formats */
	job.nu = lambda * 0x1p-7 * l1_total / (double)n_total;
	job.block_rows = eq_quant_block_rows(t->k);
	eq_pool_for(pool, (t->rows + job.block_rows - 1) / job.block_rows,
		    search_run, &job);
	return job.status;
}
