/* SPDX-License-Identifier: Apache-2.0 */
/* What the codec's unit tests share: reproducible noise. */
#ifndef EQ_CODEC_UTIL_H
#define EQ_CODEC_UTIL_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* splitmix64 */
static inline uint64_t rnd(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

static inline double rnd_gauss(uint64_t *state)
{
	double u = (double)((rnd(state) >> 11) + 1) * 0x1p-53;
	double v = (double)(rnd(state) >> 11) * 0x1p-53;

	return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* n symbols of an alphabet of `alphabet` whose probabilities fall by `ratio`
 * from one to the next (1: uniform), spread over the byte values. */
static inline void rnd_symbols(uint64_t *state, uint8_t *p, size_t n,
			       unsigned alphabet, double ratio)
{
	double sum = 0, weight = 1, acc = 0;
	uint8_t draw[4096];
	unsigned at = 0;

	for (unsigned s = 0; s < alphabet; s++, weight *= ratio)
		sum += weight;
	weight = 1;
	for (unsigned s = 0; s < alphabet; s++, weight *= ratio) {
		acc += weight / sum;
		while (at < 4096 && (at < acc * 4096 || s + 1 == alphabet))
			draw[at++] = (uint8_t)(s * 37 + 5);
	}
	for (size_t i = 0; i < n; i++)
		p[i] = draw[rnd(state) >> 52];
}

/* malloc that ends the test program when there is no memory. */
static inline void *must_alloc(size_t n)
{
	void *p = aligned_alloc(64, (n + 63) / 64 * 64 + 64);

	if (!p)
		abort();
	return p;
}

#endif
