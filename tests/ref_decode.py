#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What eqar writes, decoded by the second implementation (eqar_ref.py): equal to
the original where lossless, to `eqar unpack` where not."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import eqar_ref

EQAR = os.environ["EQAR"]


def model(path):
    rng = np.random.default_rng(5)
    normal = rng.standard_normal
    block = "model.layers.0"
    heavy = normal((70, 96)) * np.exp2(rng.integers(-12, 9, (70, 96)))
    save_file({
        f"{block}.mlp.up_proj.weight": normal((96, 1500)).astype(ml_dtypes.bfloat16),
        f"{block}.mlp.down_proj.weight": (normal((70, 96)) * 0.02).astype(np.float16),
        f"{block}.mlp.gate_proj.weight": heavy.astype(np.float32),
        "half": normal((300, 70)).astype(np.float16),
        "widened": normal((60, 70)).astype(ml_dtypes.bfloat16).astype(np.float32),
        "double": normal((60, 70)),
        "pair": (normal(60000) * 0.02).astype(ml_dtypes.bfloat16),
        "counter": np.arange(1000),
        "ones": np.ones((100, 100), np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "small": (normal((600, 70)) * 9).astype(np.int8),
    }, path)


def main():
    failures = 0
    with tempfile.TemporaryDirectory() as tmp:
        plain, archive, out = (Path(tmp) / n for n in ("m.safetensors", "m.eqar", "out"))
        model(plain)
        for policy in ([], ["--bits", "4"], ["--lambda", "20", "--format", "int8"]):
            subprocess.run([EQAR, "pack", "-q", "-f", *policy, plain, archive], check=True)
            subprocess.run([EQAR, "unpack", "-q", "-f", archive, out], check=True)
            got, tensors = eqar_ref.decode(archive.read_bytes())
            codecs = {t.codec for t in tensors}
            wanted = {"planes", "const", "raw"} | ({"quant"} if policy else set())
            ok = got == out.read_bytes() and wanted <= codecs
            if not policy:
                ok = ok and got == plain.read_bytes()
            print("ok" if ok else "FAILED", policy or "lossless", sorted(codecs))
            failures += not ok
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
