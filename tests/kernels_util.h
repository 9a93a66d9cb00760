/* SPDX-License-Identifier: Apache-2.0 */
/* Every table of kernels that this build has and this machine can run. */
#ifndef EQ_KERNELS_UTIL_H
#define EQ_KERNELS_UTIL_H

#include "cpu.h"
#include "kernels.h"

#define KERNELS_MAX 6

struct named_kernels {
	const char *name;
	struct eq_kernels k;
};

/* The scalar one comes first. Returns how many there are. */
static inline unsigned all_kernels(struct named_kernels t[KERNELS_MAX])
{
	unsigned flags = eq_cpu_flags(NULL), n = 1;

	for (unsigned i = 0; i < KERNELS_MAX; i++)
		eq_kernels_init_c(&t[i].k);
	t[0].name = "c";
#ifdef HAVE_AVX2
	if (flags & EQ_CPU_AVX2) {
		t[n].name = "avx2, loads";
		eq_kernels_init_avx2(&t[n++].k);
		t[n].name = "avx2, gathers";
		eq_kernels_init_avx2_gather(&t[n++].k);
	}
#endif
#ifdef HAVE_AVX512
	if (flags & EQ_CPU_AVX512) {
		t[n].name = "avx512, searches";
		eq_kernels_init_avx512(&t[n++].k);
		t[n].name = "avx512, gathers";
		eq_kernels_init_avx512_gather(&t[n++].k);
	}
#endif
#ifdef HAVE_NEON
	if (flags & EQ_CPU_NEON) {
		t[n].name = "neon";
		eq_kernels_init_neon(&t[n++].k);
	}
#endif
	(void)flags;
	return n;
}

#endif
