/* SPDX-License-Identifier: Apache-2.0 */
#ifdef HAVE_CONFIG_H
#include <config.h>
#endif

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cpu.h"
#include "eqcodec.h"
#include "format.h"
#include "kernels.h"

#ifdef __x86_64__
#include <cpuid.h>

/* Register state that the operating system saves: bits 1 SSE, 2 AVX, 5 to 7
 * AVX-512 (Intel SDM volume 1, 13.3). */
static unsigned xcr0(void)
{
	unsigned lo, hi;

	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return lo;
}

static unsigned cpu_detect(void)
{
	unsigned a, b, c, d, saved, flags = 0;

	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
		return 0;
	if (!(c & bit_F16C) || !(c & bit_POPCNT))
		return 0;
	saved = xcr0();
	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (saved & 0x6) != 0x6)
		return 0;
	if ((b & bit_AVX2) && (b & bit_BMI2))
		flags |= EQ_CPU_AVX2;
	if (flags && (saved & 0xe0) == 0xe0 && (b & bit_AVX512F) &&
	    (b & bit_AVX512BW) && (b & bit_AVX512DQ) && (b & bit_AVX512VL) &&
	    (c & bit_AVX512VBMI) && (c & bit_AVX512VBMI2))
		flags |= EQ_CPU_AVX512;
	return flags;
}
#else
static unsigned cpu_detect(void)
{
#ifdef HAVE_NEON
	return EQ_CPU_NEON; /* part of the base architecture */
#else
	return 0;
#endif
}
#endif

static bool mask_has(const char *mask, const char *name)
{
	size_t len = strlen(name), n;

	for (; mask && *mask; mask += n + (mask[n] == ',')) {
		n = strcspn(mask, ",");
		if (n == len && !memcmp(mask, name, len))
			return true;
	}
	return false;
}

unsigned eq_cpu_flags(const char *mask)
{
	unsigned flags = cpu_detect();

	if (mask_has(mask, "avx512"))
		flags &= ~(unsigned)EQ_CPU_AVX512;
	if (mask_has(mask, "avx2"))
		flags &= ~(unsigned)(EQ_CPU_AVX2 | EQ_CPU_AVX512);
	if (mask_has(mask, "neon"))
		flags &= ~(unsigned)EQ_CPU_NEON;
	return flags;
}

typedef void kernels_init(struct eq_kernels *);

#ifdef HAVE_AVX2
#define TRIAL_GROUPS 16
#define TRIAL_STREAMS 4

/* Nanoseconds that decoders side by side take for a while. They run out of words at
 * once, which ends nothing and harms nobody; those behind keep their slots apart, as
 * real ones are: gathers from one place are slower. */
static int64_t trial(const struct eq_kernels *k, const struct eq_table *table)
{
	uint16_t words[EQ_SLACK / 2];
	uint8_t symbols[TRIAL_STREAMS][TRIAL_GROUPS * EQ_GROUP], *out[TRIAL_STREAMS];
	struct eq_rans_dec dec[TRIAL_STREAMS], *decs[TRIAL_STREAMS];
	struct timespec a, b;

	for (unsigned i = 0; i < EQ_SLACK / 2; i++)
		words[i] = (uint16_t)(i * 0x9e37);
	for (unsigned i = 0; i < TRIAL_STREAMS; i++) {
		out[i] = symbols[i];
		decs[i] = &dec[i];
		for (unsigned l = 0; l < EQ_LANES; l++)
			dec[i].x[l] = (l + 1) * 0x4d295au;
		dec[i].next = dec[i].end = words;
		dec[i].table = table;
		dec[i].err = 0;
	}
	clock_gettime(CLOCK_MONOTONIC, &a);
	k->rans_decode(decs, out, TRIAL_STREAMS, TRIAL_GROUPS);
	clock_gettime(CLOCK_MONOTONIC, &b);
	return (b.tv_sec - a.tv_sec) * INT64_C(1000000000) + b.tv_nsec - a.tv_nsec;
}

/*
 * Whether to gather depends on the processor, its microcode and what the kernel made of
 * it. To try takes 50 microseconds; the results are the same. Gathering has to win by an
 * eighth: beside a busy thread of the same core either may be found some percent faster,
 * and where gathers are fast they win by more.
 */
static kernels_init *faster(kernels_init *load, kernels_init *gather)
{
	kernels_init *const init[2] = { load, gather };
	struct eq_table table = { .n_syms = 64 };
	int64_t least[2] = { INT64_MAX, INT64_MAX };
	struct eq_kernels k[2];

	for (unsigned i = 0; i < 4096; i++)
		table.slot[i] = i / 64 << 24 | 64 << 12 | i % 64;
	for (unsigned s = 0; s < 256; s++) {
		table.sym[s] = (uint8_t)s;
		table.start[s] = (uint16_t)(s < 64 ? 64 * s : 4096);
	}
	for (unsigned i = 0; i < 12; i++) {
		int64_t t;

		init[i % 2](&k[i % 2]);
		t = trial(&k[i % 2], &table);
		least[i % 2] = t < least[i % 2] ? t : least[i % 2];
	}
	return init[least[1] < least[0] - least[0] / 8];
}
#endif

static struct eq_kernels best;
static pthread_once_t best_once = PTHREAD_ONCE_INIT;

static void best_init(void)
{
	unsigned flags = eq_cpu_flags(getenv("EQFS_DISABLE_CPU"));
	kernels_init *init = eq_kernels_init_c;

#ifdef HAVE_AVX2
	if (flags & EQ_CPU_AVX2)
		init = faster(eq_kernels_init_avx2, eq_kernels_init_avx2_gather);
#endif
#ifdef HAVE_AVX512
	if (flags & EQ_CPU_AVX512)
		init = faster(eq_kernels_init_avx512, eq_kernels_init_avx512_gather);
#endif
#ifdef HAVE_NEON
	if (flags & EQ_CPU_NEON)
		init = eq_kernels_init_neon;
#endif
	(void)flags;
	eq_kernels_init_c(&best);
	init(&best);
}

const struct eq_kernels *eq_kernels_get(void)
{
	pthread_once(&best_once, best_init);
	return &best;
}

const char *eq_cpu_isa(void)
{
	return eq_kernels_get()->isa;
}

unsigned eq_cpu_streams(void)
{
	return eq_kernels_get()->streams;
}
