#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How fast a mounted archive is read, in one run beside the raw file on the same disk, an
in-memory file served by the same libfuse (the ceiling), and other compressing filesystems
that hold the same file. GB/s (1e9 bytes) or 64 KiB reads a second, medians, and ratios to
the raw file in the same state and to the ceiling. These and all archives are read in turns,
half a GiB at a time (bench_read.py says why). CPU: seconds that the daemon uses for a GB of
the first column; busy: how much of all cores' time was used meanwhile. Where a GPU is,
archives are read with gpu=off and with gpu=auto.

Environment:
  EQFS_BENCH_MB    size of the model, default 4096
  EQFS_BENCH_RUNS  runs of each, default 3
  EQFS_BENCH_PEER_SECONDS  the longest that another filesystem is read at a time, default 3
  EQFS_BENCH_DISK  hold reads from the disk to so many MB a second, for all alike (root, by
                   a cgroup): where the disk is somebody else's memory, nothing is cold
  EQFS_BENCH_DIR   where files go, which needs four times the size; with EQFS_BENCH_KEEP=1
                   they stay there and the next run takes them as they are
  EQFS_BENCH_ROWS  a regular expression: only rows whose "NAME, STATE" has it, and what they
                   are compared to
  EQFS_BENCH_OPTS  mount options of eqfs

With EQFS_BENCH_RUNS=1 all takes some eight minutes on two cores."""

import contextlib
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
from bench_read import WAYS, Subject, forget, measure

EQFS, EQAR, CEILING = os.environ["EQFS"], os.environ["EQAR"], os.environ["EQFS_BENCH_FUSE"]
MB = int(os.environ.get("EQFS_BENCH_MB", "4096"))
RUNS = int(os.environ.get("EQFS_BENCH_RUNS", "3"))
DISK = int(float(os.environ.get("EQFS_BENCH_DISK", "0")) * 1e6)
PEER_SECONDS = float(os.environ.get("EQFS_BENCH_PEER_SECONDS", "3"))
WANTED = re.compile(os.environ.get("EQFS_BENCH_ROWS", ""))
OPTIONS = os.environ.get("EQFS_BENCH_OPTS", "")
NAME = "model.safetensors"
HOT = 32 << 20
MEMORY = 1 << 30      # beyond any cache, and less of the machine's than the file would take
ARCHIVES = {"lossless": [], "4 bits": ["--bits", "4"], "2 bits": ["--bits", "2"]}
CELLS = [*WAYS, "CPU", "busy"]


class Table:
    """Prints rows as they come, and keeps them."""

    def __init__(self):
        self.rows = {}
        heads = "".join(f"{h:>8}" for h in CELLS)
        print(f"{'':36}{heads}   ratios to the raw file, and to the ceiling")

    def add(self, name, state, row):
        self.rows[name, state] = row
        cells = "".join(f"{row[w]:8.0f}" if w == "64K/s" else f"{row[w]:8.2f}" if w in row else f"{'':8}"
                        for w in CELLS)
        print(f"{f'{name}, {state}':36}{cells}  {self.against('raw', state, row)}"
              f"{self.against('ceiling', 'cached', row)}", flush=True)

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
    """A file whose bytes come from so much memory, again and again."""

    def __init__(self, tmp, size, window):
        self.point = tmp / "ceiling"
        self.path = self.point / NAME
        self.command = [CEILING, str(self.point), NAME, str(size), str(min(size, window))]

    @contextlib.contextmanager
    def mount(self):
        with Mounted(self.command, self.point) as m:
            yield Subject(self.path, self.path, "cached", m.cpu)


def wanted(name, *states):
    return any(WANTED.search(f"{name}, {state}") for state in states)


def pack(tmp, model, name):
    store = tmp / f"store.{name.replace(' ', '')}"
    store.mkdir(exist_ok=True)
    archive = store / f"{NAME}.eqar"
    if not archive.exists():
        subprocess.run([EQAR, "pack", "-q", *ARCHIVES[name], model, archive], check=True)
    print(f"-- eqfs {name}: {archive.stat().st_size / model.stat().st_size:.1%} of the size", flush=True)
    return archive


def measure_archives(table, tmp, beside, archives, state):
    """All archives in turns with the subject `beside`, (name, subject)."""
    rows = [(name + gpu, archive, options) for name, archive in archives.items()
            for gpu, options in gpu_options().items() if wanted(name + gpu, state)]
    if not rows and not any(wanted(peer.name, state) for peer in PEERS):
        return
    subjects = {beside[0]: beside[1]}
    with contextlib.ExitStack() as mounts:
        # Mounts of their own: nothing decoded is left of the state before.
        for name, archive, options in rows:
            point = tmp / f"mnt.{len(subjects)}"
            command = [EQFS, "-f", "-q", *(["-o", options] if options else []), archive.parent, point]
            m = mounts.enter_context(Mounted(command, point))
            subjects[name] = Subject(point / NAME, archive, state, m.cpu)
        for name, row in zip(subjects, measure(list(subjects.values()), RUNS)):
            table.add(name, state, row)


def measure_peer(table, tmp, model, peer):
    why = peer.missing()
    if why:
        print(f"-- {peer.name}: skipped, {why}")
        return
    image = peer.image(tmp, model)
    print(f"-- {peer.name}: {image.stat().st_blocks * 512 / model.stat().st_size:.1%} of the size")
    point = tmp / "peer"
    with peer.mount(image, point):
        for state in filter(lambda state: wanted(peer.name, state), ("cold", "cached")):
            table.add(peer.name, state, *measure([Subject(point / NAME, image, state)], RUNS, PEER_SECONDS))


def bounds(table):
    """What the cores could give if a read cost what FUSE alone takes and what the daemon spends in
    user space, nearly all of it decoding. CPU seconds a GB."""
    ceiling = table.rows["ceiling", "cached"]
    cores = len(os.sched_getaffinity(0))
    print(f"bounds by {cores} cores, archive cached: FUSE alone + decoding, CPU s/GB")
    for name in (n + gpu for n in ARCHIVES for gpu in gpu_options()):
        row = table.rows.get((name, "cached"))
        for way in ("read", "mmap", "direct", "4 read") if row else ():
            fuse, decoding = ceiling["cost"][way][0], row["cost"][way][2]
            most = min(ceiling[way], cores / (fuse + decoding))
            print(f"  {f'{name}, {way}':30} {fuse:.2f} + {decoding:.2f}: {most:.2f} GB/s, {most / ceiling[way]:.2f} of the "
                  f"ceiling; reached {row[way] / most:.0%} of that, with {row['cost'][way][0]:.2f}")


def goals(table):
    """What is hoped for on two cores, way by way."""
    print("goals:")
    rows = [(n, n + gpu) for n in ARCHIVES for gpu in gpu_options()]
    peers = [(f"{r}, cached against btrfs zstd:3", (r, "cached"), ("btrfs zstd:3", "cached"), "read", 2.5)
             for _, r in rows]
    fuse = [(f"{r}, cached against {p}", (r, "cached"), (p, "cached"), "64K/s", 1.0)
            for _, r in rows for p in ("squashfuse 128K", "squashfuse 1M", "squashfuse_ll 1M")]
    ceiling = [(f"{r}, cached against the ceiling", (r, "cached"), ("ceiling", "cached"), w,
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
    archives = {name: pack(tmp, model, name) for name in ARCHIVES
                if any(wanted(name + gpu, "cold", "cached", "warm") for gpu in gpu_options())}
    with Held(tmp, DISK):
        for state in ("cold", "warm"):
            measure_archives(table, tmp, ("raw", Subject(model, model, state)), archives, state)
        forget(model)
        if wanted("ceiling, hot", "cached"):
            with Ceiling(tmp, size, HOT).mount() as subject:
                table.add("ceiling, hot", "cached", *measure([subject], RUNS))
        with Ceiling(tmp, size, MEMORY).mount() as subject:
            measure_archives(table, tmp, ("ceiling", subject), archives, "cached")
        for archive in archives.values():
            forget(archive)
        for peer in PEERS:
            if wanted(peer.name, "cold", "cached"):
                measure_peer(table, tmp, model, peer)
    if ("ceiling", "cached") in table.rows:
        bounds(table)
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
