#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A signal in mid-work: no half-made archive, no temporary file, the plain file
# whole, and the exit status tells.
. "$(dirname "$0")/cli_lib.sh"
cd "$T" || exit 1

gen --layers 4 --hidden 1024 --vocab 8000 model.st
mkdir out repo
expect 0 "$EQAR" pack model.st model.eqar

# busy: has a temporary file something in it?
busy() {
	[ -n "$(find "$1" -name '.eqfs-tmp.*' -size +0 -print)" ]
}

# interrupted SIGNAL STATUS DIRECTORY ARGUMENT...: start eqar, send it SIGNAL
# as soon as it writes, and wait. Status 77 when it was done before that.
interrupted() {
	sig=$1 want=$2 where=$3
	shift 3
	# Shells start background jobs with SIGINT ignored. Niced, so that a busy machine
	# does not let it end before we have looked.
	nice -n 19 env --default-signal=INT,TERM,HUP "$EQAR" "$@" 2>.err &
	pid=$!
	until busy "$where"; do
		kill -0 $pid 2>/dev/null || break
	done
	kill -"$sig" $pid 2>/dev/null
	got=0
	wait $pid || got=$?
	check "SIG$sig: status $got, not $want: $*" [ $got -eq "$want" ]
	check "SIG$sig: silent: $*" [ ! -s .err ]
	check "SIG$sig: no litter: $*" no_litter "$where"
}

interrupted TERM 143 out pack -j1 --bits=4 model.st out/a.eqar
check "no archive" [ -z "$(ls -A out)" ]
interrupted INT 130 out pack -j2 --bits=3 model.st out/a.eqar
check "no archive" [ -z "$(ls -A out)" ]
interrupted HUP 129 out pack -j1 --lambda=58 model.st out/a.eqar
check "no archive" [ -z "$(ls -A out)" ]
interrupted TERM 143 out unpack -j1 model.eqar out/b
check "no file" [ -z "$(ls -A out)" ]

cp model.st repo/one
cp model.st repo/two
interrupted TERM 143 repo pack -r -j1 --bits=4 repo
check "the first file is whole" cmp model.st repo/one
check "the second as well" cmp model.st repo/two
check "no archive" [ "$(echo repo/*)" = "repo/one repo/two" ]
rm repo/*
cp model.eqar repo/one.eqar
interrupted INT 130 repo unpack -r -j1 repo
check "the archive is whole" cmp model.eqar repo/one.eqar
check "no plain file" [ "$(echo repo/*)" = repo/one.eqar ]

# An ignored signal stays ignored, as under nohup.
(trap '' HUP; exec "$EQAR" pack --bits=4 model.st out/c.eqar) &
pid=$!
until busy out || ! kill -0 $pid 2>/dev/null; do :; done
kill -HUP $pid 2>/dev/null
check "nohup" wait $pid
expect 0 "$EQAR" verify -q out/c.eqar
finish
