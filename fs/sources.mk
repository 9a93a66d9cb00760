# SPDX-License-Identifier: Apache-2.0
# fs/: the filesystem. One file a line.
EQ_FS_SOURCES = \
	fs/arc.c \
	fs/arc.h \
	fs/attr.c \
	fs/cache.c \
	fs/cache.h \
	fs/caps.c \
	fs/caps.h \
	fs/compact.c \
	fs/compact.h \
	fs/eqfs.h \
	fs/fs.h \
	fs/inode.c \
	fs/inode.h \
	fs/log.c \
	fs/log.h \
	fs/name.c \
	fs/name.h \
	fs/notify.c \
	fs/notify.h \
	fs/ops.c \
	fs/ops.h \
	fs/ops_attr.c \
	fs/ops_dir.c \
	fs/ops_file.c \
	fs/ops_name.c \
	fs/ops_rename.c \
	fs/ops_virtual.c \
	fs/ops_xattr.c \
	fs/prefetch.c \
	fs/prefetch.h \
	fs/ready.c \
	fs/ready.h \
	fs/restore.c \
	fs/scan.c \
	fs/scan.h \
	fs/session.c \
	fs/stats.c \
	fs/stats.h \
	fs/trim.c \
	fs/trim.h \
	fs/tune.c \
	fs/tune.h
