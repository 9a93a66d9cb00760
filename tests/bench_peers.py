# SPDX-License-Identifier: Apache-2.0
"""Mounts for bench_mount.py: eqfs, its ceiling, and other compressing filesystems that
hold the same file. Each is a context manager that takes its mount down again."""
import os
import shutil
import signal
import subprocess
import time

DEADLINE = 30.0


class Mounted:
    """A mount point: served in the foreground by a command, or made by one that ends."""

    def __init__(self, command, point, serves=True):
        self.point, self.process = point, None
        point.mkdir(exist_ok=True)
        if serves:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL,
                                            stderr=subprocess.DEVNULL)
        else:
            subprocess.run(command, check=True, stderr=subprocess.PIPE)
        deadline = time.monotonic() + DEADLINE
        while not os.path.ismount(point):
            if time.monotonic() > deadline or (self.process and self.process.poll() is not None):
                self.__exit__()
                raise OSError(f"{command[0]}: the mount did not come up")
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if os.path.ismount(self.point):
            subprocess.run(["umount", str(self.point)], check=False)

    def cpu(self):
        """CPU seconds that the server has used, in user space and in the kernel."""
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as f:
            field = f.read().rsplit(")", 1)[1].split()
        return int(field[11]) / os.sysconf("SC_CLK_TCK"), int(field[12]) / os.sysconf("SC_CLK_TCK")


class Peer:
    """A filesystem image that holds the model."""

    def __init__(self, name, tools, kernel=None):
        self.name, self.tools, self.kernel = name, tools, kernel

    def missing(self):
        """Why it cannot be measured here, or None."""
        for tool in self.tools:
            if not shutil.which(tool):
                return f"no {tool}"
        if self.kernel:
            if os.geteuid():
                return "only root can mount it"
            with open("/proc/filesystems") as f:
                if self.kernel not in f.read().split():
                    subprocess.run(["modprobe", "-q", self.kernel], check=False)
            with open("/proc/filesystems") as f:
                if self.kernel not in f.read().split():
                    return f"no {self.kernel} in the kernel"
        return None


class Squashfs(Peer):
    """By the kernel, or by a program in user space."""

    def __init__(self, block, program=None):
        super().__init__(f"{program or 'kernel squashfs'} {block}", ["mksquashfs", program or "mount"],
                         None if program else "squashfs")
        self.block, self.program = block, program

    def image(self, tmp, model):
        path = tmp / f"squashfs.{self.block}"
        if not path.exists():
            # The level of btrfs: for weights a higher one takes minutes and saves nothing.
            subprocess.run(["mksquashfs", str(model), str(path), "-comp", "zstd", "-Xcompression-level", "3",
                            "-b", self.block, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
        return path

    def mount(self, image, point):
        if self.program:
            return Mounted([self.program, "-f", str(image), str(point)], point)
        return Mounted(["mount", "-t", "squashfs", "-o", "loop,ro", str(image), str(point)], point, False)


class Btrfs(Peer):
    def __init__(self):
        super().__init__("btrfs zstd:3", ["mkfs.btrfs", "mount"], "btrfs")

    def image(self, tmp, model):
        path, point = tmp / "btrfs", tmp / "fill"
        if not path.exists():
            with open(path, "wb") as f:
                f.truncate(model.stat().st_size + (512 << 20))
            try:
                subprocess.run(["mkfs.btrfs", "-q", str(path)], check=True, capture_output=True)
                with Mounted(["mount", "-o", "loop,compress-force=zstd:3", str(path), str(point)],
                             point, False):
                    shutil.copyfile(model, point / model.name)
                    os.sync()
            except BaseException:
                path.unlink()
                raise
        return path

    def mount(self, image, point):
        return Mounted(["mount", "-t", "btrfs", "-o", "loop,ro", str(image), str(point)], point, False)


PEERS = [Squashfs("128K"), Squashfs("1M"), Squashfs("128K", "squashfuse"), Squashfs("1M", "squashfuse"),
         Squashfs("1M", "squashfuse_ll"), Btrfs()]
