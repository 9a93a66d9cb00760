#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Our parser against the reference (the safetensors package), header by header.

    check_headers.py [SEED [COUNT]]

First the fixtures: the generator must still make what is committed, and the
reference must agree with what EXPECTED says. Then COUNT headers, some valid and
most broken by a few random edits. Only two things may differ: a name that
occurs twice, and what exceeds a limit of eqar.5.
"""
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

try:
    import safetensors
except ImportError:
    print("check_headers.py: no safetensors package")
    sys.exit(1 if "python" in os.environ.get("EQFS_TEST_REQUIRE", "").split(",") else 77)

import gen_bad_headers as gen

HERE = os.path.dirname(os.path.abspath(__file__))
PARSER = os.environ.get("FUZZ_SAFETENSORS", "tests/fuzz_safetensors")
BATCH = 2000

FRAGMENTS = [
    b'"', b",", b":", b"{", b"}", b"[", b"]", b"0", b"1", b"-", b".", b"e", b"\\", b" ", b"\n",
    b"\0", b"\x1f", b"\x7f", b"\xff", b"\xc3\xa9", b"null", b"true", b"\\u0000", b"\\ud83d",
    b"\\ude00", b"[0,1]", b"1e400", b"18446744073709551615", b'"dtype"', b'"shape"',
    b'"data_offsets"', b'"__metadata__"', b'{"U8":null}', b'"U8"', b',"x":1', b'"a":"b"',
]


def quoted(name):
    """A name as st_text.h writes it."""
    return "".join(chr(c) if 0x20 < c < 0x7f and c not in b"%;" else "%%%02X" % c
                   for c in name.encode())


def reference(data):
    """Tensors by name as (dtype, shape, bytes of data), or None if refused."""
    try:
        return {quoted(name): (t["dtype"], "x".join(map(str, t["shape"])) or "-",
                               bytes(t["data"]))
                for name, t in safetensors.deserialize(data)}
    except safetensors.SafetensorError:
        return None


def ours(files):
    """Our verdict on each file: (code, message or tensors)."""
    framed = b"".join(struct.pack("<I", len(f)) + f for f in files)
    out = subprocess.run([PARSER, "-"], input=framed, stdout=subprocess.PIPE, check=True).stdout
    lines = out.decode("utf-8", "surrogateescape").split("\n")[:-1]
    assert len(lines) == len(files), (len(lines), len(files))
    return [line.split("\t", 1) for line in lines]


def tensors(text, data):
    """What `ours` printed, in the form of `reference`."""
    start = 8 + struct.unpack("<Q", data[:8])[0]
    found = {}
    for item in text.split(";") if text else []:
        name, dtype, shape, begin, end = item.split(" ")
        found[name] = (dtype, shape, data[start + int(begin):start + int(end)])
    return found


def compare(files):
    """Print every difference; returns (differences, accepted, excused)."""
    bad = accepted = excused = 0
    for data, (code, text) in zip(files, ours(files)):
        ref = reference(data)
        accepted += ref is not None
        if code != "0" and ref is not None:
            if code == "EQ_ELIMIT" or text.endswith("': occurs twice"):
                excused += 1
                continue
        elif code != "0" or (ref is not None and tensors(text, data) == ref):
            continue
        bad += 1
        print("DIFFERENT:", data[:600], "\n  ours:", code, text, "\n  reference:", ref)
    return bad, accepted, excused


def check_fixtures():
    """The committed files are what the generator makes, and the reference agrees."""
    failures = 0
    with tempfile.TemporaryDirectory() as top:
        subprocess.run([sys.executable, gen.__file__, top], check=True)
        for kind, cases in (("bad", gen.BAD), ("good", gen.GOOD)):
            for name in [n + ".safetensors" for n in cases]:
                with open(os.path.join(top, kind, name), "rb") as f:
                    made = f.read()
                try:
                    with open(os.path.join(HERE, "data", kind, name), "rb") as f:
                        same = f.read() == made
                except FileNotFoundError:
                    same = False
                if not same:
                    print("data/%s/%s is not what gen_bad_headers.py makes" % (kind, name))
                    failures += 1
            with open(os.path.join(top, kind, "EXPECTED"), encoding="utf-8") as f:
                made = f.read()
            with open(os.path.join(HERE, "data", kind, "EXPECTED"), encoding="utf-8") as f:
                if f.read() != made:
                    print("data/%s/EXPECTED is not what gen_bad_headers.py makes" % kind)
                    failures += 1
    bad, accepted, excused = compare([c[0] for c in gen.GOOD.values()])
    failures += bad
    if accepted != len(gen.GOOD):
        print("the reference refuses %d of data/good" % (len(gen.GOOD) - accepted))
        failures += 1
    bad, accepted, excused = compare([c[0] for c in gen.BAD.values()])
    failures += bad + (accepted != excused)
    print("fixtures: %d bad, %d good" % (len(gen.BAD), len(gen.GOOD)))
    return failures


def random_value(rng, at):
    """An entry at offset `at`, mostly right, and the offset behind it."""
    dtype, bits = rng.choice(gen.ALL_DTYPES)
    shape = [rng.choice([0, 1, 2, 3, 4, 8]) for _ in range(rng.randrange(4))]
    total = bits
    for n in shape:
        total *= n
    end = at + total // 8
    if rng.random() < 0.03:
        end += rng.choice([-1, 1])
    fields = [("dtype", dtype), ("shape", shape), ("data_offsets", [at, end])]
    if rng.random() < 0.1:
        return [v for _, v in fields], end
    if rng.random() < 0.1:
        fields.append(("x", rng.choice([1, -2.5, None, [1, {}], "y"])))
    rng.shuffle(fields)
    return dict(fields), end


def random_header(rng):
    """JSON text and the size of the data."""
    at, members = 0, []
    for i in range(rng.randrange(5)):
        value, at = random_value(rng, at)
        name = rng.choice(["t%d" % i] * 4 + ["a", "", "\u00e9\0", "model.layers.%d.q" % i])
        members.append((name, value))
    if rng.random() < 0.3:
        members.append(("__metadata__", rng.choice([None, {}, {"format": "pt"}])))
    rng.shuffle(members)
    ascii_only, colon = rng.random() < 0.5, rng.choice([":", " : "])
    text = ",".join(json.dumps(k, ensure_ascii=ascii_only) + colon + json.dumps(v)
                    for k, v in members)
    return ("{" + text + "}").encode() + b" " * rng.choice([0, 0, 5]), max(at, 0)


def mutate(rng, text):
    text = bytearray(text)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not text:
            break
        i, kind = rng.randrange(len(text)), rng.randrange(6)
        if kind == 0:
            text[i] = rng.randrange(256)
        elif kind == 1:
            del text[i:i + rng.choice([1, 1, 2, 8])]
        elif kind == 2:
            text[i:i] = rng.choice(FRAGMENTS)
        elif kind == 3:
            j = rng.randrange(len(text))
            text[i:i] = text[j:j + rng.randrange(30)]
        elif kind == 4:
            text[i:i + rng.choice([1, 1, 3])] = rng.choice(FRAGMENTS)
        else:
            text[i] = rng.choice(b"0123456789")
    return bytes(text)


def random_number(rng):
    """A number around the largest double, skipped by readers but range-checked."""
    digits = rng.choice(["17976931348623157", "17976931348623158", "1797693134862315807",
                         "1797693134862315"]) + "%d" % rng.randrange(10 ** rng.randrange(1, 6))
    point = rng.randrange(1, len(digits) + 1)
    text = digits[:point] + ("." + digits[point:] if point < len(digits) else "")
    return gen.extra("%se%d" % (text, 309 - point + rng.choice([0, 0, 0, 1, -1])))


def check_random(seed, count):
    rng = random.Random(seed)
    totals = [0, 0, 0]
    done = 0
    while done < count:
        batch = [random_number(rng) for _ in range(BATCH // 20)]
        while len(batch) < BATCH:
            text, size = random_header(rng)
            batch.append(gen.st(text, size % 256))
            batch += [gen.st(mutate(rng, text), size % 256) for _ in range(4)]
        totals = [a + b for a, b in zip(totals, compare(batch))]
        done += len(batch)
    print("%d headers, %d accepted by the reference, %d of them refused for a limit "
          "or a name twice" % (done, totals[1], totals[2]))
    if totals[1] < done // 20:
        print("hardly any header was valid: this tests nothing")
        return 1
    return totals[0]


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 20000
    failures = check_fixtures() + check_random(seed, count)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
