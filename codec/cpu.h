/* SPDX-License-Identifier: Apache-2.0 */
#ifndef EQ_CPU_H
#define EQ_CPU_H

/* Sets of features that a kernel table needs; a set is there only when the
 * operating system saves its registers as well. */
enum {
	EQ_CPU_AVX2 = 1,        /* AVX2 and BMI2 */
	EQ_CPU_AVX512 = 2,      /* F, BW, DQ, VL, VBMI, VBMI2, and EQ_CPU_AVX2 */
	EQ_CPU_NEON = 4,
};

/*
 * What this CPU has and this build can use, less the names (avx2, avx512,
 * neon; separated by commas) in `mask`, which may be NULL. Without avx2 there
 * is no avx512 either. Any thread.
 */
unsigned eq_cpu_flags(const char *mask);

#endif
