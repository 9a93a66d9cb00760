#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What lossless coding reaches of each dtype, beside the zero-order entropy of the
byte planes: a table, and a failure where the encoder is further off than 1% and
0.02 bits a plane.

    entropy.py                       made-up weights (what `make check` runs)
    entropy.py FILE.safetensors...   the float32 weights of real models, also cast
                                     to the other dtypes
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

EQAR = os.environ.get("EQAR", "eqar")
SLACK, SLACK_PLANE = 1.01, 0.02
ROTATED = {np.dtype(t) for t in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)}


def planes(a):
    """The byte planes of eqar(5), FLOAT PLANES, most significant first."""
    size = a.dtype.itemsize
    u = a.reshape(-1).view(f"u{size}").copy()
    if a.dtype in ROTATED:
        shift = 8 * size - 16
        high = (u >> u.dtype.type(shift)).astype(np.uint16)
        high = (high << np.uint16(1)) | (high >> np.uint16(15))
        low = u & u.dtype.type((1 << shift) - 1) if shift else u.dtype.type(0)
        u = (high.astype(u.dtype) << u.dtype.type(shift)) | low
    return u.view(np.uint8).reshape(-1, size).T[::-1]


def entropy(plane):
    p = np.bincount(plane, minlength=256) / plane.size
    return max(0.0, float(-(p[p > 0] * np.log2(p[p > 0])).sum()))


def adam(rng, steps=40, n=1024, batch=128):
    """Weights, exp_avg and exp_avg_sq of a layer that learns to imitate another."""
    target = rng.standard_normal((n, n), dtype=np.float32) * np.float32(n**-0.5)
    w = rng.standard_normal((n, n), dtype=np.float32) * np.float32(0.02)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(1, steps + 1):
        x = rng.standard_normal((batch, n), dtype=np.float32)
        error = np.tanh(x @ w) - np.tanh(x @ target)
        grad = x.T @ (error * (1 - np.tanh(x @ w) ** 2)) / np.float32(batch)
        m = np.float32(0.9) * m + np.float32(0.1) * grad
        v = np.float32(0.999) * v + np.float32(0.001) * grad * grad
        rate = np.float32(1e-3 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t))
        w = w - rate * m / (np.sqrt(v) + np.float32(1e-8))
    return {"weights": w, "exp_avg": m, "exp_avg_sq": v}


def block_fp8(w, dtype, block=128):
    """As DeepSeek ships its weights: blocks with a scale each, cast to fp8."""
    rows, cols = (d // block * block for d in w.shape)
    b = w[:rows, :cols].reshape(rows // block, block, cols // block, block)
    top = float(ml_dtypes.finfo(dtype).max)
    scale = np.maximum(np.abs(b).max((1, 3), keepdims=True), 1e-12) / np.float32(top)
    return (b / scale).reshape(rows, cols).astype(dtype)


def casts(w):
    """The same weights in the dtypes that models come in."""
    step = np.maximum(np.abs(w).max(1, keepdims=True), 1e-12) / 127
    return {
        "bf16": w.astype(ml_dtypes.bfloat16),
        "fp16": w.astype(np.float16),
        "fp32": w,
        "fp32 of bf16 values": w.astype(ml_dtypes.bfloat16).astype(np.float32),
        "fp8 E4M3, blocks of 128 x 128": block_fp8(w, ml_dtypes.float8_e4m3fn),
        "fp8 E5M2, blocks of 128 x 128": block_fp8(w, ml_dtypes.float8_e5m2),
        "int8, by rows": np.rint(w / step).astype(np.int8),
    }


def made_up():
    rng = np.random.default_rng(11)
    w = rng.standard_normal((1100, 1024), dtype=np.float32) * np.float32(0.02)
    w *= np.exp2(rng.uniform(-1, 1, (1100, 1))).astype(np.float32)
    out = casts(w)
    out |= {f"fp32, Adam's {k}": v for k, v in adam(rng).items()}
    out["fp64"] = rng.standard_normal((1024, 500)) * 0.02
    out["int32 counters"] = np.arange(500000, dtype=np.int32)
    out["int64 tokens"] = (rng.pareto(1.2, 300000) * 10).astype(np.int64) % 50000
    out["bool mask"] = rng.random((1000, 700)) < 0.1
    return {k: [v] for k, v in out.items()}


def real(path):
    out = {}
    with safe_open(path, "np") as f:
        for name in f.keys():
            w = f.get_tensor(name)
            if w.dtype == np.float32 and w.ndim == 2 and min(w.shape) >= 128:
                for k, v in casts(w).items():
                    out.setdefault(k, []).append(v)
    return out


def stored(tensors):
    """Bytes that each tensor takes in an archive."""
    with tempfile.TemporaryDirectory() as tmp:
        plain, archive = Path(tmp, "m.safetensors"), Path(tmp, "m.eqar")
        save_file({f"t{i:06}": np.ascontiguousarray(t) for i, t in enumerate(tensors)}, plain)
        subprocess.run([EQAR, "pack", "-q", plain, archive], check=True)
        subprocess.run([EQAR, "verify", "-q", "--against", plain, archive], check=True)
        text = subprocess.run([EQAR, "ls", "--json", archive], check=True, capture_output=True).stdout
    return sum(t["stored_size"] for t in json.loads(text)["tensors"])


def table(title, kinds):
    """Print a row a kind; returns those that are off the mark."""
    bad = []
    print(f"{title}\n\n| dtype | bits | entropy of the planes | bound | reached | of the plain size |")
    print("|---|---|---|---|---|---|")
    for kind, tensors in kinds.items():
        n = sum(t.size for t in tensors)
        each = [[entropy(p) for p in planes(t)] for t in tensors]
        mean = [sum(e[i] * t.size for e, t in zip(each, tensors)) / n for i in range(len(each[0]))]
        bound, got = sum(mean), stored(tensors) * 8 / n
        bits = 8 * tensors[0].dtype.itemsize
        print(f"| {kind} | {bits} | {' '.join(f'{h:.2f}' for h in mean)} | {bound:.3f} | {got:.3f} "
              f"| {100 * got / bits:.1f}% |", flush=True)
        if got > SLACK * bound + SLACK_PLANE * len(mean):
            bad.append(kind)
    print()
    return bad


def main():
    bad = []
    for path in sys.argv[1:]:
        bad += table(os.path.basename(path), real(path))
    if not sys.argv[1:]:
        bad = table("made-up weights", made_up())
    if bad:
        sys.exit(f"too far above the entropy: {', '.join(bad)}")


if __name__ == "__main__":
    main()
