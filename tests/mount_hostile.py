# SPDX-License-Identifier: Apache-2.0
"""A store is somebody else's: what lies in it, and what is done to it behind the
mount's back, leads the daemon nowhere, costs no file, and neither hangs nor feeds it.
EQFS_HOSTILE_ROUNDS: how often each race is run."""
import errno
import json
import random
import socket
import stat
import threading

from mount_lib import *

ROUNDS = int(os.environ.get("EQFS_HOSTILE_ROUNDS", "2"))
ROOT = os.geteuid() == 0
DATA = os.path.join(os.environ.get("top_srcdir", "."), "tests", "data")
PROMPT = 30.0 # seconds for what should take none


def outside(name):
    """A directory beside the store with a model in it, and a check that all is as it was."""
    top = scratch(name + ".outside")
    os.makedirs(top)
    save_file(model(99, rows=64), os.path.join(top, "m"))
    os.setxattr(os.path.join(top, "m"), "user.eqfs.queued", b"lossless")
    before = {n: (os.lstat(os.path.join(top, n)).st_ino, sha(os.path.join(top, n))) for n in os.listdir(top)}

    def check():
        now = {n: (os.lstat(os.path.join(top, n)).st_ino, sha(os.path.join(top, n))) for n in os.listdir(top)}
        assert now == before, f"{top}: {before} became {now}"
    return top, check


def walked(m):
    poll("walked through", lambda: b"\neqfs_store_known 1\n" in read(m.path(".eqfs", "stats")), PROMPT)


def test_links():
    """Links out of the store are links, for the walk and for archives as well."""
    top, check = outside("links")
    store = scratch("links")
    os.makedirs(store + "/d")
    eqar("pack", "-q", top + "/m", top + "/a.eqar")
    os.symlink(top, store + "/away")
    os.symlink("../../links.outside", store + "/d/up")
    os.symlink(top + "/a.eqar", store + "/a.eqar")
    os.symlink(top + "/m", store + "/.eqfs-tmp.0123456789abcdef")
    os.symlink("/proc/self/root", store + "/root")
    with Mount(store, settle="0") as m:
        walked(m)
        assert not os.path.lexists(m.path("a")) and os.path.islink(m.path("a.eqar"))
        for n in ("away", "d/up", "root"):
            assert os.readlink(m.path(n)) == os.readlink(m.disk(n))
        for n in ("away", "d/up"):
            assert os.path.lexists(top + "/m") and not os.path.lexists(top + "/m.eqar"), n
        for bad in ("..", "a/../..", "."):
            assert os.path.realpath(m.path(bad)).startswith(os.path.dirname(store))
        os.unlink(m.path("away"))
        os.rename(m.path("d", "up"), m.path("d", "up2"))
    assert os.path.exists(top + "/m") and os.path.exists(top + "/a.eqar") and not os.path.exists(top + "/m.eqar")


def test_special():
    """Pipes, sockets and devices under any name neither hang nor are taken for files."""
    store = scratch("special")
    os.makedirs(store + "/dir.eqar")
    save_file(model(1, rows=64), store + "/dir.eqar/m")
    names = ["fifo", "fifo.eqar", "m.eqar", ".eqfs-tmp.0000000000000001"]
    for n in names:
        os.mkfifo(os.path.join(store, n))
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(store + "/socket.eqar")
    if ROOT:
        os.mknod(store + "/device.eqar", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(store + "/.eqfs-tmp.0000000000000002", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    start = time.monotonic()
    with Mount(store, settle="0") as m:
        walked(m)
        seen = os.listdir(m.point)
        assert "fifo" in seen and "fifo.eqar" in seen and "dir.eqar" in seen, seen
        assert not any("tmp" in n for n in seen), seen
        for n in ("m", "device", "socket", "dir"):
            with raises(errno.ENOENT, n):
                os.stat(m.path(n))
        assert stat.S_ISFIFO(os.stat(m.path("fifo.eqar")).st_mode)
        with raises(errno.ENXIO): # nobody reads from it, here as there
            os.open(m.path("fifo.eqar"), os.O_WRONLY | os.O_NONBLOCK)
        os.close(os.open(m.path("fifo"), os.O_RDONLY | os.O_NONBLOCK))
        assert same(load_file(m.path("dir.eqar", "m")), model(1, rows=64))
        save_file(model(2, rows=64), m.path("new"))
        m.settle("new")
        os.unlink(m.path("fifo.eqar"))
        # A model that cannot become an archive, because a pipe has that name.
        os.mkfifo(m.disk("p.eqar"))
        save_file(model(2, rows=64), m.path("p"))
        poll("decided", lambda: m.state("p") not in ("queued", "encoding"), PROMPT)
        assert same(load_file(m.path("p")), model(2, rows=64))
    assert time.monotonic() - start < 3 * PROMPT


def test_config():
    """.eqfs.conf that is no such thing: refused in a line, at once."""
    store, mnt = scratch("config"), scratch("config.mnt")
    os.makedirs(store)
    os.makedirs(mnt)
    conf = store + "/.eqfs.conf"

    def link():
        with open(scratch("elsewhere"), "w") as f:
            f.write("[policy]\nbits = 2\n")
        os.symlink(scratch("elsewhere"), conf)

    def huge():
        with open(conf, "wb") as f:
            f.truncate(1 << 40)

    def text(data):
        with open(conf, "wb") as f:
            f.write(data)
    for make in (link, lambda: os.mkfifo(conf), lambda: os.mkdir(conf), huge, lambda: text(b"\x00" * 4096),
                 lambda: text(b"[policy]\nbits = 1e999\n"), lambda: text(b"[policy]\n" + b"x" * 60000),
                 lambda: text(b"[policy]\nexclude = \xff\xfe\n")):
        make()
        for command in ([EQFS, store, mnt], [EQAR, "pack", "-r", store]):
            r = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PROMPT)
            assert r.returncode == 1 and ".eqfs.conf" in r.stderr and r.stderr.count("\n") == 1, (command, r)
        assert not mounted(mnt)
        (os.rmdir if os.path.isdir(conf) and not os.path.islink(conf) else os.unlink)(conf)


def test_attributes():
    """Attributes that an archive or a file brings along are not believed."""
    store = scratch("attributes")
    os.makedirs(store)
    save_file(model(3, rows=64), store + "/m")
    eqar("pack", "-q", store + "/m", store + "/a.eqar")
    when = os.stat(store + "/m").st_mtime_ns
    for path in (store + "/m", store + "/a.eqar"):
        for key, value in (("state", b"archived"), ("bits", b"1"), ("sha256", b"0" * 64), ("policy", b"bits=1"),
                           ("mtime", b"12.x"), ("queued", b"\xff" * 3000), ("odd", b"1")):
            os.setxattr(path, "user.eqfs." + key, value)
    with Mount(store, "ro") as m:
        walked(m)
        assert m.state("m") == "plain" and m.state("a") == "archived"
        assert xattr(m.path("a"), "sha256") == sha(m.disk("m")) and os.stat(m.path("a")).st_mtime_ns == when
        for n in ("m", "a"):
            assert not os.listxattr(m.path(n)), os.listxattr(m.path(n))
            for key in ("odd", "queued", "mtime", "policy"):
                with raises(errno.ENODATA):
                    xattr(m.path(n), key)
        assert xattr(m.point, "policy") == "lossless"
    for value in (b"99999999999999999999.000000000", b"1.9999999999", b"-1.-1", b"1." + b"0" * 38):
        os.setxattr(store + "/a.eqar", "user.eqfs.mtime", value)
        with Mount(store, "ro") as m:
            os.stat(m.path("a"))


def test_archives():
    """Each bad fixture as part of a store: EIO for some, and the daemon lives."""
    store = scratch("archives")
    os.makedirs(store)
    names = []
    for d in ("bad", "unsupported", "good", "corpus/archive"):
        for n in sorted(os.listdir(os.path.join(DATA, d))):
            path = os.path.join(DATA, d, n)
            if os.path.isfile(path) and os.path.getsize(path) > 64:
                names.append(f"{d.replace('/', '-')}-{n.removesuffix('.eqar')}")
                shutil.copyfile(path, os.path.join(store, names[-1] + ".eqar"))
    assert len(names) > 20
    with Mount(store, "cache=4M") as m:
        walked(m)
        errors = 0
        for n in sorted(os.listdir(m.point)):
            try:
                read(m.path(n))
            except OSError as e:
                assert e.errno in (errno.EIO, errno.EOPNOTSUPP, errno.ENOMEM, errno.EINVAL), (n, e)
                errors += 1
        assert errors > 10 and m.proc.poll() is None
        assert b"eqfs_info" in read(m.path(".eqfs", "stats"))


def rss(m):
    return int(next(s for s in read(f"/proc/{m.proc.pid}/status").decode().splitlines()
                    if s.startswith("VmRSS")).split()[1]) << 10


def test_tables():
    """An archive of many small tensors does not fill the memory with their tables."""
    asan = b"libasan" in read(EQFS) # which keeps what was freed
    rng = np.random.default_rng(4)
    d = {f"{'tensor' * 12}{i}": (rng.standard_normal(1024) * 0.02).astype(np.float32).astype(ml_dtypes.bfloat16)
         for i in range(3000 if asan else 14000)}
    with Mount(scratch("tables"), "cache=4M") as m:
        save_file(d, scratch("tables.source"))
        eqar("pack", "-q", scratch("tables.source"), m.disk("m.eqar"))
        header = int.from_bytes(read(scratch("tables.source"))[:8], "little")
        assert asan or header > 1 << 20 # more than a slice of the prefix, too
        before = rss(m)
        for _ in range(2):
            assert sha(m.path("m")) == sha(scratch("tables.source"))
        grown = rss(m) - before
        assert asan or grown < 190 << 20, f"{grown >> 20} MiB"


def sparse(path, size, data=0):
    """A safetensors file of one tensor, of which `data` bytes are no hole."""
    header = b""
    for _ in range(4): # the header's length depends on the number in it
        rest = size - 8 - len(header)
        header = json.dumps({"w": {"dtype": "U8", "shape": [rest], "data_offsets": [0, rest]}}).encode()
        header += b" " * (-len(header) % 8)
    assert 8 + len(header) + rest == size
    with open(path, "wb") as f:
        f.write(len(header).to_bytes(8, "little") + header)
        for _ in range(data >> 20):
            f.write(bytes(1 << 20))
        f.truncate(size)


def test_sparse():
    """Files of 1 EiB and of a few TiB, of holes: read at their ends, left plain at once,
    and in nobody's way."""
    if not ROOT:
        print("  left out: root")
        return
    os.makedirs(scratch("sparse"))
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", scratch("sparse")], check=True)
    try:
        m = Mount(scratch("sparse") + "/store", "drain=0", settle="0")
        for name, size in (("zeros", 1 << 60), ("model", 1 << 60), ("slow", 1 << 44)):
            with open(m.path(name + ".incomplete"), "wb") as f:
                f.truncate(size) # as a download begins
            if name != "zeros":
                sparse(m.path(name + ".incomplete"), size, 1 << 20)
            os.rename(m.path(name + ".incomplete"), m.path(name))
            assert os.stat(m.path(name)).st_size == size
            with open(m.path(name), "rb") as f:
                assert os.pread(f.fileno(), 10, size - 5) == bytes(5)
        save_file(model(1), m.path("next")) # none of them keeps it waiting
        m.settle("next")
        for name, want in (("zeros", "plain"), ("model", "failed: hardly"), ("slow", "failed: hardly")):
            m.settle(name, want=want)
        assert "slow: hardly anything but holes" in m.log(), m.log()
        for command in (["pack", "-n"], ["pack"], ["pack", "--bits=4"]):
            r = subprocess.run([EQAR, *command, m.disk("model"), *([scratch("sparse.eqar")] * ("-n" not in command))],
                               capture_output=True, text=True, check=False, timeout=PROMPT)
            assert r.returncode == 1 and r.stderr == f"eqar: {m.disk('model')}: too large for an archive\n", r
        # One that has some more, and takes a while: it is given up for an unlink or an end.
        for name in ("long", "longer"):
            sparse(m.path(name), 5 << 30, 384 << 20)
            poll("at it", lambda name=name: m.state(name) == "encoding")
            if name == "long":
                os.unlink(m.path(name))
                save_file(model(2), m.path("again"))
                m.settle("again")
        start = time.monotonic()
        m.stop()
        assert time.monotonic() - start < PROMPT and "leaving it" not in m.log(), m.log()
        assert sorted(os.listdir(m.store)) == ["again.eqar", "longer", "model", "next.eqar", "slow", "zeros"], os.listdir(m.store)
        os.unlink(m.disk("longer"))
        for extra in ([], ["-n"]):
            r = eqar("pack", "-r", "--json", *extra, m.store)
            assert "hardly anything but holes" in r and '"slow"' in r.replace(m.store + "/", ""), r
    finally:
        subprocess.run(["umount", "-l", scratch("sparse")], check=True)


def test_store_in_mount():
    """A store that lies in another eqfs: the bytes are right, whoever encodes them, and both
    end, in either order."""
    want = model(6)
    for first in ("inner", "outer"):
        outer = Mount(scratch("around" + first))
        os.mkdir(outer.path("store"))
        inner = Mount(outer.path("store"))
        save_file(want, inner.path("m"))
        save_file(want, outer.path("store", "n"))
        for n in ("m", "n"):
            outer.settle("store", n)
            poll("seen", lambda n=n, inner=inner: os.path.exists(inner.path(n)))
            assert same(load_file(inner.path(n)), want) and same(load_file(outer.path("store", n)), want)
        assert sorted(os.listdir(inner.point)) == ["m", "n"]
        for m in (inner, outer) if first == "inner" else (outer, inner):
            m.stop()
        assert sorted(os.listdir(outer.disk("store"))) == ["m.eqar", "n.eqar"]


# ---- races ----


def slow_model(seed):
    return model(seed, rows=512, cols=512, layers=4)


class Attack:
    """One file written through the mount, and what is done to it in the store during
    the encode. Each attack returns the contents that its name must have in the end."""

    def __init__(self, m, d, name, rng):
        self.m, self.dir, self.name, self.rng = m, d, name, rng
        self.path = m.disk(d, name)
        self.shown = m.path(d, name)
        self.own = read(scratch("race.source"))

    def precious(self):
        path = self.path + ".other"
        save_file(model(self.rng.randrange(1 << 30), rows=32), path)
        return path, read(path)

    def replace(self):
        path, data = self.precious()
        os.rename(path, self.path)
        return data

    def exchange(self):
        path, data = self.precious()
        os.rename(self.path, self.path + ".kept")
        os.rename(path, self.path)
        assert read(self.path + ".kept") == self.own
        return data

    def write(self):
        """In place, with the times put back."""
        with open(self.path, "r+b") as f:
            st = os.fstat(f.fileno())
            f.seek(len(self.own) - 64)
            f.write(b"changed!")
            f.flush()
            os.utime(f.fileno(), ns=(st.st_atime_ns, st.st_mtime_ns))
        return self.own[:-64] + b"changed!" + self.own[-56:]

    def hold(self):
        """Open for writing all the time, written to in the end."""
        with open(self.path, "r+b") as f:
            time.sleep(0.05)
            f.seek(len(self.own) - 64)
            f.write(b"changed!")
        return self.own[:-64] + b"changed!" + self.own[-56:]

    def link(self):
        os.link(self.path, self.path + ".link")
        return self.own

    def symlink(self):
        os.symlink(os.path.join(scratch("race.outside"), "m"), self.path + ".symlink")
        os.rename(self.path + ".symlink", self.path)
        return read(os.path.join(scratch("race.outside"), "m"))

    def directory(self):
        """The directory becomes a link to elsewhere, where there is a file of that name."""
        shutil.copy(scratch("race.source"), os.path.join(scratch("race.outside"), self.name))
        os.rename(self.m.disk(self.dir), self.m.disk(self.dir) + ".moved")
        os.symlink(scratch("race.outside"), self.m.disk(self.dir))
        time.sleep(0.1)
        assert sha(os.path.join(scratch("race.outside"), self.name)) == hashlib.sha256(self.own).hexdigest()
        os.unlink(os.path.join(scratch("race.outside"), self.name))
        assert os.listdir(scratch("race.outside")) == ["m"]
        os.unlink(self.m.disk(self.dir))
        os.rename(self.m.disk(self.dir) + ".moved", self.m.disk(self.dir))
        return self.own


def content(path):
    try:
        return read(path)
    except OSError:
        return None


def test_races():
    """Whatever is done to a file while it is encoded, its last contents are what is read
    under its name, and nothing else is touched."""
    check = outside("race")[1]
    save_file(slow_model(8), scratch("race.source"))
    rng = random.Random(11)
    kinds = ("replace", "exchange", "write", "hold", "link", "symlink", "directory")
    caught = 0
    with Mount(scratch("race"), settle="0") as m:
        for i in range(ROUNDS):
            for kind in kinds:
                d, name = f"{kind}{i}", "model"
                os.mkdir(m.path(d))
                a = Attack(m, d, name, rng)
                shutil.copyfile(scratch("race.source"), m.path(d, "incoming"))
                delay = rng.uniform(0, 0.08)
                os.rename(m.path(d, "incoming"), m.path(d, name))
                time.sleep(delay)
                try:
                    want = getattr(a, kind)()
                except FileNotFoundError: # the archive was there before us
                    assert content(m.path(d, name)) == a.own, (kind, i)
                    continue
                caught += 1
                # Names are believed for a second.
                poll(f"{kind}{i}: the last contents", lambda a=a, want=want: content(a.shown) == want, PROMPT)
                poll(f"{kind}{i} settled", lambda a=a: not os.path.lexists(a.shown) or os.path.islink(a.path) or
                     xattr(a.shown, "state").split(":")[0] in ("plain", "archived", "failed"), PROMPT)
                assert content(a.shown) == want, (kind, i, delay)
                check()
    assert caught >= ROUNDS * 3, f"only {caught} attacks came in time"
    print(f"  {caught} of {ROUNDS * len(kinds)} attacks came before the archive")
    left = [n for _, _, names in os.walk(scratch("race")) for n in names if n.startswith(".eqfs-tmp")]
    assert not left, left


def test_renamer():
    """A thread that renames and links without end, while files come and go."""
    check = outside("renamer")[1]
    stop, m = threading.Event(), None
    rng = random.Random(12)
    save_file(model(1, rows=128), scratch("renamer.source"))

    def rewrite(d, name):
        """Follow no link here: none of the client's ways may lead outside."""
        at = os.open(d, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            with open(name, "wb", opener=lambda p, f: os.open(p, f | os.O_NOFOLLOW, dir_fd=at)) as f:
                f.write(read(scratch("renamer.source")))
        finally:
            os.close(at)

    def renamer():
        names = [m.disk(n) for n in ("a", "b", "a.eqar", "b.eqar", "c")]
        while not stop.is_set():
            x, y = rng.sample(names, 2)
            with contextlib.suppress(OSError):
                rng.choice((os.rename, os.replace, os.link))(x, y)
            with contextlib.suppress(OSError):
                os.symlink(scratch("renamer.outside") + "/m", rng.choice(names))
            with contextlib.suppress(OSError):
                os.rename(m.disk("d"), m.disk("e"))
                os.symlink(scratch("renamer.outside"), m.disk("d"))
                os.unlink(m.disk("d"))
                os.rename(m.disk("e"), m.disk("d"))
    with Mount(scratch("renamer"), settle="0") as m:
        os.mkdir(m.disk("d"))
        t = threading.Thread(target=renamer)
        t.start()
        try:
            for _ in range(ROUNDS * 60):
                for d, n in ((".", "a"), (".", "b"), ("d", "m")):
                    with contextlib.suppress(OSError):
                        rewrite(m.path(d), n)
                    with contextlib.suppress(OSError):
                        os.listdir(m.point)
                        os.lstat(m.path(d, n))
        finally:
            stop.set()
            t.join(30)
        assert m.proc.poll() is None and b"eqfs_info" in read(m.path(".eqfs", "stats")), m.log()
        m.stop()
    top = scratch("renamer.outside")
    assert not os.path.exists(top + "/m.eqar") and sorted(os.listdir(top)) == ["m"], os.listdir(top)
    check()


def test_groups():
    """A file made by virtue of another group is the maker's, by what he may do himself."""
    if not ROOT:
        print("  left out: root")
        return
    store = scratch("groups")
    os.makedirs(store)
    os.chmod(TMP, 0o755)
    with Mount(store, "allow_other") as m:
        os.mkdir(m.path("d"))
        os.chown(m.path("d"), 0, 2000)
        os.chmod(m.path("d"), 0o770)
        make = ("import os, sys; os.chdir(sys.argv[1]); os.mkdir('x'); open('f', 'w').close(); os.symlink('a', 's');"
                "os.mkfifo('p'); os.chmod('f', 0o640)")
        for uid, gid, groups, fine in ((1000, 1000, [2000, 3000], True), (1000, 1000, [3000], False)):
            r = subprocess.run([sys.executable, "-c", make, m.path("d")], user=uid, group=gid, extra_groups=groups,
                               capture_output=True, text=True, check=False)
            assert (r.returncode == 0) == fine, r
        for n in ("x", "f", "s", "p"):
            st = os.lstat(m.disk("d", n))
            assert (st.st_uid, st.st_gid) == (1000, 1000), (n, st)
        os.chmod(m.path("d"), 0o2770) # and of the directory's group where it says so
        r = subprocess.run([sys.executable, "-c", make.replace("'x'", "'y'").replace("'f'", "'g'").replace(
            "'s'", "'t'").replace("'p'", "'q'"), m.path("d")], user=1000, group=1000, extra_groups=[2000],
            capture_output=True, text=True, check=True)
        for n in ("y", "g", "t", "q"):
            st = os.lstat(m.disk("d", n))
            assert (st.st_uid, st.st_gid) == (1000, 2000), (n, st)


run(globals())
