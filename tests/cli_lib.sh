# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
# What the cli_*.sh tests share; to be sourced. Leaves: $T, an empty directory
# that goes away at the end, and the functions below.
: "${EQAR:=./eqar}" "${EQFS_PYTHON:=python3}"
: "${top_srcdir:=$(cd "$(dirname "$0")/.." && pwd)}"
# Tests change their directory.
case $EQAR in /*) ;; *) EQAR=$PWD/$EQAR ;; esac
case $EQFS_PYTHON in /*) ;; */*) EQFS_PYTHON=$PWD/$EQFS_PYTHON ;; esac
cases=0 failures=0 test_name=$(basename "$0")

"$EQFS_PYTHON" -c 'import numpy' 2>/dev/null || {
	echo "$test_name: $EQFS_PYTHON has no numpy"
	case ,${EQFS_TEST_REQUIRE-}, in *,python,*) exit 1 ;; esac
	exit 77
}
"$EQAR" --version >/dev/null || exit 1

T=$(mktemp -d "${TMPDIR:-/tmp}/eqar-test.XXXXXX") || exit 1
at_exit=:
trap '$at_exit; chmod -R u+w "$T" 2>/dev/null; rm -rf "$T"' EXIT
trap 'exit 1' HUP INT TERM

# gen ARGUMENT...: see gen_model.py.
gen() {
	"$EQFS_PYTHON" "$top_srcdir/tests/gen_model.py" "$@" || exit 1
}

# pass; fail MESSAGE: count a case.
pass() {
	cases=$((cases + 1))
}
fail() {
	cases=$((cases + 1)) failures=$((failures + 1))
	echo "FAIL: $*"
}

# check WHAT COMMAND...: a case that holds when COMMAND succeeds.
check() {
	check_what=$1
	shift
	if "$@"; then pass; else fail "$check_what"; fi
}

# expect STATUS COMMAND...: run it; output is in $T/.out and $T/.err.
expect() {
	want=$1 got=0
	shift
	"$@" >"$T/.out" 2>"$T/.err" || got=$?
	if [ "$got" -eq "$want" ]; then
		pass
	else
		fail "status $got, not $want: $*"
		sed 's/^/  /' "$T/.err"
	fi
}

# says GLOB: the last message was one line that matches GLOB.
says() {
	line=$(cat "$T/.err")
	# The pattern is meant as one.
	# shellcheck disable=SC2254
	case $line in
	*"
"*) fail "more than a line: $line" ;;
	$1) pass ;;
	*) fail "said '$line', not '$1'" ;;
	esac
}

# litter DIRECTORY: does it hold temporary files?
litter() {
	[ -n "$(find "$1" -name '.eqfs-tmp.*' -print)" ]
}
no_litter() {
	! litter "$1"
}

# json EXPRESSION FILE: print a Python expression of d, the JSON object of FILE,
# or the list of them if it has several lines. NaN and Infinity are no JSON.
json() {
	"$EQFS_PYTHON" - "$1" "$2" <<'END'
import json, sys
def refuse(name):
    raise ValueError(name + " is no JSON")
with open(sys.argv[2], encoding="utf-8") as f:
    lines = [json.loads(line, parse_constant=refuse) for line in f]
d = lines[0] if len(lines) == 1 else lines
print(eval("(" + sys.argv[1] + ")"))
END
}

# holds EXPRESSION FILE: is it True?
holds() {
	value=$(json "$1" "$2")
	[ "$value" = True ] && return
	echo "  $1 is '$value' of:"
	cut -c 1-2000 "$2" | sed 's/^/  /'
	return 1
}

finish() {
	if [ "$cases" -eq 0 ]; then
		echo "$test_name: nothing was tested"
		exit 1
	fi
	echo "$test_name: $cases cases, $failures failures"
	[ "$failures" -eq 0 ]
	exit
}
