/* SPDX-License-Identifier: Apache-2.0 */
/* The quantiser's inner loops for AVX-512. */
#define EQ_QUANT_OPS eq_quant_ops_avx512
#define EQ_QUANT_ISA "avx512"
#define EQ_QUANT_V 16
#include "quant_vec.h"
