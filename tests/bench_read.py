# SPDX-License-Identifier: Apache-2.0
"""Ways to read a file, timed, and the states of the caches before. GB are 1e9 bytes."""
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


def read(path, flags=0, block=BLOCK, begin=0, end=None):
    """Read [begin, end) by pread into one aligned buffer."""
    buf = memoryview(mmap.mmap(-1, block))
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        at, end = begin, os.fstat(fd).st_size if end is None else end
        while at < end:
            n = os.preadv(fd, [buf if flags else buf[:min(block, end - at)]], at)
            if n <= 0:
                raise OSError(f"{path}: short read at {at}")
            at += n
    finally:
        os.close(fd)
    return end - begin


def read_mmap(path):
    """Touch every page of a mapping, in order."""
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as m:
        view = np.frombuffer(m, np.uint8)
        view[::4096].sum()
        size = len(view)
        del view
    return size


def read_direct(path):
    return read(path, os.O_DIRECT, BIG, 0, os.path.getsize(path) // BIG * BIG)


def read_parallel(path):
    """Several readers, each with a part of the file."""
    size = os.path.getsize(path)
    step = -(-size // READERS // BLOCK) * BLOCK
    failed = []

    def part(i):
        try:
            read(path, 0, BLOCK, i * step, min(size, (i + 1) * step))
        except OSError as e:
            failed.append(e)

    threads = [threading.Thread(target=part, args=(i,)) for i in range(READERS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failed:
        raise failed[0]
    return size


def takes_direct(path):
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def rate(work, path):
    start = time.perf_counter()
    size = work(path)
    return size / 1e9 / (time.perf_counter() - start)


def random_reads(path):
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


WAYS = {"read": lambda p: rate(read, p), "mmap": lambda p: rate(read_mmap, p),
        "direct": lambda p: rate(read_direct, p), "4 read": lambda p: rate(read_parallel, p),
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
    drop_all()
    forget(path)
    forget(below)


def cached(path, below):
    """What lies below is in the page cache, the file itself is not."""
    forget(path)
    read(below)


def warm(path, _below):
    read(path)


def measure(path, below, state, runs):
    """{way: median of runs}, each after state(path, below) has been brought about. What is
    warm stays so: it is not read with O_DIRECT, which would go around the cache."""
    row = {}
    for name, way in WAYS.items():
        if name == "direct" and (state is warm or not takes_direct(path)):
            continue
        results = []
        for i in range(runs):
            if state is not warm or i == 0:
                state(path, below)
            results.append(way(path))
        row[name] = statistics.median(results)
    return row
