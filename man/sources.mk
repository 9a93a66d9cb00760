# SPDX-License-Identifier: Apache-2.0
dist_man_MANS = \
	man/eqar.1 \
	man/eqar.5 \
	man/eqfs.1 \
	man/libeqfs.3
