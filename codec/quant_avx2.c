/* SPDX-License-Identifier: Apache-2.0 */
/* The quantiser's inner loops for AVX2. */
#define EQ_QUANT_OPS eq_quant_ops_avx2
#define EQ_QUANT_ISA "avx2"
#define EQ_QUANT_V 8
#include "quant_vec.h"
