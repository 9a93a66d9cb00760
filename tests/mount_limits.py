# SPDX-License-Identifier: Apache-2.0
"""A mount and eqar in a control group with less memory than the models take: they work
where cache= lets them, and when the kernel kills them, nothing is lost and nothing left."""
import re
import threading

from cgroup_lib import *
from mount_lib import *

MIB = 1 << 20
N = 2

try:
    with MemoryGroup(64 * MIB):
        pass
except OSError as e:
    print("skipped: no control group for memory can be made here:", e)
    sys.exit(77)
if b"libasan" in read(EQFS) or b"libtsan" in read(EQFS):
    print("skipped: a sanitizer takes more memory than the program")
    sys.exit(77)


def source(name, layers, last=0):
    """A model of 16 MiB a layer, with that last byte: its path and its digest."""
    path = scratch(name)
    if not os.path.exists(path):
        save_file(model(1, rows=4096, cols=2048, layers=layers), path)
        with open(path, "r+b") as f:
            f.seek(-1, os.SEEK_END)
            f.write(bytes([last]))
    return path, sha(path)


def sources():
    """Each of 128 MiB: paths and digests."""
    return zip(*(source(f"large{i}", 8, i) for i in range(N)))


def small():
    return source("small", 2)


def copy_in(m, paths):
    for i, path in enumerate(paths):
        shutil.copyfile(path, m.path(f"m{i}"))
    for i in range(len(paths)):
        m.settle(f"m{i}")


def read_all(m, want, readers=4):
    """Each file by as many processes at once, beginning with another one each, twice."""
    wrong = []

    def reader(first):
        for i in range(first, first + len(want)):
            path = m.path(f"m{i % len(want)}")
            with open(path, "rb") as f: # the kernel's copy goes, to be asked for again
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if sha(path) != want[i % len(want)]:
                wrong.append(path)
    threads = [threading.Thread(target=reader, args=(i,)) for i in range(readers)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong


def stat_of(m, name):
    return int(re.search(rf"^eqfs_{name} (\d+)$", read(m.path(".eqfs/stats")).decode(), re.M)[1])


def litter(top):
    return [n for _, _, names in os.walk(top) for n in names if ".eqfs-tmp." in n]


def anonymous(m):
    """Bytes that the daemon has taken."""
    with open(f"/proc/{m.proc.pid}/status", encoding="ascii") as f:
        return int(re.search(r"^RssAnon:\s+(\d+) kB$", f.read(), re.M)[1]) << 10


def test_within():
    """Copied in, encoded and read within less than a model takes; what encoding took is
    given back."""
    paths, want = sources()
    with MemoryGroup(112 * MIB) as g:
        with Mount(scratch("within"), "cache=16M", settle="0", limits=g.join) as m:
            copy_in(m, paths)
            poll("buffers given back", lambda: anonymous(m) < 48 * MIB)
            read_all(m, want)
        print(f"  peak {g.peak() >> 20} MiB")
        assert not g.kills()


def test_quantised():
    path, _ = small()
    with MemoryGroup(112 * MIB) as g:
        with Mount(scratch("quantised"), "cache=16M", "bits=4", settle="0", limits=g.join) as m:
            copy_in(m, [path])
            eqar("unpack", m.disk("m0.eqar"), scratch("quantised.out"))
            read_all(m, [sha(scratch("quantised.out"))])
        assert not g.kills()
    os.unlink(scratch("quantised.out"))


def test_hot():
    """Copies are kept as far as the group's memory goes, not the machine's."""
    paths, want = sources()
    with MemoryGroup(256 * MIB) as g:
        with Mount(scratch("within"), "cache=16M", "hot=1G", limits=g.join) as m:
            poll("one copy", lambda: read(m.path("m0"))[-1:] and stat_of(m, "hot_made_files_total"))
            read_all(m, want)
            assert stat_of(m, "hot_files") == 1
        assert not g.kills()


def killed_at(size, store, *options, act):
    """Whether the kernel killed the daemon in a group of that size while act(mount) ran."""
    with MemoryGroup(size) as g:
        m = Mount(store, *options, settle="0", limits=g.join, fails=True)
        try:
            act(m)
        except OSError as e: # the daemon is gone, or will be in a moment
            poll(f"killed, after {e}", lambda: m.proc.poll() is not None)
        if m.proc.poll() is None:
            m.stop()
            assert not g.kills()
            return False
        m.kill()
        assert g.kills() == 1 and m.proc.returncode == -signal.SIGKILL, (g.kills(), m.log())
        return True


def test_killed_encoding():
    """Less and less: what was closed is there afterwards, and is encoded by the next mount."""
    path, want = small()
    killed = 0
    for mib in (72, 56, 40, 28):
        store, closed = scratch(f"killed{mib}"), []

        def act(m, closed=closed):
            shutil.copyfile(path, m.path("m0"))
            closed.append("m0")
            m.settle("m0")
        killed += killed_at(mib * MIB, store, "cache=4M", act=act)
        with Mount(store, settle="0") as m:
            poll("litter swept", lambda store=store: not litter(store))
            if closed:
                assert sha(m.path("m0")) == want
                m.settle("m0")
                assert os.listdir(store) == ["m0.eqar"] and sha(m.path("m0")) == want
            else:
                assert set(os.listdir(store)) <= {"m0"}
        shutil.rmtree(store)
    print(f"  {killed} of 4 killed")
    assert killed


def test_killed_reading():
    """More decoded data are kept than there is memory: the reader gets an error, and the
    store keeps all."""
    _, want = sources()
    store = scratch("within")
    before = {n: os.stat(os.path.join(store, n)) for n in os.listdir(store)}

    def pick(m):
        """A little of each chunk, of which the rest is kept for whoever comes next."""
        for i in range(N):
            with open(m.path(f"m{i}"), "rb", buffering=0) as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                for at in range(0, os.fstat(f.fileno()).st_size, 128 << 10):
                    os.pread(f.fileno(), 4096, at)
    assert killed_at(64 * MIB, store, "cache=1G", act=pick)
    assert sorted(os.listdir(store)) == sorted(before)
    for n, st in before.items():
        now = os.stat(os.path.join(store, n))
        assert (st.st_mtime_ns, st.st_ino, st.st_size) == (now.st_mtime_ns, now.st_ino, now.st_size)
    with Mount(store) as m:
        for i in range(N):
            assert sha(m.path(f"m{i}")) == want[i]


def test_eqar():
    """Packing and restoring within 96 MiB; where eqar is killed for memory, the plain file stays."""
    path, want = small()
    top = scratch("eqar")
    os.makedirs(top)
    free, bound, back = (os.path.join(top, n) for n in ("free", "bound", "back"))

    def limited(mib, *args):
        with MemoryGroup(mib * MIB) as g:
            r = subprocess.run([EQAR, *args], check=False, capture_output=True, preexec_fn=g.join)
            assert g.kills() == (r.returncode == -signal.SIGKILL), (r, g.kills())
            return r.returncode
    for options in ((), ("--bits=4",)):
        eqar("pack", "-f", *options, path, free)
        assert limited(96, "pack", "-f", *options, path, bound) == 0
        assert sha(free) == sha(bound)
        eqar("unpack", "-f", free, back)
        plain = sha(back)
        assert limited(96, "unpack", "-f", bound, back) == 0
        assert sha(back) == plain
    for n in (free, bound, back):
        os.unlink(n)
    shutil.copyfile(path, os.path.join(top, "m"))
    codes = [limited(mib, "pack", "-r", top) for mib in (12, 24, 96)]
    print("  pack -r within 12, 24 and 96 MiB:", codes)
    assert codes[0] == -signal.SIGKILL and codes[2] == 0
    assert os.listdir(top) == ["m.eqar"]
    eqar("unpack", "-r", top)
    assert sha(os.path.join(top, "m")) == want


run(globals())
