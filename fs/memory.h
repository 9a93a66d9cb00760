/* SPDX-License-Identifier: Apache-2.0 */
#ifndef EQ_MEMORY_H
#define EQ_MEMORY_H

#include <stdint.h>

/*
 * Bytes that this process could take without anything being swapped or killed: what the
 * system has, or less if a control group (version 1 or 2) is to use no more. UINT64_MAX
 * if nobody says. root: where /proc and the hierarchies of groups are found, "" but in
 * tests. Any thread.
 */
uint64_t eq_memory_available(const char *root);

#endif
