/* SPDX-License-Identifier: Apache-2.0 */
/* nvCOMP's ANS on the same data, for bench_gpu: its library is loaded if it is there. */
#ifndef EQ_BENCH_NVCOMP_H
#define EQ_BENCH_NVCOMP_H

#include <stddef.h>
#include <stdint.h>

enum { NVCOMP_BYTES = 0, NVCOMP_HALVES = 10 }; /* nvCOMP's own numbers of types */

struct nvcomp_result {
	size_t chunk;           /* bytes, the fastest of several sizes */
	double rate;            /* bytes written a second */
	double ratio;           /* compressed to plain bytes */
};

/*
 * Decode data_len bytes, `copies` times over, with everything in device memory: the
 * median of several runs, with the chunks that are fastest; one copy of the output
 * is compared. 0; -1 when there is no library ($EQFS_NVCOMP, or libnvcomp.so.6 as the
 * linker finds it) or no device; ends the program when something of it fails.
 */
int nvcomp_measure(const uint8_t *data, size_t data_len, int type, unsigned copies,
		   struct nvcomp_result *out);

#endif
