/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XXH3 of libxxhash. Where a library for x86 brings kernels for AVX2 and AVX-512 along,
 * distributions build it with both beside the plain one, and this takes whichever the
 * processor can run. The values are the same.
 */
#ifndef EQ_XXH3_H
#define EQ_XXH3_H

#include <xxhash.h>

#ifdef HAVE_XXH_DISPATCH
#include <xxh_x86dispatch.h> /* puts itself in the place of XXH3_64bits and _update */
#endif

#endif
