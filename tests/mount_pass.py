# SPDX-License-Identifier: Apache-2.0
"""Passthrough and hot archives: the same bytes whichever way they come, writes that
come past eqfs are noticed, copies stay within their limit and go with their archive."""
import ctypes
import errno
import mmap
import threading

from mount_lib import *

MIB = 1 << 20


def stat_of(m, name):
    for line in read(m.path(".eqfs", "stats")).decode().splitlines():
        if line.startswith("eqfs_" + name + " "):
            return float(line.split()[1])
    raise AssertionError(f"no eqfs_{name}")


def passes(m):
    """Does the kernel pass files through? It is said when the kernel first speaks."""
    poll("how plain files are read", lambda: "plain files" in m.log())
    return "are passed through" in m.log()


def mapped(path):
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as p:
        return bytes(p)


class SharedMap:
    """A mapping that, unlike Python's own, keeps no descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def __init__(self, fd, prot=mmap.PROT_READ | mmap.PROT_WRITE):
        self.size = os.fstat(fd).st_size
        self.at = self.libc.mmap(None, self.size, prot, mmap.MAP_SHARED, fd, 0)
        assert self.at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
        self.data = (ctypes.c_ubyte * self.size).from_address(self.at)

    def close(self):
        assert self.libc.munmap(self.at, self.size) == 0


def archive(store, name, seed, rows=512):
    os.makedirs(store, exist_ok=True)
    save_file(model(seed, rows=rows), os.path.join(store, name))
    want = read(os.path.join(store, name))
    eqar("pack", "-q", "-r", store)
    assert os.path.exists(os.path.join(store, name + ".eqar"))
    return want


def wait_made(m, n):
    poll(f"{n} archives decoded as a whole", lambda: stat_of(m, "hot_made_files_total") >= n)


def test_how_is_said():
    with Mount(scratch("said")) as m:
        if not passes(m):
            assert "plain files go by eqfs: " in m.log()
        assert m.log().count("plain files") == 1


def test_plain_files():
    with Mount(scratch("plain")) as m:
        data = os.urandom(3 * MIB + 5)
        with open(m.path("a.bin"), "wb") as f:
            f.write(data)
        before = stat_of(m, "passed_files_total")
        assert read(m.path("a.bin")) == data == mapped(m.path("a.bin"))
        fd = os.open(m.path("a.bin"), os.O_RDONLY | os.O_DIRECT)
        buf = mmap.mmap(-1, MIB)
        assert os.preadv(fd, [buf], MIB) == MIB and bytes(buf) == data[MIB:2 * MIB]
        os.close(fd)
        assert stat_of(m, "passed_files_total") - before == (3 if passes(m) else 0)


def test_writers_beside_readers():
    """Who has the file open to read, or has mapped it, sees what others write."""
    with Mount(scratch("beside")) as m:
        path = m.path("f.bin")
        with open(path, "wb") as f:
            f.write(bytes(2 * MIB))
        reader = os.open(path, os.O_RDONLY)
        view = mmap.mmap(reader, 0, prot=mmap.PROT_READ)
        with open(path, "r+b") as w:
            w.write(b"one")
            w.flush()
            assert os.pread(reader, 3, 0) == b"one" and view[:3] == b"one"
            w.seek(0, 2)
            w.write(b"more")
        assert os.fstat(reader).st_size == 2 * MIB + 4
        assert os.pread(reader, 9, 2 * MIB) == b"more"
        w = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(w, b"!")
        os.truncate(path, 10)
        assert os.fstat(w).st_size == 10
        os.write(w, b"end")
        os.close(w)
        assert os.pread(reader, 100, 0) == b"one" + bytes(7) + b"end"
        assert read(m.disk("f.bin")) == read(path)
        view.close()
        os.close(reader)


def test_written_past_is_encoded():
    """A model put together by a writer while somebody has the file open to read."""
    save_file(model(3), scratch("m.safetensors"))
    data = read(scratch("m.safetensors"))
    with Mount(scratch("past")) as m:
        path = m.path("m.safetensors")
        with open(m.disk("m.safetensors"), "wb") as f: # not by the mount: nobody's to encode
            f.write(bytes(len(data)))
        reader = os.open(path, os.O_RDONLY)
        assert os.pread(reader, 4, 0) == bytes(4)
        with open(path, "r+b") as f:
            f.write(data)
        m.settle("m.safetensors")
        assert read(path) == data and os.pread(reader, len(data), 0) == data
        os.close(reader)


def test_open_for_writing_alone_changes_nothing():
    save_file(model(4), scratch("idle.safetensors"))
    os.makedirs(scratch("idle"))
    shutil.copy(scratch("idle.safetensors"), scratch("idle"))
    with Mount(scratch("idle"), "bits=4") as m:
        reader = os.open(m.path("idle.safetensors"), os.O_RDONLY)
        os.close(os.open(m.path("idle.safetensors"), os.O_RDWR))
        subprocess.run(["touch", m.path("idle.safetensors")], check=True) # opens it to write
        os.close(reader)
        assert m.state("idle.safetensors") == "plain"


def test_mapping_outlives_its_file():
    """Shared mappings may be written long after close; until then nothing is encoded."""
    save_file(model(5), scratch("map.safetensors"))
    data = read(scratch("map.safetensors"))
    with Mount(scratch("map")) as m:
        path = m.path("map.safetensors")
        shutil.copy(scratch("map.safetensors"), m.disk())
        reader = os.open(path, os.O_RDONLY)
        w = os.open(path, os.O_RDWR)
        view = SharedMap(w)
        os.pwrite(w, data[:8], 0)
        os.close(w)
        os.close(reader)
        view.data[-1] ^= 1
        if passes(m): # there is no more to be heard of it than that
            poll("an encode put off", lambda: stat_of(m, "encode_interrupted_files_total") > 1)
        assert m.state("map.safetensors") == "queued"
        assert not os.path.exists(m.disk("map.safetensors.eqar"))
        view.data[-2] ^= 1
        want = bytes(view.data)
        view.close()
        m.settle("map.safetensors")
        assert read(path) == want != data


def test_open_in_the_store():
    """Who has it open for writing beside the mount keeps it plain."""
    save_file(model(6), scratch("side.safetensors"))
    with Mount(scratch("side")) as m:
        with open(m.disk("s.safetensors"), "wb"):
            pass
        side = open(m.disk("s.safetensors"), "r+b")
        shutil.copyfile(scratch("side.safetensors"), m.path("s.safetensors"))
        poll("an encode put off", lambda: stat_of(m, "encode_interrupted_files_total") > 1)
        assert not os.path.exists(m.disk("s.safetensors.eqar"))
        side.close()
        m.settle("s.safetensors")


def test_hot():
    store = scratch("hot")
    want = archive(store, "a.safetensors", 1)
    with Mount(store, "hot=64M") as m:
        path = m.path("a.safetensors")
        first = open(path, "rb")
        assert first.read() == want # decoded as ever
        wait_made(m, 1)
        decoded = stat_of(m, "decoded_bytes_total")
        assert mapped(path) == want
        first.close()
        before = stat_of(m, "passed_files_total")
        assert mapped(path) == want == read(path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        buf = mmap.mmap(-1, 4096)
        assert os.preadv(fd, [buf], 4096) == 4096 and bytes(buf) == want[4096:8192]
        assert os.pread(fd, 10, len(want)) == b""
        os.close(fd)
        assert stat_of(m, "decoded_bytes_total") == decoded, "decoded again"
        assert stat_of(m, "passed_files_total") - before == (3 if passes(m) else 0)
        assert stat_of(m, "hot_bytes") == len(want)


def test_hot_limit_and_order():
    store = scratch("limit")
    want = {n: archive(store, n, i, rows=512 * (1 if n != "big" else 16))
            for i, n in enumerate(("a", "b", "c", "big"))}
    size = len(want["a"])
    with Mount(store, f"hot={(2 * size + size // 2) >> 10}K") as m:
        for n, made in (("a", 1), ("b", 2), ("a", 2), ("c", 3)): # c takes the place of b
            assert read(m.path(n)) == want[n]
            wait_made(m, made)
            assert stat_of(m, "hot_bytes") <= stat_of(m, "hot_limit_bytes")
        assert stat_of(m, "hot_dropped_files_total") == 1
        decoded = stat_of(m, "decoded_bytes_total")
        assert read(m.path("a")) == want["a"] and read(m.path("c")) == want["c"]
        assert stat_of(m, "decoded_bytes_total") == decoded
        assert read(m.path("big")) == want["big"] # does not fit, and drops nobody
        assert stat_of(m, "hot_files") == 2 and stat_of(m, "hot_dropped_files_total") == 1
        # Two in use leave no room for a third.
        with open(m.path("a"), "rb") as a, open(m.path("c"), "rb") as c:
            assert read(m.path("b")) == want["b"]
            assert a.read() == want["a"] and c.read() == want["c"]
            assert stat_of(m, "hot_made_files_total") == 3


def kept_map(path):
    """A mapping to read, of a file that is closed then."""
    fd = os.open(path, os.O_RDONLY)
    kept = SharedMap(fd, mmap.PROT_READ)
    os.close(fd)
    return kept


def copies_of(m):
    """The decoded copies, as somebody may have them who got them by passthrough."""
    top = f"/proc/{m.proc.pid}/fd/"
    return [top + n for n in os.listdir(top) if "memfd:eqfs-hot" in os.readlink(top + n)]


def test_hot_mapped():
    """A copy that is mapped takes its memory until it is not: by passthrough we do not hear of that."""
    if os.geteuid():
        print("  left out: root") # has passthrough
        return
    store = scratch("hotmap")
    want = {n: archive(store, n, i) for i, n in enumerate("ab")}
    size = len(want["a"])
    with Mount(store, f"hot={size * 3 // 2 >> 10}K") as m:
        read(m.path("a"))
        wait_made(m, 1)
        view = kept_map(m.path("a") if passes(m) else copies_of(m)[0])
        assert read(m.path("b")) == want["b"] # for which there is no room
        assert stat_of(m, "hot_dropped_files_total") == 0
        assert stat_of(m, "hot_files") == 1 and stat_of(m, "hot_bytes") == size
        os.unlink(m.path("a"))
        assert read(m.path("b")) == want["b"]
        assert stat_of(m, "hot_files") == 1 and stat_of(m, "hot_bytes") == size
        assert bytes(view.data) == want["a"]
        view.close()
        poll("closed without being asked", lambda: not copies_of(m))
        assert stat_of(m, "hot_files") == 0 and stat_of(m, "hot_bytes") == 0
        read(m.path("b"))
        wait_made(m, 2)
        assert stat_of(m, "hot_bytes") == size


def test_hot_and_writers():
    """A writer gets a plain file; who reads the decoded copy keeps what he has."""
    store = scratch("writers")
    want = archive(store, "a.safetensors", 1)
    archive(store, "gone.safetensors", 2)
    with Mount(store, "hot=64M", settle="3600") as m:
        path = m.path("a.safetensors")
        read(path), read(m.path("gone.safetensors"))
        wait_made(m, 2)
        os.unlink(m.path("gone.safetensors"))
        assert stat_of(m, "hot_files") == 1
        reader = os.open(path, os.O_RDONLY)
        assert os.pread(reader, 100, 0) == want[:100]
        with open(path, "r+b") as f:
            f.write(b"changed!")
        assert stat_of(m, "hot_files") <= 1 # the reader's
        assert read(path) == b"changed!" + want[8:] == read(m.disk("a.safetensors"))
        assert os.pread(reader, 8, 0) == (want[:8] if passes(m) else b"changed!")
        os.close(reader)
        assert stat_of(m, "hot_files") == 0 and stat_of(m, "hot_bytes") == 0
        assert not os.path.exists(m.disk("a.safetensors.eqar"))


def test_hot_opened_for_writing_alone():
    """Nobody wrote to it, so it becomes an archive again, also beside a reader of the copy."""
    store = scratch("alone")
    want = archive(store, "a", 1)
    with Mount(store, "hot=64M") as m:
        read(m.path("a"))
        wait_made(m, 1)
        reader = os.open(m.path("a"), os.O_RDONLY)
        assert os.pread(reader, 100, 0) == want[:100]
        os.close(os.open(m.path("a"), os.O_RDWR))
        assert "made a plain file again" in m.log()
        if passes(m): # or the reader has the plain file, which stays while he has
            m.settle("a")
        assert os.pread(reader, 100, 0) == want[:100]
        os.close(reader)
        m.settle("a")
        assert read(m.path("a")) == want


def test_hot_replaced():
    store = scratch("replaced")
    archive(store, "a", 1)
    other = archive(scratch("replaced2"), "a", 2)
    with Mount(store, "hot=64M") as m:
        read(m.path("a"))
        wait_made(m, 1)
        os.replace(scratch("replaced2/a.eqar"), m.disk("a.eqar")) # behind its back
        poll("the other archive", lambda: read(m.path("a")) == other)
        wait_made(m, 2)
        assert read(m.path("a")) == other == mapped(m.path("a"))


def test_hot_corrupt():
    """A damaged chunk is EIO, and the rest of the file is read as ever."""
    store = scratch("corrupt")
    want = archive(store, "a", 1, rows=2048)
    with open(os.path.join(store, "a.eqar"), "r+b") as f:
        f.seek(4096 + 1000)
        byte = f.read(1)
        f.seek(4096 + 1000)
        f.write(bytes([byte[0] ^ 0x40]))
    with Mount(store, "hot=64M") as m:
        fd = os.open(m.path("a"), os.O_RDONLY)
        poll("the attempt", lambda: "not kept decoded" in m.log())
        bad = good = 0
        for off in range(0, len(want), 65536):
            try:
                assert os.pread(fd, 65536, off) == want[off:off + 65536]
                good += 1
            except OSError as e:
                assert e.errno == errno.EIO
                bad += 1
        os.close(fd)
        assert bad and good and stat_of(m, "hot_made_files_total") == 0
        assert stat_of(m, "hot_bytes") == 0


def test_hot_many_readers():
    """Readers from before, during and after the decoding see the same bytes."""
    store = scratch("many")
    want = archive(store, "a", 7, rows=4096)
    digest = hashlib.sha256(want).hexdigest()
    wrong = []

    def reader(path):
        for _ in range(6):
            if sha(path) != digest:
                wrong.append(path)

    with Mount(store, "hot=128M") as m:
        threads = [threading.Thread(target=reader, args=(m.path("a"),)) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not wrong
        wait_made(m, 1)
        assert stat_of(m, "hot_made_files_total") == 1


if __name__ == "__main__":
    run(globals())
