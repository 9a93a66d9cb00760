# SPDX-License-Identifier: Apache-2.0
"""Random operations on files that are encoded and restored all the while, against
what memory says they should hold."""
import errno
import mmap
import random
import threading

from mount_lib import *

SEED = int(os.environ.get("EQFS_TEST_SEED", "1"))


class Model:
    """A file in the mount beside its expected contents."""

    def __init__(self, m, name, rng):
        self.m, self.name, self.rng = m, name, rng
        self.fresh = read(scratch("random.source"))
        self.header = 8 + int.from_bytes(self.fresh[:8], "little")
        self.save()
        self.done = []

    def path(self):
        return self.m.path(self.name)

    def save(self):
        self.data = bytearray(self.fresh)
        tmp = self.path() + ".tmp"
        with open(tmp, "wb") as f:
            f.write(self.data)
        os.replace(tmp, self.path())

    def span(self):
        """Somewhere behind the header, so that it remains a model."""
        off = self.rng.randrange(self.header, len(self.data))
        return off, min(self.rng.choice((1, 100, 4096, 300000)), len(self.data) - off)

    def write(self):
        off, n = self.span()
        new = self.rng.randbytes(n)
        with open(self.path(), "r+b", buffering=0) as f:
            f.seek(off)
            assert f.write(new) == n
        self.data[off:off + n] = new

    def write_mapped(self):
        off, n = self.span()
        new = self.rng.randbytes(n)
        with open(self.path(), "r+b") as f, mmap.mmap(f.fileno(), 0) as mm:
            assert mm[off:off + n] == self.data[off:off + n]
            mm[off:off + n] = new
        self.data[off:off + n] = new

    def append(self):
        with open(self.path(), "ab") as f:
            f.write(b"tail")
        self.data += b"tail"

    def truncate(self):
        n = self.rng.choice((len(self.data) - 1, len(self.data) + 5000, len(self.data) // 2))
        n = max(n, self.header + 1)
        os.truncate(self.path(), n)
        self.data = self.data[:n] + bytes(max(0, n - len(self.data)))

    def punch(self):
        off, n = self.span()
        with open(self.path(), "r+b") as f:
            # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
            subprocess.run(["fallocate", "-p", "-o", str(off), "-l", str(n), self.path()], check=True)
            f.seek(off)
            assert f.read(n) == bytes(n)
        self.data[off:off + n] = bytes(n)

    def read(self):
        off, n = self.span()
        with open(self.path(), "rb", buffering=0) as f:
            assert os.pread(f.fileno(), n, off) == self.data[off:off + n]

    def read_mapped(self):
        with open(self.path(), "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mm:
            off, n = self.span()
            assert mm[off:off + n] == self.data[off:off + n]

    def read_direct(self):
        fd = os.open(self.path(), os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, 1 << 20) as buf:
            off = self.rng.randrange(0, len(self.data)) & ~4095
            n = os.preadv(fd, [buf], off)
            assert buf[:n] == self.data[off:off + (1 << 20)]
        os.close(fd)

    def rename(self):
        new = self.rng.choice("xyz") + str(id(self))
        os.rename(self.path(), self.m.path(new))
        self.name = new

    def attributes(self):
        os.chmod(self.path(), 0o600 + self.rng.randrange(64))
        os.utime(self.path(), ns=(1, self.rng.randrange(1 << 60)))

    def wait(self):
        def settled():
            return self.m.state(self.name) not in ("queued", "encoding")
        poll("settled", settled)

    def check(self):
        assert os.path.getsize(self.path()) == len(self.data)
        assert read(self.path()) == self.data

    def step(self):
        op = self.rng.choice((self.save, self.save, self.write, self.write_mapped, self.append, self.truncate,
                              self.punch, self.read, self.read_mapped, self.read_direct, self.rename,
                              self.attributes, self.wait, self.wait, self.wait, self.check))
        self.done.append((op.__name__, self.m.state(self.name)))
        try:
            op()
        except BaseException as e:
            raise AssertionError(f"seed {SEED}, {self.name}: {self.done[-12:]}") from e


def test_random():
    save_file(model(1, rows=256, layers=3), scratch("random.source"))
    with Mount(scratch("random"), settle="0") as m:
        errors, seen = [], set()

        def worker(k):
            try:
                f = Model(m, f"f{k}", random.Random(SEED * 1000 + k))
                for _ in range(120):
                    f.step()
                f.check()
                seen.update(f.done)
            except BaseException as e:
                errors.append(e)
        threads = [threading.Thread(target=worker, args=(k,)) for k in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if errors:
            raise errors[0]
        assert any(state == "archived" and op != "wait" for op, state in seen), "never met an archive"


run(globals())
