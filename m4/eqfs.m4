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

dnl AX_EQ_NVCC_ARCHS(LIST): set have_cuda, and NVCC_ARCHS to the flags for those of
dnl the compute capabilities that $NVCC knows, with PTX of the last one.
AC_DEFUN([AX_EQ_NVCC_ARCHS], [
	have_cuda=no
	NVCC_ARCHS=
	AS_IF([test "x$NVCC" != x], [
		AC_MSG_CHECKING([what $NVCC can build for])
		eq_known=`"$NVCC" --list-gpu-code 2>/dev/null`
		for arch in $1; do
			AS_CASE([" "`echo $eq_known`" "], [*" sm_$arch "*], [
				eq_last=$arch
				NVCC_ARCHS="$NVCC_ARCHS -gencode arch=compute_$arch,code=sm_$arch"])
		done
		AS_IF([test "x$NVCC_ARCHS" != x], [
			NVCC_ARCHS="$NVCC_ARCHS -gencode arch=compute_$eq_last,code=compute_$eq_last"
			have_cuda=yes])
		AC_MSG_RESULT([${NVCC_ARCHS:-nothing}])])
	AC_SUBST([NVCC_ARCHS])
])
