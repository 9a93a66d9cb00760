/* SPDX-License-Identifier: Apache-2.0 */
#ifndef EQ_CAPS_H
#define EQ_CAPS_H

/*
 * Of root's capabilities, give up those that a mount never needs, for good, and
 * with them the right to gain others by executing something. Nothing happens to
 * other users. Before there are threads. 0 or -errno.
 */
int eq_caps_drop(void);

#endif
