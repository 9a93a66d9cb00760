#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How fast a mounted archive is read, in one run beside the raw file on the same disk, an
in-memory file served by the same libfuse (the ceiling), and other compressing filesystems
that hold the same file. GB/s (1e9 bytes) or 64 KiB reads a second, medians, and ratios to
the raw file in the same state and to the ceiling. An archive that is cached is measured in
turns with the ceiling. CPU: seconds that the daemon uses for a GB of the first column. Where
a GPU is, archives are read with gpu=off and with gpu=auto.

Environment:
  EQFS_BENCH_MB    size of the model, default 4096
  EQFS_BENCH_RUNS  runs of each, default 3
  EQFS_BENCH_PEER_SECONDS  the longest that another filesystem is read at a time, default 3
  EQFS_BENCH_DISK  hold reads from the disk to so many MB a second, for all alike (root, by
                   a cgroup): where the disk is somebody else's memory, nothing is cold
  EQFS_BENCH_DIR   where files go, which needs four times the size; with EQFS_BENCH_KEEP=1
                   they stay there and the next run takes them as they are
  EQFS_BENCH_ROWS  a regular expression: only rows of these names, beside the raw file and
                   the ceiling
  EQFS_BENCH_OPTS  mount options of eqfs

With EQFS_BENCH_RUNS=1 all takes some eight minutes on two cores."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_disk import Held
from bench_peers import PEERS, Mounted
from bench_read import WAYS, cached, cold, forget, measure, measure_beside, warm

EQFS, EQAR, CEILING = os.environ["EQFS"], os.environ["EQAR"], os.environ["EQFS_BENCH_FUSE"]
MB = int(os.environ.get("EQFS_BENCH_MB", "4096"))
RUNS = int(os.environ.get("EQFS_BENCH_RUNS", "3"))
DISK = int(float(os.environ.get("EQFS_BENCH_DISK", "0")) * 1e6)
PEER_SECONDS = float(os.environ.get("EQFS_BENCH_PEER_SECONDS", "3"))
WANTED = re.compile(os.environ.get("EQFS_BENCH_ROWS", ""))
OPTIONS = os.environ.get("EQFS_BENCH_OPTS", "")
NAME = "model.safetensors"
HOT = 32 << 20
ARCHIVES = {"lossless": [], "4 bits": ["--bits", "4"], "2 bits": ["--bits", "2"]}
STATES = {"cold": cold, "cached": cached, "warm": warm}
CELLS = [*WAYS, "CPU"]


class Table:
    """Prints rows as they come, and keeps them."""

    def __init__(self):
        self.rows = {}
        heads = "".join(f"{h:>8}" for h in CELLS)
        print(f"{'':36}{heads}   ratios to the raw file, and to the ceiling")

    def add(self, name, state, row, ceiling="ceiling"):
        self.rows[name, state] = row
        cells = "".join(f"{row[w]:8.0f}" if w == "64K/s" else f"{row[w]:8.2f}" if w in row else f"{'':8}"
                        for w in CELLS)
        print(f"{f'{name}, {state}':36}{cells}  {self.against('raw', state, row)}"
              f"{self.against(ceiling, 'cached', row)}", flush=True)

    def against(self, base, state, row):
        base = self.rows.get((base, state))
        if not base or base is row:
            return " " * 32
        return " |" + "".join(f"{row[w] / base[w]:6.2f}" if w in row and w in base else " " * 6 for w in WAYS)

    def ratio(self, a, b, way):
        a, b = self.rows.get(a), self.rows.get(b)
        return a[way] / b[way] if a and b else None


def gpu_options():
    """Options to mount archives with, and what to call those rows."""
    if "gpu=" in OPTIONS or not os.path.exists(os.environ["EQFS_CUDA_MODULE"]):
        return {"": OPTIONS}
    count = ctypes.c_int()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {"": OPTIONS}
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return {"": OPTIONS}
    return {f", gpu={g}": f"{OPTIONS},gpu={g}".lstrip(",") for g in ("off", "auto")}


def head(size):
    version = subprocess.run([EQFS, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    with open("/proc/cpuinfo") as f:
        cpu = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), "CPU")
    gpus = re.findall(r"gpu=(\w+)", " ".join(gpu_options().values()))
    print(f"{version}; gpu={' and '.join(gpus) or 'off'}; {len(os.sched_getaffinity(0))} x {cpu}; "
          f"Linux {os.uname().release}{f'; the disk held to {DISK / 1e9:.2f} GB/s' if DISK else ''}\n{size / 1e9:.2f} GB of bf16, median of {RUNS}; cold: nothing in the "
          f"page cache, cached: what lies below the mount is, warm: the file is")


def make_model(tmp):
    model = tmp / NAME
    if not model.exists():
        subprocess.run([sys.executable, Path(__file__).parent / "gen_model.py", "--dtype", "BF16", "--size",
                        f"{MB}M", "--hidden", "2048", str(model)], check=True)
    return model


class Ceiling:
    """The file in memory, or with `window` one whose bytes come from that much."""

    def __init__(self, tmp, size, window=None):
        self.point = tmp / "ceiling"
        self.path = self.point / NAME
        self.command = [CEILING, str(self.point), NAME, str(size), str(window or size)]

    def mount(self):
        return Mounted(self.command, self.point)

    def subject(self):
        return self.path, self.path, lambda path, _: forget(path)


def measure_mount(table, name, state, bring, point, archive, options, ceiling):
    # A mount of its own: nothing decoded is left of the state before.
    with Mounted([EQFS, "-f", "-q", *(["-o", options] if options else []), archive.parent, point], point) as m:
        subjects = [(point / NAME, archive, bring, m.cpu)]
        if state == "cached":
            subjects.insert(0, ceiling.subject())
        *beside, row = measure_beside(subjects, RUNS)
    for other in beside:
        table.add(f"ceiling of {name}", state, other)
    table.add(name, state, row, f"ceiling of {name}")


def measure_eqfs(table, tmp, model, name, ceiling):
    store = tmp / f"store.{name.replace(' ', '')}"
    store.mkdir(exist_ok=True)
    archive = store / f"{NAME}.eqar"
    if not archive.exists():
        subprocess.run([EQAR, "pack", "-q", *ARCHIVES[name], model, archive], check=True)
    print(f"-- eqfs {name}: {archive.stat().st_size / model.stat().st_size:.1%} of the size")
    for gpu, options in gpu_options().items():
        for state, bring in STATES.items():
            measure_mount(table, name + gpu, state, bring, tmp / "mnt", archive, options, ceiling)


def measure_peer(table, tmp, model, peer):
    why = peer.missing()
    if why:
        print(f"-- {peer.name}: skipped, {why}")
        return
    image = peer.image(tmp, model)
    print(f"-- {peer.name}: {image.stat().st_blocks * 512 / model.stat().st_size:.1%} of the size")
    point = tmp / "peer"
    with peer.mount(image, point):
        for state in ("cold", "cached"):
            table.add(peer.name, state, measure(point / NAME, image, STATES[state], RUNS, PEER_SECONDS))


def goals(table):
    """What is hoped for on two cores, way by way."""
    print("goals:")
    rows = [(n, n + gpu) for n in ARCHIVES for gpu in gpu_options()]
    peers = [(f"{r}, cached against btrfs zstd:3", (r, "cached"), ("btrfs zstd:3", "cached"), "read", 2.5)
             for _, r in rows]
    fuse = [(f"{r}, cached against {p}", (r, "cached"), (p, "cached"), "64K/s", 1.0)
            for _, r in rows for p in ("squashfuse 128K", "squashfuse 1M", "squashfuse_ll 1M")]
    ceiling = [(f"{r}, cached against the ceiling", (r, "cached"), (f"ceiling of {r}", "cached"), w,
                0.7 if n == "lossless" else 0.8)
               for n, r in rows for w in ("read", "mmap", "direct", "4 read")]
    raw = [(f"{r}, cold against raw", (r, "cold"), ("raw", "cold"), w, 1.0 if n == "lossless" else 1.6)
           for n, r in rows if n != "2 bits" for w in ("read", "mmap")]
    for text, a, b, way, goal in ceiling + raw + peers + fuse:
        ratio = table.ratio(a, b, way)
        if ratio is not None:
            print(f"  {text + ', ' + way:56} {ratio:6.2f}  goal {goal:.1f}  {'met' if ratio >= goal else 'missed'}")


def run(tmp):
    model = make_model(tmp)
    size = model.stat().st_size
    head(size)
    table = Table()
    with Held(tmp, DISK):
        table.add("raw", "cold", measure(model, model, cold, RUNS))
        table.add("raw", "warm", measure(model, model, warm, RUNS))
        forget(model)
        hot = Ceiling(tmp, size, HOT)
        with hot.mount():
            table.add("ceiling, hot", "cached", *measure_beside([hot.subject()], RUNS))
        ceiling = Ceiling(tmp, size)
        with ceiling.mount():
            table.add("ceiling", "cached", *measure_beside([ceiling.subject()], RUNS))
            for name in filter(WANTED.search, ARCHIVES):
                measure_eqfs(table, tmp, model, name, ceiling)
        for peer in PEERS:
            if WANTED.search(peer.name):
                measure_peer(table, tmp, model, peer)
    goals(table)


def main():
    keep = os.environ.get("EQFS_BENCH_KEEP") == "1"
    where = os.environ.get("EQFS_BENCH_DIR")
    if keep and not where:
        sys.exit("EQFS_BENCH_KEEP=1 wants EQFS_BENCH_DIR")
    tmp = Path(where) if keep else Path(tempfile.mkdtemp(prefix="eqfs-bench-", dir=where or "/var/tmp"))
    tmp.mkdir(parents=True, exist_ok=True)
    try:
        run(tmp)
    finally:
        if not keep:
            shutil.rmtree(tmp, ignore_errors=True)


if __name__ == "__main__":
    main()
