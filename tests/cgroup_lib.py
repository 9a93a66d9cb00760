# SPDX-License-Identifier: Apache-2.0
"""Control groups that bound the memory of the processes in them, version 2 or 1, where
the machine lets us make some."""
import contextlib
import os
import re
import time


def _hierarchies():
    """(version, directory of the group that we are in, the hierarchy's top) of those that there are."""
    points = {}
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        for line in f:
            left, right = (s.split() for s in line.split(" - "))
            if right[0] == "cgroup2":
                points[2] = left[4], left[3]
            elif right[0] == "cgroup" and "memory" in right[2].split(","):
                points[1] = left[4], left[3]
    with open("/proc/self/cgroup", encoding="utf-8") as f:
        for line in f:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            version = 2 if not controllers else 1 if "memory" in controllers.split(",") else 0
            if version in points:
                top, root = points[version]
                path = os.path.relpath(path, root) if path.startswith(root) else "."
                yield version, os.path.normpath(os.path.join(top, path)), top


def _places():
    """(version, directory) in which a group could be made: ours, or one above it."""
    for version, path, top in _hierarchies():
        while True:
            yield version, path
            if path == top or not path.startswith(top):
                break
            path = os.path.dirname(path)


def _write(path, text):
    with open(path, "w", encoding="ascii") as f:
        f.write(text)


class MemoryGroup:
    """A context manager; OSError if none can be made here."""
    FILES = {2: ("memory.max", "memory.swap.max", "memory.peak"),
             1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes")}
    made = 0

    def __init__(self, size):
        MemoryGroup.made += 1
        reason = OSError("no memory controller is mounted")
        for self.version, parent in _places():
            self.path = f"{parent}/eqfs-test-{os.getpid()}-{MemoryGroup.made}"
            try:
                os.mkdir(self.path)
            except OSError as e:
                reason = e
                continue
            try:
                self._limit(size)
                return
            except OSError as e: # no memory controller here
                reason = e
                os.rmdir(self.path)
        raise reason

    def _limit(self, size):
        limit, swap, self.peak_file = self.FILES[self.version]
        _write(f"{self.path}/{limit}", str(size))
        with contextlib.suppress(FileNotFoundError): # no swap is accounted for
            _write(f"{self.path}/{swap}", "0" if self.version == 2 else str(size))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        end = time.monotonic() + 60
        while True: # the last process may not have gone yet
            try:
                os.rmdir(self.path)
                return
            except OSError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.01)

    def join(self):
        """For preexec_fn: the new process is in the group."""
        _write(f"{self.path}/cgroup.procs", "0")

    def peak(self):
        """The most that was in use, bytes; 0 if this kernel does not count it."""
        try:
            with open(f"{self.path}/{self.peak_file}", encoding="ascii") as f:
                return int(f.read())
        except FileNotFoundError:
            return 0

    def kills(self):
        """How many processes the kernel has killed for memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        with open(f"{self.path}/{name}", encoding="ascii") as f:
            return int(re.search(r"^oom_kill (\d+)$", f.read(), re.M)[1])
