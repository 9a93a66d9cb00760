/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SHA-256 of libcrypto, by its plain functions. What has taken their place there sets a
 * whole library up when it is first used, by thousands of allocations, and crashes when
 * one of them fails: not for a process that is to live through that. These never fail.
 */
#ifndef EQ_SHA256_H
#define EQ_SHA256_H

#define OPENSSL_API_COMPAT 0x10100000L /* when they were not yet "deprecated" */
#include <openssl/sha.h>

#endif
