# SPDX-License-Identifier: Apache-2.0
"""Kills, interruptions and damage: no byte lost, no byte wrong, no litter left."""
import errno
import mmap
import random

from mount_lib import *


def litter(m):
    return [os.path.join(d, n) for d, _, names in os.walk(m.store) for n in names if "eqfs-tmp" in n]


def check(m, want):
    """Every file has its bytes, in whichever form it is."""
    assert sorted(os.listdir(m.point)) == sorted(want)
    for name, digest in want.items():
        assert sha(m.path(name)) == digest, name


def test_kill():
    """SIGKILL at many moments of writing, encoding, swapping."""
    rng = random.Random(5)
    source = scratch("kill.source")
    want = {}
    states, whole = set(), 0
    save_file(model(1, rows=512, cols=512, layers=6), source)
    store = scratch("kill")
    for i in range(16):
        name = f"m{i % 3}"
        m = Mount(store, settle="0")
        check(m, want)
        moment = rng.uniform(0, 1.3)
        shutil.copyfile(source, m.path("incoming"))
        os.rename(m.path("incoming"), m.path(name))
        want[name] = sha(source)
        # From at once to a while after the swap, which comes after `whole`.
        start = time.monotonic()
        if i == 0:
            m.settle(name)
            whole = time.monotonic() - start
        while time.monotonic() < start + whole * moment and m.state(name) != "archived":
            time.sleep(0.001)
        states.add(m.state(name))
        m.kill()
    assert "archived" in states and states & {"encoding", "queued"}, f"only met {states}"
    with Mount(store, settle="0") as m: # the marks of the earlier mounts queue them
        check(m, want)
        for name in want:
            m.settle(name)
        check(m, want)
        poll("litter swept", lambda: not litter(m))
        assert sorted(os.listdir(store)) == sorted(n + ".eqar" for n in want)


def test_kill_lossy():
    """The same where the encoded file differs: the archive's bytes or the plain ones."""
    store, tensors = scratch("killlossy"), model(2, rows=1024, cols=512)
    save_file(tensors, scratch("killlossy.source"))
    plain = sha(scratch("killlossy.source"))
    for i in range(6):
        m = Mount(store, "bits=4", settle="0")
        if i == 0:
            shutil.copyfile(scratch("killlossy.source"), m.path("m"))
        poll("being encoded", lambda: m.state("m") in ("encoding", "archived"))
        m.kill()
        with Mount(store, "ro") as m:
            if m.state("m") != "archived":
                assert sha(m.path("m")) == plain
    with Mount(store, "bits=4") as m:
        m.settle("m")
        poll("litter swept", lambda: not litter(m))
        eqar("unpack", m.disk("m.eqar"), scratch("killlossy.out"))
        assert read(m.path("m")) == read(scratch("killlossy.out"))


def test_stop_during_encode():
    save_file(model(3, rows=2048, cols=1024, layers=6), scratch("stop.source"))
    for how in (signal.SIGTERM, signal.SIGINT, None):
        m = Mount(scratch("stop"), "bits=4", settle="0")
        shutil.copyfile(scratch("stop.source"), m.path("m"))
        poll("being encoded", lambda: m.state("m") in ("encoding", "archived"))
        start = time.monotonic()
        if how:
            m.stop(how)
        else:
            subprocess.run(["fusermount3", "-u", m.point], check=True)
            assert m.wait() == 0, m.log()
        assert time.monotonic() - start < DEADLINE / 2
        assert not litter(m), "an encode that was cancelled cleans up"
        assert sorted(os.listdir(m.store)) in (["m"], ["m.eqar"])
        if os.path.exists(m.disk("m")):
            assert read(m.disk("m")) == read(scratch("stop.source"))
            os.unlink(m.disk("m"))


def test_both_forms():
    """After a crash between the rename and the removal: plain wins."""
    m = Mount(scratch("both"))
    save_file(model(4), m.path("m"))
    m.settle("m")
    m.stop()
    eqar("unpack", m.disk("m.eqar"), m.disk("m"))
    with open(m.disk("m"), "r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\xaa")
    with Mount(m.store) as m:
        assert os.listdir(m.point) == ["m"]
        assert read(m.path("m")) == read(m.disk("m"))
        os.rename(m.path("m"), m.path("n"))
        assert os.listdir(m.point) == ["n"], "the stale archive has risen"


def test_full_disk():
    """No room for the archive: the file stays as it is; and again when there is."""
    if os.geteuid() != 0:
        print("  not root: no disk to fill")
        return
    store = scratch("full")
    os.makedirs(store)
    save_file(model(8), scratch("full.source"))
    size = os.path.getsize(scratch("full.source"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2}", "tmpfs", store], check=True)
    try:
        with Mount(store) as m:
            shutil.copyfile(scratch("full.source"), m.path("m"))
            m.settle("m", want="failed: No space left")
            assert sha(m.path("m")) == sha(scratch("full.source")) and not litter(m)
            with raises(errno.ENOSPC):
                shutil.copyfile(scratch("full.source"), m.path("n"))
            os.unlink(m.path("n"))
            subprocess.run(["mount", "-o", f"remount,size={size * 4}", store], check=True)
            os.rename(m.path("m"), m.path("n"))
            m.settle("n")
            assert sha(m.path("n")) == sha(scratch("full.source"))
            poll("only the archive is left", lambda: subprocess.run(
                ["mount", "-o", f"remount,size={size}", store], capture_output=True, check=False).returncode == 0)
            with raises(errno.ENOSPC, "no room to make it plain"):
                os.truncate(m.path("n"), size - 1)
            assert sha(m.path("n")) == sha(scratch("full.source")) and not litter(m)
    finally:
        subprocess.run(["umount", "-l", store], check=True)


def flip(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        b = f.read(1)
        f.seek(offset)
        f.write(bytes([b[0] ^ 0x10]))


def test_damaged_chunk():
    with Mount(scratch("damage")) as m:
        save_file(model(5, rows=1024, cols=1024, layers=3), m.path("m"))
        want = read(m.path("m"))
        m.settle("m")
    flip(m.disk("m.eqar"), os.path.getsize(m.disk("m.eqar")) // 2)
    for direct in (0, os.O_DIRECT):
        with Mount(m.store, "ro") as m:
            assert os.stat(m.path("m")).st_size == len(want)
            fd = os.open(m.path("m"), os.O_RDONLY | direct)
            bad = []
            with mmap.mmap(-1, 4096) as buf:
                for off in range(0, len(want), 4096):
                    try:
                        n = os.preadv(fd, [buf], off)
                        assert buf[:n] == want[off:off + 4096], off
                    except OSError as e:
                        assert e.errno == errno.EIO
                        bad.append(off)
            os.close(fd)
            assert bad and bad[-1] - bad[0] <= 512 << 10, "one chunk, no more"
            assert len(bad) == (bad[-1] - bad[0]) // 4096 + 1
            lines = [s for s in m.log().splitlines() if "m.eqar" in s]
            assert len(lines) == 1 and "tensor" in lines[0] and "chunk" in lines[0], m.log()
            with raises(errno.EIO):
                read(m.path("m"))


def test_damaged_index():
    with Mount(scratch("index")) as m:
        for n in "abc":
            save_file(model(6), m.path(n))
        for n in "abc":
            m.settle(n)
        want = read(m.path("c"))
    size = os.path.getsize(m.disk("a.eqar"))
    flip(m.disk("a.eqar"), size - 200)
    os.truncate(m.disk("b.eqar"), size - 1000)
    with open(m.disk("d.eqar"), "wb") as f:
        f.write(b"not an archive at all")
    with Mount(m.store) as m:
        assert sorted(os.listdir(m.point)) == ["a", "b", "c", "d"]
        for n in "abd":
            assert os.stat(m.path(n)).st_size == os.path.getsize(m.disk(n + ".eqar"))
            for flags in (os.O_RDONLY, os.O_RDONLY, os.O_RDWR):
                with raises(errno.EIO, n):
                    os.open(m.path(n), flags)
            assert sum(n + ".eqar" in s for s in m.log().splitlines()) == 1, m.log()
            assert m.state(n) == "archived"
        assert read(m.path("c")) == want
        with open(m.path("a"), "wb") as f: # replacing it needs nothing of it
            f.write(b"x")
        os.rename(m.path("b"), m.path("bb"))
        os.unlink(m.path("d"))
        assert sorted(os.listdir(m.point)) == ["a", "bb", "c"]


def test_changed_during_encode():
    """Whatever is done to a file that is being encoded, the last state counts."""
    rng = random.Random(7)
    save_file(model(7, rows=1024, cols=1024, layers=3), scratch("change.source"))
    data = read(scratch("change.source"))
    with Mount(scratch("change"), settle="0") as m:
        p = m.path
        for i in range(15):
            shutil.copyfile(scratch("change.source"), p("m"))
            poll("being encoded", lambda: m.state("m") in ("encoding", "archived"))
            end = time.monotonic() + rng.uniform(0, 0.15)
            while time.monotonic() < end:
                pass
            what = i % 5
            if what == 0:
                with open(p("m"), "r+b") as f: # a writer who takes his time
                    f.seek(1000000)
                    time.sleep(rng.uniform(0, 0.2))
                    f.write(b"other")
                assert read(p("m")) == data[:1000000] + b"other" + data[1000005:]
            elif what == 1:
                os.rename(p("m"), p("n"))
                assert read(p("n")) == data
                os.rename(p("n"), p("m"))
            elif what == 2:
                os.utime(p("m"), ns=(1, 1111111111000000000 + i))
                os.chmod(p("m"), 0o600 + i)
                m.settle("m")
                st = os.stat(p("m"))
                assert st.st_mtime_ns == 1111111111000000000 + i and st.st_mode & 0o777 == 0o600 + i
            elif what == 3:
                with open(p("m"), "ab") as f:
                    f.write(b"trailing")
                assert read(p("m")) == data + b"trailing"
            else:
                os.truncate(p("m"), 12345)
                assert read(p("m")) == data[:12345]
            if what in (1, 2):
                m.settle("m")
                assert read(p("m")) == data
            os.unlink(p("m"))
            assert os.listdir(m.point) == []
        poll("litter gone", lambda: not os.listdir(m.store))


run(globals())
