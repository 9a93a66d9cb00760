# SPDX-License-Identifier: Apache-2.0
"""Names and modes: everything that an ordinary directory can do, with archives
among its files."""
import ctypes
import errno
import fcntl
import stat

from mount_lib import *

LIBC = ctypes.CDLL(None, use_errno=True)


def put(m, name, data):
    with open(m.path(name), "wb") as f:
        f.write(data)


class Fixture:
    """A store with archives a, b and plain files p, q."""

    def __init__(self, name):
        self.m = Mount(scratch(name))
        self.data = {}
        for n in "ab":
            save_file(model(ord(n), layers=2), self.m.path(n))
            self.data[n] = read(self.m.path(n))
        for n in "pq":
            self.data[n] = os.urandom(5000)
            put(self.m, n, self.data[n])
        for n in "ab":
            self.m.settle(n)
        for n in "pq": # looked at, which takes a temporary file for a moment
            self.m.settle(n, want="plain")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return self.m.__exit__(*exc)

    def check(self, **want):
        """name=which: the mount holds exactly these, by both listing and reading."""
        assert sorted(os.listdir(self.m.point)) == sorted(want), os.listdir(self.m.point)
        disk = sorted(os.listdir(self.m.store))
        assert disk == sorted(n + (".eqar" if w in "ab" else "") for n, w in want.items()), disk
        for n, w in want.items():
            assert read(self.m.path(n)) == self.data[w], n


def test_rename():
    with Fixture("rename") as f:
        p = f.m.path
        os.rename(p("a"), p("c"))
        f.check(c="a", b="b", p="p", q="q")
        os.rename(p("c"), p("b"))                       # archive over archive
        f.check(b="a", p="p", q="q")
        os.rename(p("b"), p("p"))                       # archive over plain
        f.check(p="a", q="q")
        os.rename(p("q"), p("p"))                       # plain over archive
        f.check(p="q")
        os.mkdir(p("d"))
        with raises(errno.EISDIR):
            os.rename(p("p"), p("d"))
        with raises(errno.ENOENT):
            os.rename(p("nothing"), p("p"))


def test_rename_flags():
    with Fixture("flags") as f:
        p = f.m.path
        for old, new in ("ab", "ap", "pa", "pq"):
            with raises(errno.EEXIST, old + new):
                renameat2(p(old), p(new), NOREPLACE)
        f.check(a="a", b="b", p="p", q="q")
        renameat2(p("a"), p("b"), EXCHANGE)
        renameat2(p("p"), p("q"), EXCHANGE)
        f.check(a="b", b="a", p="q", q="p")
        with raises(errno.ENOENT):
            renameat2(p("a"), p("c"), EXCHANGE)
        renameat2(p("a"), p("c"), NOREPLACE)
        f.check(c="b", b="a", p="q", q="p")
        # What is no archive changes places with one, which becomes plain for that.
        renameat2(p("c"), p("p"), EXCHANGE)
        renameat2(p("q"), p("b"), EXCHANGE)
        for n in "pq":
            f.m.settle(n)
        f.check(c="q", b="p", p="b", q="a")


def test_rename_directory():
    with Fixture("renamedir") as f:
        p = f.m.path
        os.makedirs(p("d/e"))
        os.rename(p("a"), p("d/e/a"))
        os.rename(p("d"), p("dd"))
        assert read(p("dd/e/a")) == f.data["a"]
        assert os.path.exists(f.m.disk("dd/e/a.eqar"))
        with raises(errno.ENOTDIR):
            os.rename(p("dd"), p("b"))
        with raises(errno.ENOTEMPTY):
            os.rmdir(p("dd/e"))


def test_directory_of_encoded():
    """The times of a directory in which a file was encoded are not those of before."""
    with Mount(scratch("dirtimes")) as m:
        os.mkdir(m.path("d"))
        save_file(model(1), m.path("d/m"))
        poll("encoded", lambda: os.stat(m.path("d")) and m.state("d/m") == "archived")
        now, disk = os.stat(m.path("d")), os.stat(m.disk("d"))
        assert (now.st_mtime_ns, now.st_ctime_ns, now.st_size) == (disk.st_mtime_ns, disk.st_ctime_ns, disk.st_size)


def test_unlink():
    with Fixture("unlink") as f:
        p = f.m.path
        held = open(p("a"), "rb")
        shutil.copy(f.m.disk("a.eqar"), f.m.disk("p.eqar")) # as a crash leaves it
        assert sorted(os.listdir(f.m.point)) == ["a", "b", "p", "q"]
        assert read(p("p")) == f.data["p"], "plain does not win"
        os.unlink(p("a"))
        os.unlink(p("p"))
        f.check(b="b", q="q")
        assert held.read() == f.data["a"], "unlinked while open"
        held.close()
        with raises(errno.ENOENT):
            os.unlink(p("a"))


def test_removed_room():
    """What the daemon has open of archives that are gone keeps no room on the disk."""
    with Mount(scratch("room")) as m:
        for i, n in enumerate("abcde"):
            save_file(model(i, layers=1), m.path(n))
        for n in "abcde":
            m.settle(n)
            read(m.path(n))

        def kept():
            return [n for n in fds_of(m) if n.endswith("(deleted)")]
        assert m.disk("a.eqar") in fds_of(m), "no archive stays open: nothing to test"
        os.unlink(m.path("a"))
        poll("closed after unlink", lambda: not kept())
        os.rename(m.path("b"), m.path("c"))
        poll("closed after rename", lambda: not kept())
        with open(m.path("c"), "r+b") as f: # which makes it plain
            poll("closed when made plain", lambda: not kept())
            f.write(read(m.path("c"))[:1])
        m.settle("c")
        with open(m.path("d"), "rb") as f:
            os.unlink(m.path("d"))
            assert len(f.read()) > 500000
        poll("closed by the last reader", lambda: not kept())
        known = os.open(m.path("e"), os.O_PATH) # so that the daemon has to know it
        os.unlink(m.disk("e.eqar")) # behind our back
        read(m.path("c"))
        poll("closed after it was seen", lambda: len(kept()) == 1)
        os.close(known)


def test_hidden_names():
    with Fixture("hidden") as f:
        p = f.m.path
        tmp = ".eqfs-tmp.0123456789abcdef"
        put_disk = open(f.m.disk(tmp), "wb")
        fcntl.flock(put_disk, fcntl.LOCK_EX) # or the scan of the next mount takes it
        assert sorted(os.listdir(f.m.point)) == ["a", "b", "p", "q"]
        for name in (tmp, "a.eqar"):
            with raises(errno.ENOENT, name):
                os.stat(p(name))
        for name in (tmp, "new.eqar"):
            with raises(errno.EPERM, name):
                put(f.m, name, b"")
            with raises(errno.EPERM, name):
                os.rename(p("p"), p(name))
            with raises(errno.EPERM, name):
                os.rename(p("a"), p(name))
            with raises(errno.EPERM, name):
                os.link(p("p"), p(name))
        assert "reserved" in f.m.log()
        os.mkdir(p("dir.eqar"))
        os.symlink("a", p("link.eqar"))
        put_disk.close()
        os.unlink(f.m.disk(tmp))
        assert sorted(os.listdir(f.m.point)) == ["a", "b", "dir.eqar", "link.eqar", "p", "q"]
        assert os.readlink(p("link.eqar")) == "a" and read(p("link.eqar")) == f.data["a"]


def test_left_aside():
    """What a crash has left aside in a directory, and what only looks so."""
    store = scratch("aside")
    left = {"1": ["free"], "2": ["plain"], "3": ["archive"], "4": [], "5": ["one", "two"], "6": ["dir/"]}
    for n, names in left.items():
        d = os.path.join(store, ".eqfs-tmp." + 16 * n)
        os.makedirs(d)
        for name in names:
            if name.endswith("/"):
                os.mkdir(os.path.join(d, name))
            else:
                with open(os.path.join(d, name), "w") as f:
                    f.write("aside")
    with open(store + "/plain", "w") as f:
        f.write("there")
    save_file(model(1, layers=1), scratch("aside.source"))
    eqar("pack", scratch("aside.source"), store + "/archive.eqar")
    for how in ("mount", "eqar"):
        shutil.copytree(store, store + how)
        if how == "mount":
            with Mount(store + how) as m:
                poll("walked", lambda m=m: b"eqfs_store_known 1" in read(m.path(".eqfs", "stats")))
        else:
            eqar("pack", "-r", store + how)
        assert sorted(os.listdir(store + how)) == [".eqfs-tmp." + 16 * "5", ".eqfs-tmp." + 16 * "6",
                                                   "archive.eqar", "free", "plain"], how
        assert read(store + how + "/free") == b"aside" and read(store + how + "/plain") == b"there"


def test_long_names():
    with Fixture("long") as f:
        p = f.m.path
        for n in (250, 251, 255):
            os.rename(p("a"), p("x" * n)) # beyond 250 it cannot stay an archive
            assert read(p("x" * n)) == f.data["a"], n
            assert os.listdir(f.m.store).count("x" * n + ".eqar") == (n == 250)
            f.m.settle("x" * n, want="archived" if n == 250 else "name too long")
            os.rename(p("x" * n), p("a"))
            f.m.settle("a")
        with raises(errno.ENAMETOOLONG):
            os.rename(p("a"), p("x" * 256))
        odd = os.fsencode(p("")) + b"\xff\xfe\nname"
        os.rename(p("b"), odd)
        assert read(odd) == f.data["b"] and b"\xff\xfe\nname" in os.listdir(os.fsencode(f.m.point))


def test_restore():
    with Fixture("restore") as f:
        p, m = f.m.path, f.m
        os.chmod(p("a"), 0o604)
        os.setxattr(p("a"), "user.note", b"kept")
        os.utime(p("a"), ns=(5, 1500000000123456789))
        ino = os.stat(p("a")).st_ino
        reader = open(p("a"), "rb")
        reader.read(10)
        with open(p("a"), "r+b") as w:
            st = os.stat(p("a"))
            assert st.st_mode & 0o777 == 0o604 and st.st_mtime_ns == 1500000000123456789
            assert os.getxattr(p("a"), "user.note") == b"kept"
            assert os.stat(p("a")).st_ino == ino
            assert os.path.exists(m.disk("a")) and not os.path.exists(m.disk("a.eqar"))
            assert w.read() == f.data["a"]
            w.seek(200000)
            w.write(b"new")
            w.flush()
            want = f.data["a"][:200000] + b"new" + f.data["a"][200003:]
            reader.seek(0)
            assert reader.read() == want, "the reader does not see what the writer wrote"
        reader.close()
        m.settle("a")
        assert read(p("a")) == want
        assert os.getxattr(p("a"), "user.note") == b"kept"
        assert os.stat(p("a")).st_mode & 0o777 == 0o604
        os.truncate(p("a"), 1234)
        assert read(p("a")) == want[:1234]
        with open(p("b"), "wb") as w: # O_TRUNC: nothing to restore
            assert os.path.getsize(m.disk("b")) == 0 and not os.path.exists(m.disk("b.eqar"))
            w.write(b"short")
        assert read(p("b")) == b"short"
    with Fixture("restore2") as f:
        fd = os.open(f.m.path("a"), os.O_RDWR | os.O_APPEND)
        os.write(fd, b"tail")
        os.close(fd)
        assert read(f.m.path("a")) == f.data["a"] + b"tail"
        os.truncate(f.m.path("b"), 0)
        assert read(f.m.path("b")) == b"" and not os.path.exists(f.m.disk("b.eqar"))


def test_attributes():
    with Fixture("attributes") as f:
        p, m = f.m.path, f.m
        for name, disk in (("a", "a.eqar"), ("p", "p")):
            os.chmod(p(name), 0o400)
            assert os.stat(m.disk(disk)).st_mode & 0o777 == 0o400
            os.utime(p(name), ns=(7, 1234567890987654321))
            assert os.stat(p(name)).st_mtime_ns == 1234567890987654321
            assert os.stat(p(name)).st_atime_ns == 7
            if os.geteuid() == 0:
                os.chown(p(name), 1234, 2345)
                st = os.stat(m.disk(disk))
                assert (st.st_uid, st.st_gid) == (1234, 2345)
            os.setxattr(p(name), "user.x", b"1")
            assert os.getxattr(m.disk(disk), "user.x") == b"1"
            assert "user.x" in os.listxattr(p(name))
            assert "eqfs" not in str(os.listxattr(p(name))), "copies would carry that along"
            os.removexattr(p(name), "user.x")
            assert "user.x" not in os.listxattr(p(name))
            for own in ("state", "sha256", "mtime", "queued", "anything"):
                with raises(errno.EPERM, own):
                    os.setxattr(p(name), "user.eqfs." + own, b"1")
                with raises(errno.EPERM, own):
                    os.removexattr(p(name), "user.eqfs." + own)
            with raises(errno.ENODATA):
                os.getxattr(p(name), "user.eqfs.mtime")
        assert xattr(m.point, "policy") == "lossless"
        data = f.data["a"]
    with f.m.__class__(f.m.store) as m: # as in the next mount
        assert os.stat(m.path("a")).st_mtime_ns == 1234567890987654321
        assert read(m.path("a")) == data
        a, b = os.statvfs(m.point), os.statvfs(m.store)
        assert a.f_blocks == b.f_blocks and a.f_namemax == b.f_namemax


def test_ordinary():
    with Fixture("ordinary") as f:
        p, m = f.m.path, f.m
        os.umask(0o022)
        os.makedirs(p("d/e"), 0o750)
        os.mkfifo(p("d/fifo"))
        os.symlink("../a", p("d/link"))
        assert os.readlink(p("d/link")) == "../a" and read(p("d/link")) == f.data["a"]
        assert stat.S_ISFIFO(os.stat(p("d/fifo")).st_mode)
        fd = os.open(p("d/e/f"), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        assert os.fstat(fd).st_mode & 0o777 == 0o644
        with raises(errno.EEXIST):
            os.open(p("d/e/f"), os.O_CREAT | os.O_EXCL | os.O_RDWR)
        with raises(errno.EEXIST):
            os.open(p("a"), os.O_CREAT | os.O_EXCL | os.O_RDWR)
        for make in (os.mkdir, os.mkfifo):
            with raises(errno.EEXIST):
                make(p("a"))
        with raises(errno.EEXIST):
            os.symlink("x", p("a"))
        with raises(errno.EEXIST):
            os.link(p("p"), p("a"))
        os.posix_fallocate(fd, 0, 100000)
        assert os.fstat(fd).st_size == 100000
        os.pwrite(fd, b"x", 200000)
        os.ftruncate(fd, 150000)
        os.fsync(fd)
        os.fdatasync(fd)
        assert os.fstat(fd).st_size == 150000 == os.path.getsize(m.disk("d/e/f"))
        fcntl.flock(fd, fcntl.LOCK_EX)
        other = os.open(p("d/e/f"), os.O_RDWR)
        with raises(errno.EAGAIN):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(p("d/e/f"))
        os.pwrite(fd, b"still here", 0)
        assert os.pread(other, 10, 0) == b"still here"
        os.close(fd)
        os.close(other)
        d = os.open(p("d"), os.O_RDONLY)
        os.fsync(d)
        os.close(d)
        with raises(errno.ENOTEMPTY):
            os.rmdir(p("d"))
        open(m.disk("d/e/.eqfs-tmp.00000000000000ff"), "w").close() # left by a crash
        os.rmdir(p("d/e"))
        with raises(errno.ENOTDIR):
            os.rmdir(p("a"))
        assert os.access(p("a"), os.R_OK)
        with open(p("p"), "rb") as src, open(p("copy"), "wb") as dst:
            assert os.copy_file_range(src.fileno(), dst.fileno(), 5000) == 5000
        assert read(p("copy")) == f.data["p"]


def test_tools():
    with Fixture("tools") as f:
        p, m = f.m.path, f.m
        for args in (["cp", "-a", p("a"), p("c")], ["cp", "-a", p("a"), scratch("out")],
                     ["cp", "--reflink=auto", p("p"), p("r")], ["mv", p("b"), p("bb")],
                     ["mv", p("q"), scratch("q.out")], ["mv", scratch("q.out"), p("q")],
                     ["rm", p("r")]):
            r = subprocess.run(args, capture_output=True, text=True, check=False)
            assert r.returncode == 0 and not r.stderr, (args, r.stderr)
        m.settle("c")
        f.data["c"] = f.data["a"]
        assert os.stat(p("c")).st_mtime_ns == os.stat(p("a")).st_mtime_ns
        assert read(scratch("out")) == read(p("c")) == f.data["a"]
        assert read(p("bb")) == f.data["b"] and read(p("q")) == f.data["q"]


def test_large_directory():
    with Mount(scratch("large")) as m:
        want = set()
        for i in range(3000):
            open(m.disk(f"f{i:05}"), "w").close()
            want.add(f"f{i:05}")
        got = os.listdir(m.point)
        assert set(got) == want and len(got) == len(want)
        with os.scandir(m.point) as it: # while it changes
            seen = [next(it).name]
            for i in range(0, 3000, 7):
                os.rename(m.path(f"f{i:05}"), m.path(f"g{i:05}"))
            seen += [e.name for e in it]
        assert len(seen) == len(set(seen)) and want - set(seen) <= {n for n in want if int(n[1:]) % 7 == 0}
        for n in os.listdir(m.point):
            os.unlink(m.path(n))
        assert os.listdir(m.store) == []
        held = f"/proc/{m.proc.pid}/fd"
        poll("removed files let go", lambda: len(os.listdir(held)) < 50)


def test_more_names_than_descriptors():
    with Mount(scratch("few"), limits=few_files) as m:
        for i in range(1500):
            put(m, f"f{i:05}", b"%d" % i)
        save_file(model(3), m.path("m"))
        held = [open(m.path(f"f{i:05}"), "rb") for i in range(50)]
        for i in range(1500):
            assert read(m.path(f"f{i:05}")) == b"%d" % i
        os.makedirs(m.path("d/e/f"))
        os.chdir(m.path("d/e/f"))
        for i in range(1500):
            os.stat(m.path(f"f{i:05}"))
        assert os.path.samefile(".", m.path("d/e/f"))
        os.chdir("/")
        assert [h.read() for h in held] == [b"%d" % i for i in range(50)]
        for h in held:
            h.close()
        m.settle("m")
        assert same(load_file(m.path("m")), model(3))
        poll("they are let go", lambda: len(os.listdir(f"/proc/{m.proc.pid}/fd")) < 250)


def cpu_seconds(pid):
    fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_names_that_stay():
    """More nodes than there should be, which the kernel does not give back: the daemon
    neither goes on asking nor keeps requests waiting, and notices when that is over."""
    with Mount(scratch("stay"), limits=few_files) as m:
        descriptors = f"/proc/{m.proc.pid}/fd"
        held = []
        for i in range(270):
            os.mkdir(m.path(f"d{i:03}"))
            held.append(os.open(m.path(f"d{i:03}"), os.O_PATH))
        try:
            start = time.monotonic()
            for i in range(40):
                put(m, f"f{i:02}", b"%d" % i)
                assert read(m.path(f"f{i:02}")) == b"%d" % i
            assert time.monotonic() < start + 15, "requests have to wait" # half a second each
            assert len(os.listdir(descriptors)) > 270
            seen = []

            def at_rest(): # a second with hardly any CPU time
                seen.append((time.monotonic(), cpu_seconds(m.proc.pid)))
                old = [s for s in seen if s[0] < seen[-1][0] - 1]
                return old and seen[-1][1] - old[-1][1] < 0.2
            poll("at rest", at_rest, 20)
        finally:
            for fd in held:
                os.close(fd)
        poll("let go", lambda: len(os.listdir(descriptors)) < 250)


def test_mounts_below():
    """What is mounted within stays, also with a kernel that forgets names in the old way."""
    shim = os.environ.get("EQFS_FAULT_SHIM", "")
    if os.geteuid() != 0 or not os.path.exists(shim):
        print("  nothing may be mounted here, or there is no library of faults")
        return
    for env in ({}, {"LD_PRELOAD": shim, "EQFS_FAULT_OLD": "1",
                     "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"}):
        with Mount(scratch("below"), limits=few_files, env=env) as m:
            os.makedirs(m.path("d/e"), exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", m.path("d/e")], check=True)
            try:
                open(m.path("d/e/inside"), "w").close()
                for i in range(400):
                    put(m, f"f{i:03}", b"")
                poll("let go", lambda m=m: len(os.listdir(f"/proc/{m.proc.pid}/fd")) < 250)
                assert os.listdir(m.path("d/e")) == ["inside"]
            finally:
                subprocess.run(["umount", "-l", m.path("d/e")], check=False)


def test_users():
    if os.geteuid() != 0:
        print("  not root: as other users nothing can be tried")
        return
    with Mount(scratch("users"), "allow_other") as m:
        os.chmod(m.store, 0o777)
        os.chmod(TMP, 0o755)
        os.mkdir(m.disk("setgid"))
        os.chown(m.disk("setgid"), 0, 4321)
        os.chmod(m.disk("setgid"), 0o2777)
        os.mkdir(m.disk("group"))
        os.chown(m.disk("group"), 0, 777)
        os.chmod(m.disk("group"), 0o770)
        code = ("import os\nos.setgroups([777]); os.setgid(1001); os.setuid(1000); os.umask(0)\n"
                "for d in ('.', 'setgid', 'group'):\n"
                "  os.close(os.open(d + '/file', os.O_CREAT | os.O_WRONLY, 0o640))\n"
                "  os.mkdir(d + '/dir'); os.symlink('x', d + '/link'); os.mkfifo(d + '/fifo')\n"
                "os.chmod('.', 0o700) if 0 else None\n")
        subprocess.run([sys.executable, "-c", code], cwd=m.point, check=True)
        for d, gid in ((".", 1001), ("setgid", 4321), ("group", 1001)):
            for n in ("file", "dir", "link", "fifo"):
                st = os.lstat(m.disk(d, n))
                assert (st.st_uid, st.st_gid) == (1000, gid), (d, n, st)
        assert os.stat(m.disk("setgid/dir")).st_mode & stat.S_ISGID
        os.chmod(m.disk("group"), 0o700)
        poll("the mode is seen", lambda: os.stat(m.path("group")).st_mode & 0o777 == 0o700)
        r = subprocess.run([sys.executable, "-c", "import os\nos.setuid(1000)\nos.listdir('group')"],
                           cwd=m.point, check=False, capture_output=True, text=True)
        assert "PermissionError" in r.stderr, r.stderr


run(globals())
