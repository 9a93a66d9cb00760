/* SPDX-License-Identifier: Apache-2.0 */
/* The choice of a few tables along a tensor; internal to coding.c. */
#ifndef EQ_CODING_TABLES_H
#define EQ_CODING_TABLES_H

#include <stdbool.h>

#include "coding.h"

/* Histograms of a plane, by run: every stride-th of hist. */
struct eq_run_hist {
	const uint64_t (*hist)[256];
	size_t stride;
	unsigned n;             /* 1 to EQ_RUNS_MAX */
};

/*
 * Make up to EQ_TABLES_MAX single tables, and say in table[run] which one each
 * run is to have. The symbols `also`, those of the histograms among them, are in
 * every table. share: the histograms' share of the whole plane, by which the size
 * of the tables counts. *bits is what the histograms then take. Returns the number
 * of tables.
 */
unsigned eq_tables_choose(const struct eq_run_hist *h, const bool also[256], double share,
			  struct eq_freq *freq, uint8_t *table, uint64_t *bits);

#endif
