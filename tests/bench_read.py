# SPDX-License-Identifier: Apache-2.0
"""Ways to read a file, timed, and the states of the caches before. GB are 1e9 bytes."""
import math
import mmap
import os
import statistics
import threading
import time

import numpy as np

BLOCK = 1 << 20
BIG = 16 << 20
SMALL = 64 << 10
READERS = 4
RANDOM_SECONDS = 1.0


def read(path, until=math.inf, flags=0, block=BLOCK, begin=0, end=None):
    """Read [begin, end) by pread into one aligned buffer; not on beyond a time."""
    buf = memoryview(mmap.mmap(-1, block))
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        at, end = begin, os.fstat(fd).st_size if end is None else end
        while at < end and time.perf_counter() < until:
            n = os.preadv(fd, [buf if flags else buf[:min(block, end - at)]], at)
            if n <= 0:
                raise OSError(f"{path}: short read at {at}")
            at += n
    finally:
        os.close(fd)
    return at - begin


def read_mmap(path, until):
    """Touch every page of a mapping, in order."""
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as m:
        view = np.frombuffer(m, np.uint8)
        at = 0
        while at < len(view) and time.perf_counter() < until:
            view[at:at + BIG:4096].sum()
            at += BIG
        at = min(at, len(view))
        del view
    return at


def read_direct(path, until):
    return read(path, until, os.O_DIRECT, BIG, 0, os.path.getsize(path) // BIG * BIG)


def read_parallel(path, until):
    """Several readers, each with a part of the file."""
    size = os.path.getsize(path)
    step = -(-size // READERS // BLOCK) * BLOCK
    done, failed = [], []

    def part(i):
        try:
            done.append(read(path, until, 0, BLOCK, i * step, min(size, (i + 1) * step)))
        except OSError as e:
            failed.append(e)

    threads = [threading.Thread(target=part, args=(i,)) for i in range(READERS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failed:
        raise failed[0]
    return sum(done)


def takes_direct(path):
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def rate(work, path, seconds):
    start = time.perf_counter()
    size = work(path, start + seconds)
    return size / 1e9 / (time.perf_counter() - start)


def random_reads(path, _seconds):
    """Random reads of 64 KiB a second; no place twice."""
    buf = bytearray(SMALL)
    places = np.random.default_rng(3).permutation(os.path.getsize(path) // SMALL)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        start = time.perf_counter()
        for n, at in enumerate(places, 1):
            os.preadv(fd, [buf], int(at) * SMALL)
            seconds = time.perf_counter() - start
            if seconds > RANDOM_SECONDS:
                break
    finally:
        os.close(fd)
    return n / seconds


WAYS = {"read": lambda p, s: rate(read, p, s), "mmap": lambda p, s: rate(read_mmap, p, s),
        "direct": lambda p, s: rate(read_direct, p, s), "4 read": lambda p, s: rate(read_parallel, p, s),
        "64K/s": random_reads}


def forget(path):
    """Drop a file's clean pages."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def drop_all():
    """Drop every clean page, and what filesystems cache besides, where that is allowed."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3")
    except OSError:
        pass


def cold(path, below):
    forget(path)
    forget(below)


def cached(path, below):
    """What lies below is in the page cache, the file itself is not. It is dropped last:
    memory that has been free for a while a hypervisor takes back, and to have it again
    costs more than reading."""
    read(below)
    forget(path)


def warm(path, _below):
    read(path)


def measure_beside(subjects, runs, seconds=math.inf):
    """Files that are measured in turns, each (path, below, state), since a machine is not as
    fast at all times. For each {way: median of runs}, every run after state(path, below) and
    of so many seconds at most. What is warm stays so: it is not read with O_DIRECT, which
    would go around the cache. A fourth member, of what CPU seconds a server has used, adds
    what it uses for a GB of the first way."""
    if any(state is cold for _, _, state, *_ in subjects):
        drop_all()
    rows = [{} for _ in subjects]
    for name, way in WAYS.items():
        results = [[] for _ in subjects]
        for i in range(runs):
            for (path, below, state, *cpu), row, out in zip(subjects, rows, results):
                if name == "direct" and (state is warm or not takes_direct(path)):
                    continue
                if state is not warm or i == 0:
                    state(path, below)
                before = [used() for used in cpu]
                out.append(way(path, seconds))
                if cpu and "CPU" not in row:
                    row["CPU"] = (cpu[0]() - before[0]) * 1e9 / os.path.getsize(path)
        for row, out in zip(rows, results):
            if out:
                row[name] = statistics.median(out)
    return rows


def measure(path, below, state, runs, seconds=math.inf):
    return measure_beside([(path, below, state)], runs, seconds)[0]
