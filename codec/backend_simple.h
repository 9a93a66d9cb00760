/* SPDX-License-Identifier: Apache-2.0 */
#ifndef EQ_BACKEND_SIMPLE_H
#define EQ_BACKEND_SIMPLE_H

#include "backend.h"

/*
 * Decode a chunk of codec raw, const or zstd; any other is EQ_EUNSUP. Returns 0,
 * EQ_ECORRUPT or -ENOMEM. Any thread; each keeps a zstd context until it ends.
 */
int eq_decode_simple(const struct eq_decode_job *job);

#endif
