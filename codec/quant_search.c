/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scale of a row: of all bfloat16 scales in the range, the one of least
 * cost, and the greatest of these if several have it. (What a scale costs is found by
 * quant_row.c.)
 *
 * As s rises the rate falls, for each unit. The distortion of a unit, its distance
 * from the nearest s v_j, is piecewise linear. Over an interval [s, t] it lies below
 * the chord only by its convex bends, where some s v_j crosses it and the slope rises
 * by 2 v_j: at x by that times (x - s) (t - x) / (t - s) at most. With
 * V(s) = sum v_j N(s v_j), which falls by v_j for each crossing, and
 * y = (x - s) / (t - s), a scale of the interval costs at least
 *
 *   chord(y) - 2 (t - s) (V(s) - V(t)) y (1 - y) + rate(t)
 *
 * An interval that cannot hold the least cost is dropped, the others are cut in halves:
 * about 60 evaluations in all, instead of thousands. The first step begins with scales
 * around that of the row before. Of all scales from s upwards, each costs as much as
 * the units below b_1(s) weigh.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "quant_eight.h"
#include "quant_search.h"

#define COARSE 32               /* first step of the scales, half an octave */
#define POINTS ((EQ_ROW_WINDOW + 2) * EQ_ROW_OCTAVE)    /* scales in the range, at most */
#define FIRST 8                 /* first scales evaluated at a time */

struct interval {               /* of points */
	uint16_t hi, lo;
};

struct search {
	struct eq_row *r;
	struct eq_eights *eights;       /* NULL if rows are not short */
	double total;           /* S(0), or somewhat more */
	double slack;           /* for what is rounded in bounds */
	struct eq_row_best best;
	unsigned n_points;
	struct eq_row_point point[POINTS + 1];
	struct interval list[2][POINTS + 2];    /* disjoint; all may be worth it where costs tie */
};

/* Count a scale in, whose cost is known or bounded. False if it has too many outliers. */
static bool consider(struct search *c, struct eq_row_point *p)
{
	const struct eq_row *r = c->r;

	if (p->outliers[0] > r->outliers)
		return false;
	if (!r->exact) {
		if (p->dist + p->rate - c->slack > c->best.cost)
			return true;
		eq_row_ask(r, p);
		if (p->outliers[0] > r->outliers)
			return false;
	}
	eq_row_keep(&c->best, p->dist + p->rate, p->bits);
	return true;
}

/* Evaluate scales, which fall, and return how many there are before the first with too
 * many outliers; all after it have as well. */
static unsigned evaluate(struct search *c, struct eq_row_point *p, unsigned n)
{
	if (!n)
		return 0;
	eq_row_evaluate(c->r, p, n);
	if (!(c->total > 0)) {
		c->total = eq_row_total(c->r);
		c->slack = c->total * c->r->rounding;
	}
	for (unsigned i = 0; i < n; i++)
		if (!consider(c, &p[i]))
			return i;
	return n;
}

/* ---- the search ---------------------------------------------------------- */

/* Where to begin: no scale above costs as little as one near the hint. */
static uint32_t first_scale(struct search *c, uint32_t hint)
{
	uint32_t most = eq_row_greatest(c->r, c->r->absmax), bits = hint;

	if (hint < EQ_ROW_SCALE_MIN || hint > most || !eq_row_fits(c->r, hint))
		return most;
	c->point[0].bits = hint;
	if (!evaluate(c, c->point, 1))
		return most;
	do
		bits += COARSE;
	while (bits < most && -eq_row_weight(c->r, bits) - c->slack <= c->best.cost);
	return bits < most ? bits : most;
}

/* How many scales, by steps downwards, are to be evaluated at once: those to an
 * octave below the hint, and of these the ones that fit. */
static unsigned first_run(const struct search *c, struct eq_row_point *p, uint32_t bits, uint32_t step,
			  uint32_t hint)
{
	unsigned n = 0;

	p[n++].bits = bits;
	while (hint && n < FIRST && bits >= EQ_ROW_SCALE_MIN + step && bits - step + EQ_ROW_OCTAVE >= hint) {
		bits -= step;
		p[n++].bits = bits;
	}
	while (n && !eq_row_fits(c->r, p[n - 1].bits))
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
	struct eq_row_point *p = c->point;
	size_t n = 0;

	do {
		/* near the lower end of the range the steps shorten */
		unsigned m = first_run(c, p + n, bits, step, hint), valid = m ? evaluate(c, p + n, m) : 0;

		n += valid;
		if (!n)
			return 0;
		if (valid < m || !m)
			step /= 2;
		while (step && p[n - 1].bits < EQ_ROW_SCALE_MIN + step)
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
		const struct eq_row_point *hi = &c->point[list[i].hi], *lo = &c->point[list[i].lo];
		uint32_t width = hi->bits - lo->bits;
		bool halve;

		if (width < 2)
			continue;
		halve = eq_row_worth(hi, lo, c->best.cost + c->slack);
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

static uint16_t search_row(struct search *c, const void *w, uint16_t hint)
{
	uint16_t scale;
	size_t n;

	if (c->eights && eq_eights_search(c->eights, w, hint, &scale))
		return scale;
	if (!eq_row_begin(c->r, w, hint))
		return 0;
	c->best = (struct eq_row_best){ 0, 0 };
	c->total = 0;
	c->slack = INFINITY;
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

static struct search *search_new(const struct search_job *job)
{
	struct search *c = malloc(sizeof(*c));

	if (!c)
		return NULL;
	c->eights = NULL;
	c->r = eq_row_new(job->t, job->format, job->nu);
	if (c->r && !eq_eights_fit(c->r))
		return c;
	c->eights = c->r ? eq_eights_new(c->r) : NULL;
	if (c->eights)
		return c;
	eq_row_free(c->r);
	free(c);
	return NULL;
}

static void search_run(void *arg, size_t index)
{
	struct search_job *job = arg;
	const struct eq_quant_tensor *t = job->t;
	uint64_t row = index * job->block_rows, end = row + job->block_rows;
	size_t row_bytes = t->k * eq_quant_unit(t->dtype);
	struct search *c = search_new(job);
	uint16_t scale = 0;

	if (!c) {
		__atomic_store_n(&job->status, -ENOMEM, __ATOMIC_RELAXED);
		return;
	}
	if (end > t->rows)
		end = t->rows;
	for (; row < end; row++) {
		scale = search_row(c, (const uint8_t *)t->w + row * row_bytes, scale);
		job->scale[row] = scale;
	}
	eq_eights_free(c->eights);
	eq_row_free(c->r);
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
