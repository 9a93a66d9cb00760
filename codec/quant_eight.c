/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scale of a short row of bfloat16. The same is sought as in quant_search.c by the
 * same sums, but of eight scales at once, whose mantissas begin with the same four bits.
 *
 * Such scales look up neighbouring bins: from one to the next the lower end of a level
 * moves up by less than two bins, so those of all eight lie among 16. Three planes have
 * 16 bits a bin, so 16 bins are a register, and a shuffle finds the bins of all eight.
 *
 *   - Counts. Rows have so few units that eight levels' counts, times 1 to 8, fit in 16
 *     bits.
 *   - What units weigh, in 27 bits. Of the two sums of weights that make the distortion
 *     only the difference counts, what units below the value of their level weigh. That
 *     fits if all units do; how many octaves may be told apart depends on their number.
 *
 * Nothing is rounded, so costs are what quant_row.c finds, in every bit. Rows that need
 * more octaves or outliers are left to quant_search.c.
 *
 * Beginning with the scales around the hint, eights are evaluated outwards, with growing
 * distances. What lies between two is halved until it cannot hold the best.
 */
#include <stdlib.h>
#include <string.h>

#include "quant_eight.h"
#include "quant_search.h"

#define UNITS ((1 << 16) / (8 * 9 / 2)) /* eight levels weigh 1 to 8 times their counts */
#define RUN 16                          /* and so many what they weigh */
#define GROUPS (EQ_ROW_OCTAVE / 8)
#define OCTAVE_MIN 32           /* of the greatest unit: no scale or level leaves the range */
#define OCTAVE_MAX 224
#define BELOW 208               /* bins summed below the first that are needed */
#define INNER 6                 /* eights on either side of the first that are evaluated anyway */
#define APART 3                 /* distances grow by a part of this */

/* Eight scales: the costs of the first and the last, to bound others. */
struct eight {
	uint32_t index;         /* bits / 8 */
	struct eq_row_point low, high;
};

struct eq_eights {
	struct eq_row *r;
	unsigned window;        /* octaves below that of the greatest unit that may be told */
	unsigned run;           /* levels whose counts, times 1 to so many, fit in 16 bits */

	/* by mantissa, in eights; levels side by side */
	uint8_t (*mask)[2][32];
	uint32_t (*at)[2];
	uint8_t filled[GROUPS];

	/* of the row */
	const uint8_t *w;
	float absmax;
	uint32_t off;           /* pattern of bin 0 */
	uint32_t lowest;        /* and of the first that may be told */
	uint32_t top;           /* bin of the greatest unit */
	uint32_t fits;          /* least scale that the format has levels for */
	uint32_t low;           /* least bin that is ready */
	double unit, total, slack;
	struct eq_row_best best;

	uint16_t count[EQ_PLANE_END];
	struct eq_quant_planes planes;
};

/* ---- the row's statistics ------------------------------------------------ */

/* The bin that b_1 of a scale is the first of; that of its value is an octave above. */
static int64_t first_bin(const struct eq_eights *e, uint32_t bits)
{
	return (int64_t)bits - eq_row_first_octave(e->r) * EQ_PLANE_OCTAVE - e->off;
}

static double sum_from(const struct eq_eights *e, int64_t bin)
{
	const struct eq_quant_planes *p = &e->planes;

	return (double)((uint32_t)p->coarse[bin] << EQ_PLANE_BITS | p->fine[bin]) * e->unit;
}

/* Count all units, and sum down to the bin and some more. */
static void row_count(struct eq_eights *e, int64_t bin)
{
	struct eq_quant_bins b = { .lift = 1, .shift = 16, .off = e->off };
	int64_t least = (int64_t)e->lowest - e->off;
	const struct eq_row *r = e->r;
	uint32_t at[EQ_STRIP];
	double below;

	bin = (bin < e->top ? bin : e->top) - BELOW;
	e->low = (uint32_t)(bin > least ? bin : least) / 16 * 16;
	/* those below are counted in a bin that is not asked for */
	b.least = e->off + e->low - 1;
	for (uint64_t k = 0; k < r->k; k += EQ_STRIP) {
		size_t n = r->k - k < EQ_STRIP ? r->k - k : EQ_STRIP;

		r->ops->bins(&b, e->w + 2 * k, EQ_BF16, n, at, NULL);
		for (size_t i = 0; i < n; i++)
			e->count[at[i]]++;
	}
	e->count[e->low - 1] = 0;
	r->ops->planes(&e->planes, e->count, e->low, e->off, e->lowest);
	below = (double)(r->k - e->planes.count[e->low]) *
		(double)eq_float_of((e->low + e->off) << 16);
	e->total = sum_from(e, e->low) + below;
	e->slack = e->total * r->rounding;
}

static bool scale_fits(const struct eq_eights *e, uint32_t bits)
{
	float scale = eq_float_of(bits << 16);

	return e->r->format == EQ_Q_FP8 ? scale * 448 >= e->absmax :
					  eq_level_int8(e->absmax * (1.0f / scale)) <= e->r->f.top;
}

/* False if it is not one for us. */
static bool row_begin(struct eq_eights *e, const void *w, uint16_t hint)
{
	uint32_t top = 0, octave;

	e->w = w;
	e->r->ops->most(w, EQ_BF16, e->r->k, &top);
	octave = top >> 23;
	if (octave < OCTAVE_MIN || octave > OCTAVE_MAX)
		return false;
	e->absmax = eq_float_of(top);
	e->off = (top >> 16) / 16 * 16 + 16 - EQ_PLANE_END;
	e->top = (top >> 16) - e->off;
	e->lowest = (octave - e->window) * EQ_PLANE_OCTAVE;
	/* a pattern's value is 128 and more of these in the lowest octave */
	e->unit = (double)eq_float_of(e->lowest << 16) / EQ_PLANE_OCTAVE;
	/* scales are an 8th apart in bits of a float: a good guess, and not too great */
	e->fits = eq_float_bits(e->absmax / (e->r->format == EQ_Q_FP8 ? 450 : 128)) >> 16;
	while (!scale_fits(e, e->fits))
		e->fits++;
	e->best = (struct eq_row_best){ 0, 0 };
	row_count(e, first_bin(e, hint));
	return true;
}

/* ---- the cost of scales -------------------------------------------------- */

/* The masks and places of levels after those that are filled up to n, of eight mantissas. */
static void group_fill(struct eq_eights *e, unsigned group, unsigned n)
{
	unsigned levels = eq_row_levels(e->r);

	for (unsigned i = 0; i < 8; i++) {
		const uint16_t *place = eq_row_places(e->r, 8 * group + i, n);

		for (unsigned j = e->filled[group]; j < n; j++)
			for (unsigned value = 0; value < 2; value++) {
				uint32_t at = place[value ? levels + j : j]; /* of two bytes */
				uint8_t *mask = e->mask[group * levels + j][value];
				uint32_t *first = &e->at[group * levels + j][value], byte;

				if (!i)
					*first = at;
				byte = at - *first;
				memset(mask + 2 * i, 0x80, 2);
				memset(mask + 16 + 2 * i, 0x80, 2);
				mask[byte / 16 * 16 + 2 * i] = (uint8_t)(byte % 16);
				mask[byte / 16 * 16 + 2 * i + 1] = (uint8_t)(byte % 16 + 1);
			}
	}
	e->filled[group] = (uint8_t)n;
}

static void point_set(struct eq_row_point *p, const struct eq_eights *e, uint32_t bits,
		      const struct eq_quant_costs *c)
{
	unsigned i = bits % 8;

	*p = (struct eq_row_point){ .bits = bits, .scale = eq_float_of(bits << 16),
				    .dist = c->dist[i], .rate = c->rate[i] };
	p->crossed[0] = p->crossed[1] = (double)c->crossed[i] * (double)e->r->f.unit;
}

/* How many levels the scales have to look up. */
static void levels_set(struct eq_eights *e, struct eq_quant_eight *q, unsigned group, float least)
{
	unsigned most = eq_row_levels(e->r), top = eq_row_level(e->r, e->absmax * (1.0f / least));

	q->levels = !top ? 1 : top < most ? top : most;
	q->more = top > most && e->r->format == EQ_Q_FP8 ? (top - 9) / 8 : 0;
	if (e->filled[group] < q->levels)
		group_fill(e, group, (q->levels + 7) & ~7u);
	q->mask = (const uint8_t (*)[2][32])&e->mask[group * most];
	q->at = (const uint32_t (*)[2])&e->at[group * most];
}

/* Evaluate eight scales of which at least one fits. */
static void evaluate(struct eq_eights *e, uint32_t index, struct eight *p)
{
	const struct eq_row *r = e->r;
	uint32_t octave = index / GROUPS, group = index % GROUPS, first = 8 * index;
	struct eq_quant_costs c;
	struct eq_quant_eight q = { .planes = &e->planes, .unit = e->unit, .nu = r->nu,
				    .run = e->run };

	q.bin = first_bin(e, octave * EQ_ROW_OCTAVE);
	levels_set(e, &q, group, eq_float_of((8 * index) << 16));
	q.first = EQ_ROW_OCTAVE + 8 * group;
	q.width = (double)eq_float_of(octave << 23) / EQ_ROW_OCTAVE * (double)r->f.unit;
	first = first > e->fits ? first : e->fits;
	if (r->ops->eight(&q, &c) <= e->best.cost)
		for (uint32_t bits = first; bits < 8 * (index + 1); bits++)
			eq_row_keep(&e->best, c.dist[bits % 8] + c.rate[bits % 8], bits);
	p->index = index;
	point_set(&p->low, e, first, &c);
	point_set(&p->high, e, 8 * index + 7, &c);
}

/* ---- the search ---------------------------------------------------------- */

/* Evaluate what may be worth it between two eights. */
static void halve(struct eq_eights *e, const struct eight *hi, const struct eight *lo)
{
	struct eight mid;

	if (hi->index - lo->index < 2 ||
	    !eq_row_worth(&hi->low, &lo->high, e->best.cost + e->slack))
		return;
	evaluate(e, lo->index + (hi->index - lo->index) / 2, &mid);
	halve(e, hi, &mid);
	halve(e, &mid, lo);
}

/*
 * No scale from this one up costs less. Units of a step s and more cost what a step does at
 * least, or s, if they are all that is left of them. Those below, w, cost w or s - w, or
 * more with a greater step.
 */
static double least_above(const struct eq_eights *e, const struct eq_row_point *p)
{
	int64_t bin = first_bin(e, p->bits), one = bin + EQ_PLANE_OCTAVE;
	double step = (double)p->scale * (double)e->r->f.unit, n = e->planes.count[bin];
	double n_one = e->planes.count[one];

	return sum_from(e, one) - 2 * sum_from(e, bin) + step * (n - n_one) +
	       (step < e->r->nu ? step : e->r->nu) * n_one;
}

/* From an eight upwards. */
static void search_up(struct eq_eights *e, struct eight from, uint32_t start, uint32_t most)
{
	struct eight next;

	while (from.index < most && least_above(e, &from.high) - e->slack <= e->best.cost) {
		uint32_t index = from.index + 1 + (from.index - start) / APART;

		evaluate(e, index < most ? index : most, &next);
		halve(e, &next, &from);
		from = next;
	}
}

/* Have the bins of a scale and above; false if there are none so far down. */
static bool reach(struct eq_eights *e, uint32_t bits)
{
	int64_t bin = first_bin(e, bits);

	if (bin < e->low)
		row_count(e, bin);
	return bin >= e->low;
}

/* From an eight downwards. False if what may be the best is not ours to find. */
static bool search_down(struct eq_eights *e, struct eight from, uint32_t start)
{
	uint32_t least = e->fits / 8;
	struct eight next;

	while (from.low.rate - e->total <= e->best.cost) {
		uint32_t apart = 1 + (start - from.index) / APART;
		uint32_t index = from.index > least + apart ? from.index - apart : least;

		if (from.index == least)
			return !e->r->outliers;
		if (!reach(e, 8 * index))
			return false;
		evaluate(e, index, &next);
		halve(e, &from, &next);
		from = next;
	}
	return true;
}

bool eq_eights_search(struct eq_eights *e, const void *w, uint16_t hint, uint16_t *scale)
{
	uint32_t most, least, start = hint / 8, index;
	struct eight low, high;

	if (!hint || !row_begin(e, w, hint))
		return false;
	most = eq_row_greatest(e->r, e->absmax) / 8;
	least = e->fits / 8;
	start = start < most ? start > least ? start : least : most;
	index = start > least + INNER ? start - INNER : least;
	if (!reach(e, 8 * index))
		return false;
	evaluate(e, start, &low);
	high = low;
	while (low.index > index)
		evaluate(e, low.index - 1, &low);
	while (high.index < most && high.index < start + INNER)
		evaluate(e, high.index + 1, &high);
	search_up(e, high, start, most);
	if (!search_down(e, low, start))
		return false;
	*scale = (uint16_t)e->best.bits;
	return true;
}

/* ---- memory -------------------------------------------------------------- */

bool eq_eights_fit(const struct eq_row *r)
{
	return r->ops->eight && r->dtype == EQ_BF16 && r->k <= UNITS;
}

struct eq_eights *eq_eights_new(struct eq_row *r)
{
	struct eq_eights *e = aligned_alloc(32, (sizeof(*e) + 31) / 32 * 32);
	size_t places = GROUPS * eq_row_levels(r);

	if (!e)
		return NULL;
	memset(e, 0, sizeof(*e));
	e->r = r;
	/* k units of up to 255 << window */
	while (e->window < EQ_PLANE_WINDOW && r->k << (e->window + 9) <= EQ_PLANE_SUMS)
		e->window++;
	e->run = r->k * (RUN * (RUN + 1) / 2) < 1 << 16 ? RUN : 8;
	e->mask = aligned_alloc(32, places * sizeof(*e->mask));
	e->at = malloc(places * sizeof(*e->at));
	if (e->mask && e->at)
		return e;
	eq_eights_free(e);
	return NULL;
}

void eq_eights_free(struct eq_eights *e)
{
	if (!e)
		return;
	free(e->mask);
	free(e->at);
	free(e);
}
