#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Exit statuses and messages: one line, naming the file and the cause; and what
# is left behind when something fails.
. "$(dirname "$0")/cli_lib.sh"
cd "$T" || exit 1

gen --layers 1 --hidden 128 --vocab 100 a.st
expect 0 "$EQAR" pack a.st

# ---- usage --------------------------------------------------------------------
# usage ARGUMENT...: status 2, a cause and a hint, nothing on stdout.
usage() {
	expect 2 "$EQAR" "$@"
	check "cause and hint: $*" [ "$(wc -l <.err)" -eq 2 ]
	check "hint: $*" grep -q "^Try 'eqar.* --help'" .err
	check "nothing on stdout: $*" [ ! -s .out ]
}
usage
usage pancake
usage --pancake
usage pack
usage pack a b c
usage pack --pancake a.st
usage pack --bits=zero a.st
usage pack --bits=99 a.st
usage pack --lambda=-1 a.st
usage pack --format=fp4 a.st
usage pack -j 0 a.st
usage pack -j two a.st
usage unpack
usage unpack a b c
usage unpack -c a b
usage unpack -c -r .
usage ls
usage stat
usage stat -l a.st.eqar
usage verify
usage verify --against=a.st a.st.eqar a.st.eqar
usage verify -r --against=a.st .
usage diff a
usage diff a b c
usage bench
usage bench a b

for command in pack unpack ls stat verify diff bench; do
	expect 0 "$EQAR" $command --help
	check "help of $command" grep -q "^Usage: eqar $command" .out
done
expect 0 "$EQAR" --help
expect 0 "$EQAR" --version
check "version" grep -Eq '^eqar \(eqfs\) [0-9]+\.[0-9]+\.[0-9]+$' .out

# ---- failures -------------------------------------------------------------------
# fails GLOB ARGUMENT...: status 1, one line.
fails() {
	pattern=$1
	shift
	expect 1 "$EQAR" "$@"
	says "$pattern"
}
mkdir dir
mkfifo fifo
echo '{"model_type": "llama"}' >config.json
: >nothing
head -c 100000 /dev/zero >zeros
ln -s nowhere dangling
fails 'eqar: missing: No such file or directory' pack missing
fails 'eqar: fifo: not a regular file' pack fifo
fails 'eqar: dangling: No such file or directory' pack dangling
fails 'eqar: config.json: *' pack config.json
fails 'eqar: nothing: *' pack nothing
fails 'eqar: zeros: *' pack zeros
fails 'eqar: zeros: *' pack -n zeros
fails 'eqar: a.st.eqar: *' pack a.st.eqar
check "no archive of a failure" [ "$(echo ./*.eqar)" = ./a.st.eqar ]
fails 'eqar: a.st.eqar: already exists; -f overwrites it' pack a.st
fails 'eqar: a.st: is the input itself' pack -f a.st a.st
fails 'eqar: dir: Is a directory' pack -f a.st dir
fails 'eqar: dir/: Is a directory' pack a.st dir/
fails 'eqar: no/where.eqar: No such file or directory' pack a.st no/where.eqar
fails 'eqar: missing.ini: No such file or directory' pack --policy=missing.ini a.st b
printf '[policy]\nbits = 4\nbtis = 3\n' >wrong.ini
fails 'eqar: wrong.ini:3: *' pack --policy=wrong.ini a.st b
printf '[polity]\nbits = 4\n' >wrong.ini
fails 'eqar: wrong.ini:1: *' pack --policy=wrong.ini a.st b
check "no output of a wrong policy" [ ! -e b ]

fails 'eqar: a.st: *' unpack a.st out
fails 'eqar: a.st: does not end in .eqar; name the output' unpack a.st
fails 'eqar: a.st: already exists; -f overwrites it' unpack a.st.eqar
fails 'eqar: a.st.eqar: is the input itself' unpack -f a.st.eqar a.st.eqar
fails 'eqar: missing.eqar: No such file or directory' unpack missing.eqar
fails 'eqar: dir: Is a directory' ls dir
fails 'eqar: config.json: *' stat config.json
fails 'eqar: zeros: *' verify zeros
fails 'eqar: nothing: *' bench nothing
fails 'eqar: missing: No such file or directory' verify --against=missing a.st.eqar
fails 'eqar: a.st.eqar: has * bytes, *' verify --against=a.st.eqar a.st.eqar
fails 'eqar: missing: No such file or directory' diff a.st missing
fails 'eqar: config.json: *' diff config.json a.st
fails 'eqar: missing: No such file or directory' pack -r missing
fails 'eqar: dir: Is a directory; -r packs the files in it' pack dir
fails 'eqar: a.st: Not a directory' unpack -r a.st
fails 'eqar: dir: no archive found' verify -r dir
expect 1 "$EQAR" ls missing a.st.eqar
check "the others are listed" grep -q lm_head .out
bad=$(printf 'x\ny')
cp config.json "$bad"
fails 'eqar: x?y: *' pack "$bad"
# JSON is UTF-8, whatever a name is.
cp a.st "$(printf 'x\377\303\251\355\240\200y')"
expect 0 "$EQAR" pack --json "$(printf 'x\377\303\251\355\240\200y')"
check "U+FFFD for what is no UTF-8" holds 'd["file"] == "x\ufffd\xe9\ufffd\ufffd\ufffdy"' .out
# What terminals obey: ESC, and U+009B, which means the same.
gen --tensor "$(printf 'a\033[31mb\302\2332Jc'):U8:16:bytes" escape.st
expect 0 "$EQAR" pack escape.st
expect 0 "$EQAR" ls escape.st.eqar
check "no control characters on a terminal" grep -qF 'a?[31mb?2Jc' .out
cp config.json "$(printf 'x\302\233y')"
fails 'eqar: x??y: *' pack "$(printf 'x\302\233y')"

# An original that differs in one byte, in size, in a quantised tensor.
cp a.st b.st
printf X | dd of=b.st bs=1 seek=5000 conv=notrunc 2>/dev/null
fails 'eqar: a.st.eqar: differs from b.st at byte 5000 *' verify --against=b.st a.st.eqar
head -c 9999 a.st >c.st
fails 'eqar: c.st: *' verify --against=c.st a.st.eqar
gen --layers 1 --hidden 128 --vocab 100 --seed 2 other.st
expect 0 "$EQAR" pack --bits=4 a.st lossy.eqar
fails 'eqar: *' verify --against=other.st lossy.eqar

# ---- standard output that cannot be written ----------------------------------------
if [ -c /dev/full ]; then
	got=0
	"$EQAR" ls a.st.eqar >/dev/full 2>.err || got=$?
	check "ls to a full device" [ $got -eq 1 ]
	says 'eqar: standard output: No space left on device'
	got=0
	"$EQAR" stat --json a.st.eqar >/dev/full 2>.err || got=$?
	check "stat --json to a full device" [ $got -eq 1 ]
	says 'eqar: standard output: No space left on device'
	gen --layers 4 --hidden 64 --vocab 100 many.st
	expect 0 "$EQAR" pack many.st
	expect 0 "$EQAR" ls --json many.st.eqar
	check "more than a buffer" [ "$(wc -c <.out)" -gt 8192 ]
	got=0
	"$EQAR" ls --json many.st.eqar >/dev/full 2>.err || got=$?
	check "ls --json to a full device" [ $got -eq 1 ]
	says 'eqar: standard output: No space left on device'
	got=0
	"$EQAR" unpack -c a.st.eqar >/dev/full 2>.err || got=$?
	check "unpack -c to a full device" [ $got -eq 1 ]
	says 'eqar: standard output: No space left on device'
fi

# ---- an output that has no room is named, not the input --------------------------------
got=0
(trap '' XFSZ && ulimit -f 8 && exec "$EQAR" pack -f a.st small.eqar) 2>.err || got=$?
check "pack into no room" [ $got -eq 1 ]
says 'eqar: small.eqar: File too large'
check "nothing left of it" no_litter .

# ---- more bits than there are ----------------------------------------------------------
expect 0 "$EQAR" pack -f --bits=8 other.st lossy.eqar
says 'eqar: other.st: 8 bits were asked for, but the finest coding takes 6.*'
expect 0 "$EQAR" pack -fq --bits=8 other.st lossy.eqar
check "-q keeps quiet about it" [ ! -s .err ]

# ---- an archive that is larger than the file ---------------------------------------------
tiny=
for i in 1 2 3 4 5 6 7 8 9; do
	tiny="$tiny --tensor $i.bias:BF16:300"
done
# shellcheck disable=SC2086
gen $tiny tiny.st
expect 0 "$EQAR" pack --dry-run --json tiny.st
says 'eqar: tiny.st: the archive would be larger than the file'
mv .out .estimate
expect 0 "$EQAR" pack --json tiny.st
says 'eqar: tiny.st: the archive is larger than the file'
check "both say so, and agree to 5%" "$EQFS_PYTHON" -c 'if 1:
	import json
	e, s = json.load(open(".estimate")), json.load(open(".out"))
	assert e["larger"] is s["larger"] is True
	assert abs(e["stored_size"] / s["stored_size"] - 1) < 0.05, (e, s)'
expect 0 "$EQAR" pack -q -f tiny.st
check "-q keeps quiet about that, too" [ ! -s .err ]
expect 0 "$EQAR" pack --json -f a.st
check "others are not" grep -q '"larger":false' .out

# ---- a directory that cannot be written ---------------------------------------------
mkdir ro
cp a.st ro
chmod 555 ro
as_user=
[ "$(id -u)" -ne 0 ] || as_user="setpriv --reuid=65534 --regid=65534 --clear-groups"
chmod 755 "$T"
# The program itself may lie where that user cannot go.
# shellcheck disable=SC2086
if [ -z "$as_user" ] || $as_user "$EQAR" --version >/dev/null 2>&1; then
	expect 1 $as_user "$EQAR" pack ro/a.st
	says 'eqar: ro/a.st.eqar: Permission denied'
	expect 1 $as_user "$EQAR" pack -r ro
	says 'eqar: ro/a.st: *'
	check "nothing changed" [ "$(ls -A ro)" = a.st ]
	chmod 000 ro/a.st
	expect 1 $as_user "$EQAR" pack ro/a.st out.eqar
	says 'eqar: ro/a.st: Permission denied'
fi

# ---- limits on what may be written -----------------------------------------------------
mkdir full
expect 1 sh -c 'ulimit -f 20; exec "$0" pack a.st full/a.eqar' "$EQAR"
says 'eqar: *File too large'
check "nothing left" [ -z "$(ls -A full)" ]

gen --layers 1 --hidden 1024 --vocab 2000 big.st
expect 0 "$EQAR" pack big.st big.eqar
if [ "$(id -u)" -eq 0 ] && mount -t tmpfs -o size=4m tmpfs full 2>/dev/null; then
	at_exit="umount $T/full"
	expect 1 "$EQAR" pack big.st full/big.eqar
	says 'eqar: *No space left on device'
	check "a full disk: nothing left" [ -z "$(ls -A full)" ]
	expect 1 "$EQAR" unpack big.eqar full/big.st
	says 'eqar: *No space left on device'
	check "a full disk: nothing left by unpack" [ -z "$(ls -A full)" ]
	cp a.st.eqar full/a.st.eqar
	head -c 4m /dev/zero >full/filler 2>/dev/null
	expect 1 "$EQAR" unpack -r full
	says 'eqar: *No space left on device'
	check "a full disk: the archive stays" cmp -s full/a.st.eqar a.st.eqar
	check "and is alone" [ ! -e full/a.st ]
	check "no litter" no_litter full
	umount full && at_exit=:
fi
finish
