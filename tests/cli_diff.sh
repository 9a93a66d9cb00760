#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# eqar diff: archives and plain files against each other, figures by dtype.
. "$(dirname "$0")/cli_lib.sh"
cd "$T" || exit 1

gen --layers 2 --hidden 256 --vocab 500 a.st
expect 0 "$EQAR" pack a.st
expect 0 "$EQAR" pack --bits=3 a.st lossy.eqar
for pair in "a.st a.st" "a.st a.st.eqar" "a.st.eqar a.st" "lossy.eqar lossy.eqar"; do
	# shellcheck disable=SC2086
	expect 0 "$EQAR" diff $pair
	check "identical: $pair" [ "$(cat .out)" = "21 identical, 0 different" ]
done
for jobs in 1 3; do
	expect 1 "$EQAR" diff -j $jobs --json a.st lossy.eqar
	check "no message" [ ! -s .err ]
	cp .out by$jobs
done
check "threads do not matter" cmp by1 by3
expect 0 "$EQAR" stat --json lossy.eqar
error=$(json 'd["relative_l1"]' .out) snr=$(json 'd["snr_db"]' .out)
check "the figures of the archive" holds "abs(d['relative_l1'] / $error - 1) < 1e-5 and
	abs(d['snr_db'] - $snr) < 1e-3 and d['different'] == 14 and d['identical'] == 7" by1
expect 1 "$EQAR" diff a.st lossy.eqar
check "a row each" [ "$(wc -l <.out)" -eq 15 ]
expect 1 "$EQAR" diff -v a.st lossy.eqar
check "-v: identical ones as well" [ "$(wc -l <.out)" -eq 22 ]
expect 1 "$EQAR" diff -q a.st lossy.eqar
check "-q" [ ! -s .out ]

gen --tensor same:I32:10:int --tensor type:F32:4 --tensor shape:F32:2x3 --tensor old:U8:3:bytes x.st
gen --tensor same:I32:10:zero --tensor type:F64:4 --tensor shape:F32:3x2 --tensor young:U8:3:bytes y.st
expect 1 "$EQAR" diff --json x.st y.st
check "what cannot be compared" holds '{t["name"]: t["result"] for t in d["tensors"]} ==
	{"same": "differs", "type": "dtype or shape differs",
	 "shape": "dtype or shape differs", "old": "only in A", "young": "only in B"}' .out

# All finite patterns of a format against its pattern 0: the largest value.
"$EQFS_PYTHON" - <<'END'
import json, struct
def write(name, dtype, data, n):
    h = json.dumps({"t": {"dtype": dtype, "shape": [n], "data_offsets": [0, len(data)]}}).encode()
    open(name, "wb").write(struct.pack("<Q", len(h)) + h + data)
def both(dtype, patterns, size):
    data = b"".join(p.to_bytes(size, "little") for p in patterns)
    write(dtype + ".a", dtype, data, len(patterns))
    write(dtype + ".b", dtype, bytes(len(data)), len(patterns))
both("F8_E4M3", [p for p in range(256) if p & 127 != 127], 1)
both("F8_E5M2", [p for p in range(256) if p & 127 < 0x7c], 1)
both("F8_E4M3FNUZ", [p for p in range(256) if p != 128], 1)
both("F8_E5M2FNUZ", [p for p in range(256) if p != 128], 1)
both("F16", [p for p in range(65536) if p & 0x7fff < 0x7c00], 2)
both("BF16", [p for p in range(65536) if p & 0x7fff < 0x7f80], 2)
both("F32", [0x3f800000, 0xc0400000], 4)
both("C64", [0x3f800000c0400000], 8)
both("F64", [0x3ff0000000000000, 0xc008000000000000], 8)
both("F8_E8M0", [0, 127, 129], 1)
nan = struct.pack("<4f", float("nan"), float("inf"), 1, 2)
write("same.a", "F32", nan, 4)
write("same.b", "F32", nan[:8] + struct.pack("<2f", 1, 2.5), 4)
write("nan.b", "F32", struct.pack("<4f", 0, 0, 1, 2), 4)
END
while read -r dtype max; do
	expect 1 "$EQAR" diff --json "$dtype.a" "$dtype.b"
	check "$dtype" holds "(lambda t: abs(t['max_abs'] / $max - 1) < 1e-12 and
		abs(t['relative_l1'] - 1) < 1e-12)(d['tensors'][0])" .out
done <<END
F8_E4M3 448
F8_E5M2 57344
F8_E4M3FNUZ 240
F8_E5M2FNUZ 57344
F16 65504
BF16 ((2-2**-7)*2**127)
F32 3
C64 3
F64 3
F8_E8M0 4
END
expect 1 "$EQAR" diff --json same.a same.b
check "the same NaN is no difference" holds 'd["tensors"][0]["max_abs"] == 0.5' .out
expect 1 "$EQAR" diff --json same.a nan.b
check "a lost NaN is" holds 'd["tensors"][0]["max_abs"] is None' .out

cp a.st short.st
truncate -s -1 short.st
expect 1 "$EQAR" diff a.st short.st
says 'eqar: short.st: *'
cp lossy.eqar bad.eqar
printf XXXX | dd of=bad.eqar bs=1 seek=4200 conv=notrunc 2>/dev/null
expect 1 "$EQAR" diff a.st bad.eqar
says "eqar: bad.eqar: tensor '*': chunk *"
finish
