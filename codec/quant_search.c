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
 *    distance from the nearest s v_j, is piecewise linear. Over an interval [s, t]
 *    it lies below the chord only by its convex bends, where some s v_j crosses it
 *    and the slope rises by 2 v_j: at x by that times (x - s) (t - x) / (t - s) at
 *    most. With V(s) = sum v_j N(s v_j), which falls by v_j for each crossing, and
 *    y = (x - s) / (t - s), a scale of the interval costs at least
 *
 *      chord(y) - 2 (t - s) (V(s) - V(t)) y (1 - y) + rate(t)
 *
 *    An interval that cannot hold the least cost is dropped, the others are cut
 *    in halves: about 60 evaluations in all, instead of thousands. The first step
 *    begins with scales around that of the row before. Of all scales from s
 *    upwards, each costs as much as the units below b_1(s) weigh.
 *
 * 3. What is never looked up need not be summed: N and S are extended downwards as
 *    far as the candidates reach.
 *
 * Units of float16 have patterns of three bits more, and all else is the same. Those
 * of float32 are put into the bins of bfloat16, sorted by these, and what a boundary
 * cuts a bin into is counted by the units themselves. Their sums are rounded to a
 * 2^-50th of the greatest unit or so in rows of thousands; which level a unit belongs
 * to is exact.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant_ops.h"

/* Octaves below the greatest unit that are told apart. The smallest boundary is
 * absmax / 448 * 2^-10 for fp8; for int8 it lets outliers be 2^15 times greater
 * than the rest (2^12 times in float16), and smaller units then count as zeros.
 * Sums fit in 64 bits. */
#define WINDOW 24
#define WINDOW_F16 21
#define BINS (WINDOW_F16 << 10)
#define OCTAVE 128              /* scales in an octave */
#define COARSE 64               /* first step of the scales, half an octave */
#define POINTS ((WINDOW + 2) * OCTAVE)  /* scales in the range, at most */
#define EXTEND 32               /* bins summed at a time, part of an octave */
#define BATCH 8                 /* scales evaluated at a time */

#define SCALE_MIN 0x0080        /* 2^-126 */
#define SCALE_MAX 0x7e80        /* 2^126 */

/* S and N of the units of a bin and above, which are added side by side. */
typedef uint64_t tail __attribute__((vector_size(16), may_alias));
#define SUM 0
#define COUNT 1

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
	double nu;              /* price of a step of rate */
	uint64_t k;

	/* of the row */
	const uint8_t *w;
	float absmax;
	struct eq_quant_bins b;
	uint32_t end;           /* the bin behind the last */
	uint32_t low;           /* least bin that is ready */
	double total;           /* S(0) */
	double slack;           /* for what is rounded in bounds */
	double unit;            /* value of 1 in a sum */
	int64_t outliers;       /* most that are allowed */
	struct candidate best;

	struct eq_quant_edges edges[BATCH];
	uint32_t count[BINS + 3];       /* of bins; 0 has the units below the base */
	/* of bins from `low` on; two stores are cheaper than putting them together */
	int64_t tail[BINS + 3][2] __attribute__((aligned(16)));
	unsigned n_points;
	struct point point[POINTS + 1];
	struct interval list[2][POINTS / 2 + 2];        /* of two scales or more, disjoint */

	/* float32: sums of the bits below the pattern; places of the sorted ones */
	int64_t rest_sum[BINS + 2];
	uint32_t cursor[BINS + 2];
};

/* ---- the row's statistics ------------------------------------------------ */

static uint32_t bin_of(const struct search *c, uint32_t pattern)
{
	return pattern < c->b.base ? 0 : pattern - c->b.base + 1;
}

static void row_count(struct search *c)
{
	const uint16_t *h = (const uint16_t *)c->w;
	uint32_t mask = (1u << c->b.shift) - 1;

	if (c->dtype == EQ_BF16) {
		for (uint64_t i = 0; i < c->k; i++)
			c->count[bin_of(c, h[i] & 0x7fff)]++;
		return;
	}
	for (uint64_t k = 0; k < c->k; k += EQ_STRIP) {
		size_t n = c->k - k < EQ_STRIP ? c->k - k : EQ_STRIP;
		uint32_t u[EQ_STRIP];

		c->ops->widen(u, c->w + k * eq_quant_unit(c->dtype), c->dtype, n);
		for (size_t i = 0; i < n; i++) {
			uint32_t bin = bin_of(c, u[i] >> c->b.shift);

			c->count[bin]++;
			if (c->b.rests)
				c->rest_sum[bin] += u[i] & mask;
		}
	}
}

/* False if all units are zero. */
static bool row_begin(struct search *c)
{
	struct eq_quant_lanes lanes = { { 0 } };
	unsigned window = c->dtype == EQ_F16 ? WINDOW_F16 : WINDOW;
	uint32_t top = 0, octave, least;

	c->ops->scan(c->w, c->dtype, c->k, &top, &lanes);
	c->total = eq_quant_lanes_sum(&lanes);
	c->absmax = eq_float_of(top);
	octave = top >> 23;
	least = octave < window ? 0 : octave - window + 1;
	c->b.top = top >> c->b.shift;
	c->b.base = least << (23 - c->b.shift);
	c->low = c->end = c->b.top - c->b.base + 2;
	c->unit = ldexp(1, (int)(least ? least : 1) - 150 + (int)(c->b.shift - c->b.extra));
	/* sums of rests lose up to a unit in a bin, and count twice */
	c->slack = c->total * 0x1p-40 + (c->b.rests ? 2 * (double)c->end * c->unit : 0);
	/* an outlier takes 8 bytes: a 16th of a bit a unit at most */
	c->outliers = c->format == EQ_Q_INT8 ? (int64_t)(c->k >> 10) : 0;
	c->best = (struct candidate){ 0, 0 };
	if (!top)
		return false;
	memset(c->count, 0, (c->end + 1) * sizeof(*c->count));
	memset(c->tail[c->end], 0, 2 * sizeof(c->tail[0]));
	if (c->b.rests)
		memset(c->rest_sum, 0, (c->end + 1) * sizeof(*c->rest_sum));
	row_count(c);
	return true;
}

/* Sum down to the bin, and somewhat further. */
static void row_extend(struct search *c, uint32_t bin)
{
	uint32_t to = (bin - 1) / EXTEND * EXTEND, at = c->low - 1, one = 1u << (23 - c->b.shift);
	int64_t sum = c->tail[c->low][SUM], n = c->tail[c->low][COUNT];

	while (at > to) {
		/* values within an octave are evenly spaced */
		uint32_t p = c->b.base + at - 1, octave = p & -one;
		uint32_t end = octave > c->b.base + to ? octave - c->b.base : to;
		int64_t space = INT64_C(1) << (eq_bins_exponent(&c->b, p) + c->b.extra);
		int64_t value = (p < one ? p : p % one + one) * space;

		if (c->b.rests)
			for (uint32_t i = at; i > end; i--, p--)
				c->rest_sum[i] = eq_bins_sum(&c->b, p, 0, c->rest_sum[i]);
		for (; at > end; value -= space, at--) {
			sum += c->count[at] * value;
			if (c->b.rests)
				sum += c->rest_sum[at];
			n += c->count[at];
			c->tail[at][SUM] = sum;
			c->tail[at][COUNT] = n;
		}
	}
	c->low = at + 1;
}

/* Sort the rests of all units by bins; those of bins that are not ready come last. */
static void row_sort(struct search *c)
{
	uint32_t last = c->low - 1, shift = c->b.shift, mask = (1u << shift) - 1;

	for (uint32_t i = last; i < c->end; i++)
		c->cursor[i] = (uint32_t)c->tail[i + 1][COUNT];
	for (uint64_t i = 0; i < c->k; i++) {
		uint32_t u, bin;

		memcpy(&u, c->w + 4 * i, sizeof(u));
		u &= 0x7fffffff;
		bin = bin_of(c, u >> shift);
		bin = bin > last ? bin : last;
		c->b.rest[c->cursor[bin]++] = (uint16_t)(u & mask);
	}
}

/* Make bins ready from this one on. */
static void row_reach(struct search *c, uint32_t bin)
{
	uint32_t octave = 1u << (23 - c->b.shift);

	if (bin >= c->low)
		return;
	if (c->b.rests)         /* seldom, since then all is sorted again */
		bin = bin > octave ? bin - octave : 1;
	row_extend(c, bin);
	if (c->b.rests)
		row_sort(c);
}

/* ---- the cost of a scale ------------------------------------------------- */

struct sums {                   /* of distortion, less the units' value; V, rate */
	uint64_t ds, dn, v, r;  /* modulo 2^64: all of them fit in the end */
};

/* The sum of the m-th of eight tails and m times the same, m = 1 to 8: a running
 * sum, and one of that. */
static inline void add_eight(const int64_t *tails, const uint32_t *at, tail *sum, tail *weighed)
{
	*sum = *weighed = (tail){ 0, 0 };
#pragma GCC unroll 8
	for (unsigned m = 8; m; m--) {
		*sum += *(const tail *)&tails[at[m]];
		*weighed += *sum;
	}
}

/* The sums over all levels, by eights from one behind: 8 b + m has the step
 * base + m gap, and gap is what divides it from the one before. Levels that do not
 * occur add nothing. */
static struct sums sums_of(const struct search *c, const struct eq_quant_edges *e, unsigned levels,
			   const int64_t *tails)
{
	struct sums s = { 0 };

	for (unsigned l = 0; l < levels; l += 8) {
		uint64_t gap = (uint64_t)c->f.gap[l + 1], base = (uint64_t)c->f.step[l + 1] - gap;
		tail sum, weighed;

		add_eight(tails, e->edge + l, &sum, &weighed);
		s.ds -= sum[SUM];
		s.r += gap * sum[COUNT];
		/* of pairs of steps */
		s.dn += (2 * base - gap) * sum[COUNT] + 2 * gap * weighed[COUNT];
		add_eight(tails, e->centre + l, &sum, &weighed);
		s.ds += sum[SUM];
		s.v += base * sum[COUNT] + gap * weighed[COUNT];
	}
	return s;
}

static uint32_t level(const struct search *c, float t)
{
	return c->format == EQ_Q_FP8 ? eq_level_fp8(t) : eq_level_int8(t);
}

static uint32_t first_bin(const struct search *c, float scale)
{
	uint32_t p = eq_float_bits(c->f.mid[1] * scale) >> c->b.shift;

	return p > c->b.top ? c->end : bin_of(c, p);
}

/* False if the scale is too small for the format or the window, as all smaller
 * ones are. */
static bool fits(const struct search *c, uint32_t bits)
{
	float scale = eq_float_of(bits << 16);

	return first_bin(c, scale) && (c->format != EQ_Q_FP8 || scale * 448 >= c->absmax);
}

/* Evaluate n <= BATCH scales, which fit and fall. */
static void evaluate_batch(struct search *c, struct point *p, unsigned n)
{
	float scale[BATCH], inv[BATCH];
	uint32_t levels;
	bool beyond;

	for (unsigned i = 0; i < n; i++) {
		p[i].scale = scale[i] = eq_float_of(p[i].bits << 16);
		inv[i] = 1.0f / scale[i];
	}
	row_reach(c, first_bin(c, scale[n - 1]));
	levels = level(c, c->absmax * inv[n - 1]);
	beyond = levels > c->f.top;
	if (beyond)
		levels = c->f.top;
	c->ops->edges(&c->f, &c->b, (levels | 7) + 1, n, scale, inv, c->edges);
	for (unsigned i = 0; i < n; i++) {
		struct eq_quant_edges *e = &c->edges[i];
		const int64_t *tails = c->tail[0];
		tail cut = { 0 };
		struct sums s;

		if (c->b.rests) {
			unsigned own = level(c, c->absmax * inv[i]);

			c->ops->tails(&c->b, e, own > c->f.top ? levels + 1 : own, (levels | 7) + 1);
			tails = e->tail[0];
		}
		if (beyond) {
			/* outliers are exact, and have the symbol of the greatest level */
			cut = *(const tail *)&tails[e->edge[levels + 1]];
			e->edge[levels + 1] = e->centre[levels + 1] = c->b.rests ? 0 : 2 * c->end;
		}
		s = sums_of(c, e, levels, tails);
		s.dn += (uint64_t)c->f.step[levels] * cut[COUNT];
		p[i].outliers = (int64_t)cut[COUNT];
		p[i].dist = (2 * (double)(int64_t)s.ds - (double)(int64_t)cut[SUM]) * c->unit +
			    (double)(int64_t)(s.dn - 2 * s.v) *
				    ((double)scale[i] * (double)c->f.unit);
		p[i].rate = c->nu * (double)(int64_t)s.r;
		p[i].crossed = (double)(int64_t)s.v * (double)c->f.unit;
	}
}

/* Keep the best scale; among equals the greater is better. */
static inline void keep(struct search *c, const struct point *p)
{
	double cost = p->dist + p->rate;

	if (cost < c->best.cost ||
	    (cost == c->best.cost && cost < 0 && p->bits > c->best.bits))
		c->best = (struct candidate){ cost, p->bits };
}

/* Evaluate scales, and return how many there are before the first with too many
 * outliers; all after it have as well. */
static unsigned evaluate(struct search *c, struct point *p, unsigned n)
{
	for (unsigned i = 0; i < n; i += BATCH)
		evaluate_batch(c, p + i, n - i < BATCH ? n - i : BATCH);
	for (unsigned i = 0; i < n; i++) {
		if (p[i].outliers > c->outliers)
			return i;
		keep(c, &p[i]);
	}
	return n;
}

/* ---- the search ---------------------------------------------------------- */

/* May one of the scales between be the best? */
static bool worth(const struct search *c, const struct point *hi, const struct point *lo)
{
	double least = hi->dist < lo->dist ? hi->dist : lo->dist, rise = fabs(hi->dist - lo->dist);
	double width = (double)hi->scale - (double)lo->scale;
	double bend = 2 * width * (lo->crossed - hi->crossed);
	double step = (double)eq_float_of((lo->bits + 1) << 16) - (double)lo->scale;
	/* how far from the lesser end the bound is least, which is a step at least */
	double y = 0.5 - 0.5 * rise / bend, nearest = step / width;

	y = y > nearest ? y : nearest;
	least += y * (rise - bend * (1 - y));
	/* an outlier may be half a step off once it is one no more (int8) */
	least -= (double)(lo->outliers - hi->outliers) * (double)hi->scale / 2;
	return least + hi->rate - c->slack <= c->best.cost;
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

/* Where to begin: no scale above costs as little as one near the hint. */
static uint32_t first_scale(struct search *c, uint32_t hint)
{
	uint32_t most = greatest_scale(c), bits = hint;

	if (hint < SCALE_MIN || hint > most || !fits(c, hint))
		return most;
	c->point[0].bits = hint;
	if (!evaluate(c, c->point, 1))
		return most;
	do
		bits += COARSE;
	while (bits < most && -(double)c->tail[first_bin(c, eq_float_of(bits << 16))][SUM] * c->unit -
			      c->slack <= c->best.cost);
	return bits < most ? bits : most;
}

/* How many scales, by steps downwards, are to be evaluated at once: those to an
 * octave below the hint, and of these the ones that fit. */
static unsigned first_run(const struct search *c, struct point *p, uint32_t bits, uint32_t step,
			  uint32_t hint)
{
	unsigned n = 0;

	p[n++].bits = bits;
	while (hint && n < BATCH && bits >= SCALE_MIN + step && bits - step + 2 * COARSE >= hint) {
		bits -= step;
		p[n++].bits = bits;
	}
	while (n && !fits(c, p[n - 1].bits))
		n--;
	return n;
}

/*
 * Evaluate in steps of COARSE downwards; returns the number of intervals. The
 * scale of the row before goes first, so that a good cost is known early; that
 * saves time and changes nothing else.
 */
static size_t first_pass(struct search *c, uint16_t hint)
{
	uint32_t bits = first_scale(c, hint), step = COARSE;
	struct point *p = c->point;
	size_t n = 0;

	do {
		/* near the lower end of the range the steps shorten */
		unsigned m = first_run(c, p + n, bits, step, hint), valid = m ? evaluate(c, p + n, m) : 0;

		n += valid;
		if (!n)
			return 0;
		if (valid < m || !m)
			step /= 2;
		while (step && p[n - 1].bits < SCALE_MIN + step)
			step /= 2;
		bits = p[n - 1].bits - step;
	} while (step && p[n - 1].rate - c->total <= c->best.cost);
	for (size_t i = 0; i + 1 < n; i++)
		c->list[0][i] = (struct interval){ (uint16_t)i, (uint16_t)(i + 1) };
	c->n_points = (unsigned)n;
	return n - 1;
}

/* Halve the intervals that are worth it; returns how many there are then. What is
 * not worth it is overwritten: processors foresee little of it. */
static size_t next_pass(struct search *c, const struct interval *list, size_t n,
			struct interval *out)
{
	unsigned first = c->n_points, at = first;
	size_t m = 0;

	for (size_t i = 0; i < n; i++) {
		const struct point *hi = &c->point[list[i].hi], *lo = &c->point[list[i].lo];
		uint32_t width = hi->bits - lo->bits;
		bool halve;

		if (width < 2)
			continue;
		halve = worth(c, hi, lo);
		c->point[at].bits = lo->bits + width / 2;
		out[m] = (struct interval){ list[i].hi, (uint16_t)at };
		out[m + 1] = (struct interval){ (uint16_t)at, list[i].lo };
		m += 2 * halve;
		at += halve;
	}
	evaluate(c, c->point + first, at - first);
	c->n_points = at;
	return m;
}

static uint16_t search_row(struct search *c, uint16_t hint)
{
	size_t n;

	if (!row_begin(c))
		return 0;
	n = first_pass(c, hint);
	for (unsigned from = 0; n; from ^= 1)
		n = next_pass(c, c->list[from], n, c->list[from ^ 1]);
	return (uint16_t)c->best.bits;
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

static struct search *search_new(const struct eq_quant_tensor *t, enum eq_qformat format,
				 double nu)
{
	struct search *c = aligned_alloc(64, sizeof(*c) + -sizeof(*c) % 64);

	if (!c)
		return NULL;
	c->ops = eq_quant_ops_get();
	eq_quant_format_init(&c->f, format);
	c->format = format;
	c->dtype = t->dtype;
	c->nu = nu;
	c->k = t->k;
	c->b.shift = t->dtype == EQ_F16 ? 13 : 16;
	c->b.rests = t->dtype == EQ_F32;
	c->b.extra = 0;
	c->b.rest = NULL;
	c->b.count = c->count;
	c->b.tail = c->tail;
	if (!c->b.rests)
		return c;
	/* a unit of 31 bits and k of them leave these of 62 */
	while (c->b.extra < 31 && t->k >> (31 - c->b.extra - 1) == 0)
		c->b.extra++;
	c->b.rest = malloc((t->k + EQ_QUANT_REST_SLACK) * sizeof(*c->b.rest));
	if (c->b.rest)
		return c;
	free(c);
	return NULL;
}

static void search_run(void *arg, size_t index)
{
	struct search_job *job = arg;
	const struct eq_quant_tensor *t = job->t;
	uint64_t row = index * job->block_rows, end = row + job->block_rows;
	size_t row_bytes = t->k * eq_quant_unit(t->dtype);
	struct search *c = search_new(t, job->format, job->nu);
	uint16_t scale = 0;

	if (!c) {
		__atomic_store_n(&job->status, -ENOMEM, __ATOMIC_RELAXED);
		return;
	}
	if (end > t->rows)
		end = t->rows;
	for (; row < end; row++) {
		c->w = (const uint8_t *)t->w + row * row_bytes;
		scale = search_row(c, scale);
		job->scale[row] = scale;
	}
	free(c->b.rest);
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
