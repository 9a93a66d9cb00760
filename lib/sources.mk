# SPDX-License-Identifier: Apache-2.0
# lib/: libeqfs.so and the Python module. One file a line.
EQ_LIB_SOURCES = \
	lib/lib_device.c \
	lib/lib_dlpack.c \
	lib/lib_file.c \
	lib/lib_load.c \
	lib/lib_priv.h \
	lib/libeqfs.h
EQ_PYTHON_FILES = \
	lib/eqfs/__init__.py \
	lib/eqfs/_lib.py
