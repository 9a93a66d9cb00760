/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sums of eight scales, for AVX2 and later; included by quant_vec.h. What is summed,
 * and why these fit, says quant_eight.c.
 */

typedef uint16_t e16 __attribute__((vector_size(32)));
typedef uint32_t e32 __attribute__((vector_size(32)));
typedef double e64 __attribute__((vector_size(32)));

#define LOAD16(p) ((e16)_mm256_loadu_si256((const void *)(p)))
#define STORE16(p, x) _mm256_storeu_si256((void *)(p), (__m256i)(x))
#define LOW_HALF(x) _mm256_castsi256_si128((__m256i)(x))
#define HIGH_HALF(x) _mm256_extracti128_si256((__m256i)(x), 1)

/* ---- planes -------------------------------------------------------------- */

/* What is above the upper half of lanes down to this one, by sums of halves: that of the
 * upper half also in the lower one. */
#define SUFFIX_UP(x) _mm256_permute2x128_si256((__m256i)(x), (__m256i)(x), 0x81)

/* Each lane to the sum of itself and those above. */
INLINE e16 suffix_16(e16 x)
{
	__m256i up;

	x += (e16)_mm256_bsrli_epi128((__m256i)x, 2);
	x += (e16)_mm256_bsrli_epi128((__m256i)x, 4);
	x += (e16)_mm256_bsrli_epi128((__m256i)x, 8);
	up = _mm256_shufflelo_epi16(SUFFIX_UP(x), 0);
	return x + (e16)_mm256_shuffle_epi32(up, 0);
}

INLINE e32 suffix_32(e32 x)
{
	x += (e32)_mm256_bsrli_epi128((__m256i)x, 4);
	x += (e32)_mm256_bsrli_epi128((__m256i)x, 8);
	return x + (e32)_mm256_shuffle_epi32(SUFFIX_UP(x), 0);
}

/* What eight bins weigh and all above, from their counts, the value of the first and
 * what is above them. */
INLINE e32 weights(__m128i count, uint32_t first, unsigned octave, e32 *above)
{
	e32 value = (e32){ 0, 1, 2, 3, 4, 5, 6, 7 } + first, own, sum;
	e32 n = (e32)_mm256_cvtepu16_epi32(count);

	own = suffix_32((e32)_mm256_madd_epi16((__m256i)n, (__m256i)value) << octave);
	sum = own + *above;
	*above += (e32)_mm256_broadcastd_epi32(LOW_HALF(own));
	return sum;
}

/* Two registers of 32 bits to one of 16. */
INLINE e16 narrow_32(e32 low, e32 high)
{
	__m256i pairs = _mm256_packus_epi32((__m256i)low, (__m256i)high);

	return (e16)_mm256_permute4x64_epi64(pairs, 0xd8);
}

static void planes(struct eq_quant_planes *p, uint16_t *count, uint32_t to, uint32_t off,
		   uint32_t lowest)
{
	e32 above = { 0 };
	e16 more = { 0 };

	for (uint32_t i = EQ_PLANE_END; i > to;) {
		uint32_t pattern, value, octave;
		e16 c;
		e32 s[2];

		i -= 16;
		pattern = off + i - lowest;
		value = EQ_PLANE_OCTAVE + pattern % EQ_PLANE_OCTAVE;
		octave = pattern / EQ_PLANE_OCTAVE;
		c = LOAD16(&count[i]);
		STORE16(&count[i], (e16){ 0 });
		s[1] = weights(HIGH_HALF(c), value + 8, octave, &above);
		s[0] = weights(LOW_HALF(c), value, octave, &above);
		c = suffix_16(c);
		STORE16(&p->count[i], c + more);
		more += (e16)_mm256_broadcastw_epi16(LOW_HALF(c));
		STORE16(&p->fine[i], narrow_32(s[0] & EQ_PLANE_FINE, s[1] & EQ_PLANE_FINE));
		STORE16(&p->coarse[i], narrow_32(s[0] >> EQ_PLANE_BITS, s[1] >> EQ_PLANE_BITS));
	}
}

/* ---- eight scales -------------------------------------------------------- */

/* Sums of some levels, in halves that are still to be added up. */
struct eight_part {
	e16 edge, edge_weighed, value, value_weighed, fine, coarse;
};

struct eight_sums {
	e32 edge, edge_weighed, value, value_weighed, ds;
};

/* Of 16 bins those that scales look up, each in the half where it is. */
#define PICK(plane, at, mask) \
	((e16)_mm256_shuffle_epi8((__m256i)LOAD16((const char *)(plane) + (at)), mask))

/* One level more, downwards: of all scales, its lower end and its value. */
INLINE void eight_level(struct eight_part *s, const struct eq_quant_planes *p,
			const uint8_t mask[2][32], const uint32_t at[2])
{
	__m256i m = _mm256_load_si256((const void *)mask[0]);

	s->edge += PICK(p->count, at[0], m);
	s->edge_weighed += s->edge;
	s->fine -= PICK(p->fine, at[0], m);
	s->coarse -= PICK(p->coarse, at[0], m);
	m = _mm256_load_si256((const void *)mask[1]);
	s->value += PICK(p->count, at[1], m);
	s->value_weighed += s->value;
	s->fine += PICK(p->fine, at[1], m);
	s->coarse += PICK(p->coarse, at[1], m);
}

#define FOLD(x) _mm_add_epi16(LOW_HALF(x), HIGH_HALF(x))
#define WIDE(x) ((e32)_mm256_cvtepu16_epi32(FOLD(x)))

/* Add levels from j up to `end`, of scales that begin at the bin. */
INLINE void eight_run(struct eight_sums *a, const struct eq_quant_eight *e, unsigned j,
		      unsigned end, int64_t bin)
{
	const struct eq_quant_planes *p = (const void *)((const uint16_t *)e->planes + bin);
	struct eight_part s = { { 0 }, { 0 }, { 0 }, { 0 }, { 0 }, { 0 } };

	while (end-- > j)
		eight_level(&s, p, e->mask[end], e->at[end]);
	a->edge += WIDE(s.edge);
	a->edge_weighed += WIDE(s.edge_weighed);
	a->value += WIDE(s.value);
	a->value_weighed += WIDE(s.value_weighed);
	a->ds += (e32)_mm256_cvtepi16_epi32(FOLD(s.fine)) + (WIDE(s.coarse) << EQ_PLANE_BITS);
}

/* Levels 9 to 16 of fp8, which recur in each octave above: a step is twice as much
 * there. */
INLINE void eight_octaves(struct eight_sums *a, const struct eq_quant_eight *e)
{
	for (unsigned o = e->more + 1; o--;) {
		a->edge += a->edge;
		a->edge_weighed += a->edge_weighed;
		a->value += a->value;
		a->value_weighed += a->value_weighed;
		eight_run(a, e, 8, 16, e->bin + o * EQ_PLANE_OCTAVE);
	}
}

INLINE e64 doubles(e32 x, int half)
{
	return (e64)_mm256_cvtepi32_pd(half ? HIGH_HALF(x) : LOW_HALF(x));
}

static double eight(const struct eq_quant_eight *e, struct eq_quant_costs *c)
{
	struct eight_sums a = { { 0 }, { 0 }, { 0 }, { 0 }, { 0 } };
	unsigned j = e->levels;
	e64 cost[2], least;
	e32 ds, dn;

	if (e->more) {
		eight_octaves(&a, e);
		j = 8;
	}
	while (j) {
		unsigned n = j < e->run ? j : e->run;

		a.edge_weighed += a.edge * n;
		a.value_weighed += a.value * n;
		eight_run(&a, e, j - n, j, e->bin);
		j -= n;
	}
	ds = -(-a.ds & EQ_PLANE_SUMS);
	dn = 2 * a.edge_weighed - a.edge - 2 * a.value_weighed;
#pragma GCC unroll 2
	for (int half = 0; half < 2; half++) {
		e64 step = ((e64){ 0, 1, 2, 3 } + (e->first + 4 * half)) * e->width;
		e64 dist = doubles(ds, half) * (2 * e->unit) + doubles(dn, half) * step;
		e64 rate = doubles(a.edge, half) * e->nu;

		_mm256_storeu_pd(&c->dist[4 * half], (__m256d)dist);
		_mm256_storeu_pd(&c->rate[4 * half], (__m256d)rate);
		cost[half] = dist + rate;
	}
	_mm256_storeu_si256((void *)c->crossed, (__m256i)a.value_weighed);
	least = (e64)_mm256_min_pd((__m256d)cost[0], (__m256d)cost[1]);
	least = (e64)_mm256_min_pd((__m256d)least, _mm256_permute4x64_pd((__m256d)least, 0x4e));
	return least[0] < least[1] ? least[0] : least[1];
}
