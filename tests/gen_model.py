#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a safetensors file of made-up weights, deterministic by its seed.

Needs numpy only. Tensors are made and written a block at a time, so a model of
many GiB needs little memory. Either a whole model:

    gen_model.py --layers 2 --hidden 512 OUT          # a small decoder
    gen_model.py --size 8G --hidden 4096 OUT          # as many layers as fit

or tensor by tensor, NAME:DTYPE:SHAPE[:KIND[:STD]], SHAPE as 2048x4096 or empty:

    gen_model.py --tensor model.layers.0.mlp.up_proj.weight:BF16:256x512 OUT

Kinds: gauss (every row has its own scale with --spread), heavy (Student's t, 3
degrees of freedom), bf16 (floats that bfloat16 holds exactly), zero, const,
nonfinite (one NaN and one infinity among gauss), bytes (uniform bits), int
(small integers).
"""
import argparse
import json
import math
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32,
    "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}
BLOCK = 1 << 22  # elements made at a time; a multiple of 8, so bytes come out whole


def fp8_values(exp_bits, man_bits, bias, top):
    """The finite, non-negative values of an 8-bit float, by their bits."""
    out = []
    for bits in range(top + 1):
        e, m = bits >> man_bits, bits & ((1 << man_bits) - 1)
        frac = m / (1 << man_bits)
        out.append(frac * 2.0 ** (1 - bias) if e == 0 else (1 + frac) * 2.0 ** (e - bias))
    return np.array(out, dtype=np.float32)


FP8 = {
    "F8_E4M3": fp8_values(4, 3, 7, 0x7E),
    "F8_E5M2": fp8_values(5, 2, 15, 0x7B),
}


def to_bf16(x):
    """Round float32 to bfloat16 bits, ties to even; NaN stays NaN."""
    u = x.astype(np.float32).view(np.uint32)
    r = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), r)


def to_fp8(x, dtype):
    """Nearest value of the grid, saturating; halves go up in magnitude."""
    grid = FP8[dtype]
    mid = (grid[1:] + grid[:-1]) / 2
    mag = np.searchsorted(mid, np.abs(x), side="right").astype(np.uint8)
    return mag | (np.signbit(x) & (mag > 0)).astype(np.uint8) << 7


def to_bytes(x, dtype):
    """Float32 values as the bytes of a dtype."""
    if dtype == "BF16":
        return to_bf16(x).tobytes()
    if dtype in FP8:
        return to_fp8(x, dtype).tobytes()
    if dtype in ("F16", "F32", "F64"):
        kind = {"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]
        with np.errstate(over="ignore"):
            return x.astype(kind).tobytes()
    if dtype == "C64":
        return x.astype(np.complex64).tobytes()
    if dtype == "BOOL":
        return (x > 0).astype(np.uint8).tobytes()
    if dtype[0] in "IU":
        kind = np.dtype(dtype[0].lower() + str(BITS[dtype] // 8))
        info = np.iinfo(kind)
        scaled = np.rint(x.astype(np.float64) * 1000)
        return np.clip(scaled, max(info.min, -(2 ** 62)), min(info.max, 2 ** 62)).astype(kind).tobytes()
    raise ValueError(f"{dtype} has no values that we make; use kind bytes")


class Tensor:
    def __init__(self, name, dtype, shape, kind="gauss", std=0.02):
        if dtype not in BITS:
            raise ValueError(f"{dtype}: no such dtype")
        self.name, self.dtype, self.shape, self.kind = name, dtype, shape, kind
        self.std = float(std)
        self.count = math.prod(shape)
        if self.count * BITS[dtype] % 8:
            raise ValueError(f"{name}: not a whole number of bytes")
        self.size = self.count * BITS[dtype] // 8

    def blocks(self, rng, spread):
        """The tensor's bytes, in order, a block at a time."""
        row = self.shape[-1] if self.shape else 1
        for first in range(0, self.count, BLOCK):
            n = min(BLOCK, self.count - first)
            yield self.block(rng, first, n, row, spread)

    def block(self, rng, first, n, row, spread):
        if self.kind == "bytes" or BITS[self.dtype] < 8:
            raw = rng.bytes(n * BITS[self.dtype] // 8)
            if self.dtype == "BOOL":
                raw = (np.frombuffer(raw, np.uint8) & 1).tobytes()
            return raw
        if self.kind == "zero":
            return bytes(n * BITS[self.dtype] // 8)
        if self.kind == "const":
            return to_bytes(np.full(n, self.std, np.float32), self.dtype)
        if self.kind == "int":
            return to_bytes(rng.integers(-100, 100, n).astype(np.float32) / 1000, self.dtype)
        if self.kind == "heavy":
            x = (rng.standard_t(3, n) * self.std).astype(np.float32)
        else:
            x = rng.standard_normal(n, dtype=np.float32) * np.float32(self.std)
        if spread > 0 and len(self.shape) > 1:
            rows = np.arange(first, first + n) // row
            # A scale a row, whatever block the row lies in.
            steps = (rows * 2654435761 % 4294967296) / 4294967296 * 2 - 1
            x *= np.exp2(spread * steps).astype(np.float32)
        if self.kind == "bf16":
            x = (to_bf16(x).astype(np.uint32) << 16).view(np.float32)
        elif self.kind == "nonfinite" and first == 0:
            x[0], x[n // 2] = np.nan, np.inf
        return to_bytes(x, self.dtype)


def decoder(layers, hidden, vocab, dtype, kind, std):
    """Tensors of a decoder-only transformer, Llama's names and proportions."""
    inner = hidden * 11 // 4 // 8 * 8
    kv = max(hidden // 4, 8)

    def t(name, *shape, how=kind):
        return Tensor(name, dtype, shape, how, std)

    out = [t("model.embed_tokens.weight", vocab, hidden)]
    for i in range(layers):
        p = f"model.layers.{i}."
        out += [
            t(p + "self_attn.q_proj.weight", hidden, hidden),
            t(p + "self_attn.k_proj.weight", kv, hidden),
            t(p + "self_attn.v_proj.weight", kv, hidden),
            t(p + "self_attn.o_proj.weight", hidden, hidden),
            t(p + "mlp.gate_proj.weight", inner, hidden),
            t(p + "mlp.up_proj.weight", inner, hidden),
            t(p + "mlp.down_proj.weight", hidden, inner),
            t(p + "input_layernorm.weight", hidden, how="gauss"),
            t(p + "post_attention_layernorm.weight", hidden, how="gauss"),
        ]
    out += [t("model.norm.weight", hidden, how="gauss"), t("lm_head.weight", vocab, hidden)]
    return out


def parse_size(text):
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper())
    return int(float(text[:-1]) * unit) if unit else int(text)


def parse_tensor(text):
    name, dtype, shape, *rest = text.split(":")
    dims = [int(d) for d in shape.split("x")] if shape else []
    return Tensor(name, dtype, dims, *rest)


def write(path, tensors, seed, spread, metadata):
    # The order of safetensors' own writer: element size descending, then name.
    tensors = sorted(tensors, key=lambda t: (-BITS[t.dtype], t.name))
    header, at, begin = {}, 0, []
    if metadata:
        header["__metadata__"] = metadata
    for t in tensors:
        header[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [at, at + t.size]}
        begin.append(at)
        at += t.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.flush()

        def fill(i):
            # A stream a tensor: its values do not depend on its neighbours.
            rng = np.random.Generator(np.random.PCG64([seed, i]))
            at = 8 + len(text) + begin[i]
            for block in tensors[i].blocks(rng, spread):
                if os.pwrite(f.fileno(), block, at) != len(block):
                    raise OSError(f"{path}: short write")
                at += len(block)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(fill, range(len(tensors))))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--dtype", default="BF16")
    p.add_argument("--kind", default="gauss")
    p.add_argument("--std", type=float, default=0.02)
    p.add_argument("--spread", type=float, default=0.0, help="rows differ in scale by 2^-S to 2^S")
    p.add_argument("--layers", type=int, default=2)
    p.add_argument("--hidden", type=int, default=256)
    p.add_argument("--vocab", type=int, default=1000)
    p.add_argument("--size", help="choose --layers so that the file has about this size")
    p.add_argument("--tensor", action="append", default=[], metavar="NAME:DTYPE:SHAPE[:KIND[:STD]]")
    p.add_argument("--metadata", action="append", default=[], metavar="KEY=VALUE")
    a = p.parse_args()
    try:
        if a.tensor:
            tensors = [parse_tensor(t) for t in a.tensor]
        else:
            layers = a.layers
            if a.size:
                sizes = [sum(t.size for t in decoder(n, a.hidden, a.vocab, a.dtype, a.kind, a.std)) for n in (0, 1)]
                layers = max(1, round((parse_size(a.size) - sizes[0]) / (sizes[1] - sizes[0])))
            tensors = decoder(layers, a.hidden, a.vocab, a.dtype, a.kind, a.std)
        write(a.out, tensors, a.seed, a.spread, dict(m.split("=", 1) for m in a.metadata))
    except (ValueError, OSError) as e:
        sys.exit(f"gen_model.py: {e}")


if __name__ == "__main__":
    main()
