# SPDX-License-Identifier: Apache-2.0
"""Ways to read a file, timed, and the states of the caches before. GB are 1e9 bytes."""
import math
import mmap
import os
import statistics
import threading
import time
from dataclasses import dataclass, field

import numpy as np

BLOCK = 1 << 20
BIG = 16 << 20
SMALL = 64 << 10
READERS = 4
RANDOM_SECONDS = 1.0
# What is read at a time. Memory that is full makes the kernel search for pages to drop, and memory
# that has been free for seconds a hypervisor may have taken back: to have it again costs more than
# reading. A part is read into the pages that the part before has just left.
PART = 512 << 20


def read(path, begin=0, end=None, until=math.inf, flags=0, block=BLOCK):
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


def read_mmap(path, begin, end, until):
    """Touch every page of a mapping, in order."""
    with open(path, "rb") as f, mmap.mmap(f.fileno(), end - begin, mmap.MAP_PRIVATE, mmap.PROT_READ,
                                          offset=begin) as m:
        view = np.frombuffer(m, np.uint8)
        at = 0
        while at < len(view) and time.perf_counter() < until:
            view[at:at + BIG:4096].sum()
            at += BIG
        at = min(at, len(view))
        del view
    return at


def read_direct(path, begin, end, until):
    return read(path, begin, end // BIG * BIG, until, os.O_DIRECT, BIG)


def read_parallel(path, begin, end, until):
    """Several readers, each with a piece."""
    step = -(-(end - begin) // READERS // BLOCK) * BLOCK
    done, failed = [], []

    def piece(i):
        try:
            done.append(read(path, begin + i * step, min(end, begin + (i + 1) * step), until))
        except OSError as e:
            failed.append(e)

    threads = [threading.Thread(target=piece, args=(i,)) for i in range(READERS)]
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


def read_random(path, begin, end, _until):
    """Reads of 64 KiB in random places, no place twice."""
    buf = bytearray(SMALL)
    places = np.random.default_rng(3).permutation((end - begin) // SMALL)
    n = 0
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        until = time.perf_counter() + RANDOM_SECONDS
        while n < len(places) and time.perf_counter() < until:
            os.preadv(fd, [buf], begin + int(places[n]) * SMALL)
            n += 1
    finally:
        os.close(fd)
    return n * SMALL


WAYS = {"read": read, "mmap": read_mmap, "direct": read_direct, "4 read": read_parallel,
        "64K/s": read_random}


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


def idle():
    """Seconds that our cores had nothing to do, or only waited for a disk."""
    names = {f"cpu{n}" for n in os.sched_getaffinity(0)}
    with open("/proc/stat", encoding="ascii") as f:
        fields = [line.split() for line in f if line.startswith("cpu")]
    return sum(int(x[4]) + int(x[5]) for x in fields if x[0] in names) / os.sysconf("SC_CLK_TCK")


@dataclass
class Subject:
    """A file, the one below that it is made of or itself, and whose CPU time counts."""
    path: os.PathLike
    below: os.PathLike
    state: str
    server: object = None       # () -> seconds in user space, and in the kernel

    def prepare(self):
        if self.state == "cached" and self.below != self.path:
            read(self.below)

    def bring(self, begin, end):
        """Into its state, for a part."""
        if self.state == "warm":
            read(self.path, begin, end)
            return
        forget(self.path)
        if self.state == "cold":
            forget(self.below)

    def used(self):
        user, system = self.server() if self.server else (0.0, 0.0)
        return np.array([time.process_time() + user + system, user + system, user, idle()])


@dataclass
class Tally:
    size: int = 0
    seconds: float = 0.0
    cpu: np.ndarray = field(default_factory=lambda: np.zeros(4))

    def add(self, subject, work, part, seconds):
        subject.bring(*part)
        before, start = subject.used(), time.perf_counter()
        self.size += work(subject.path, *part, start + seconds - self.seconds)
        self.seconds += time.perf_counter() - start
        self.cpu += subject.used() - before
        forget(subject.path)


def parts(size, way):
    """The last first: what a server has decoded ahead, at the end of one, is no help for the next."""
    step = size if way == "64K/s" else PART
    return [(b, min(size, b + step)) for b in reversed(range(0, size, step))]


def run_once(subjects, way, seconds):
    """Each read once, all in turns, part by part; None for one that does not offer this way."""
    tallies = [None if way == "direct" and (s.state == "warm" or not takes_direct(s.path)) else Tally()
               for s in subjects]
    for s in subjects:
        s.prepare()
    for part in parts(min(os.path.getsize(s.path) for s in subjects), way):
        for subject, tally in zip(subjects, tallies):
            if tally and tally.seconds < seconds:
                tally.add(subject, WAYS[way], part, seconds)
    return tallies


def measure(subjects, runs, seconds=math.inf):
    """Files of one size that are measured in turns, since a machine is not as fast at all times.
    For each {way: median of runs, "cost": {way: CPU seconds for a GB, of all, of the server, and
    of that in user space}, "CPU": what the server uses for a GB of the first way, "busy": and to
    what share all cores are busy meanwhile}. What is warm stays so: it is not read with O_DIRECT,
    which would go around the cache. None is read for more than so many seconds a run."""
    if any(s.state == "cold" for s in subjects):
        drop_all()
    rows = [{"cost": {}} for _ in subjects]
    for way in WAYS:
        unit = SMALL if way == "64K/s" else 1e9
        results = list(zip(*(run_once(subjects, way, seconds) for _ in range(runs))))
        for subject, row, tallies in zip(subjects, rows, results):
            if tallies[0]:
                row[way] = statistics.median(t.size / unit / t.seconds for t in tallies)
                *cost, unused = sum(t.cpu for t in tallies)
                row["cost"][way] = np.array(cost) / sum(t.size for t in tallies) * 1e9
                row.setdefault("busy", 1 - unused / sum(t.seconds for t in tallies) / len(os.sched_getaffinity(0)))
                if subject.server:
                    row.setdefault("CPU", row["cost"][way][1])
    return rows
