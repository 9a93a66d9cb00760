# SPDX-License-Identifier: Apache-2.0
"""A second implementation of eqar archives, from man/eqar.5 alone: slow, plain
Python. It decodes archives, to check the C decoder's understanding of the page,
and builds small ones, also of kinds that eqfs itself does not write yet."""

import struct

import numpy as np
import xxhash
import zstandard

MAGIC = b"\x89EQAR\r\n\x1a"
MAGIC_END = b"EQARend\n"
DTYPES = ("BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ "
          "I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64").split()
BITS = dict(zip(DTYPES, (8, 4, 6, 6, 8, 8, 8, 8, 8, 8, 8, 16, 16, 16, 16, 32, 32, 32, 64, 64,
                         64, 64)))
EMPTY, RAW, CONST, RANS, PAIR, OUTLIERS, DEPENDENT = range(7)
NEXT = ((0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5))


class Corrupt(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Corrupt(what)


def align(x, a):
    return (x + a - 1) // a * a


def pad(data, a):
    return data + bytes(align(len(data), a) - len(data))


def xxh3(data):
    return xxhash.xxh3_64_intdigest(data)


def unit_of(dtype):
    return 4 if dtype == "C64" else max(1, BITS[dtype] // 8)


# ---- entropy coder ---------------------------------------------------------------


class Table:
    """Frequencies of symbols; with `nibble`, a pair table."""

    def __init__(self, freq, nibble=None):
        need(2 <= len(freq) <= 256 and sum(freq.values()) == 4096, "frequencies")
        self.freq, self.nibble = dict(sorted(freq.items())), nibble
        self.start, self.slot = {}, []
        for s, f in self.freq.items():
            need(1 <= f <= 4095, "frequency")
            self.start[s] = len(self.slot)
            self.slot += [s] * f
        self.pad = min(self.freq, key=lambda s: (-self.freq[s], s))

    def store(self):
        out = struct.pack("<BBHI", 2 if self.nibble else 1, 0, len(self.freq), 0)
        if self.nibble:
            out += bytes(self.nibble) + b"\0"
        out += bitmap(self.freq) + struct.pack(f"<{len(self.freq)}H", *self.freq.values())
        return pad(out, 8)


def bitmap(symbols):
    out = bytearray(32)
    for s in symbols:
        out[s >> 3] |= 1 << (s & 7)
    return bytes(out)


def bits_of(data):
    return [s for s in range(256) if data[s >> 3] >> (s & 7) & 1]


def fit(symbols):
    """Some frequencies for the symbols; any that sum to 4096 will do."""
    hist = np.bincount(np.asarray(symbols, dtype=np.uint8), minlength=256)
    present = [int(s) for s in np.nonzero(hist)[0]]
    if len(present) == 1:
        present.append((present[0] + 1) % 256)
    total = max(1, int(hist.sum()))
    freq = {s: max(1, int(hist[s]) * (4096 - len(present)) // total) for s in present}
    freq[max(freq, key=freq.get)] += 4096 - sum(freq.values())
    return freq


def rans_encode(symbols, tables):
    """(states, words); tables(lane) gives the table of a lane's next symbol, in the
    order of encoding (backwards)."""
    symbols = list(symbols)
    x, words = [65536] * 32, []
    for g in range(align(len(symbols), 128) - 128, -1, -128):
        for t in (3, 2, 1, 0):
            for lane in range(31, -1, -1):
                i = g + 4 * lane + t
                table = tables(i)
                s = symbols[i] if i < len(symbols) else table.pad
                f, c = table.freq[s], table.start[s]
                if x[lane] >= f << 20:
                    words.append(x[lane] & 0xFFFF)
                    x[lane] >>= 16
                x[lane] = (x[lane] // f << 12) + x[lane] % f + c
    return x, words[::-1]


def rans_decode(data, n_words, m, pick):
    """m symbols; pick(lane, symbol or None) gives the table a lane uses next."""
    x = list(struct.unpack_from("<32I", data))
    words = struct.unpack_from(f"<{n_words}H", data, 128)
    need(min(x) >= 65536, "state")
    out, w = [0] * align(m, 128), 0
    table = [pick(lane, None) for lane in range(32)]
    for g in range(0, len(out), 128):
        for t in range(4):
            for lane in range(32):
                slot = x[lane] & 4095
                s = table[lane].slot[slot]
                x[lane] = table[lane].freq[s] * (x[lane] >> 12) + slot - table[lane].start[s]
                if x[lane] < 65536:
                    need(w < n_words, "words run out")
                    x[lane] = x[lane] << 16 | words[w]
                    w += 1
                out[g + 4 * lane + t] = s
                table[lane] = pick(lane, s)
    need(w == n_words and all(v == 65536 for v in x), "end of the words")
    return out[:m]


# ---- parts -------------------------------------------------------------------------


def head(kind, arg=0, words=0, entries=0):
    return struct.pack("<BBHIII", kind, arg, 0, words, entries, 0)


def part_rans(symbols, tables, arg=0):
    x, words = rans_encode(symbols, lambda i: tables[arg])
    return (head(RANS, arg, len(words)),
            pad(struct.pack(f"<32I{len(words)}H", *x, *words), 4))


def part_pair(data, tables, arg=0):
    """Bytes as nibbles; those without one become escapes."""
    table, n = tables[arg], len(data)
    nibble = {s: i for i, s in reversed(list(enumerate(table.nibble)))}
    codes = [nibble.get(b, 15) for b in data] + [0] * (align(n, 128) - n)
    pairs = [codes[b + j] | codes[b + j + 64] << 4
             for b in range(0, len(codes), 128) for j in range(64)]
    x, words = rans_encode(pairs, lambda i: table)
    escapes = [i << 8 | b for i, b in enumerate(data) if b not in nibble]
    body = pad(struct.pack(f"<32I{len(words)}H", *x, *words), 4)
    return (head(PAIR, arg, len(words), len(escapes)),
            body + struct.pack(f"<{len(escapes)}I", *escapes))


def assemble(parts):
    out = b"".join(h for h, _ in parts)
    for _, body in parts:
        out = pad(out, 16) + body
    return pad(out, 16)


def split_parts(chunk, lengths, count):
    """(kind, arg, W, E, body) of each part; lengths(index) says how long RAW is."""
    at, out = 16 * count, []
    for i in range(count):
        kind, arg, z0, w, e, z1 = struct.unpack_from("<BBHIII", chunk, 16 * i)
        need(z0 == 0 and z1 == 0, "part head")
        size = {EMPTY: 0, RAW: lengths(i), CONST: 0, RANS: align(128 + 2 * w, 4),
                PAIR: align(128 + 2 * w, 4) + 4 * e, OUTLIERS: 8 * e,
                DEPENDENT: align(128 + 2 * w, 4)}.get(kind)
        need(size is not None, "kind of part")
        at = align(at, 16)
        need(at + size <= len(chunk), "part runs past the chunk")
        out.append((kind, arg, w, e, chunk[at:at + size]))
        at += size
    need(align(at, 16) == len(chunk), "length of the chunk")
    return out


def decode_bytes(part, n, tables, values=None):
    """The n bytes of a plane or of symbols."""
    kind, arg, w, e, body = part
    if kind == RAW:
        return list(body)
    if kind == CONST:
        return [arg] * n
    if kind == RANS:
        return rans_decode(body, w, n, lambda lane, s: tables[arg])
    if kind == DEPENDENT:
        state = [0] * 32

        def pick(lane, s):
            if s is not None:
                state[lane] = NEXT[state[lane]][s & 1]
            return tables[arg + (state[lane] & 1)]
        return rans_decode(body, w, n, pick)
    need(kind == PAIR, "kind of part")
    table = tables[arg]
    pairs = rans_decode(body, w, 64 * (align(n, 128) // 128), lambda lane, s: table)
    out = [0] * (2 * len(pairs))
    for i, p in enumerate(pairs):
        out[i // 64 * 128 + i % 64] = p & 15
        out[i // 64 * 128 + i % 64 + 64] = p >> 4
    escaped = {i for i in range(n) if out[i] == 15}
    out = [(table.nibble + [0])[b] for b in out[:n]]
    last = -1
    for entry in struct.unpack_from(f"<{e}I", body, len(body) - 4 * e):
        need(last < entry >> 8 < n and entry >> 8 in escaped, "escape")
        last = entry >> 8
        out[last] = entry & 255
    need(len(escaped) == e, "escapes")
    return out


# ---- archives: reading ---------------------------------------------------------------


def read_params(data):
    n_freq, n_value, zero = struct.unpack_from("<HHI", data)
    at, tables, values = 8, [], []
    for _ in range(n_freq):
        mode, _, count, _ = struct.unpack_from("<BBHI", data, at)
        begin, nibble = at, None
        at += 8
        if mode == 2:
            nibble = list(data[at:at + 15])
            at += 16
        symbols = bits_of(data[at:at + 32])
        need(len(symbols) == count, "bit map")
        freq = struct.unpack_from(f"<{count}H", data, at + 32)
        tables.append(Table(dict(zip(symbols, freq)), nibble))
        at = begin + align(at + 32 + 2 * count - begin, 8)
    for _ in range(n_value):
        count, _ = struct.unpack_from("<II", data, at)
        symbols = bits_of(data[at + 8:at + 40])
        need(len(symbols) == count, "bit map")
        values.append(dict(zip(symbols, struct.unpack_from(f"<{count}f", data, at + 40))))
        at = align(at + 40 + 4 * count, 8)
    need(at == len(data), "parameters")
    return tables, values


def to_dtype(x, dtype):
    """float32 array -> bytes of the dtype, to nearest even."""
    if dtype == "F32":
        return x.astype("<f4").tobytes()
    if dtype == "F16":
        return x.astype("<f2").tobytes()
    u = x.view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype("<u2").tobytes()


def rotate(u, unit, left):
    top = u >> (8 * unit - 16) & 0xFFFF
    top = (top << 1 | top >> 15 if left else top >> 1 | top << 15) & 0xFFFF
    return (u & ((1 << (8 * unit - 16)) - 1)) | top << (8 * unit - 16)


class Tensor:
    """A record and where its chunks are."""

    def __init__(self, data, at):
        (self.record_len, name_len, self.codec, self.n_bytes, self.off, self.len, self.content,
         self.n_chunks, self.chunk_units, dtype, ndim, self.unit, self.transform, self.qformat,
         self.scale_dtype, self.flags, param_len, _, self.l1, self.snr, self.row_units,
         self.const) = struct.unpack_from("<II8sQQQQIIBBBBBBHIIddQQ", data, at)
        self.codec = self.codec.rstrip(b"\0").decode()
        self.dtype = DTYPES[dtype]
        at += 128
        self.dims = struct.unpack_from(f"<{ndim}Q", data, at)
        at += 8 * ndim
        self.name = data[at:at + name_len].decode()
        at += align(name_len, 8)
        self.params = data[at:at + param_len]
        at += param_len
        self.chunks = [struct.unpack_from("<IIQ", data, at + 16 * i) for i in range(self.n_chunks)]
        need(at + 16 * self.n_chunks <= len(data), "record")

    def decode(self, archive):
        if self.codec == "const":
            return (self.const.to_bytes(8, "little")[:self.unit]) * (self.n_bytes // self.unit)
        out, at, units = b"", self.off, self.n_bytes // self.unit
        for i, (length, _, digest) in enumerate(self.chunks):
            chunk = archive[at:at + length]
            need(xxh3(chunk) == digest, "chunk checksum")
            first = i * self.chunk_units
            out += self.decode_chunk(chunk, first, min(self.chunk_units, units - first))
            at = align(at + length, 16)
        need(len(out) == self.n_bytes and xxh3(out) == self.content, "content hash")
        return out

    def decode_chunk(self, chunk, first, n):
        if self.codec == "raw" or (self.codec == "zstd" and len(chunk) == n * self.unit):
            return chunk
        if self.codec == "zstd":
            return zstandard.ZstdDecompressor().decompress(chunk, n * self.unit)
        tables, values = read_params(self.params)
        if self.codec == "planes":
            parts = split_parts(chunk, lambda i: n, self.unit)
            u = np.zeros(n, np.uint64)
            for part in parts:
                u = u << np.uint64(8) | np.array(decode_bytes(part, n, tables), np.uint64)
            if self.transform:
                u = np.array([rotate(int(v), self.unit, False) for v in u], np.uint64)
            return u.astype("<u8").view(np.uint8).reshape(n, 8)[:, :self.unit].tobytes()
        need(self.codec in ("quant", "dquant"), f"codec {self.codec}")
        return self.decode_quant(chunk, first, n, tables, values)

    def decode_quant(self, chunk, first, n, tables, values):
        row0, row1 = first // self.row_units, (first + n - 1) // self.row_units
        width = 2 * self.scale_dtype
        parts = split_parts(chunk, lambda i: (row1 - row0 + 1) * width if i == 0 else n, 3)
        if self.scale_dtype == 1:
            scale = (np.frombuffer(parts[0][4], "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            scale = np.frombuffer(parts[0][4], "<f4")
        symbols = decode_bytes(parts[1], n, tables)
        which = [0] * n
        if self.codec == "dquant":
            state = [0] * 32
            for i in sorted(range(n), key=lambda i: (i // 128, i % 4, i % 128 // 4)):
                lane = i % 128 // 4
                which[i] = state[lane] & 1
                state[lane] = NEXT[state[lane]][symbols[i] & 1]
        v = np.array([values[k][s] for k, s in zip(which, symbols)], np.float32)
        rows = (first + np.arange(n)) // self.row_units - row0
        out = bytearray(to_dtype(v * scale[rows], self.dtype))
        kind, _, _, e, body = parts[2]
        need(kind in (EMPTY, OUTLIERS), "outliers")
        for pos, bits in struct.iter_unpack("<II", body):
            out[pos * self.unit:(pos + 1) * self.unit] = bits.to_bytes(4, "little")[:self.unit]
        return bytes(out)


def decode(archive):
    """The file inside an archive (bytes), and its tensors' records."""
    need(archive[:8] == MAGIC and archive[-8:] == MAGIC_END, "magic")
    need(xxh3(archive[:56]) == struct.unpack_from("<Q", archive, 56)[0], "header")
    tail = archive[-64:]
    off, length, digest, total, major, _, incompat = struct.unpack_from("<QQQQHHI", tail)
    need(xxh3(tail[:48]) == struct.unpack_from("<Q", tail, 48)[0], "trailer")
    need(total == len(archive) and major == 1 and incompat == 0, "version")
    index = archive[off:off + length]
    need(xxh3(index) == digest, "index")
    at, sections = 0, {}
    while at < len(index):
        kind, flags, size = struct.unpack_from("<IIQ", index, at)
        need(kind in (1, 2, 3, 4) or not flags & 1, "critical section")
        sections[kind] = index[at + 16:at + 16 + size]
        at += 16 + align(size, 8)
    size, prefix_len = struct.unpack_from("<QQ", sections[1])
    _, method, _ = struct.unpack_from("<QII", sections[2])
    prefix = sections[2][16:]
    if method:
        prefix = zstandard.ZstdDecompressor().decompress(prefix, prefix_len)
    count, at, tensors = struct.unpack_from("<I", sections[4])[0], 8, []
    for _ in range(count):
        tensors.append(Tensor(sections[4], at))
        at += tensors[-1].record_len
    out = prefix + b"".join(t.decode(archive) for t in tensors)
    need(len(prefix) == prefix_len and len(out) == size, "size")
    return out, tensors


# ---- archives: writing ---------------------------------------------------------------


class Builder:
    """Collects tensors and gives the archive's bytes. `patch` hooks let a test
    spoil fields before the checksums are made."""

    def __init__(self, prefix, mtime=(1700000000, 0)):
        self.prefix, self.mtime = prefix, mtime
        self.payload = bytearray(4096)
        self.payload[:64] = self.file_header()
        self.records, self.size, self.lossy, self.any = [], len(prefix), False, False
        self.sections = []      # extra ones: (type, flags, body)
        self.file = {}          # overrides of FILE fields
        self.original = None

    @staticmethod
    def file_header(major=1, incompat=0):
        h = MAGIC + struct.pack("<HHI40x", major, 0, incompat)
        return h + struct.pack("<Q", xxh3(h))

    def add(self, name, dtype, dims, codec, decoded, chunks=(), params=b"", chunk_units=0,
            transform=0, row_units=0, scale_dtype=0, qformat=0, const=0, over=None):
        off = 0
        if chunks:
            self.any = True
            self.payload = bytearray(pad(bytes(self.payload), 4096))
            off = len(self.payload)
        entries = b""
        for c in chunks:
            self.payload = bytearray(pad(bytes(self.payload), 16)) + c
            entries += struct.pack("<IIQ", len(c), 0, xxh3(c))
        name, params = name.encode(), pad(params, 8)
        lossy = codec in ("quant", "dquant")
        self.lossy |= lossy
        f = dict(record_len=128 + 8 * len(dims) + align(len(name), 8) + len(params) + len(entries),
                 name_len=len(name), codec=codec.encode(), n_bytes=len(decoded), off=off,
                 len=len(self.payload) - off if chunks else 0, content=xxh3(decoded),
                 n_chunks=len(chunks), chunk_units=chunk_units if chunks else 0,
                 dtype=DTYPES.index(dtype), ndim=len(dims), unit=unit_of(dtype),
                 transform=transform, qformat=qformat, scale_dtype=scale_dtype,
                 flags=int(lossy), param_len=len(params), zero=0, l1=0.125 if lossy else 0.0,
                 snr=20.0 if lossy else float("inf"), row_units=row_units, const=const)
        f.update(over or {})
        self.records.append(struct.pack("<II8sQQQQIIBBBBBBHIIddQQ24x", *f.values()) +
                            struct.pack(f"<{len(dims)}Q", *dims) + pad(name, 8) + params + entries)
        self.size += len(decoded)

    def build(self, original, compress_prefix=True, trailer=None):
        import hashlib
        f = dict(size=self.size, prefix_len=len(self.prefix), s=self.mtime[0], ns=self.mtime[1],
                 flags=int(self.lossy), sha=hashlib.sha256(original).digest(), lam=0.0, bits=0.0,
                 qp=0, qb=0, l1=0.0, snr=float("inf"), enc=1 << 8, qf=0)
        f.update(self.file)
        prefix = self.prefix
        if compress_prefix:
            prefix = compress_prefix(prefix) if callable(compress_prefix) else frame(prefix)
        sections = [(1, 1, struct.pack("<QQqII32sddQQddIB11x", *f.values())),
                    (2, 1, struct.pack("<QII", len(self.prefix), int(bool(compress_prefix)), 0) + prefix),
                    (3, 0, b"encoder=eqar_ref.py\n"),
                    *self.sections,
                    (4, 1, struct.pack("<II", len(self.records), 0) + b"".join(self.records))]
        index = b"".join(struct.pack("<IIQ", k, fl, len(b)) + pad(b, 8) for k, fl, b in sections)
        body = bytes(self.payload) if self.any else bytes(self.payload[:64])
        body = pad(body, 8)
        t = dict(off=len(body), len=len(index), digest=xxh3(index),
                 total=len(body) + len(index) + 64, major=1, minor=0, incompat=0)
        t.update(trailer or {})
        tail = struct.pack("<QQQQHHI8x", *t.values())
        return body + index + tail + struct.pack("<Q", xxh3(tail)) + MAGIC_END


def frame(data):
    return zstandard.ZstdCompressor(9).compress(data)


def values_table(values):
    values = dict(sorted(values.items()))
    return pad(struct.pack("<II", len(values), 0) + bitmap(values) +
               struct.pack(f"<{len(values)}f", *values.values()), 8)


def params_of(tables, values=()):
    return (struct.pack("<HHI", len(tables), len(values), 0) +
            b"".join(t.store() for t in tables) + b"".join(values_table(v) for v in values))


def st_prefix(tensors):
    """The prefix of a safetensors file: [(name, dtype, dims, n_bytes)]."""
    import json
    at, header = 0, {}
    for name, dtype, dims, n in tensors:
        header[name] = {"dtype": dtype, "shape": list(dims), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
