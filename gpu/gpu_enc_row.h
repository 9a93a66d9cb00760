/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the search for a row's scale asks of its units, by a warp: how many there are
 * from some magnitude upwards, and their sum, as integers, so that the order in which
 * they are added up does not count. The CPU has the same in codec/quant_row.c.
 *
 * Those of bfloat16 are counted in bins, one a pattern, of which a row has few enough
 * for shared memory. Those of float16 and float32 are sorted, and looked up by halving.
 */
#ifndef EQ_GPU_ENC_ROW_H
#define EQ_GPU_ENC_ROW_H

#include "gpu_enc_quant.h"

/* Octaves below the greatest unit that are told apart. */
#define EQ_ROW_WINDOW 24
#define EQ_ROW_WINDOW_F16 21
#define EQ_ROW_OCTAVE 128       /* patterns of bfloat16 */
#define EQ_ROW_BINS (EQ_ROW_WINDOW * EQ_ROW_OCTAVE)
/* Bins a lane adds up, an odd number: then lanes are in different banks. */
#define EQ_ROW_RUN (EQ_ROW_BINS / 32 + 1)
/* Rows of float32 have fewer units: from here on not all bits of all octaves would fit
 * into a sum. (The CPU has wider ones for the scales that count.) */
#define EQ_ROW_F32_LIMIT 0x8000

#define EQ_ROW_POINTS 64        /* coarse ones: half octaves of the range, and its end */
#define EQ_ROW_DEPTH 8          /* halvings of a coarse interval */

struct eq_row_point {           /* a scale that has been tried */
	double dist, rate, crossed;
	float scale;
	uint32_t bits, outliers;
};

struct eq_row_points {
	struct eq_row_point point[EQ_ROW_POINTS], stack[EQ_ROW_DEPTH];
};

/*
 * Memory that a warp shares. Bin 0 is of magnitudes below the base, bin 1 + i of
 * pattern base + i. First each has what is in it, then count and sum have what is in
 * it and all above.
 */
struct eq_row_bins {
	struct eq_row_points points;
	int64_t sum[32 * EQ_ROW_RUN];
	uint32_t count[32 * EQ_ROW_RUN];
};

/* The same for a row that is sorted, whose units lie elsewhere. */
struct eq_row_sorter {
	struct eq_row_points points;
	uint32_t place[258];    /* the next one of each digit, and of none */
};

/* Rows that the search is not for are the CPU's. */
EQ_BOTH bool eq_row_has_sums(int dtype, uint64_t k)
{
	return dtype != EQ_F32 || k < EQ_ROW_F32_LIMIT;
}

struct eq_row_best {
	double cost;
	uint32_t bits;
};

struct eq_row {
	struct eq_row_points *points;
	/* of bins; or magnitudes in ascending order, and the sum of each and all behind */
	int64_t *sum;
	uint32_t *count, *sorted;

	const struct eq_quant_format *f;
	const unsigned char *w;
	uint64_t k;
	double nu, total, unit;
	float absmax;
	uint32_t top, base, end;        /* patterns; end: index behind that of top */
	uint32_t outliers;
	struct eq_row_best best;        /* bits 0: all units zero */
};

/* 2^e, of a normal double */
EQ_DEV double eq_row_power(int e)
{
	uint64_t bits = (uint64_t)(1023 + e) << 52;
	double d;

	memcpy(&d, &bits, sizeof(d));
	return d;
}

/* Bits of a float32 that units do not have. */
EQ_DEV uint32_t eq_row_spare(const int dtype)
{
	return dtype == EQ_BF16 ? 16 : dtype == EQ_F16 ? 13 : 0;
}

/* False if all units are zero. */
EQ_DEV bool eq_row_begin(struct eq_row *c, const struct eq_gpu_rows *r, uint64_t row,
			 const int dtype, const bool fp8)
{
	const uint32_t window = dtype == EQ_F16 ? EQ_ROW_WINDOW_F16 : EQ_ROW_WINDOW;
	uint32_t octave;

	c->f = r->format;
	c->nu = r->nu;
	c->k = r->k;
	c->w = eq_row_of(r, row, dtype);
	c->total = r->sum[row];
	c->absmax = eq_float_of(r->top[row]);
	c->top = r->top[row] >> 16;
	octave = c->top / EQ_ROW_OCTAVE;
	c->base = octave < window ? 0 : (octave - window + 1) * EQ_ROW_OCTAVE;
	c->end = c->top + 1 - c->base;
	c->unit = eq_row_power((int)(c->base ? c->base / EQ_ROW_OCTAVE : 1) - 150 +
			       (int)eq_row_spare(dtype));
	c->outliers = fp8 ? 0 : (uint32_t)(c->k >> 10);
	c->best.cost = 0;
	c->best.bits = 0;
	return r->top[row] != 0;
}

/* A magnitude in units of c->unit; 0 below the base. */
EQ_DEV int64_t eq_row_fixed(const struct eq_row *c, uint32_t u, const int dtype)
{
	uint32_t octave = u >> 23, least = c->base ? c->base / EQ_ROW_OCTAVE : 1;
	int64_t m = (u & 0x7fffff) >> eq_row_spare(dtype);

	m |= octave ? 1 << (23 - eq_row_spare(dtype)) : 0;
	octave = octave ? octave : 1;
	return u >> 16 < c->base ? 0 : m << ((octave - least) & 31);
}

/* ---- bins (bfloat16) ---------------------------------------------------------------- */

EQ_DEV void eq_row_count(const struct eq_row *c)
{
	EQ_EACH_LANE {
		for (uint32_t i = lane; i <= c->end; i += 32)
			c->count[i] = 0;
	}
	EQ_WARP_SYNC();
	EQ_EACH_LANE {
		for (uint64_t i = lane; i < c->k; i += 32) {
			uint32_t p = eq_unit_bits(c->w, i, EQ_BF16) & 0x7fff;

			EQ_COUNT(&c->count[p < c->base ? 0 : p - c->base + 1]);
		}
	}
	EQ_WARP_SYNC();
}

/* From what is in the bins to what is in them and above: each lane has a run. */
EQ_DEV void eq_row_tails(const struct eq_row *c)
{
	uint32_t run = (c->end + 32) / 32 | 1;
	EQ_PER_LANE(int64_t, sum);
	EQ_PER_LANE(int64_t, count);

	EQ_EACH_LANE {
		uint32_t first = lane * run, i = first + run;
		int64_t s = 0, n = 0;

		i = i < c->end + 1 ? i : c->end + 1;
		while (i > first && i-- > 1) {
			s += eq_row_fixed(c, (c->base + i - 1) << 16, EQ_BF16) * c->count[i];
			n += c->count[i];
			c->sum[i] = s;
			c->count[i] = (uint32_t)n;
		}
		EQ_AT(sum) = s;
		EQ_AT(count) = n;
	}
	EQ_SUM_ABOVE(sum);
	EQ_SUM_ABOVE(count);
	EQ_EACH_LANE {
		uint32_t first = lane * run, i = first ? first : 1;

		for (; i < first + run && i <= c->end; i++) {
			c->sum[i] += EQ_AT(sum);
			c->count[i] += (uint32_t)EQ_AT(count);
		}
	}
	EQ_WARP_SYNC();
}

/* ---- sorting (float16, float32) ----------------------------------------------------- */

/* Memory of a sorted row: a sum more than units, and these. */
EQ_BOTH uint64_t eq_row_sorted_bytes(uint64_t k)
{
	return (12 * k + 8 + 15) / 16 * 16;
}

/* Where each digit of n begins, from how many there are of it: a lane has eight. */
EQ_DEV void eq_row_places(uint32_t *place, uint32_t n)
{
	EQ_PER_LANE(int64_t, above);

	EQ_EACH_LANE {
		EQ_AT(above) = 0;
		for (unsigned d = 8 * lane; d < 8 * lane + 8; d++)
			EQ_AT(above) += place[d];
	}
	EQ_SUM_ABOVE(above);
	EQ_EACH_LANE {
		uint32_t behind = (uint32_t)EQ_AT(above);

		for (unsigned d = 8 * lane + 8; d-- > 8 * lane;) {
			behind += place[d];
			place[d] = n - behind;
		}
	}
	EQ_WARP_SYNC();
}

/* Sort n keys by eight of their bits; those that have the same stay in order. */
EQ_DEV void eq_row_sort_by(const uint32_t *from, uint32_t *to, uint32_t n, unsigned shift,
			   uint32_t *place)
{
	EQ_PER_LANE_N(uint32_t, key, 4);
	EQ_PER_LANE_N(uint32_t, digit, 4);
	EQ_PER_LANE_N(uint32_t, same, 4);
	EQ_PER_LANE(uint32_t, at);

	EQ_EACH_LANE {
		for (unsigned d = lane; d < 257; d += 32)
			place[d] = 0;
	}
	EQ_WARP_SYNC();
	EQ_EACH_LANE {
		for (uint32_t i = lane; i < n; i += 32)
			EQ_COUNT(&place[from[i] >> shift & 255]);
	}
	EQ_WARP_SYNC();
	eq_row_places(place, n);
	/* four groups at a time, so that nobody waits for each */
	for (uint32_t i = 0; i < n; i += 128) {
		EQ_EACH_LANE {
			EQ_UNROLL
			for (unsigned g = 0; g < 4; g++) {
				uint32_t own = i + 32 * g + lane;

				EQ_AT(key)[g] = own < n ? from[own] : 0;
				EQ_AT(digit)[g] = own < n ? EQ_AT(key)[g] >> shift & 255 : 256;
			}
		}
		EQ_UNROLL
		for (unsigned g = 0; g < 4; g++)
			EQ_MATCH(same, digit, g);
		EQ_UNROLL
		for (unsigned g = 0; g < 4; g++) {
			EQ_EACH_LANE
				EQ_AT(at) = place[EQ_AT(digit)[g]] +
					    eq_popc(EQ_AT(same)[g] & EQ_LANES_BELOW);
			EQ_WARP_SYNC();
			EQ_EACH_LANE {
				if (EQ_AT(digit)[g] < 256)
					to[EQ_AT(at)] = EQ_AT(key)[g];
				if (!(EQ_AT(same)[g] & EQ_LANES_BELOW))
					place[EQ_AT(digit)[g]] += eq_popc(EQ_AT(same)[g]);
			}
			EQ_WARP_SYNC();
		}
	}
}

/* The units' magnitudes as keys, sorted. */
EQ_DEV void eq_row_sort(const struct eq_row *c, uint32_t *place, const int dtype)
{
	uint32_t n = (uint32_t)c->k, *other = (uint32_t *)(void *)c->sum;

	EQ_EACH_LANE {
		for (uint32_t i = lane; i < n; i += 32)
			c->sorted[i] = eq_unit_bits(c->w, i, dtype) &
				       (dtype == EQ_F32 ? 0x7fffffff : 0x7fff);
	}
	EQ_WARP_SYNC();
	for (unsigned shift = 0; shift < (dtype == EQ_F32 ? 32 : 16); shift += 16) {
		eq_row_sort_by(c->sorted, other, n, shift, place);
		eq_row_sort_by(other, c->sorted, n, shift + 8, place);
	}
}

/* Keys to magnitudes, and sums of all behind: each lane has a run. */
EQ_DEV void eq_row_sums(const struct eq_row *c, const int dtype)
{
	uint32_t n = (uint32_t)c->k, run = (n + 31) / 32 | 1;
	EQ_PER_LANE(int64_t, sum);

	EQ_EACH_LANE {
		uint32_t first = lane * run, i = first + run < n ? first + run : n;
		int64_t s = 0;

		while (i-- > first) {
			uint32_t u = c->sorted[i];

			if (dtype == EQ_F16)
				c->sorted[i] = u = eq_half_widen((uint16_t)u);
			s += eq_row_fixed(c, u, dtype);
			c->sum[i] = s;
		}
		EQ_AT(sum) = s;
	}
	EQ_SUM_ABOVE(sum);
	EQ_EACH_LANE {
		uint32_t first = lane * run, end = first + run < n ? first + run : n;

		for (uint32_t i = first; i < end; i++)
			c->sum[i] += EQ_AT(sum);
		if (lane == 0)
			c->sum[n] = 0;
	}
	EQ_WARP_SYNC();
}

/* ---- looking up --------------------------------------------------------------------- */

#define EQ_ROW_BEYOND 0x7f800000        /* bits above all units' */

/* Is a unit of magnitude x below the lower end of level j, which is m in steps of a
 * scale? Its product with inv decides, and of a tie, which level is even. */
EQ_DEV bool eq_row_below(float x, float m, float inv, uint32_t j)
{
	float t = x * inv;

	return t < m || (t == m && (j & 1));
}

/* Bits of the least magnitude that is not below level j. */
EQ_DEV uint32_t eq_row_edge(const struct eq_row *c, uint32_t j, float scale, float inv,
			    const int dtype)
{
	float m = c->f->mid[j];
	uint32_t u = eq_float_bits(m * scale), first = u - 2;

	/* m * scale is exact; a unit with 24 bits may be rounded across it */
	if (dtype != EQ_F32)
		return u + eq_row_below(m * scale, m, inv, j);
	u = first;
	EQ_UNROLL
	for (uint32_t i = 0; i < 5; i++)
		u += eq_row_below(eq_float_of(first + i), m, inv, j);
	return u;
}

/* Index of the first bin that is not below the bits. */
EQ_DEV uint32_t eq_row_bin(const struct eq_row *c, uint32_t u)
{
	uint32_t p = (u + 0xffff) >> 16;

	return (p <= c->top ? p : c->top + 1) - c->base + 1;
}

/* Bits to indices of the first units that are not below. All are looked for side by
 * side, since a warp has hardly any others that it could make way for. */
EQ_DEV void eq_row_find(const struct eq_row *c, uint32_t *u, const unsigned n_u)
{
	uint32_t n = (uint32_t)c->k, at[8], step = 1;

	EQ_UNROLL
	for (unsigned i = 0; i < n_u; i++)
		at[i] = 0;
	while (step <= n / 2)
		step *= 2;
	for (; step; step /= 2) {
		EQ_UNROLL
		for (unsigned i = 0; i < n_u; i++) {
			uint32_t next = at[i] + step < n ? at[i] + step : n;

			at[i] = c->sorted[next - 1] < u[i] ? next : at[i];
		}
	}
	EQ_UNROLL
	for (unsigned i = 0; i < n_u; i++)
		u[i] = at[i];
}

/* Bits, none below the base, to indices. */
EQ_DEV void eq_row_indices(const struct eq_row *c, uint32_t *u, const unsigned n_u, const int dtype)
{
	if (dtype != EQ_BF16) {
		eq_row_find(c, u, n_u);
		return;
	}
	EQ_UNROLL
	for (unsigned i = 0; i < n_u; i++)
		u[i] = eq_row_bin(c, u[i]);
}

/* Of the units from an index on. */
EQ_DEV int64_t eq_row_sum_from(const struct eq_row *c, uint32_t at, const int dtype)
{
	return dtype != EQ_BF16 || at <= c->end ? c->sum[at] : 0;
}

EQ_DEV uint32_t eq_row_count_from(const struct eq_row *c, uint32_t at, const int dtype)
{
	if (dtype != EQ_BF16)
		return (uint32_t)c->k - at;
	return at <= c->end ? c->count[at] : 0;
}

#endif
