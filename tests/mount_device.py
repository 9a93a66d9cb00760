# SPDX-License-Identifier: Apache-2.0
"""A store on a disk that fails, with errors that come up from the block layer: an ext4 on a
loop device that is cut off, so that what lies behind can be neither read nor written, or whose
file has no room for what was not written before (as in a thin pool). EQFS_CRASH_POINTS and
EQFS_CRASH_PART as in mount_fault.py."""
import fcntl
import mmap
import struct

from fault_cases import *

POINTS = int(os.environ.get("EQFS_CRASH_POINTS", "12"))
BLOCK, MIB = 4096, 1 << 20
POOL = 1 << 30 # at most; there are several images while others have a mount in their namespace
FIBMAP = 1

if os.geteuid() or not disks():
    print("skipped: no loop devices")
    sys.exit(77)


class Thin(Disk):
    """Its image takes memory only where something was written. Lazily: also that of the
    journal, which fails first then."""

    def __init__(self, name, lazily, mib=32):
        self.pool = scratch(name + ".pool")
        os.makedirs(self.pool)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={POOL}", "tmpfs", self.pool], check=True)
        self.options, self.point, self.mib = "", scratch(name), mib
        self.image = os.path.join(self.pool, "image")
        self.store = os.path.join(self.point, "store")
        self.features = ["-E", f"lazy_journal_init={int(lazily)}"]
        os.makedirs(self.point)

    def __enter__(self):
        try:
            self.make()
            self.attach()
        except BaseException:
            subprocess.run(["umount", self.pool], check=False)
            raise
        return self

    def __exit__(self, *exc):
        self.detach()
        subprocess.run(["umount", "-l", self.pool], check=True)

    def make(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.image)
        with open(self.image, "wb") as f:
            f.truncate(self.mib * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-b", str(BLOCK), *self.features, self.image],
                       check=True)

    def again(self):
        """A fresh one."""
        self.detach()
        self.make()
        self.attach()

    def resize(self, size):
        subprocess.run(["mount", "-o", f"remount,size={size}", self.pool], check=True)

    def shrink(self, left):
        """No more than so many bytes can be written where there were none."""
        st = os.statvfs(self.pool)
        self.resize((st.f_blocks - st.f_bfree) * st.f_bsize + max(left, 1))

    def forget(self):
        """Nothing is in the kernel's memory: another image, since others may have the mount
        in a namespace of theirs, and the kernel then keeps what it has of this one."""
        subprocess.run(["cp", "--sparse=always", self.image, self.image + ".new"], check=True)
        self.detach()
        os.rename(self.image + ".new", self.image)
        self.attach()

    def heal(self):
        """What could not be written is lost, and there is room again."""
        self.resize(POOL)
        self.forget()

    def blocks(self, name):
        """Where on the disk those of a file are."""
        with open(os.path.join(self.store, name), "rb") as f:
            return [struct.unpack("i", fcntl.ioctl(f, FIBMAP, struct.pack("i", i)))[0]
                    for i in range(-(-os.fstat(f.fileno()).st_size // BLOCK))]

    def cut_off(self, name):
        """The second half of that file, and what lies behind, is there no more. The files
        of which nothing does."""
        where = {n: self.blocks(n) for n in os.listdir(self.store)}
        at = where[name][len(where[name]) // 2]
        assert 0 < at < self.mib * MIB // BLOCK
        os.truncate(self.image, at * BLOCK)
        device = subprocess.run(["losetup", "-nO", "NAME", "-j", self.image], check=True, capture_output=True,
                                text=True).stdout.split()
        subprocess.run(["losetup", "-c", *device], check=True)
        return [n for n, blocks in where.items() if max(blocks) < at]


def readable(fd, want):
    """How many blocks of a file can be read, which must be right, and how many cannot."""
    good = bad = 0
    with contextlib.closing(mmap.mmap(-1, BLOCK)) as buf:
        for at in range(0, len(want), BLOCK):
            try:
                n = os.preadv(fd, [buf], at)
                assert buf[:n] == want[at:at + BLOCK], at
                good += 1
            except OSError as e:
                assert e.errno == errno.EIO, e
                bad += 1
    return good, bad


def save(store):
    """The archives a and b, the plain model p, which is to be encoded, and what they hold."""
    want = {}
    os.makedirs(store)
    for seed, name in enumerate("abp"):
        path = os.path.join(store, name)
        save_file(model(seed, layers=8), path)
        want[name] = read(path)
        if name != "p":
            eqar("pack", "-q", path, path + ".eqar")
            os.unlink(path)
    os.setxattr(os.path.join(store, "p"), "user.eqfs.queued", b"1")
    os.sync()
    return want


def test_unreadable():
    """Each block is right or an error, which is told; the rest of the store is not the worse for it."""
    whole = 0
    for name in ("a.eqar", "b.eqar", "p"):
        with Thin("cut-" + name, False) as disk:
            want = save(disk.store)
            disk.forget()
            with Mount(disk.store, "ro") as m:
                # Open before: an archive's index lies at its end.
                fds = {n: os.open(m.path(n), os.O_RDONLY | os.O_DIRECT) for n in want}
                before = disk.cut_off(name)
                got = {n: readable(fd, want[n]) for n, fd in fds.items()}
                for fd in fds.values():
                    os.close(fd)
                assert all(got[name[0]]), got
                assert not any(got[n[0]][1] for n in before), got
                whole += len(before)
                for n in "ab":
                    said = [line for line in m.log().splitlines() if f" {n}.eqar: " in line]
                    assert bool(said) == bool(got[n][1]), m.log()
                    assert all("Input/output error" in line for line in said), said
    assert whole, "no file lies before another one"


def test_encode_unreadable():
    """What cannot be read stays as it is, be it to be encoded or to be written to."""
    for name in ("a.eqar", "p"):
        with Thin("keep-" + name, False) as disk:
            save(disk.store)
            disk.forget()
            before = sorted(os.listdir(disk.store))
            disk.cut_off(name)
            with Mount(disk.store, settle="0" if name == "p" else "3600") as m:
                if name == "p":
                    m.settle("p", want="failed: ")
                    assert "not encoded: p: " in m.log()
                else:
                    with raises(errno.EIO):
                        os.truncate(m.path("a"), MIB)
                    assert "a.eqar" in m.log(), m.log()
            assert sorted(os.listdir(disk.store)) == before


def test_no_room_below():
    """Blocks that cannot be written, of data, metadata or the journal: what was synced is there."""
    points = [(s, lazily, kib) for s in SCENARIOS for lazily in (False, True)
              for kib in (0, 40, 80, *range(120, 380, 20))]
    # In between there is room for the plain file, but not for its archive.
    chosen = [(move_encoding, lazily, kib) for lazily in (False, True) for kib in (260, 280, 300)]
    chosen += spread(points, POINTS // 3, 5)
    failed = 0
    for lazily in (False, True):
        with Thin(f"thin{lazily}", lazily) as disk:
            for s, _, kib in (c for c in chosen if c[1] == lazily):
                disk.again()
                r = Run(s, store=disk.store, durable=True, probe=disk.point,
                        prepare=lambda kib=kib: disk.shrink(kib << 10))
                assert not r.died(), r.m.log()
                r.what += f" {kib} KiB, {lazily}"
                r.healthy = False # as far as this boot goes
                failed += r.failed
                r.finish(between=disk.heal)
    print(f"  {len(chosen)} of {len(points)} points, {failed} seen by the application")


run(globals())
