/* SPDX-License-Identifier: Apache-2.0 */
/* From a coding to what a back end's encoder is told of it. */
#ifndef EQ_ENCODE_DEVICE_H
#define EQ_ENCODE_DEVICE_H

#include "backend_encode.h"
#include "coding.h"

/* The plan of a coding, which it refers to in no way; plan->table is malloc'ed and
 * the caller's to free. -ENOMEM. */
int eq_device_plan(const struct eq_coding *c, struct eq_encode_plan *plan);
/* What chunk number `chunk` tries for each of its parts. */
void eq_device_parts(const struct eq_coding *c, uint32_t chunk, struct eq_encode_part part[8]);

#endif
