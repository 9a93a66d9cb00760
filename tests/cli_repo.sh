#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# pack -r and unpack -r on a tree as a hub's cache lays it out.
. "$(dirname "$0")/cli_lib.sh"
cd "$T" || exit 1

# sums DIRECTORY: all of its files, but not archives.
sums() {
	(cd "$1" && find . -type f ! -name '*.eqar' -exec sha256sum {} + | sort -k2)
}
# tree DIRECTORY: names, types, links, modes, times of what is not a directory.
tree() {
	(cd "$1" && find . ! -type d -printf '%p %y %l %m %T@ %n\n' | sort)
}

repo=cache/models--org--name
blob1=$repo/blobs/1111111111111111111111111111111111111111111111111111111111111111
blob2=$repo/blobs/2222222222222222222222222222222222222222222222222222222222222222
mkdir -p $repo/blobs $repo/snapshots/abc/sub $repo/refs cache/.locks plain/.git
gen --layers 1 --hidden 256 --vocab 300 $blob1
gen --layers 1 --hidden 128 --vocab 300 --seed 2 $blob2
echo '{"architectures": ["LlamaForCausalLM"]}' >$repo/blobs/3333
head -c 3000 $blob2 >$repo/blobs/4444.5555aaaa.incomplete
cp $blob2 $repo/blobs/6666.7777aaaa.incomplete
ln -s ../../blobs/${blob1##*/} $repo/snapshots/abc/model-00001-of-00002.safetensors
ln -s ../../blobs/${blob2##*/} $repo/snapshots/abc/model-00002-of-00002.safetensors
ln -s ../../blobs/3333 $repo/snapshots/abc/config.json
ln -s nowhere $repo/snapshots/abc/sub/dangling
ln -s .. $repo/snapshots/abc/loop
echo abc >$repo/refs/main
: >cache/.locks/x.lock
gen --layers 1 --hidden 128 --vocab 300 plain/hard
ln plain/hard plain/link
gen --layers 1 --hidden 128 --vocab 300 --seed 3 "plain/a name
of two lines.safetensors"
gen --tensor noise:U8:5000:bytes plain/noise.safetensors
printf 'GGUF and more' >plain/model.gguf
gen --layers 1 --hidden 128 --vocab 300 --seed 4 plain/.git/object
mkdir cache/plain
cp -a plain/. cache/plain
chmod 604 $blob1
touch -d '2021-01-01 01:01:01.987654321' $blob1 $blob2
setfattr -n user.note -v kept $blob1 2>/dev/null && xattrs=yes || xattrs=
cp -a cache before

# ---- dry run ------------------------------------------------------------------------
expect 0 "$EQAR" pack -r -n cache
check "says a total" grep -q '^total: 4 files, .* -> about ' .out
check "writes nothing" [ "$(tree cache)" = "$(tree before)" ]
expect 0 "$EQAR" pack -r -n --json cache
check "JSON of a dry run" holds \
	'sum(x["action"] == "estimate" for x in d) == 4 and
	 sum(x["action"] == "skip" for x in d) == 3' .out

# ---- one at a time, as a mount would hold it --------------------------------------------
expect 1 flock -n cache "$EQAR" pack -r cache
says 'eqar: cache: in use by a mount or another eqar'
expect 1 flock -n cache "$EQAR" unpack -r cache
says 'eqar: cache: in use by a mount or another eqar'

# ---- a file that somebody has open for writing -----------------------------------------
mkdir busy
gen --layers 1 --hidden 128 --vocab 300 busy/model
cp busy/model busy/done
if "$EQFS_PYTHON" -c 'import fcntl, sys
fcntl.fcntl(open(sys.argv[1]), fcntl.F_SETLEASE, fcntl.F_RDLCK)' busy/model 2>/dev/null; then
	exec 3>>busy/model
	expect 1 "$EQAR" pack -r busy
	says 'eqar: busy/model: is being written'
	check "only the other one is packed" [ "$(cd busy && echo *)" = "done.eqar model" ]
	exec 3>&-
	expect 0 "$EQAR" pack -r busy
	check "now it is" [ "$(cd busy && echo *)" = "done.eqar model.eqar" ]
fi

# ---- pack -----------------------------------------------------------------------------
: >cache/plain/.eqfs-tmp.0123456789abcdef # litter of a crash
expect 0 "$EQAR" pack -r --json cache
check "JSON" holds 'sum(x["action"] == "pack" for x in d) == 4 and
	sorted(x["reason"] for x in d if x["action"] == "skip") ==
	["has hard links", "has hard links", "would not become smaller"]' .out
check "blobs are archives" [ -f $blob1.eqar -a ! -e $blob1 ]
check "in hidden directories too: content decides" [ -f cache/plain/.git/object.eqar ]
check "hard links stay" [ "$(stat -c %h cache/plain/hard)" = 2 ]
check "incomplete files stay" [ -f $repo/blobs/6666.7777aaaa.incomplete ]
check "links stay" [ "$(readlink $repo/snapshots/abc/config.json)" = ../../blobs/3333 ]
check "what does not shrink stays" [ -f cache/plain/noise.safetensors ]
check "litter is gone" no_litter cache
check "mode of the archive" [ "$(stat -c %a $blob1.eqar)" = 604 ]
check "time of the archive" [ "$(stat -c %Y $blob1.eqar)" = \
	"$(stat -c %Y before/${blob1#cache/})" ]
expect 0 "$EQAR" verify -r cache
check "verify -r sees all" [ "$(grep -c ': ok$' .out)" = 4 ]
expect 0 "$EQAR" pack -r --json cache
check "a second run changes nothing" holds \
	'not any(x["action"] == "pack" for x in d)' .out

# ---- plain wins: a file written anew beside its archive --------------------------------
echo plain >$blob2
expect 1 "$EQAR" unpack -r cache
says "eqar: $blob2: already exists; -f overwrites it"
check "both stay" [ -f $blob2.eqar -a "$(cat $blob2)" = plain ]
rm $blob2
expect 0 "$EQAR" unpack -q $blob2.eqar # as a run leaves it that ends now

# ---- unpack -----------------------------------------------------------------------------
expect 0 "$EQAR" unpack -r cache
check "every byte is back" [ "$(sums cache)" = "$(sums before)" ]
check "every name, mode, time" [ "$(tree cache)" = "$(tree before)" ]
if [ -n "$xattrs" ]; then
	check "attributes" [ "$(getfattr --only-values -n user.note $blob1)" = kept ]
fi

# ---- policy of the repository -------------------------------------------------------------
printf '[policy]\nbits = 4\n' >cache/.eqfs.conf
expect 0 "$EQAR" pack -r -v cache
check "the policy is said" grep -q '^cache: policy: .*bits=4' .err
check "totals" grep -q '^total: 4 files' .err
expect 0 "$EQAR" stat --json $blob1.eqar
check ".eqfs.conf counts" holds 'd["lossy"] and abs(d["quantized_bits"] - 4) < 0.5' .out
check ".eqfs.conf stays" [ -f cache/.eqfs.conf ]
expect 0 "$EQAR" unpack -r cache
check "weights of the same size" [ "$(stat -c %s $blob1)" = \
	"$(stat -c %s before/${blob1#cache/})" ]
check "time of a quantised file" [ "$(stat -c %Y $blob1)" = \
	"$(stat -c %Y before/${blob1#cache/})" ]
cp -a before/. cache
expect 0 "$EQAR" pack -r --bits=2.1 cache
expect 0 "$EQAR" stat --json $blob1.eqar
check "options count more" holds 'd["bits"] == 2.1' .out
expect 0 "$EQAR" unpack -r cache
cp -a before/. cache
printf '[policy]\nbits = 4\nbist = 5\n' >cache/.eqfs.conf
expect 1 "$EQAR" pack -r cache
says 'eqar: cache/.eqfs.conf:3: *'
check "a wrong policy changes nothing" [ "$(sums before)" = \
	"$(sums cache | grep -v eqfs.conf)" ]
rm cache/.eqfs.conf

# ---- several, one of them bad ---------------------------------------------------------------
expect 1 "$EQAR" pack -r missing cache
says 'eqar: missing: No such file or directory'
check "the other one is packed" [ -f $blob1.eqar ]
printf 'no archive' >$repo/refs/fake.eqar
expect 1 "$EQAR" unpack -r cache
says "eqar: $repo/refs/fake.eqar: *"
rm $repo/refs/fake.eqar
check "the others are restored" [ "$(sums cache)" = "$(sums before)" ]
finish
