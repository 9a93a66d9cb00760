/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scale of a row: of all bfloat16 scales in the range, the one of least
 * cost, and the greatest of these if several have it.
 *
 * 1. The units of a row enter the cost by their magnitudes only, and a bfloat16
 *    magnitude is one of 2^15 bit patterns, in ascending order. With N(p) and
 *    S(p), the number and the sum of the units of pattern p or above, a scale s
 *    whose levels v_j begin at b_j = s m_j has
 *
 *      distortion  S(0) + 2 sum (S(s v_j) - S(b_j))
 *                  + s sum ((v_j + v_j-1) N(b_j) - 2 v_j N(s v_j))
 *      rate        sum (v_j - v_j-1) N(b_j)                 (sums over j >= 1)
 *
 *    that is a few look-ups a level. A pattern is an integer times a power of
 *    two and so is v_j, so all sums are sums of integers and exact in any order.
 *    b_j and s v_j are exact in float32: s has 8 significant bits, v_j and m_j
 *    have at most 8.
 *
 * 2. As s rises the rate falls, for each unit. The distortion of a unit, its
 *    distance from the nearest s v_j, is piecewise linear and dips below the
 *    chord over an interval [s, t] of scales only where some s v_j crosses it,
 *    by (t - s) v_j / 2 at most. With V(s) = sum v_j N(s v_j), which falls by
 *    v_j for each crossing, all scales of the interval cost at least
 *
 *      chord - (t - s) (V(s) - V(t)) / 2 + rate(t)
 *
 *    An interval that cannot hold the least cost is dropped, the others are cut
 *    in halves: about 80 evaluations in all, instead of thousands.
 *
 *    The chord is taken a step from its ends, since those are evaluated.
 *
 * 3. What is never looked up need not be summed: candidates come from the
 *    greatest scale downwards, and N and S are extended as far as they reach.
 *
 * float16 and float32 units are put into the bin of their leading 16 bits. The
 * cost is then off by the units that share a bin with a boundary, so the best
 * few scales are measured on the row itself.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant_ops.h"

#define OCTAVE 128              /* patterns with the same exponent */
/* Octaves below the greatest unit that are told apart. The smallest boundary is
 * absmax / 448 * 2^-10 for fp8; for int8 it lets outliers be 2^15 times greater
 * than the rest, and smaller units then count as zeros. Sums fit in 64 bits. */
#define WINDOW 24
#define BINS (WINDOW * OCTAVE)
#define COARSE 64               /* first step of the scales, half an octave */
#define POINTS (BINS + 2 * OCTAVE)      /* scales in the range, at most */
#define EXTEND 32               /* bins summed at a time, part of an octave */
#define FINALISTS 3             /* measured on the row, when that is needed */

#define SCALE_MIN 0x0080        /* 2^-126 */
#define SCALE_MAX 0x7e80        /* 2^126 */

struct tail {                   /* S and N */
	int64_t sum, count;
};

struct point {                  /* a scale that has been evaluated */
	uint32_t bits;          /* bfloat16 */
	float scale;
	double dist, rate;      /* less S(0), and times the price of rate */
	double crossed;         /* V */
	int64_t outliers;
};

struct interval {               /* of points */
	uint16_t hi, lo;
};

struct candidate {
	double cost;            /* less that of coding all units as zero */
	uint32_t bits;          /* 0: all units zero */
};

struct search {
	const struct eq_quant_ops *ops;
	struct eq_quant_format f;
	enum eq_qformat format;
	int dtype;
	bool exact;             /* patterns stand for single values: bfloat16 */
	double nu;              /* price of a step of rate */
	uint64_t k;

	/* of the row */
	const uint8_t *w;
	float absmax;
	uint32_t top;           /* pattern of absmax */
	uint32_t base;          /* pattern of index 0 */
	uint32_t low;           /* least index of tail that is ready */
	double total;           /* S(0) */
	double unit;            /* value of 1 in a sum */
	int64_t outliers;       /* most that are allowed */
	unsigned n_best;
	struct candidate best[FINALISTS];

	struct eq_quant_edges edges;
	uint32_t count[BINS + 1];       /* [0]: below the base; [1 + index] */
	uint64_t rest[BINS + 1];        /* of the bits below, unless exact */
	struct tail tail[BINS + 1];     /* by index, from `low` upwards */
	unsigned n_points;
	struct point point[POINTS];
	struct interval list[2][POINTS / 2];    /* of two scales or more, disjoint */
};

/* ---- the row's statistics ------------------------------------------------ */

/* Value of a pattern, in units that make those of the base's octave 128 to 255. */
static int64_t fixed_of(uint32_t p, uint32_t base)
{
	uint32_t octave = p / OCTAVE, unit = base ? base / OCTAVE : 1;

	if (!octave)
		return p;
	return (int64_t)(OCTAVE + p % OCTAVE) << (octave - unit);
}

static uint32_t bin_of(const struct search *c, uint32_t pattern)
{
	return pattern < c->base ? 0 : pattern - c->base + 1;
}

static void row_count(struct search *c)
{
	const uint16_t *h = (const uint16_t *)c->w;

	if (c->exact) {
		for (uint64_t i = 0; i < c->k; i++)
			c->count[bin_of(c, h[i] & 0x7fff)]++;
		return;
	}
	for (uint64_t k = 0; k < c->k; k += EQ_STRIP) {
		size_t n = c->k - k < EQ_STRIP ? c->k - k : EQ_STRIP;
		uint32_t u[EQ_STRIP];

		c->ops->widen(u, c->w + k * eq_quant_unit(c->dtype), c->dtype, n);
		for (size_t i = 0; i < n; i++) {
			uint32_t bin = bin_of(c, u[i] >> 16);

			c->count[bin]++;
			c->rest[bin] += u[i] & 0xffff;
		}
	}
}

/* False if all units are zero. */
static bool row_begin(struct search *c)
{
	struct eq_quant_lanes lanes = { { 0 } };
	uint32_t top = 0, octave;

	c->ops->scan(c->w, c->dtype, c->k, &top, &lanes);
	c->total = eq_quant_lanes_sum(&lanes);
	c->absmax = eq_float_of(top);
	c->top = top >> 16;
	octave = c->top / OCTAVE;
	c->base = octave < WINDOW ? 0 : (octave - WINDOW + 1) * OCTAVE;
	c->unit = ldexp(1, (int)(c->base ? c->base / OCTAVE : 1) - 134);
	/* an outlier takes 8 bytes: a 16th of a bit a unit at most */
	c->outliers = c->format == EQ_Q_INT8 ? (int64_t)(c->k >> 10) : 0;
	c->n_best = c->exact ? 1 : FINALISTS;
	memset(c->best, 0, sizeof(c->best));
	c->low = c->top + 1 - c->base;
	c->tail[c->low] = (struct tail){ 0, 0 };
	if (!c->top)
		return false;
	memset(c->count, 0, (c->low + 1) * sizeof(*c->count));
	if (!c->exact)
		memset(c->rest, 0, (c->low + 1) * sizeof(*c->rest));
	row_count(c);
	return true;
}

/* Make the tails ready down to index i, and somewhat further. */
static void row_extend(struct search *c, uint32_t i)
{
	uint32_t to = i / EXTEND * EXTEND, at = c->low;
	struct tail t = c->tail[at];

	while (at > to) {
		uint32_t end = (at - 1) / EXTEND * EXTEND, p = c->base + at - 1;
		/* values within an octave are evenly spaced */
		int64_t value = fixed_of(p, c->base);
		int64_t space = fixed_of(p | 1, c->base) - fixed_of(p & ~1u, c->base);

		if (c->exact)
			for (; at > end; value -= space) {
				int64_t m = c->count[at--];

				t.count += m;
				t.sum += m * value;
				c->tail[at] = t;
			}
		else
			for (; at > end; value -= space) {
				int64_t m = c->count[at], rest = (int64_t)(c->rest[at--] >> 12);

				t.count += m;
				t.sum += m * value + (rest * space >> 4);
				c->tail[at] = t;
			}
	}
	c->low = at;
}

/* ---- the cost of a scale ------------------------------------------------- */

static uint32_t level(const struct search *c, float t)
{
	return c->format == EQ_Q_FP8 ? eq_level_fp8(t) : eq_level_int8(t);
}

/* False if the scale is too small for the format, as all smaller ones are. */
static bool evaluate(struct search *c, uint32_t bits, struct point *p)
{
	float scale = eq_float_of(bits << 16), inv = 1.0f / scale;
	uint32_t levels = level(c, c->absmax * inv);
	uint32_t first = eq_float_bits(c->f.mid[1] * scale) >> 16, last;
	int64_t ds = 0, dn = 0, v = 0, r = 0;
	bool beyond = levels > c->f.top;
	double cut_sum = 0;

	memset(p, 0, sizeof(*p));
	p->bits = bits;
	p->scale = scale;
	if (c->format == EQ_Q_FP8 && scale * 448 < c->absmax)
		return false;
	if (!levels)
		return true;
	if (first < c->base)
		return false;
	if (beyond)
		levels = c->f.top;
	row_extend(c, first - c->base);
	last = beyond ? levels + 1 : levels | 3;
	c->ops->edges(&c->f, last, c->exact, inv, scale, c->base, c->top, &c->edges);
	if (beyond) {
		/* outliers are exact, and have the symbol of the greatest level */
		const struct tail *cut = &c->tail[c->edges.edge[last--]];

		if (cut->count > c->outliers)
			return false;
		p->outliers = cut->count;
		cut_sum = (double)cut->sum;
		dn += c->f.step[levels] * cut->count;
	}
	/* by fours, since levels that do not occur add nothing; level 0 neither */
	c->edges.edge[0] = c->edges.centre[0] = c->top + 1 - c->base;
	for (uint32_t j = 0; j < last; j += 4)
#pragma GCC unroll 4
		for (uint32_t l = j; l < j + 4; l++) {
			const struct tail *e = &c->tail[c->edges.edge[l]];
			const struct tail *m = &c->tail[c->edges.centre[l]];

			ds += m->sum - e->sum;
			v += c->f.step[l] * m->count;
			dn += c->f.pair[l] * e->count;
			r += c->f.gap[l] * e->count;
		}
	p->dist = (2 * (double)ds - cut_sum) * c->unit +
		  (double)(dn - 2 * v) * ((double)scale * (double)c->f.unit);
	p->rate = c->nu * (double)r;
	p->crossed = (double)v * (double)c->f.unit;
	return true;
}

static void enter(struct search *c, const struct point *p, double cost)
{
	unsigned i = c->n_best - 1;

	for (unsigned j = 0; j <= i; j++)
		if (c->best[j].bits == p->bits)
			return;
	if (cost == c->best[i].cost && p->bits < c->best[i].bits)
		return;
	for (; i; i--) {
		const struct candidate *b = &c->best[i - 1];

		if (cost > b->cost || (cost == b->cost && p->bits < b->bits))
			break;
		c->best[i] = *b;
	}
	c->best[i] = (struct candidate){ cost, p->bits };
}

/* Enter a scale in the list of the best; among equals the greater is better. */
static inline void keep(struct search *c, const struct point *p)
{
	double cost = p->dist + p->rate;

	if (cost <= c->best[c->n_best - 1].cost && cost < 0)
		enter(c, p, cost);
}

/* May the scales between be good enough for the list? */
static bool worth(const struct search *c, const struct point *hi, const struct point *lo)
{
	double least = hi->dist < lo->dist ? hi->dist : lo->dist;
	double width = (double)hi->scale - (double)lo->scale;
	double dip = width * (lo->crossed - hi->crossed) / 2;
	double step = (double)eq_float_of((lo->bits + 1) << 16) - (double)lo->scale;

	/* the scales between are a step at least from either end of the chord */
	least += fabs(hi->dist - lo->dist) * (step / width);

	/* an outlier may be half a step off once it is one no more (int8) */
	dip += (double)(lo->outliers - hi->outliers) * (double)hi->scale / 2;
	/* the slack is for the rounding of doubles */
	return least - dip + hi->rate - c->total * 0x1p-40 <= c->best[c->n_best - 1].cost;
}

/* Least bfloat16 scale with which all units are certainly zero, in the range. */
static uint32_t greatest_scale(const struct search *c)
{
	double s = (double)c->absmax / (double)c->f.mid[1];
	uint32_t bits;

	if (s >= 0x1p126)
		return SCALE_MAX;
	bits = (eq_float_bits((float)s) >> 16) + 1;
	return bits < SCALE_MIN ? SCALE_MIN : bits;
}

/*
 * Evaluate in steps of COARSE downwards; returns the number of intervals. The
 * scale of the row before goes first, so that a good cost is known early; that
 * saves time and changes nothing else.
 */
static size_t first_pass(struct search *c, uint16_t hint)
{
	uint32_t bits = greatest_scale(c), step = COARSE;
	struct point *p = c->point;
	size_t n = 0;

	if (hint >= SCALE_MIN && hint <= bits && evaluate(c, hint, p))
		keep(c, p);
	if (!evaluate(c, bits, p))
		return 0;
	keep(c, p);
	while (step && p->rate - c->total <= c->best[c->n_best - 1].cost) {
		/* near the lower end of the range the steps shorten */
		if (bits < SCALE_MIN + step || !evaluate(c, bits - step, p + 1)) {
			step /= 2;
			continue;
		}
		bits -= step;
		keep(c, ++p);
		c->list[0][n] = (struct interval){ (uint16_t)n, (uint16_t)(n + 1) };
		n++;
	}
	c->n_points = (unsigned)n + 1;
	return n;
}

/* Halve the intervals that are worth it; returns how many there are then. What
 * all of them decide, all evaluations and all comparisons go together: processors
 * foresee little of it when they take turns. */
static size_t next_pass(struct search *c, const struct interval *list, size_t n,
			struct interval *out)
{
	unsigned first = c->n_points, at = first;
	size_t m = 0;

	for (size_t i = 0; i < n; i++) {
		const struct point *hi = &c->point[list[i].hi], *lo = &c->point[list[i].lo];
		uint32_t width = hi->bits - lo->bits;

		if (width < 2 || !worth(c, hi, lo))
			continue;
		c->point[at].bits = lo->bits + width / 2;
		out[m++] = (struct interval){ list[i].hi, (uint16_t)at };
		out[m++] = (struct interval){ (uint16_t)at++, list[i].lo };
	}
	for (unsigned i = first; i < at; i++)
		evaluate(c, c->point[i].bits, &c->point[i]);
	for (unsigned i = first; i < at; i++)
		keep(c, &c->point[i]);
	c->n_points = at;
	return m;
}

/* The best of the list by what the units themselves say. */
static uint32_t measure_best(struct search *c)
{
	struct candidate least = { 0, 0 };

	for (unsigned i = 0; i < c->n_best && c->best[i].bits; i++) {
		float scale = eq_float_of(c->best[i].bits << 16);
		struct eq_quant_lanes d = { { 0 } }, r = { { 0 } };
		double cost;

		c->ops->measure(c->w, c->dtype, c->format, c->k, 1.0f / scale, scale,
				&d, &r);
		cost = eq_quant_lanes_sum(&d) - c->total +
		       c->nu / (double)c->f.unit * eq_quant_lanes_sum(&r);
		if (cost < least.cost)
			least = (struct candidate){ cost, c->best[i].bits };
	}
	return least.bits;
}

static uint16_t search_row(struct search *c, uint16_t hint)
{
	size_t n;

	if (!row_begin(c))
		return 0;
	n = first_pass(c, hint);
	for (unsigned from = 0; n; from ^= 1)
		n = next_pass(c, c->list[from], n, c->list[from ^ 1]);
	return (uint16_t)(c->exact ? c->best[0].bits : measure_best(c));
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
	size_t row_bytes = t->k * eq_quant_unit(t->dtype);
	struct search *c = aligned_alloc(64, sizeof(*c));
	uint16_t scale = 0;

	if (!c) {
		__atomic_store_n(&job->status, -ENOMEM, __ATOMIC_RELAXED);
		return;
	}
	c->ops = eq_quant_ops_get();
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
		scale = search_row(c, scale);
		job->scale[row] = scale;
	}
	free(c);
}

double eq_quant_price(double lambda, double l1_total, uint64_t n_total)
{
	/* rate(q) = 2^-7 a step, in both formats */
	return lambda * 0x1p-7 * l1_total / (double)n_total;
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
	job.nu = eq_quant_price(lambda, l1_total, n_total);
	job.block_rows = eq_quant_block_rows(t->k);
	eq_pool_for(pool, (t->rows + job.block_rows - 1) / job.block_rows,
		    search_run, &job);
	return job.status;
}
