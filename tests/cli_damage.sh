#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Damaged archives: each damaged chunk is named, nothing wrong is ever written.
. "$(dirname "$0")/cli_lib.sh"
cd "$T" || exit 1

# poke FILE OFFSET: turn a byte over.
poke() {
	"$EQFS_PYTHON" - "$1" "$2" <<'END'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2]), 0 if int(sys.argv[2]) >= 0 else 2)
    b = f.read(1)
    f.seek(-1, 1)
    f.write(bytes([b[0] ^ 0x40]))
END
}

gen --tensor model.layers.0.mlp.up_proj.weight:BF16:1024x1024 \
	--tensor model.layers.0.mlp.down_proj.weight:BF16:1024x1024 \
	--tensor norm:F32:5000 --tensor ids:I64:1000:int a.st
for policy in "" --bits=4; do
	# shellcheck disable=SC2086
	expect 0 "$EQAR" pack -f $policy a.st
	"$EQAR" unpack -f a.st.eqar whole || fail "unpack"
	size=$(stat -c %s a.st.eqar)
	# Payloads begin at 4096; the first tensor's is larger than a chunk.
	for at in 4200 $((size / 3)) $((size / 2)); do
		cp a.st.eqar bad.eqar
		poke bad.eqar $at
		expect 1 "$EQAR" verify bad.eqar
		says "eqar: bad.eqar: tensor '*': chunk [0-9]*: *"
		expect 1 "$EQAR" verify --json bad.eqar
		check "JSON of damage" holds "not d['ok'] and len(d['errors']) == 1 and
			'chunk' in d['errors'][0]" .out
		expect 1 "$EQAR" unpack bad.eqar out
		check "no wrong weights" [ ! -e out ]
		check "no litter" no_litter .
		expect 0 "$EQAR" ls bad.eqar
	done
	# Two damaged chunks: two lines.
	cp a.st.eqar bad.eqar
	poke bad.eqar 4200
	poke bad.eqar $((size / 2))
	expect 1 "$EQAR" verify bad.eqar
	check "a line a chunk" [ "$(wc -l <.err)" -eq 2 ]
	# In place: the archive stays.
	mkdir -p repo
	cp bad.eqar repo/x.eqar
	expect 1 "$EQAR" unpack -r repo
	check "a damaged archive stays" [ "$(ls -A repo)" = x.eqar ]
	# Index, trailer, header, length.
	for at in -1 -30 -64 -100 -500 0 9 60; do
		cp a.st.eqar bad.eqar
		poke bad.eqar $at
		expect 1 "$EQAR" verify bad.eqar
		says 'eqar: bad.eqar: *'
		expect 1 "$EQAR" unpack bad.eqar out
		says 'eqar: bad.eqar: *'
		check "nothing written ($at)" [ ! -e out ]
	done
	for n in 0 7 63 64 4096 5000 $((size - 1)); do
		head -c "$n" a.st.eqar >bad.eqar
		expect 1 "$EQAR" verify bad.eqar
		says 'eqar: bad.eqar: *'
	done
	{ cat a.st.eqar && echo; } >bad.eqar
	expect 1 "$EQAR" stat bad.eqar
	says 'eqar: bad.eqar: *'
done
# Every tenth byte of a small archive, one at a time: found, or no part of it.
gen --tensor w:BF16:64x64 --tensor i:I32:50:int small.st
expect 0 "$EQAR" pack small.st
size=$(stat -c %s small.st.eqar)
at=3
while [ $at -lt "$size" ]; do
	cp small.st.eqar bad.eqar
	poke bad.eqar $at
	if "$EQAR" unpack -f bad.eqar out 2>.err; then
		check "byte $at" cmp small.st out
	else
		says 'eqar: bad.eqar: *'
	fi
	at=$((at + 97))
done
finish
