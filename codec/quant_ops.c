/* SPDX-License-Identifier: Apache-2.0 */
/* The quantiser's inner loops for any CPU, and the choice among all. */
#ifdef HAVE_CONFIG_H
#include <config.h>
#endif

#include <pthread.h>
#include <stdlib.h>

#include "cpu.h"

#define EQ_QUANT_OPS eq_quant_ops_c
#define EQ_QUANT_ISA "c"
#define EQ_QUANT_V 4
#include "quant_vec.h"

static const struct eq_quant_ops *best = &eq_quant_ops_c;
static pthread_once_t best_once = PTHREAD_ONCE_INIT;

static void best_init(void)
{
	unsigned flags = eq_cpu_flags(getenv("EQFS_DISABLE_CPU"));

#ifdef HAVE_AVX2
	if (flags & EQ_CPU_AVX2)
		best = &eq_quant_ops_avx2;
#endif
#ifdef HAVE_AVX512
	if (flags & EQ_CPU_AVX512)
		best = &eq_quant_ops_avx512;
#endif
	(void)flags;
}

const struct eq_quant_ops *eq_quant_ops_get(void)
{
	pthread_once(&best_once, best_init);
	return best;
}
