#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seconds to load a model of a 7B shape into the memory of a GPU: eqfs.load_file of an
archive beside safetensors.torch.load_file of the plain file, each in processes of their
own, which have a CUDA context before the clock starts. Also checks that what arrives is
what the CPU decodes, bit for bit. Needs torch and a GPU; prints "no GPU" without.

Environment: EQFS_BENCH_GIB (size, default 5), EQFS_BENCH_RUNS (3), EQFS_BENCH_DIR (where
files go), EQFS_LIBRARY, EQFS_CUDA_MODULE, EQAR."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lib"))
GIB = float(os.environ.get("EQFS_BENCH_GIB", "5"))
RUNS = int(os.environ.get("EQFS_BENCH_RUNS", "3"))
AGAIN = 4


def make_model(path):
    """Layers of Llama 2 7B until the size is reached; every row has a scale of its own."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(3)

    def weight(*shape):
        w = torch.randn(*shape, device="cuda") * 0.02
        if len(shape) == 2:
            w *= torch.exp2(torch.randn(shape[0], 1, device="cuda") * 0.3)
        return w.to(torch.bfloat16).cpu()

    state = {"model.embed_tokens.weight": weight(32000, 4096), "lm_head.weight": weight(32000, 4096)}
    layer = 0
    while sum(t.nbytes for t in state.values()) < GIB * 2**30:
        name = f"model.layers.{layer}."
        for k in "qkvo":
            state[f"{name}self_attn.{k}_proj.weight"] = weight(4096, 4096)
        for k, shape in (("gate", (11008, 4096)), ("up", (11008, 4096)), ("down", (4096, 11008))):
            state[f"{name}mlp.{k}_proj.weight"] = weight(*shape)
        for k in ("input", "post_attention"):
            state[f"{name}{k}_layernorm.weight"] = 1 + weight(4096)
        layer += 1
    save_file(state, path)
    return len(state)


def loader(kind):
    """A function from a path to tensors on the GPU."""
    if kind == "safetensors":
        from safetensors.torch import load_file

        return lambda path: load_file(path, device="cuda")
    import torch

    import eqfs
    from eqfs import _lib

    if kind == "dlpack":
        return lambda path: {k: torch.from_dlpack(t) for k, t in
                             eqfs.load_file(path, "cuda", "dlpack").items()}
    _, threads, mib = (kind + ",0,0").split(",")[:3]
    device = torch.cuda.current_device()
    _lib.Device._open[device] = _lib.Device(device, int(threads), int(mib) << 20)
    return lambda path: eqfs.load_file(path, device="cuda")


def forget(path):
    """Drop the file from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def one(kind, path, cold):
    """In a process of its own: seconds of a first load and of some more."""
    import torch

    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    load, seconds, cpu = loader(kind), [], []
    for _ in range(1 if cold else 1 + AGAIN):
        if cold:
            forget(path)
        start, used = time.perf_counter(), time.process_time()
        state = load(path)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
        size = sum(t.nbytes for t in state.values())
        del state
    print(json.dumps({"first": seconds[0], "again": statistics.median(seconds[1:] or seconds), "cpu": cpu[-1],
                      "size": size}))


def check(path):
    """What the device decodes is what the CPU decodes."""
    import torch

    import eqfs

    on_gpu, on_cpu = eqfs.load_file(path, device="cuda"), eqfs.load_file(path)
    wrong = [k for k in on_cpu if not torch.equal(on_gpu[k].cpu().view(torch.uint8), on_cpu[k].view(torch.uint8))]
    assert list(on_gpu) == list(on_cpu) and not wrong, wrong
    print(json.dumps({"tensors": len(on_cpu)}))


def child(*args):
    out = subprocess.run([sys.executable, __file__, *map(str, args)], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def row(name, kind, path, cold=False, base=None, runs=RUNS):
    got = [child("one", kind, path, int(cold)) for _ in range(runs)]
    first, again, cpu = (statistics.median(g[k] for g in got) for k in ("first", "again", "cpu"))
    size = got[0]["size"] / 1e9
    beside = f"   x{base[0] / first:5.2f} x{base[1] / again:5.2f}" if base else ""
    print(f"  {name:<38}{first:8.3f}{again:8.3f} s {size / first:8.2f}{size / again:8.2f} GB/s {cpu:7.2f} CPU s{beside}",
          flush=True)
    return first, again


def link():
    """GB/s from pinned memory."""
    import torch

    host = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    best = 9.0
    for _ in range(4):
        start = time.perf_counter()
        device.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return host.nbytes / 1e9 / best


def run(tmp):
    import torch

    plain = tmp / "model.safetensors"
    n = make_model(plain)
    size = plain.stat().st_size
    print(f"load: {size / 1e9:.2f} GB of bf16 in {n} tensors, {torch.cuda.get_device_name()}, {os.cpu_count()} CPUs, "
          f"host link {link():.1f} GB/s; median of {RUNS} processes", flush=True)
    torch.cuda.empty_cache()
    archives = {}
    for name, options in (("4 bits", ["--bits", "4"]), ("lossless", [])):
        archives[name] = tmp / f"{name.replace(' ', '')}.eqar"
        start = time.perf_counter()
        subprocess.run([os.environ["EQAR"], "pack", "-q", *options, plain, archives[name]], check=True)
        print(f"  {name}: {archives[name].stat().st_size / size:.1%} of the size, packed at "
              f"{size / 1e9 / (time.perf_counter() - start):.2f} GB/s; same as the CPU's: "
              f"{child('check', archives[name])['tensors']} tensors", flush=True)
    print("  page cache warm" + " " * 26 + "first   again", flush=True)
    base = row("safetensors, plain file", "safetensors", plain)
    for name, path in archives.items():
        row(f"eqfs, {name}", "eqfs", path, base=base)
        row(f"eqfs, {name}, DLPack", "dlpack", path, base=base, runs=1)
    for threads, mib in ((4, 0), (8, 0), (16, 64), (16, 512)):
        row(f"eqfs, 4 bits, {threads} threads, {mib or 256} MiB", f"eqfs,{threads},{mib}", archives["4 bits"],
            base=base, runs=1)
    print("  cold", flush=True)
    base = row("safetensors, plain file", "safetensors", plain, True)
    for name, path in archives.items():
        row(f"eqfs, {name}", "eqfs", path, True, base)


def main():
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], sys.argv[3], sys.argv[4] == "1")
        return
    if sys.argv[1:2] == ["check"]:
        check(sys.argv[2])
        return
    try:
        import torch
    except ImportError:
        torch = None
    if not torch or not torch.cuda.is_available():
        print("no GPU, or no torch")
        return
    tmp = Path(tempfile.mkdtemp(prefix="eqfs-bench-", dir=os.environ.get("EQFS_BENCH_DIR")))
    try:
        run(tmp)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


if __name__ == "__main__":
    main()
