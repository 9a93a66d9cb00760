/* SPDX-License-Identifier: Apache-2.0 */
/* What bench_codec measures with, and what it compares with (bench_codec_peers.c). */
#ifndef EQ_BENCH_CODEC_H
#define EQ_BENCH_CODEC_H

#include <stdint.h>

#define CHUNK 131072u
#define CHUNKS 128u
#define N (CHUNK * CHUNKS)              /* 16 Mi units */
#define ROUNDS 12
#define PIECES 32u                      /* of TEAM chunks each */
#define TEAM (CHUNKS / PIECES)
#define PIECE (TEAM * CHUNK)

struct timing {
	double seconds;
	double hz;              /* the core's clock */
};

typedef void piece_fn(void *arg, unsigned piece);

/* The work is cut into PIECES; each round does all of them, and each piece counts
 * with its best round, as does the clock. In time of the thread. */
struct timing best(piece_fn *fn, void *arg);
/* How many times as fast two threads are as one that took `seconds`. */
double two_threads(piece_fn *fn, void *arg, double seconds);

/* A line of the result: of N symbols or units. */
void row_begin(const char *what, double rate);
void row_end(void);
/* ... with `bits` a symbol, or 0. */
void row(const char *what, double bytes, struct timing t, double bits);
/* ... of N bytes, and compared with the peers. */
enum direction { DECODE, ENCODE };
void row_peers(const char *what, struct timing t, enum direction direction);

/* The peers' rows. First memcpy, in which all rates are given, of 2 * N bytes. */
void bench_memcpy(const void *data);
void bench_zstd(const uint8_t *sym);
/* With the instructions that eq_kernels_get() goes by. */
void bench_hts(const uint8_t *sym);

#endif
