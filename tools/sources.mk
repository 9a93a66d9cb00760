# SPDX-License-Identifier: Apache-2.0
# tools/: the two programs and what they share. One file a line.
EQ_CLI_SOURCES = \
	tools/cli.c \
	tools/cli.h
EQAR_SOURCES = \
	tools/eqar.c \
	tools/eqar.h \
	tools/eqar_bench.c \
	tools/eqar_diff.c \
	tools/eqar_du.c \
	tools/eqar_file.c \
	tools/eqar_float.c \
	tools/eqar_float.h \
	tools/eqar_list.c \
	tools/eqar_pack.c \
	tools/eqar_repo.c \
	tools/eqar_status.c \
	tools/eqar_unpack.c \
	tools/eqar_verify.c \
	tools/eqar_walk.c
EQFS_SOURCES = \
	tools/eqfs.c \
	tools/eqfs_fstab.c \
	tools/eqfs_fstab.h \
	tools/eqfs_point.c \
	tools/eqfs_point.h

bashcompdir = $(datarootdir)/bash-completion/completions
dist_bashcomp_DATA = \
	tools/completions/eqar.bash \
	tools/completions/eqfs.bash

systemdunitdir = $(prefix)/lib/systemd/system
nodist_systemdunit_DATA = tools/eqfs@.service
