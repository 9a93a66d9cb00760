#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Throughput of a mounted archive, beside memcpy, a plain read of the same bytes and
other compressing filesystems, all in one run. Prints GB/s (1e9 bytes), the median of
several runs, and ratios.

Environment: EQFS_BENCH_MB (size of the model, default 1024), EQFS_BENCH_RUNS (3),
EQFS_BENCH_DIR (where files go; needs three times the size), EQFS_BENCH_PEERS=1 to
mount squashfs and btrfs images of the model as well (root; mksquashfs, mkfs.btrfs)."""

import mmap
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

EQFS, EQAR = os.environ["EQFS"], os.environ["EQAR"]
HERE = Path(__file__).parent
MB = int(os.environ.get("EQFS_BENCH_MB", "1024"))
RUNS = int(os.environ.get("EQFS_BENCH_RUNS", "3"))
BLOCK = 1 << 20
BIG = 16 << 20
RANDOM_READS = 2000


def median(f, prepare=lambda: None):
    """The median of f()'s results, after prepare() each time."""
    results = []
    for _ in range(RUNS):
        prepare()
        results.append(f())
    return statistics.median(results)


def rate(size, seconds):
    return size / 1e9 / seconds


def timed(size, work):
    start = time.perf_counter()
    work()
    return rate(size, time.perf_counter() - start)


def memcpy(size=256 << 20):
    src, dst = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    return median(lambda: timed(size, lambda: np.copyto(dst, src)))


def read(path, flags=0, block=BLOCK, begin=0, end=None):
    """Read [begin, end) by pread into one aligned buffer."""
    buf = mmap.mmap(-1, block)
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        at, end = begin, os.fstat(fd).st_size if end is None else end
        while at < end:
            n = os.preadv(fd, [memoryview(buf)[:min(block, end - at)] if not flags else buf], at)
            if n <= 0:
                raise OSError(f"{path}: short read at {at}")
            at += n
    finally:
        os.close(fd)


def read_mmap(path):
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as m:
        view = np.frombuffer(m, np.uint8)
        view[::4096].sum()
        del view


def read_parallel(path, n=4):
    size = os.path.getsize(path)
    step = -(-size // n // BLOCK) * BLOCK
    threads = [threading.Thread(target=read, args=(path, 0, BLOCK, i * step, min(size, (i + 1) * step)))
               for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def read_random(path):
    """Random reads of 64 KiB a second."""
    rng = np.random.default_rng(3)
    size, buf = os.path.getsize(path), bytearray(65536)
    at = rng.integers(0, size // 65536, RANDOM_READS) * 65536
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    start = time.perf_counter()
    for offset in at:
        os.preadv(fd, [buf], int(offset))
    seconds = time.perf_counter() - start
    os.close(fd)
    return RANDOM_READS / seconds


def forget(path):
    """Drop a file's clean pages."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def measure(path, below, cached):
    """One row: path read in several ways; `below` is what lies under it on disk, kept
    in the page cache or dropped from it before each run."""
    size = os.path.getsize(path)

    def prepare():
        forget(path)
        if cached:
            read(below)
        else:
            forget(below)

    direct = os.O_DIRECT
    return [median(lambda: timed(size, lambda: read(path)), prepare),
            median(lambda: timed(size, lambda: read_mmap(path)), prepare),
            median(lambda: timed(size // BIG * BIG, lambda: read(path, direct, BIG, 0, size // BIG * BIG)),
                   prepare),
            median(lambda: timed(size, lambda: read_parallel(path)), prepare),
            median(lambda: read_random(path), prepare)]


class Mounted:
    """A command that serves a mount point in the foreground, or `mount` itself."""

    def __init__(self, command, point, foreground=True):
        self.point, self.process = point, None
        point.mkdir(exist_ok=True)
        if foreground:
            self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        else:
            subprocess.run(command, check=True)
        deadline = time.monotonic() + 20
        while not os.path.ismount(point):
            if time.monotonic() > deadline or (self.process and self.process.poll() is not None):
                raise OSError(f"{command[0]}: the mount did not come up")
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
        if os.path.ismount(self.point):
            subprocess.run(["umount", str(self.point)], check=False)


def make_model(path):
    subprocess.run([sys.executable, HERE / "gen_model.py", "--dtype", "BF16", "--size", f"{MB}M", "--hidden", "2048",
                    str(path)], check=True)


def show(name, row, base=None):
    cells = [f"{v:8.2f}" for v in row[:-1]] + [f"{row[-1]:8.0f}"]
    print(f"  {name:<34}" + "".join(cells), end="")
    print("   x" + " ".join(f"{v / b:5.2f}" for v, b in zip(row, base)) if base else "", flush=True)


def peers(tmp, model):
    """(name, path, image, context) of other filesystems with the same file."""
    squash = tmp / "model.squashfs"
    if shutil.which("mksquashfs"):
        subprocess.run(["mksquashfs", str(model), str(squash), "-comp", "zstd", "-b", "1M", "-quiet",
                        "-no-progress"], check=True, stdout=subprocess.DEVNULL)
        yield "squashfs zstd (kernel)", squash, lambda p: Mounted(
            ["mount", "-o", "loop,ro", str(squash), str(p)], p, False)
        if shutil.which("squashfuse"):
            yield "squashfuse", squash, lambda p: Mounted(["squashfuse", "-f", str(squash), str(p)], p)
    if shutil.which("mkfs.btrfs"):
        image = tmp / "model.btrfs"
        with open(image, "wb") as f:
            f.truncate(max(2 * MB, 512) << 20)
        subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True)
        point = tmp / "fill"
        with Mounted(["mount", "-o", "loop,compress-force=zstd:3", str(image), str(point)], point, False):
            shutil.copyfile(model, point / model.name)
            os.sync()
        yield "btrfs zstd:3", image, lambda p: Mounted(["mount", "-o", "loop,ro", str(image), str(p)],
                                                       p, False)


def main():
    tmp = Path(tempfile.mkdtemp(prefix="eqfs-bench-", dir=os.environ.get("EQFS_BENCH_DIR")))
    try:
        run(tmp)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def run(tmp):
    model = tmp / "model.safetensors"
    make_model(model)
    size = model.stat().st_size
    isa = subprocess.run([EQAR, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
    copy = memcpy()
    print(f"mount: {size / 1e9:.2f} GB of bf16, {os.cpu_count()} CPUs, {isa}; memcpy {copy:.1f} GB/s; "
          f"median of {RUNS}")
    print("  " + " " * 34 + "".join(f"{h:>8}" for h in ("read", "mmap", "direct", "4 read", "64K/s")) +
          "   ratio to the plain file in the same state")
    base = {False: measure(model, model, False)}
    show("plain file, cold", base[False])
    read(model)
    warm = [median(lambda: timed(size, lambda: read(model))),
            median(lambda: timed(size, lambda: read_mmap(model)))]
    print(f"  {'plain file, warm':<34}" + "".join(f"{v:8.2f}" for v in warm))
    for name, options in (("lossless", []), ("4 bits", ["--bits", "4"])):
        store = tmp / "store"
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir()
        archive = store / "model.safetensors.eqar"
        start = time.perf_counter()
        subprocess.run([EQAR, "pack", "-q", *options, model, archive], check=True)
        packed = time.perf_counter() - start
        print(f"  {name}: {archive.stat().st_size / size:.1%} of the size, packed at "
              f"{size / 1e6 / packed:.0f} MB/s")
        with Mounted([EQFS, "-f", str(store), str(tmp / "mnt")], tmp / "mnt"):
            path = tmp / "mnt" / "model.safetensors"
            show(f"eqfs {name}, cold", measure(path, archive, False), base[False])
            show(f"eqfs {name}, archive cached", measure(path, archive, True))
            read(path)
            print(f"  {f'eqfs {name}, warm':<34}" + "".join(f"{v:8.2f}" for v in (
                median(lambda: timed(size, lambda: read(path))),
                median(lambda: timed(size, lambda: read_mmap(path))))), flush=True)
    if os.environ.get("EQFS_BENCH_PEERS") == "1":
        for name, image, mount in peers(tmp, model):
            print(f"  {name}: {image.stat().st_blocks * 512 / size:.1%} of the size")
            with mount(tmp / "peer"):
                path = tmp / "peer" / model.name
                show(f"{name}, cold", measure(path, image, False), base[False])
                show(f"{name}, image cached", measure(path, image, True))


if __name__ == "__main__":
    main()
