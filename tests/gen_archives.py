#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the archive fixtures: tests/data/good (a golden archive a codec, with the
SHA-256 of what they decode to), data/unsupported and data/bad (*.eqar, with the
expected error). Usage: gen_archives.py [DATA-DIRECTORY]"""

import hashlib
import struct
import sys
from pathlib import Path

import numpy as np
import zstandard

import eqar_ref as ref
from eqar_ref import CONST, EMPTY, OUTLIERS, RAW, Builder, Table, assemble, fit, head

rng = np.random.default_rng(20261123)
E4M3 = {s: v for s in range(256) if s & 127 != 127 and s != 128
        for v in [(-1) ** (s >> 7) * ((s & 7) * 2.0**-9 if s >> 3 & 15 == 0 else
                                      (8 + (s & 7)) * 2.0**((s >> 3 & 15) - 10))]}


def planes_of(data, unit, transform):
    """The byte planes of little-endian units, most significant first."""
    u = [int.from_bytes(data[i:i + unit], "little") for i in range(0, len(data), unit)]
    if transform:
        u = [ref.rotate(v, unit, True) for v in u]
    return [[v >> 8 * (unit - 1 - p) & 255 for v in u] for p in range(unit)]


def pair_table(data):
    hist = np.bincount(np.asarray(data, np.uint8), minlength=256)
    nibble = [int(s) for s in np.argsort(-hist, kind="stable")[:15]]
    code = {s: i for i, s in enumerate(nibble)}
    codes = [code.get(b, 15) for b in data] + [0] * (-len(data) % 128)
    pairs = [codes[b + j] | codes[b + j + 64] << 4
             for b in range(0, len(codes), 128) for j in range(64)]
    return Table(fit(pairs), nibble)


def planes_chunks(data, unit, transform, chunk_units, modes):
    """(chunks, params): modes[p] is 'raw', 'rans', 'pair' or 'const'."""
    planes, tables, index = planes_of(data, unit, transform), [], {}
    for p, mode in enumerate(modes):
        if mode in ("rans", "pair"):
            index[p] = len(tables)
            tables.append(Table(fit(planes[p])) if mode == "rans" else pair_table(planes[p]))
    chunks = []
    for at in range(0, len(planes[0]), chunk_units):
        parts = []
        for p, mode in enumerate(modes):
            piece = planes[p][at:at + chunk_units]
            if mode == "raw":
                parts.append((head(RAW), bytes(piece)))
            elif mode == "const":
                assert len(set(piece)) == 1
                parts.append((head(CONST, piece[0]), b""))
            elif mode == "rans":
                parts.append(ref.part_rans(piece, tables, index[p]))
            else:
                parts.append(ref.part_pair(piece, tables, index[p]))
        chunks.append(assemble(parts))
    return chunks, ref.params_of(tables)


def quant(dtype, rows, k, chunk_units, scale_dtype, pair=False, outliers=()):
    """A quantised matrix: (decoded, chunks, params) with random fp8 symbols."""
    usable = [0, 1, 2, 3, 4, 8, 0x81, 0x82, 0x83, 0x85]
    n = rows * k
    sym = [int(s) for s in rng.choice(usable, n, p=[.4, .1, .1, .05, .05, .05, .1, .1, .04, .01])]
    scale = (rng.random(rows) * 90 + 0.01).astype(np.float32)
    bf16 = (scale.view(np.uint32) >> 16).astype(np.uint32)
    if scale_dtype == 1:
        scale = (bf16 << 16).view(np.float32)
    table = pair_table(sym) if pair else Table(fit(sym))
    v = {s: E4M3[s] for s in usable}
    unit, chunks, decoded = ref.unit_of(dtype), [], b""
    for at in range(0, n, chunk_units):
        piece = sym[at:at + chunk_units]
        r0, r1 = at // k, (at + len(piece) - 1) // k
        raw = (bf16[r0:r1 + 1].astype("<u2") if scale_dtype == 1 else scale[r0:r1 + 1]).tobytes()
        own = [(pos - at, bits) for pos, bits in outliers if at <= pos < at + len(piece)]
        symbols = ref.part_pair(piece, [table]) if pair else ref.part_rans(piece, [table])
        chunks.append(assemble([
            (head(RAW), raw), symbols,
            (head(OUTLIERS, 0, 0, len(own)), b"".join(struct.pack("<II", *o) for o in own))
            if own else (head(EMPTY), b"")]))
        value = np.array([v[s] for s in piece], np.float32)
        out = bytearray(ref.to_dtype(value * scale[(at + np.arange(len(piece))) // k], dtype))
        for pos, bits in own:
            out[pos * unit:(pos + 1) * unit] = bits.to_bytes(4, "little")[:unit]
        decoded += bytes(out)
    return decoded, chunks, ref.params_of([table], [v])


def bf16(x):
    return ref.to_dtype(np.asarray(x, np.float32), "BF16")


def archive(tensors, build=None, prepare=None):
    """One archive of (name, dtype, dims, codec, decoded, kwargs) and its file."""
    prefix = ref.st_prefix([(t[0], t[1], t[2], len(t[4])) for t in tensors])
    b = Builder(prefix)
    for name, dtype, dims, codec, decoded, more in tensors:
        b.add(name, dtype, dims, codec, decoded, **more)
    if prepare:
        prepare(b)
    original = prefix + b"".join(t[4] for t in tensors)
    return b.build(original, **(build or {})), original


def simple(**over):
    """A small raw tensor, the base of most damaged archives; overrides of its record."""
    data = bytes(range(256)) * 2
    return ("t", "U8", (512,), "raw", data,
            dict(chunks=[data[:256], data[256:]], chunk_units=256, over=over))


def planes(dtype, n, chunk_units, modes, data, **more):
    unit = ref.unit_of(dtype)
    transform = int(dtype in ("F16", "BF16", "F32", "F64", "C64"))
    chunks, params = planes_chunks(data, unit, transform, chunk_units, modes)
    return (f"p.{dtype}", dtype, (n,), "planes", data,
            dict(chunks=chunks, params=params, chunk_units=chunk_units, transform=transform, **more))


def quantised(dtype, rows, k, chunk_units, scale_dtype, **kw):
    decoded, chunks, params = quant(dtype, rows, k, chunk_units, scale_dtype, **kw)
    return (f"q.{dtype}", dtype, (rows, k), "quant", decoded,
            dict(chunks=chunks, params=params, chunk_units=chunk_units, row_units=k,
                 scale_dtype=scale_dtype, qformat=1))


def good():
    normal = rng.standard_normal
    yield "raw", archive([simple()])
    yield "const", archive([("c", "F32", (3, 5), "const", struct.pack("<f", 1.5) * 15,
                             dict(const=0x3FC00000))])
    text = b"quick brown fox " * 40
    z = zstandard.ZstdCompressor(3).compress(text[:512])
    yield "zstd", archive([("z", "I32", (160,), "zstd", text,
                            dict(chunks=[z, text[512:]], chunk_units=128))])
    yield "planes-bf16", archive([planes("BF16", 300, 128, ["rans", "raw"], bf16(normal(300)))])
    yield "planes-bf16-pair", archive([planes("BF16", 900, 384, ["pair", "raw"],
                                              bf16(normal(900) * np.exp2(rng.integers(-9, 9, 900))))])
    yield "planes-f16", archive([planes("F16", 257, 256, ["rans", "rans"],
                                        normal(257).astype("<f2").tobytes())])
    widened = (np.frombuffer(bf16(normal(200)), "<u2").astype("<u4") << 16).tobytes()
    yield "planes-f32-of-bf16", archive([planes("F32", 200, 128, ["rans", "raw", "const", "const"],
                                                widened)])
    yield "planes-f64", archive([planes("F64", 150, 128, ["rans", "rans"] + ["raw"] * 6,
                                        normal(150).astype("<f8").tobytes())])
    fp8 = bytes(int(x) for x in np.clip(normal(500) * 6 + 60, 0, 255))
    yield "planes-fp8", archive([planes("F8_E4M3", 500, 256, ["rans"], fp8)])
    yield "quant-bf16", archive([quantised("BF16", 7, 100, 256, 1,
                                           outliers=[(3, 0x4480), (255, 0x8000), (256, 0x7F00)])])
    yield "quant-f16-f32-scale", archive([quantised("F16", 33, 9, 128, 2)])
    yield "quant-f32-pair", archive([quantised("F32", 2, 700, 512, 1, pair=True)])
    yield "mixed", archive([simple(), planes("BF16", 130, 128, ["rans", "raw"], bf16(normal(130))),
                            ("e", "F32", (0, 3), "raw", b"", {}),
                            quantised("BF16", 4, 64, 128, 1),
                            ("s", "I64", (), "raw", b"\1" * 8, dict(chunks=[b"\1" * 8],
                                                                    chunk_units=128))])
    yield "empty", archive([])
    yield "header-stored", archive([simple()], dict(compress_prefix=False))

    def newer(b):
        b.sections.append((77, 0, b"from a later version"))
        h = ref.MAGIC + struct.pack("<HHI40x", 1, 3, 0)
        b.payload[:64] = h + struct.pack("<Q", ref.xxh3(h))
    yield "minor-version-3", archive([simple()], dict(trailer=dict(minor=3)), newer)


def dquant():
    tables = [Table(fit([0, 0, 1, 2, 3])), Table(fit([0, 0, 0, 1, 2, 3]))]
    sym, lanes = [int(s) for s in rng.integers(0, 4, 256)], {}
    state = [0] * 32
    for i in sorted(range(256), key=lambda i: (i // 128, i % 4, i % 128 // 4)):
        lane = i % 128 // 4
        lanes[i] = state[lane] & 1
        state[lane] = ref.NEXT[state[lane]][sym[i] & 1]
    x, words = ref.rans_encode(sym, lambda i: tables[lanes[i]])
    body = ref.pad(struct.pack(f"<32I{len(words)}H", *x, *words), 4)
    values = [{s: float(2 * s) for s in range(4)}, {s: float(2 * s - (s > 0)) for s in range(4)}]
    decoded = bf16([values[lanes[i]][s] for i, s in enumerate(sym)])
    chunk = assemble([(head(RAW), b"\x80\x3f" * 2), (head(6, 0, len(words)), body),
                      (head(EMPTY), b"")])
    return ("d", "BF16", (2, 128), "dquant", decoded,
            dict(chunks=[chunk], params=ref.params_of(tables, values), chunk_units=256,
                 row_units=128, scale_dtype=1, qformat=3))


def header(major, incompat):
    def set_header(b):
        b.payload[:64] = b.file_header(major, incompat)
    return set_header


def fields_of_version_2(b):
    h = ref.MAGIC + struct.pack("<HHI", 2, 0, 0) + b"\7" * 40
    b.payload[:64] = h + struct.pack("<Q", ref.xxh3(h))


def unsupported():
    yield "dquant", archive([dquant()]), "tensor 'd': unsupported codec 'dquant'"
    t = simple()
    yield "codec-wavelet", archive([(*t[:3], "wavelet", *t[4:])]), "unsupported codec 'wavelet'"
    yield "version-2", archive([t], None, header(2, 0)), "unsupported archive version 2"
    yield "trailer-version-2", archive([t], dict(trailer=dict(major=2))), "archive version 2"
    yield ("version-2-fields", archive([t], None, fields_of_version_2),
           "unsupported archive version 2") # what is reserved now may mean something then
    yield "features-4", archive([t], None, header(1, 4)), "unsupported archive features 0x4"
    yield ("critical-section", archive([t], None, lambda b: b.sections.append((9, 1, b"x"))),
           "unsupported section of type 9")


def flip(data, at, mask=0x10):
    out = bytearray(data)
    out[at] ^= mask
    return bytes(out)


def bad():
    base, _ = archive([simple()])
    n = len(base)
    yield "empty", b"", "ENOTEQAR", "not an eqar archive"
    yield "magic", b"PK" + base[2:], "ENOTEQAR", "not an eqar archive"
    yield "only-magic", base[:8], "ECORRUPT", "truncated archive"
    yield "header-bit", flip(base, 20), "ECORRUPT", "file header: checksum"
    yield "truncated", base[:n - 1], "ECORRUPT", "no trailer"
    yield "half", base[:n // 2], "ECORRUPT", "truncated archive"
    yield "appended", base + b"\n", "ECORRUPT", "no trailer"
    yield "trailer-bit", flip(base, n - 60), "ECORRUPT", "trailer: checksum"
    yield "index-bit", flip(base, n - 200), "ECORRUPT", "index: checksum"
    yield "chunk-bit", flip(base, 4096 + 300), "ECORRUPT", "tensor 't': chunk 1: checksum mismatch"
    for key, value, text in (("off", 32, "place of the index"), ("off", 2**63, "place of the index"),
                             ("len", 8, "place of the index"), ("len", 2**40, "exceeds the limit"),
                             ("total", n + 8, "should have")):
        code = "ELIMIT" if "limit" in text else "ECORRUPT"
        yield f"trailer-{key}-{value}", archive([simple()], dict(trailer={key: value}))[0], code, text
    yield ("trailer-off-negative", # off + len is right in 64 bits
           archive([simple()], dict(trailer=dict(off=2**64 - 40, len=n - 64 + 40)))[0],
           "ECORRUPT", "place of the index")

    def file_field(**kw):
        return archive([simple()], None, lambda b: b.file.update(kw))[0]
    yield "file-size", file_field(size=5000), "ECORRUPT", "do not add up"
    yield "file-size-huge", file_field(size=2**63), "ECORRUPT", "FILE out of range"
    yield "file-prefix-7", file_field(prefix_len=7), "ECORRUPT", "FILE out of range"
    yield "file-prefix-other", file_field(prefix_len=64), "ECORRUPT", "PREFIX"
    yield ("file-prefix-huge", file_field(prefix_len=2**33, size=2**40), "ELIMIT",
           "header of 8589934592 bytes exceeds the limit")
    yield ("prefix-two-frames", archive([simple()], dict(
        compress_prefix=lambda p: ref.frame(p[:8]) + ref.frame(p[8:])))[0], "ECORRUPT", "PREFIX is not one frame")
    yield "file-nanoseconds", file_field(ns=10**9), "ECORRUPT", "FILE out of range"
    yield "file-flags", file_field(flags=2), "ECORRUPT", "FILE out of range"
    yield "file-lossy", file_field(flags=1), "ECORRUPT", "lossy flag"
    yield "file-nan", file_field(lam=float("nan")), "ECORRUPT", "FILE out of range"
    yield "file-sha", file_field(sha=bytes(32)), "ECORRUPT", "wrong SHA-256"

    def record(**kw):
        return archive([simple(**kw)])[0]
    yield "record-length", record(record_len=136), "ECORRUPT", "length of a tensor's record"
    yield "record-name", record(name_len=4096), "ECORRUPT", "length of a tensor's record"
    yield "record-name-limit", record(name_len=70000), "ELIMIT", "name of a tensor exceeds"
    yield "record-ndim", record(ndim=65), "ELIMIT", "number of dimensions"
    yield "record-dtype", record(dtype=40), "ECORRUPT", "unknown dtype"
    yield "record-unit", record(unit=2), "ECORRUPT", "unit does not fit"
    yield "record-bytes", record(n_bytes=513), "ECORRUPT", "does not fit dtype and shape"
    yield "record-bytes-huge", record(n_bytes=2**62), "ECORRUPT", "does not fit dtype and shape"
    yield "record-offset", record(off=8192 * 4096), "ECORRUPT", "payload out of place"
    yield "record-offset-odd", record(off=4112), "ECORRUPT", "payload out of place"
    yield "record-payload", record(len=400), "ECORRUPT", "chunks do not fill"
    yield "record-units-0", record_units(0), "ECORRUPT", "chunk size"
    yield "record-units-100", record_units(100), "ECORRUPT", "chunk size"
    yield "record-units-huge", record_units(2**21), "ELIMIT", "exceed the limit"
    yield "record-units-other", record_units(512), "ECORRUPT", "number of chunks"
    yield "record-transform", record(transform=1), "ECORRUPT", "transform"
    yield "record-transform-9", record(transform=9), "ECORRUPT", "transform"
    yield "record-flags", record(flags=8), "ECORRUPT", "reserved field"
    yield "record-lossy", record(flags=1), "ECORRUPT", "quantisation fields"
    yield "record-const", record(const=1), "ECORRUPT", "constant of another codec"
    yield "record-params", archive([(*simple()[:5], dict(simple()[5], params=bytes(8)))])[0], \
        "ECORRUPT", "parameters of another codec"
    yield "record-error-nan", record(l1=float("nan")), "ECORRUPT", "error figures"
    yield "content-hash", record(content=1), "ECORRUPT", "wrong hash"
    yield "name-differs", renamed(), "ECORRUPT", "header and index disagree on tensor 'u'"
    data, long = bf16(rng.standard_normal(300)), bf16(rng.standard_normal(1024))
    for name, params, text in (
            ("none", b"", "parameters"), ("no-tables", bytes(8), "chunk 0: corrupt data"),
            ("count", struct.pack("<HHI", 65, 0, 0), "parameters"),
            ("truncated", struct.pack("<HHI", 2, 0, 0), "parameters")):
        t = planes("BF16", 300, 128, ["rans", "raw"], data)
        code = "ELIMIT" if name == "count" else "ECORRUPT"
        yield (f"params-{name}", archive([(*t[:5], dict(t[5], params=params))])[0], code, text)
    for name, edit in (("state", lambda c: struct.pack("<I", 5)), ("word", lambda c: b"\xff\xff")):
        t = planes("BF16", 1024, 1024, ["rans", "raw"], long)
        chunk = bytearray(t[5]["chunks"][0])
        at = 32 if name == "state" else 32 + 128 + 8
        chunk[at:at + len(edit(chunk))] = edit(chunk)
        yield (f"rans-{name}", archive([(*t[:5], dict(t[5], chunks=[bytes(chunk)]))])[0], "ECORRUPT",
               "chunk 0: corrupt data")
    for name, h in (("kind", head(9)), ("table", head(3, 5, 10)), ("long", head(3, 0, 10**6)),
                    ("words-0", head(3, 0, 0)), ("reserved", b"\1\0\1\0" + bytes(12)),
                    ("empty", head(EMPTY)), ("outliers", head(OUTLIERS, 0, 0, 3))):
        t = planes("BF16", 1024, 1024, ["rans", "raw"], long)
        chunk = h + t[5]["chunks"][0][16:]
        yield (f"part-{name}", archive([(*t[:5], dict(t[5], chunks=[chunk]))])[0], "ECORRUPT",
               "chunk 0: corrupt data")
    for name, entry in (("far", (200, 0)), ("nonascending", (1, 0))):
        t = quantised("BF16", 1, 128, 128, 1, outliers=[(1, 5), (2, 6)])
        chunk = bytearray(t[5]["chunks"][0])
        at = chunk.rindex(struct.pack("<II", 2, 6))
        chunk[at:at + 8] = struct.pack("<II", *entry)
        yield (f"outlier-{name}", archive([(*t[:5], dict(t[5], chunks=[bytes(chunk)]))])[0],
               "ECORRUPT", "chunk 0: corrupt data")
    t = quantised("BF16", 1, 128, 128, 1)
    for name, bits in (("nan", 0x7FC0), ("negative", 0xBF80), ("infinite", 0x7F80)):
        chunk = t[5]["chunks"][0][:48] + struct.pack("<H", bits) + t[5]["chunks"][0][50:]
        yield (f"scale-{name}", archive([(*t[:5], dict(t[5], chunks=[chunk]))])[0], "ECORRUPT",
               "chunk 0: corrupt data")
    z = ("z", "U8", (256,), "zstd", bytes(256), dict(chunks=[b"not a zstd frame"], chunk_units=256))
    yield "zstd-frame", archive([z])[0], "ECORRUPT", "chunk 0: corrupt data"


def record_units(units):
    """chunk_units itself is no override: the builder sets it from the argument."""
    t = simple()
    return archive([(*t[:5], dict(t[5], chunk_units=units))])[0]


def renamed():
    t = simple()
    prefix = ref.st_prefix([("t", "U8", (512,), 512)])
    b = Builder(prefix)
    b.add("u", *t[1:5], **t[5])
    return b.build(prefix + t[4])


def main():
    top = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "data")
    for sub in ("good", "unsupported", "bad"):
        (top / sub).mkdir(parents=True, exist_ok=True)
    lines = []
    for name, (data, original) in good():
        assert ref.decode(data)[0] == original, name
        (top / "good" / f"{name}.eqar").write_bytes(data)
        lines.append(f"{name}.eqar\t{hashlib.sha256(original).hexdigest()}\n")
    (top / "good" / "ARCHIVES").write_text("".join(lines))
    lines = []
    for name, (data, original), text in unsupported():
        if name == "dquant":
            assert ref.decode(data)[0] == original
        (top / "unsupported" / f"{name}.eqar").write_bytes(data)
        lines.append(f"{name}.eqar\tEUNSUP\t{text}\n")
    (top / "unsupported" / "ARCHIVES").write_text("".join(lines))
    lines = []
    for name, data, code, text in bad():
        (top / "bad" / f"{name}.eqar").write_bytes(data)
        lines.append(f"{name}.eqar\t{code}\t{text}\n")
    (top / "bad" / "ARCHIVES").write_text("".join(lines))


if __name__ == "__main__":
    main()
