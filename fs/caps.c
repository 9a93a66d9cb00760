/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "caps.h"

#define BIT(cap) (UINT64_C(1) << (cap))

/*
 * Files are made as their makers and changed for them, whoever they are; their
 * attributes are passed through, capabilities and trusted.* among them. Unmounting
 * and kernel passthrough need CAP_SYS_ADMIN.
 */
static const uint64_t needed = BIT(CAP_CHOWN) | BIT(CAP_DAC_OVERRIDE) | BIT(CAP_DAC_READ_SEARCH) |
			       BIT(CAP_FOWNER) | BIT(CAP_FSETID) | BIT(CAP_LEASE) | BIT(CAP_MKNOD) |
			       BIT(CAP_SETFCAP) | BIT(CAP_SETGID) | BIT(CAP_SETUID) |
			       BIT(CAP_SYS_ADMIN);

int eq_caps_drop(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	uint64_t have;
	int cap;

	if (geteuid())
		return 0;
	if (syscall(SYS_capget, &head, data))
		return -errno;
	have = data[0].permitted | (uint64_t)data[1].permitted << 32;
	/* What cannot be dropped here is not there: old kernels know fewer. */
	for (cap = 0; have & BIT(CAP_SETPCAP) && cap < 64; cap++)
		if (!(needed & BIT(cap)) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0))
			break;
	have &= needed;
	data[0].permitted = data[0].effective = (uint32_t)have;
	data[1].permitted = data[1].effective = (uint32_t)(have >> 32);
	data[0].inheritable = data[1].inheritable = 0;
	if (syscall(SYS_capset, &head, data) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	return 0;
}
