/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One line a message, to stderr or to syslog. Any thread.
 */
#ifndef EQ_LOG_H
#define EQ_LOG_H

#include <stdatomic.h>

#include "eqfs.h"

struct eq_log {
	enum eq_log_level level;
	_Atomic bool to_syslog;
};

/* To stderr, for the time being. */
void eq_log_init(struct eq_log *log, enum eq_log_level level);
void eq_log_to_syslog(struct eq_log *log);
void eq_log_fini(struct eq_log *log);
/* Control characters of the text become '?': names come from strangers. */
void eq_log(const struct eq_log *log, enum eq_log_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#endif
