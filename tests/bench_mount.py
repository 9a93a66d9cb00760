#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How fast a mounted archive is read, in one run beside the raw file on the same disk, an
in-memory file served by the same libfuse (the ceiling), and other compressing filesystems
that hold the same file. GB/s (1e9 bytes) or 64 KiB reads a second, medians, and ratios to
the raw file in the same state and to the ceiling.

Environment:
  EQFS_BENCH_MB    size of the model, default 4096
  EQFS_BENCH_RUNS  runs of each, default 3
  EQFS_BENCH_DIR   where files go, which needs four times the size; with EQFS_BENCH_KEEP=1
                   they stay there and the next run takes them as they are
  EQFS_BENCH_ROWS  a regular expression: only rows of these names, beside the raw file and
                   the ceiling
  EQFS_BENCH_OPTS  mount options of eqfs"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_peers import PEERS, Mounted
from bench_read import WAYS, cached, cold, measure, warm

EQFS, EQAR, CEILING = os.environ["EQFS"], os.environ["EQAR"], os.environ["EQFS_BENCH_FUSE"]
MB = int(os.environ.get("EQFS_BENCH_MB", "4096"))
RUNS = int(os.environ.get("EQFS_BENCH_RUNS", "3"))
WANTED = re.compile(os.environ.get("EQFS_BENCH_ROWS", ""))
OPTIONS = os.environ.get("EQFS_BENCH_OPTS", "")
NAME = "model.safetensors"
HOT = 32 << 20
ARCHIVES = {"lossless": [], "4 bits": ["--bits", "4"], "2 bits": ["--bits", "2"]}
STATES = {"cold": cold, "cached": cached, "warm": warm}


class Table:
    """Prints rows as they come, and keeps them."""

    def __init__(self):
        self.rows = {}
        heads = "".join(f"{h:>8}" for h in WAYS)
        print(f"{'':26}{heads}   ratios to the raw file, and to the ceiling")

    def add(self, name, state, row):
        self.rows[name, state] = row
        cells = "".join(f"{row[w]:8.0f}" if w == "64K/s" else f"{row[w]:8.2f}" if w in row else f"{'':8}"
                        for w in WAYS)
        print(f"{f'{name}, {state}':26}{cells}  {self.against('raw', state, row)}"
              f"{self.against('ceiling', 'cached', row)}", flush=True)

    def against(self, base, state, row):
        base = self.rows.get((base, state))
        if not base or base is row:
            return " " * 32
        return " |" + "".join(f"{row[w] / base[w]:6.2f}" if w in row and w in base else " " * 6 for w in WAYS)

    def ratio(self, a, b, way):
        a, b = self.rows.get(a), self.rows.get(b)
        return a[way] / b[way] if a and b else None


def head(size):
    version = subprocess.run([EQFS, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    with open("/proc/cpuinfo") as f:
        cpu = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), "CPU")
    gpu = re.search(r"gpu=(\w+)", OPTIONS)
    print(f"{version}; back end {'gpu ' + gpu[1] if gpu else 'cpu'}; {len(os.sched_getaffinity(0))} x {cpu}; "
          f"Linux {os.uname().release}\n{size / 1e9:.2f} GB of bf16, median of {RUNS}; cold: nothing in the "
          f"page cache, cached: what lies below the mount is, warm: the file is")


def make_model(tmp):
    model = tmp / NAME
    if not model.exists():
        subprocess.run([sys.executable, Path(__file__).parent / "gen_model.py", "--dtype", "BF16", "--size",
                        f"{MB}M", "--hidden", "2048", str(model)], check=True)
    return model


def measure_eqfs(table, tmp, model, name):
    store = tmp / f"store.{name.replace(' ', '')}"
    store.mkdir(exist_ok=True)
    archive = store / f"{NAME}.eqar"
    if not archive.exists():
        subprocess.run([EQAR, "pack", "-q", *ARCHIVES[name], model, archive], check=True)
    print(f"-- eqfs {name}: {archive.stat().st_size / model.stat().st_size:.1%} of the size")
    point = tmp / "mnt"
    for state, bring in STATES.items():
        # A mount of its own: nothing decoded is left of the state before.
        with Mounted([EQFS, "-f", "-q", *(["-o", OPTIONS] if OPTIONS else []), store, point], point):
            table.add(name, state, measure(point / NAME, archive, bring, RUNS))


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
            table.add(peer.name, state, measure(point / NAME, image, STATES[state], RUNS))


def measure_ceiling(table, tmp, size):
    point = tmp / "ceiling"
    for name, window in (("ceiling", size), ("ceiling, hot", HOT)):
        with Mounted([CEILING, str(point), NAME, str(size), str(window)], point):
            table.add(name, "cached", measure(point / NAME, point / NAME, lambda p, _: cold(p, p), RUNS))


def goals(table):
    """What is hoped for on two cores, way by way."""
    print("goals:")
    peers = [(f"{n}, cached against btrfs zstd:3", (n, "cached"), ("btrfs zstd:3", "cached"), "read", 2.5)
             for n in ARCHIVES]
    fuse = [(f"{n}, cached against {p}", (n, "cached"), (p, "cached"), "64K/s", 1.0)
            for n in ARCHIVES for p in ("squashfuse 128K", "squashfuse 1M", "squashfuse_ll 1M")]
    ceiling = [(f"{n}, cached against the ceiling", (n, "cached"), ("ceiling", "cached"), w, goal)
               for n, goal in (("lossless", 0.7), ("4 bits", 0.8), ("2 bits", 0.8))
               for w in ("read", "mmap", "direct", "4 read")]
    raw = [(f"{n}, cold against raw", (n, "cold"), ("raw", "cold"), w, goal)
           for n, goal in (("lossless", 1.0), ("4 bits", 1.6)) for w in ("read", "mmap")]
    for text, a, b, way, goal in ceiling + raw + peers + fuse:
        ratio = table.ratio(a, b, way)
        if ratio is not None:
            print(f"  {text + ', ' + way:48} {ratio:6.2f}  goal {goal:.1f}  {'met' if ratio >= goal else 'missed'}")


def run(tmp):
    model = make_model(tmp)
    size = model.stat().st_size
    head(size)
    table = Table()
    table.add("raw", "cold", measure(model, model, cold, RUNS))
    table.add("raw", "warm", measure(model, model, warm, RUNS))
    measure_ceiling(table, tmp, size)
    for name in ARCHIVES:
        if WANTED.search(name):
            measure_eqfs(table, tmp, model, name)
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
