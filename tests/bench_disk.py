# SPDX-License-Identifier: Apache-2.0
"""A disk held to a rate of reading, for all that this process and its children read."""
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
V1 = ROOT / "blkio"


class Held:
    """While it lasts, reads from the disk that holds `path` make so many bytes a second at
    most: by blkio.throttle (cgroup v1) or io.max (v2), in a group of our own that is gone
    afterwards. Children that outlive it keep the group, and that is an error. No rate: no
    limit."""

    def __init__(self, path, rate):
        self.disk, self.rate = whole_disk(path) if rate else None, rate
        self.v1 = (V1 / "cgroup.procs").exists()
        self.group = (V1 if self.v1 else ROOT) / f"eqfs-bench-{os.getpid()}"
        self.before = self.enabled = None

    def __enter__(self):
        if not self.rate:
            return self
        self.before = group_of_self(self.v1)
        if not self.v1 and "io" not in (ROOT / "cgroup.subtree_control").read_text().split():
            (ROOT / "cgroup.subtree_control").write_text("+io")
            self.enabled = True
        self.group.mkdir()
        try:
            if self.v1:
                (self.group / "blkio.throttle.read_bps_device").write_text(f"{self.disk} {self.rate}")
            else:
                (self.group / "io.max").write_text(f"{self.disk} rbps={self.rate}")
            (self.group / "cgroup.procs").write_text(str(os.getpid()))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc):
        if not self.rate:
            return
        (self.before / "cgroup.procs").write_text(str(os.getpid()))
        self.group.rmdir()
        if self.enabled:
            (ROOT / "cgroup.subtree_control").write_text("-io")


def whole_disk(path):
    """MAJ:MIN of the disk, also of a partition on it."""
    dev = os.stat(path).st_dev
    sys = Path(f"/sys/dev/block/{os.major(dev)}:{os.minor(dev)}").resolve(strict=True)
    if (sys / "partition").exists():
        sys = sys.parent
    return (sys / "dev").read_text().strip()


def group_of_self(v1):
    """The directory of the group that this process is in."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if ("blkio" in controllers.split(",")) if v1 else not controllers:
            return (V1 if v1 else ROOT) / path.lstrip("/")
    raise OSError("no group of a controller of disks")
