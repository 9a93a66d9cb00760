/* SPDX-License-Identifier: Apache-2.0 */
/* Values of the float dtypes, for comparing tensors. */
#ifndef EQ_EQAR_FLOAT_H
#define EQ_EQAR_FLOAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct eq_reader;

/* Values of dtype; C64 counts as two. NULL when it is no float, or has fewer
 * than 8 bits, or memory is out (*no_memory then). Shared freely by threads. */
struct eq_reader *eq_reader_create(int dtype, bool *no_memory);
void eq_reader_free(struct eq_reader *r);
/* Bytes a value. */
size_t eq_reader_unit(const struct eq_reader *r);
/* The value at p, of any alignment. */
double eq_reader_get(const struct eq_reader *r, const uint8_t *p);

#endif
