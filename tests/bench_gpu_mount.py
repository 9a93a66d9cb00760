#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A mounted model with -o gpu=off and gpu=auto, beside the plain files: GB/s of reading,
CPU seconds of the daemon, and transformers' from_pretrained, cold and warm. Checks that
all give the same weights. Needs torch, transformers, xxhash, a GPU, FUSE and root (to
drop caches); prints what is missing without.

Environment: EQFS_BENCH_LAYERS (of 67 million parameters, default 16), EQFS_BENCH_DIR
(where files go), EQFS_BENCH_ROWS (a regular expression: these archives only), EQFS, EQAR,
EQFS_CUDA_MODULE."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

EQFS, EQAR = os.environ["EQFS"], os.environ["EQAR"]
LAYERS = int(os.environ.get("EQFS_BENCH_LAYERS", "16"))
ROWS = re.compile(os.environ.get("EQFS_BENCH_ROWS", ""))
BLOCK = 16 << 20


def make_model(path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(4)
    config = LlamaConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=LAYERS, num_attention_heads=16,
                         num_key_value_heads=16, vocab_size=32000, tie_word_embeddings=False)
    config.dtype = torch.bfloat16
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.cpu().save_pretrained(path, max_shard_size="1GB")


def pretrained(path, device):
    """Seconds of from_pretrained, and a hash of all weights."""
    import torch
    import xxhash
    from transformers import AutoModelForCausalLM

    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, device_map=device)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    h = xxhash.xxh3_128()
    for name, p in sorted(model.state_dict().items()):
        h.update(name.encode() + p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return {"seconds": seconds, "hash": h.hexdigest()}


class Loader:
    """A process that has imported everything and has a CUDA context: it answers lines
    of a path and a device."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, __file__, "serve"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def __call__(self, path, device):
        print(json.dumps([str(path), device]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.stdin.close()
        self.process.wait(60)


def serve():
    import torch

    torch.zeros(1, device="cuda")
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(pretrained(*json.loads(line))), file=answers, flush=True)


def drop_caches():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def read_file(path):
    buf = bytearray(BLOCK)
    with open(path, "rb", buffering=0) as f:
        while f.readinto(buf):
            pass


def shards(path):
    return sorted(path.glob("*.safetensors"))


def warm(store):
    for f in store.iterdir():
        read_file(f)


class Mount:
    def __init__(self, store, point, gpu):
        self.point, self.log = point, open(f"{point}.log", "w+", encoding="utf-8")
        point.mkdir(exist_ok=True)
        self.process = subprocess.Popen([EQFS, "-f", "-o", f"gpu={gpu}", str(store), str(point)], stderr=self.log)
        deadline = time.monotonic() + 20
        while not os.path.ismount(point):
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.__exit__()
                raise OSError(f"the mount did not come up: {Path(self.log.name).read_text(encoding='utf-8')}")
            time.sleep(0.01)

    def cpu(self):
        field = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        return (int(field[11]) + int(field[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if os.path.ismount(self.point):
            subprocess.run(["umount", "-l", str(self.point)], check=False)
        lines = Path(self.log.name).read_text(encoding="utf-8").splitlines()
        for line in lines:
            if "GPU" in line or "error" in line.lower():
                print("    log:", line)
        self.log.close()


def measure(name, path, store, mount, load, loads):
    """A row; `path` is read, `store` is what lies below it."""
    size = sum(f.stat().st_size for f in shards(path))
    cells, used = [], []
    for threads, cold in ((1, False), (4, False), (1, True)):
        drop_caches()
        if not cold:
            warm(store)
        before, start = mount.cpu() if mount else 0, time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read_file, shards(path)))
        cells.append(size / 1e9 / (time.perf_counter() - start))
        used.append((mount.cpu() - before if mount else 0) / (size / 1e9))
    text = "".join(f"{c:8.2f}" for c in cells) + " GB/s  " + "".join(f"{u:6.2f}" for u in used)
    sums = set()
    for device, cold in loads:
        drop_caches()
        if not cold:
            warm(store)
        got = load(path, device)
        sums.add(got["hash"])
        text += f"{got['seconds']:7.2f}"
    print(f"  {name:<26}{text}", flush=True)
    assert len(sums) <= 1, "the weights differ"
    return sums


def run(tmp, load):
    plain = tmp / "plain"
    make_model(plain)
    size = sum(f.stat().st_size for f in shards(plain))
    card = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True,
                          text=True, check=False).stdout.strip()
    loads = (("cpu", False), ("cpu", True), ("cuda", False))
    load(plain, "cpu")  # what is slow the first time
    print(f"mount: {size / 1e9:.2f} GB of bf16 in {len(shards(plain))} files, {card or 'no GPU'}, {os.cpu_count()} CPUs\n"
          "  archives (or plain files)      read  4 read    cold         CPU s of the daemon a GB   from_pretrained: cpu, "
          "cold, cuda", flush=True)
    sums = {"lossless": measure("plain files", plain, plain, None, load, loads)}
    for name, options in (("lossless", []), ("4 bits", ["--bits", "4"])):
        if not ROWS.search(name):
            continue
        store = tmp / f"store-{name.replace(' ', '')}"
        shutil.copytree(plain, store)
        subprocess.run([EQAR, "pack", "-r", "-q", *options, str(store)], check=True)
        for gpu in ("off", "auto"):
            with Mount(store, tmp / "mnt", gpu) as m:
                got = measure(f"{name}, gpu={gpu}", tmp / "mnt", store, m, load, loads)
            assert sums.setdefault(name, got) == got, f"{name}, gpu={gpu}: other weights"
        shutil.rmtree(store)
    print("  all weights are the same", flush=True)


def lacking():
    for module in ("torch", "transformers", "xxhash"):
        if not importlib.util.find_spec(module):
            return module
    import torch

    return ("GPU" if not torch.cuda.is_available() else "/dev/fuse" if not os.path.exists("/dev/fuse") else
            "right to drop caches" if os.geteuid() else None)


def main():
    if sys.argv[1:2] == ["serve"]:
        serve()
        return
    missing = lacking()
    if missing:
        print(f"mount with a GPU: skipped, no {missing}")
        return
    os.environ["TQDM_DISABLE"] = "1"
    tmp = Path(tempfile.mkdtemp(prefix="eqfs-bench-", dir=os.environ.get("EQFS_BENCH_DIR")))
    try:
        with Loader() as load:
            run(tmp, load)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


if __name__ == "__main__":
    main()
