#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The figures that the codec must reach on Gaussian weights, from stored sizes,
# tables and headers included. lambda's table is that of the EntQuant paper's
# objective (arXiv 2601.22787) on a unit Gaussian: bits by zero-order entropy,
# signal-to-noise ratio in dB.
. "$(dirname "$0")/cli_lib.sh"
cd "$T" || exit 1

gen --tensor model.embed_tokens.weight:BF16:4000x1024 \
	--tensor model.layers.0.self_attn.q_proj.weight:BF16:2048x4096 \
	--tensor model.layers.0.self_attn.o_proj.weight:BF16:2048x4096 \
	--tensor model.layers.0.mlp.up_proj.weight:BF16:2048x4096 \
	--tensor model.layers.0.mlp.down_proj.weight:BF16:4096x2048 gauss
gen --tensor w:F32:2048x2048:bf16 --tensor v:F32:1000x999:bf16 held

expect 0 "$EQAR" pack --json gauss lossless.eqar
check "bf16 lossless at 67%" holds 'd["ratio"] <= 0.67' .out
cat .out
expect 0 "$EQAR" pack --json held
check "float32 that holds bfloat16 at 34%" holds 'd["ratio"] <= 0.34' .out
cat .out

while read -r lambda bits snr; do
	expect 0 "$EQAR" pack -f --lambda="$lambda" gauss lossy.eqar
	expect 0 "$EQAR" stat --json lossy.eqar
	echo "lambda $lambda: $(json '(d["quantized_bits"], d["snr_db"], d["relative_l1"])' .out)"
	check "lambda $lambda: bits" holds "abs(d['quantized_bits'] - $bits) <= 0.05" .out
	check "lambda $lambda: dB" holds "abs(d['snr_db'] - $snr) <= 0.2" .out
	check "lambda $lambda: all four" holds "d['quantized_params'] == 4 * 2 ** 23" .out
done <<END
3.9 3.89 21.86
14.5 2.950 16.11
58 1.984 9.96
END

for format in fp8 int8; do
	for bits in 4 3 2.1; do
		expect 0 "$EQAR" pack -f --bits=$bits --format=$format gauss lossy.eqar
		expect 0 "$EQAR" stat --json lossy.eqar
		echo "$format, $bits bits: $(json '(d["quantized_bits"], d["snr_db"], d["lambda"])' .out)"
		check "$format, $bits bits" holds \
			"abs(d['quantized_bits'] - $bits) <= 0.05 and d['format'] == '$format'" .out
	done
done
expect 0 "$EQAR" verify -q --against=gauss lossy.eqar
finish
