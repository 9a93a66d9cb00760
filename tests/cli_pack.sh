#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# eqar pack, unpack, ls, stat: every dtype there and back, names, times, modes,
# determinism, estimates.
. "$(dirname "$0")/cli_lib.sh"
cd "$T" || exit 1

# round FILE: pack and unpack without loss.
round() {
	expect 0 "$EQAR" pack -f "$1" "$1.eqar"
	expect 0 "$EQAR" verify -q "$1.eqar"
	expect 0 "$EQAR" verify -q --against="$1" "$1.eqar"
	expect 0 "$EQAR" unpack -f "$1.eqar" back
	check "$1 comes back" cmp "$1" back
	expect 0 "$EQAR" stat --json "$1.eqar"
	check "SHA-256 of $1" [ "$(json 'd["sha256"]' .out)" = \
		"$(sha256sum <"$1" | cut -d' ' -f1)" ]
}

# ---- every dtype, odd shapes --------------------------------------------------
seed=0
for dtype in BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 \
	F8_E4M3FNUZ F8_E5M2FNUZ I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64; do
	seed=$((seed + 1)) kind=gauss
	case $dtype in F8_E8M0 | *FNUZ) kind=bytes ;; esac
	gen --seed $seed --tensor "a:$dtype:0x8:$kind" --tensor "b:$dtype:8:$kind" \
		--tensor "c:$dtype:131x1032:$kind" --tensor "d:$dtype:3x5x56:bytes" \
		--tensor "e:$dtype:4096x33:zero" "$dtype.st"
	round "$dtype.st"
	expect 0 "$EQAR" ls --json "$dtype.st.eqar"
	check "$dtype: rows" holds "len(d['tensors']) == 5 and
		all(t['dtype'] == '$dtype' for t in d['tensors'])" .out
done
rm -f ./*.st ./*.eqar

# ---- degenerate files ----------------------------------------------------------
gen --tensor 's:F32:' --tensor 'z:BF16:0' scalar.st
printf '\010\0\0\0\0\0\0\0{}      ' >empty.st
printf '\002\0\0\0\0\0\0\0{}' >tight.st
gen --tensor 'x:BF16:100x100:nonfinite' --tensor 'y:F64:7x7:nonfinite' nan.st
gen --tensor 'h:BF16:512x512:heavy' --tensor 'i:F32:512x100:bf16' \
	--tensor 'k:F32:1000:const' --metadata format=pt heavy.st
"$EQFS_PYTHON" - <<'END'
import json, struct
# Leading white space, escapes and a name of several scripts in the header.
h = b'  {"a\\u0000\\"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},' \
    b'"\xc3\xa9\xe6\xbc\xa2\xf0\x9f\x98\x80":{"dtype":"BF16","shape":[1,2],"data_offsets":[2,6]}}   '
open("names.st", "wb").write(struct.pack("<Q", len(h)) + h + b"abcdef")
END
for f in scalar empty tight nan heavy names; do
	round $f.st
	expect 0 "$EQAR" ls $f.st.eqar
	expect 0 "$EQAR" ls --json $f.st.eqar
	check "$f: JSON of ls" holds 'isinstance(d["tensors"], list)' .out
done
expect 0 "$EQAR" ls --json names.st.eqar
check "names in JSON" holds \
	'sorted(t["name"] for t in d["tensors"]) == ["a\0\"b", "\u00e9\u6f22\U0001f600"]' .out

# ---- a whole model --------------------------------------------------------------
gen --layers 2 --hidden 256 --vocab 500 --spread 1 model.safetensors
chmod 640 model.safetensors
touch -d '2020-02-02 02:02:02.123456789' model.safetensors
expect 0 "$EQAR" pack model.safetensors
check "silence" [ ! -s .out -a ! -s .err ]
check "the original stays" [ -f model.safetensors ]
check "mode" [ "$(stat -c %a model.safetensors.eqar)" = 640 ]
check "time" [ "$(stat -c %y model.safetensors.eqar)" = \
	"$(stat -c %y model.safetensors)" ]
cp -p model.safetensors original
rm model.safetensors
touch model.safetensors.eqar # the archive's own time is not what counts
expect 0 "$EQAR" unpack model.safetensors.eqar
check "round trip" cmp model.safetensors original
check "mode back" [ "$(stat -c %a model.safetensors)" = 640 ]
check "time back" [ "$(stat -c %.9Y model.safetensors)" = \
	"$(date -d '2020-02-02 02:02:02.123456789' +%s.%N)" ]
check "unpack -c to a pipe" sh -c '"$0" unpack -c model.safetensors.eqar | cmp - original' "$EQAR"
expect 0 "$EQAR" unpack --stdout -j1 model.safetensors.eqar
check "unpack --stdout to a file" cmp .out original
expect 0 "$EQAR" stat model.safetensors.eqar
expect 0 "$EQAR" stat --json model.safetensors.eqar
check "fields of stat" holds 'd["logical_size"] > d["stored_size"] > 0 and
	d["quantized_params"] == 0 and d["quantized_bits"] is None and
	d["relative_l1"] == 0 and d["snr_db"] is None and not d["lossy"] and
	d["mtime_ns"] == 123456789 and d["tensors"] == 21 and
	d["policy"] == "lossless"' .out
expect 0 "$EQAR" stat --json model.safetensors.eqar nan.st.eqar
check "an object a line" holds 'len(d) == 2 and d[1]["file"] == "nan.st.eqar"' .out

# ---- policies, and what they say ---------------------------------------------------
n=0
for policy in --lambda=3.9 "--lambda=14.5 --format=int8" --bits=3 \
	"--bits=4 --exclude=*.layers.1.*" "--bits=4 --include=lm_head.weight" \
	"--bits=3 --format=int8"; do
	n=$((n + 1))
	# shellcheck disable=SC2086
	expect 0 "$EQAR" pack $policy --json original lossy$n.eqar
	check "JSON of pack" holds 'd["quantized_tensors"] > 0 and d["relative_l1"] > 0' .out
	packed=$(json 'd["quantized_bits"]' .out)
	expect 0 "$EQAR" verify --json --against=original lossy$n.eqar
	check "against, as it says" holds 'd["ok"] and not d["against"]["identical"] and
		0 < d["against"]["relative_l1"] < 0.5' .out
	expect 0 "$EQAR" stat --json lossy$n.eqar
	check "stat of $policy" holds "d['lossy'] and d['quantized_bits'] == $packed and
		abs(d['quantized_bits'] - d['quantized_bytes'] * 8 / d['quantized_params']) < 1e-9" .out
	for jobs in 1 2 5; do
		# shellcheck disable=SC2086
		expect 0 "$EQAR" pack $policy -f -j $jobs original again
		check "$policy: same bytes with $jobs threads" cmp again lossy$n.eqar
	done
	for off in avx512 avx512,avx2; do
		# shellcheck disable=SC2086
		expect 0 env EQFS_DISABLE_CPU=$off "$EQAR" pack $policy -f original again
		check "$policy: same bytes without $off" cmp again lossy$n.eqar
		expect 0 env EQFS_DISABLE_CPU=$off "$EQAR" unpack -f lossy$n.eqar weights$off
	done
	check "same weights without AVX-512" cmp weightsavx512 weightsavx512,avx2
	expect 0 "$EQAR" unpack -f lossy$n.eqar weights
	check "same weights" cmp weights weightsavx512
	check "not the original" [ "$(cmp -s weights original; echo $?)" = 1 ]
done
# tensors EXPRESSION ARCHIVE: of t, the rows of ls by name.
tensors() {
	"$EQAR" ls --json "$2" >.ls &&
		holds "(lambda t: $1)({x['name']: x for x in d['tensors']})" .ls
}
check "embedding, head and norms are lossless" tensors 'all(t[k]["lossy"] ==
	(k.startswith("model.layers") and "norm" not in k) for k in t)' lossy1.eqar
check "--exclude" tensors 'not any(x["lossy"] for k, x in t.items() if ".layers.1." in k) and
	t["model.layers.0.mlp.up_proj.weight"]["lossy"]' lossy4.eqar
check "--include" tensors 't["lm_head.weight"]["lossy"] and
	sum(x["lossy"] for x in t.values()) == 1' lossy5.eqar
expect 0 "$EQAR" ls -l lossy4.eqar
check "lossless is said" grep -q 'lossless.*model.layers.1.mlp' .out
check "the error is said" grep -q '[0-9]%.*model.layers.0.mlp.up_proj.weight$' .out

gen --tensor model.layers.0.mlp.up_proj.weight:BF16:256x256:nonfinite \
	--tensor model.layers.0.mlp.down_proj.weight:BF16:256x256 weird.st
expect 0 "$EQAR" pack --bits=4 weird.st
check "NaN is not quantised" tensors \
	't["model.layers.0.mlp.up_proj.weight"]["nonfinite"] and
	not t["model.layers.0.mlp.up_proj.weight"]["lossy"] and
	t["model.layers.0.mlp.down_proj.weight"]["lossy"]' weird.st.eqar
expect 0 "$EQAR" ls weird.st.eqar
check "and it is said" grep -q 'lossless (non-finite).*up_proj' .out

printf '# ours\n[policy]\nbits = 3\nformat = int8\n' >policy.ini
expect 0 "$EQAR" pack --policy=policy.ini original byfile.eqar
expect 0 "$EQAR" pack --bits=3 --format=int8 original byoption.eqar
check "a policy file does what options do" cmp byfile.eqar byoption.eqar
expect 0 "$EQAR" pack --policy=policy.ini --bits=lossless original plain.eqar
check "options count more" cmp plain.eqar model.safetensors.eqar

# ---- lossless archives do not depend on threads and instruction set ------------------
for f in original heavy.st; do
	expect 0 "$EQAR" pack -f -j2 $f one.eqar
	for jobs in 1 3; do
		expect 0 "$EQAR" pack -f -j $jobs $f two.eqar
		check "$f, $jobs threads" cmp one.eqar two.eqar
	done
	for off in avx512 avx512,avx2; do
		expect 0 env EQFS_DISABLE_CPU=$off "$EQAR" pack -f $f two.eqar
		check "$f without $off" cmp one.eqar two.eqar
		expect 0 env EQFS_DISABLE_CPU=$off "$EQAR" unpack -f one.eqar back
		check "$f decoded without $off" cmp back $f
	done
done

# ---- dry run ------------------------------------------------------------------------
gen --layers 2 --hidden 1024 --vocab 4000 --spread 0.5 big.st
mkdir empty && cp -p big.st empty/
for policy in "" --bits=4 --lambda=14.5; do
	before=$(ls -la --full-time empty)
	# shellcheck disable=SC2086
	expect 0 "$EQAR" pack -n --json $policy empty/big.st
	check "a dry run writes nothing" [ "$before" = "$(ls -la --full-time empty)" ]
	about=$(json 'd["stored_size"]' .out)
	# shellcheck disable=SC2086
	expect 0 "$EQAR" pack -f --json $policy big.st
	check "estimate '$policy' ($about)" holds \
		"abs($about / d['stored_size'] - 1) < 0.04" .out
done
expect 0 "$EQAR" pack -n big.st
check "an estimate in words" grep -q 'big.st: .* -> about .*%)' .out

# ---- bench ---------------------------------------------------------------------------
expect 0 "$EQAR" bench -j1 --json one.eqar
check "bench" holds 'd["isa"] in ("avx512", "avx2", "neon", "c") and
	d["runs"][0]["decode_bytes_per_s"] > 0 and d["runs"][0]["memcpy_bytes_per_s"] > 0' .out
expect 0 "$EQAR" bench -j2 one.eqar
# The cases above that switch instruction sets off must have done so.
for off in avx512 avx512,avx2,neon; do
	expect 0 env EQFS_DISABLE_CPU=$off "$EQAR" bench -j1 --json one.eqar
	check "$off is off" holds "d['isa'] not in '$off'.split(',')" .out
done
finish
