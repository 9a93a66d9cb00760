/* SPDX-License-Identifier: Apache-2.0 */
/* The search for the scales of short rows. See quant_eight.c. */
#ifndef EQ_QUANT_EIGHT_H
#define EQ_QUANT_EIGHT_H

#include "quant_row.h"

struct eq_eights;

/* Is there one for rows like these, on this processor? */
bool eq_eights_fit(const struct eq_row *r);

/* It uses r, but does not begin rows. NULL if there is no memory. */
struct eq_eights *eq_eights_new(struct eq_row *r);
void eq_eights_free(struct eq_eights *e);

/*
 * Find the scale of a row, 0 if that is all units zero; `hint` is a scale near it and
 * changes nothing but the time it takes. False if the row is not of a kind that this
 * can tell; the caller then asks quant_search.c.
 */
bool eq_eights_search(struct eq_eights *e, const void *w, uint16_t hint, uint16_t *scale);

#endif
