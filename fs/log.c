/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include "log.h"

void eq_log_init(struct eq_log *log, enum eq_log_level level)
{
	log->level = level;
	log->to_syslog = false;
}

void eq_log_to_syslog(struct eq_log *log)
{
	openlog("eqfs", LOG_PID, LOG_DAEMON);
	log->to_syslog = true;
}

void eq_log_fini(struct eq_log *log)
{
	if (log->to_syslog)
		closelog();
}

void eq_log(const struct eq_log *log, enum eq_log_level level, const char *fmt, ...)
{
	static const int priority[] = { LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG };
	static const char prefix[] = "eqfs: ";
	char line[1024];
	size_t len = sizeof(prefix) - 1, i;
	va_list ap;
	int n;

	if (level > log->level)
		return;
	memcpy(line, prefix, sizeof(prefix));
	va_start(ap, fmt);
	n = vsnprintf(line + len, sizeof(line) - len - 1, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	len = strlen(line);
	for (i = 0; i < len; i++)
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	if (log->to_syslog) {
		syslog(priority[level], "%s", line + sizeof(prefix) - 1);
		return;
	}
	line[len++] = '\n';
	/* One write, so that lines of several threads do not mix. */
	if (write(STDERR_FILENO, line, len) < 0)
		return; /* nowhere left to say it */
}
