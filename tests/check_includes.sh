#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Who may include whom (HACKING.md): tools -> fs, codec, gpu; fs -> codec/eqcodec.h;
# gpu -> codec/{backend,backend_encode,format,floats,quant_level,eqcodec}.h; lib ->
# codec/{eqcodec,backend}.h, gpu/gpu_load.h; codec -> itself. Fails when it checked nothing.
set -eu
cd "${top_srcdir:?}"
bad=0
checked=0

# allow ROOM PATTERN: quoted includes of the room must match the pattern.
allow() {
	for f in "$1"/*.[ch] "$1"/*.cu "$1"/*.cuh; do
		[ -f "$f" ] || continue
		for inc in $(sed -n 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*"\([^"]*\)".*/\1/p' "$f"); do
			checked=$((checked + 1))
			base=${inc##*/}
			[ "$base" = config.h ] && continue
			[ -f "$1/$base" ] && continue
			if ! printf '%s\n' "$base" | grep -Eqx "$2"; then
				echo "$f: may not include $inc"
				bad=1
			fi
		done
	done
}

allow codec 'NOTHING'
allow fs 'eqcodec\.h'
allow gpu '(eqcodec|backend|backend_encode|format|floats|quant_level)\.h'
allow lib '(eqcodec|backend|gpu_load)\.h'
allow tools '(eqcodec|eqfs|gpu_load|backend|utf8)\.h'

# FUSE stays in fs/ and tools/eqfs.c; CUDA stays in gpu/.
if grep -nE '#[[:space:]]*include[[:space:]]*<fuse' codec/* gpu/* lib/* 2>/dev/null; then bad=1; fi
if grep -nE '#[[:space:]]*include[[:space:]]*<cuda' codec/* fs/* lib/* tools/* 2>/dev/null; then bad=1; fi

[ $checked -ge 50 ] || { echo "checked only $checked includes"; exit 1; }
exit $bad
