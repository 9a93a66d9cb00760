# SPDX-License-Identifier: Apache-2.0
# tools/: the two programs and what they share. One file a line.
EQ_CLI_SOURCES =
EQAR_SOURCES =
EQFS_SOURCES =
