dnl SPDX-License-Identifier: Apache-2.0
dnl AX_EQ_CFLAG(FLAG, VARIABLE): append FLAG to VARIABLE if the compiler takes it.
AC_DEFUN([AX_EQ_CFLAG], [
	AX_EQ_COMPILES([$1], [$2="$$2 $1"])
])

dnl AX_EQ_COMPILES(FLAGS, IF-YES): does the C compiler take FLAGS?
AC_DEFUN([AX_EQ_COMPILES], [
	AC_MSG_CHECKING([whether $CC accepts $1])
	eq_saved_CFLAGS=$CFLAGS
	CFLAGS="$CFLAGS -Werror $1"
	AC_COMPILE_IFELSE([AC_LANG_PROGRAM([], [])],
		[AC_MSG_RESULT([yes])
		 CFLAGS=$eq_saved_CFLAGS
		 $2],
		[AC_MSG_RESULT([no])
		 CFLAGS=$eq_saved_CFLAGS])
])

dnl AX_PTHREAD_LITE: every system we build on has -pthread.
AC_DEFUN([AX_PTHREAD_LITE], [
	PTHREAD_CFLAGS=-pthread
	PTHREAD_LIBS=-pthread
	AC_SUBST([PTHREAD_CFLAGS])
	AC_SUBST([PTHREAD_LIBS])
])
