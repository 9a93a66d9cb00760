/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encoding by a back end (backend_encode.h), as the encoder uses it. Functions that
 * return bool say whether the device has done it; if not, the CPU is to. One thread
 * at a time for an encoder.
 */
#ifndef EQ_ENCODE_DEVICE_H
#define EQ_ENCODE_DEVICE_H

#include "backend_encode.h"
#include "encode_priv.h"

/* The plan of a coding, which it refers to in no way; plan->table is malloc'ed and
 * the caller's to free. -ENOMEM. */
int eq_device_plan(const struct eq_coding *c, struct eq_encode_plan *plan);
/* What chunk number `chunk` tries for each of its parts. */
void eq_device_parts(const struct eq_coding *c, uint32_t chunk, struct eq_encode_part part[8]);

/* Chunks of planes. */
bool eq_device_encode(struct eq_encoder *e, struct eq_encode_job *jobs, size_t n);

/*
 * A tensor to be quantised. *q is NULL when no device has it, from the beginning
 * (then all functions say false) or after one of them failed.
 */
void eq_device_open(struct eq_encoder *e, const struct eq_quant_tensor *t, struct eq_quantiser **q);
void eq_device_close(struct eq_quantiser **q);
/* As eq_quant_l1, eq_quant_search and eq_quant_apply; in this order. After a search
 * that is not for the device it may still have *q, to apply. */
bool eq_device_l1(struct eq_encoder *e, struct eq_quantiser **q, const struct eq_quant_tensor *t,
		  double *l1, bool *finite);
bool eq_device_search(struct eq_encoder *e, struct eq_quantiser **q, double nu, uint16_t *scale);
bool eq_device_apply(struct eq_encoder *e, struct eq_quantiser **q, const struct eq_quant_tensor *t,
		     const uint16_t *scale, void *recon, struct eq_quant_result *r);
/* Chunks of its symbols. */
bool eq_device_symbols(struct eq_encoder *e, struct eq_quantiser **q, struct eq_encode_job *jobs,
		       size_t n);

#endif
