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

#ifdef HAVE_AVX2
#define TRIAL_GROUPS 16

/* Nanoseconds that two decoders side by side take for a while. They find no
 * words, which ends nothing and harms nobody. */
static int64_t trial(const struct eq_kernels *k, const struct eq_table *table)
{
	static const uint16_t none[EQ_SLACK / 2];
	uint8_t symbols[2][TRIAL_GROUPS * EQ_GROUP];
	uint8_t *out[2] = { symbols[0], symbols[1] };
	struct eq_rans_dec dec[2], *decs[2] = { &dec[0], &dec[1] };
	struct timespec a, b;

	for (unsigned i = 0; i < 2; i++) {
		for (unsigned l = 0; l < EQ_LANES; l++)
			dec[i].x[l] = (l + 1) * 0x4d295au;
		dec[i].next = dec[i].end = none;
		dec[i].table = table;
		dec[i].err = 0;
	}
	clock_gettime(CLOCK_MONOTONIC, &a);
	k->rans_decode(decs, out, 2, TRIAL_GROUPS);
	clock_gettime(CLOCK_MONOTONIC, &b);
	return (b.tv_sec - a.tv_sec) * INT64_C(1000000000) + b.tv_nsec - a.tv_nsec;
}

/*
 * Whether to gather depends on the processor, its microcode and what the kernel
 * made of it; to try takes 50 microseconds. The results are the same.
 */
static bool gathers_fast(void)
{
	struct eq_kernels loads, gathers;
	struct eq_table table;
	int64_t t, least = INT64_MAX, least_gather = INT64_MAX;

	for (unsigned i = 0; i < 4096; i++)
		table.slot[i] = i / 16 << 24 | 16 << 12 | i % 16;
	eq_kernels_init_avx2(&loads);
	eq_kernels_init_avx2_gather(&gathers);
	for (unsigned i = 0; i < 6; i++) {
		t = trial(&loads, &table);
		least = t < least ? t : least;
		t = trial(&gathers, &table);
		least_gather = t < least_gather ? t : least_gather;
	}
	return least_gather < least;
}
#endif

static struct eq_kernels best;
static pthread_once_t best_once = PTHREAD_ONCE_INIT;

static void best_init(void)
{
	unsigned flags = eq_cpu_flags(getenv("EQFS_DISABLE_CPU"));

	eq_kernels_init_c(&best);
#ifdef HAVE_AVX2
	if (flags & EQ_CPU_AVX2)
		(gathers_fast() ? eq_kernels_init_avx2_gather : eq_kernels_init_avx2)(&best);
#endif
#ifdef HAVE_AVX512
	if (flags & EQ_CPU_AVX512)
		eq_kernels_init_avx512(&best);
#endif
#ifdef HAVE_NEON
	if (flags & EQ_CPU_NEON)
		eq_kernels_init_neon(&best);
#endif
	(void)flags;
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
