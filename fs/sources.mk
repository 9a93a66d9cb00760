# SPDX-License-Identifier: Apache-2.0
# fs/: the filesystem. One file a line.
EQ_FS_SOURCES =
