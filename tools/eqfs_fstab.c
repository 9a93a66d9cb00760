/* SPDX-License-Identifier: Apache-2.0 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <fuse.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "eqfs_fstab.h"

#define HELPER "mount."

bool eq_fstab_called(void)
{
	return !strncmp(program_invocation_short_name, HELPER, sizeof(HELPER) - 1);
}

/* mount.fuse.eqfs STORE MOUNTPOINT [-sfnvrw] [-N NAMESPACE] [-o OPTIONS] [-t TYPE] */
static int helper_args(int argc, char **argv, struct fuse_args *out)
{
	int i, rc;

	rc = fuse_opt_add_arg(out, "eqfs");
	for (i = 1; !rc && i < argc; i++) {
		const char *arg = argv[i];

		if (!strcmp(arg, "-f"))
			return 1; /* mount --fake */
		if (!strcmp(arg, "-s") || !strcmp(arg, "-n") || !strcmp(arg, "-v") ||
		    !strcmp(arg, "-w"))
			continue;
		if (!strcmp(arg, "-t") && i + 1 < argc) {
			i++;
			continue;
		}
		if (!strcmp(arg, "-r"))
			arg = "-oro";
		rc = fuse_opt_add_arg(out, arg);
	}
	return rc ? -ENOMEM : 0;
}

int eq_fstab_args(int argc, char **argv, struct fuse_args *out)
{
	int i;

	if (eq_fstab_called())
		return helper_args(argc, argv, out);
	for (i = 0; i < argc; i++)
		if (fuse_opt_add_arg(out, argv[i]))
			return -ENOMEM;
	return 0;
}

bool eq_fstab_ignores(const char *option)
{
	static const char *const names[] = {
		"defaults", "auto", "noauto", "nofail", "_netdev", "user", "users", "nouser",
		"owner", "group", "relatime", "norelatime", "strictatime", "nostrictatime",
		"lazytime", "nolazytime", "atime", "diratime", "silent", "loud", "nomand",
	};
	static const char *const prefixes[] = { "x-", "X-", "user=", "comment=" };
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (!strcmp(option, names[i]))
			return true;
	for (i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
		if (!strncmp(option, prefixes[i], strlen(prefixes[i])))
			return true;
	return false;
}

int eq_fstab_become(const char *user, struct eq_error *err)
{
	const struct passwd *pw;

	errno = 0;
	pw = getpwnam(user);
	if (!pw)
		return eq_fail(err, errno ? -errno : -EINVAL, "setuid=%s: %s", user,
			       errno ? eq_strerror(-errno) : "no such user");
	if (initgroups(pw->pw_name, pw->pw_gid) || setgid(pw->pw_gid) || setuid(pw->pw_uid))
		return eq_fail(err, -errno, "setuid=%s: %s", user, eq_strerror(-errno));
	return 0;
}
