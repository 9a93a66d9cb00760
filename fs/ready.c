/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "ready.h"

/* A datagram for systemd, by the protocol of sd_notify(3). */
static void notify(const char *text)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	size_t len = path ? strlen(path) : 0;
	int fd;

	if (len < 2 || len >= sizeof(to.sun_path) || (path[0] != '/' && path[0] != '@'))
		return;
	memcpy(to.sun_path, path, len);
	if (path[0] == '@')
		to.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	(void)!sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&to,
		      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len));
	close(fd);
}

/* 0 when the child says that it is up. */
static int wait_for_child(int fd)
{
	ssize_t n;
	char c;

	do
		n = read(fd, &c, 1);
	while (n < 0 && errno == EINTR);
	close(fd);
	return n == 1 ? 0 : -EIO;
}

int eq_ready_begin(struct eq_ready *r, bool foreground, const char *banner, bool *parent)
{
	int ends[2], rc;
	pid_t pid;

	*r = (struct eq_ready){ .background = !foreground, .pipe = -1, .banner = banner };
	*parent = false;
	if (foreground)
		return 0;
	if (pipe2(ends, O_CLOEXEC))
		return -errno;
	pid = fork();
	if (pid < 0) {
		rc = -errno;
		close(ends[0]);
		close(ends[1]);
		return rc;
	}
	if (pid == 0) {
		close(ends[0]);
		r->pipe = ends[1];
		return 0;
	}
	*parent = true;
	close(ends[1]);
	return wait_for_child(ends[0]);
}

static void leave_terminal(void)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC), i;

	setsid();
	for (i = 0; fd >= 0 && i <= STDERR_FILENO; i++)
		dup2(fd, i);
	if (fd > STDERR_FILENO)
		close(fd);
}

void eq_ready_now(struct eq_ready *r, struct eq_log *log)
{
	char text[64];

	if (atomic_exchange(&r->up, true))
		return;
	if (r->banner)
		dprintf(STDERR_FILENO, "%s\n", r->banner);
	snprintf(text, sizeof(text), "READY=1\nMAINPID=%ld", (long)getpid());
	notify(text);
	(void)!chdir("/"); /* not to keep others from unmounting where we were */
	if (!r->background)
		return;
	eq_log_to_syslog(log);
	leave_terminal();
	(void)!write(r->pipe, "", 1);
	close(r->pipe);
}

void eq_ready_stopping(void)
{
	notify("STOPPING=1");
}
