/* SPDX-License-Identifier: Apache-2.0 */
/* What the two parts of the header's reader share. */
#ifndef EQ_SAFETENSORS_PRIV_H
#define EQ_SAFETENSORS_PRIV_H

#include "eqcodec.h"

/* A name for a message: cut to fit, no NUL inside. */
struct eq_st_shown {
	char text[64];
};
struct eq_st_shown eq_st_show(const void *name, size_t len);

/* Do the tensors that were read, sorted by this, tile the data, each as large as it
 * says, and no two of one name? 0, EQ_ENOTST or -ENOMEM. */
int eq_st_check(struct eq_st *st, const char *file, struct eq_error *err);

#endif
