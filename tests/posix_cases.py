# SPDX-License-Identifier: Apache-2.0
"""Cases written from POSIX, and from Linux where it goes further, for what a model store
meets. Each gets a Place: an empty directory in a mount, or in the filesystem below it."""
import ctypes
import errno
import fcntl
import mmap
import socket
import stat
import struct
import threading

from mount_lib import *

LIBC = ctypes.CDLL(None, use_errno=True)
LONG = os.environ.get("EQFS_POSIX", "") == "long"
USER = 61000                # somebody else
ROOT = os.geteuid() == 0


class Place:
    def __init__(self, top, mount=None):
        self.top, self.mount = top, mount
        os.makedirs(top)

    def __call__(self, name=""):
        return os.path.join(self.top, name)

    def put(self, name, data=b"some bytes"):
        with open(self(name), "wb") as f:
            f.write(data)
        return self(name)

    def settle(self, name, want="archived"):
        """In a mount a model is encoded by then, or stays plain for this reason."""
        if self.mount:
            self.mount.settle(os.path.relpath(self(name), self.mount.point), want=want)


def child(code, *args, uid=None, **how):
    """Python in another process, perhaps as another user."""
    setup = f"import os\nos.setgroups([]); os.setgid({uid}); os.setuid({uid})\n" if uid else "import os\n"
    return subprocess.run([sys.executable, "-c", setup + code, *args], capture_output=True, text=True,
                          check=False, timeout=60, **how)


def done(r):
    assert r.returncode == 0, r.stderr
    return r.stdout


# ---- files ------------------------------------------------------------------------------

def case_append(p):
    fds = [os.open(p("f"), os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(2)]
    for i in range(50):
        os.write(fds[i % 2], b"%03d" % i)
    assert read(p("f")) == b"".join(b"%03d" % i for i in range(50))
    for fd in fds:
        os.close(fd)


def case_append_processes(p):
    code = ("import sys\nfd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
            "for i in range(200): os.write(fd, sys.argv[2].encode() * 64)\n")
    procs = [subprocess.Popen([sys.executable, "-c", "import os\n" + code, p("f"), c]) for c in "abc"]
    assert not any(q.wait(60) for q in procs)
    data = read(p("f"))
    assert len(data) == 3 * 200 * 64
    assert all(len(set(data[i:i + 64])) == 1 for i in range(0, len(data), 64)), "torn appends"


def case_unlinked(p):
    fd = os.open(p.put("f"), os.O_RDWR)
    os.unlink(p("f"))
    assert os.fstat(fd).st_nlink == 0 and os.listdir(p()) == []
    os.pwrite(fd, b"more", 100000)
    os.ftruncate(fd, 100002)
    assert os.pread(fd, 10, 100000) == b"mo" and os.pread(fd, 4, 0) == b"some"
    os.fchmod(fd, 0o600)
    os.fsync(fd)
    p.put("f", b"another")
    assert os.pread(fd, 4, 0) == b"some"
    os.close(fd)


def case_open_flags(p):
    p.put("f")
    os.symlink("f", p("link"))
    os.symlink("loop", p("loop"))
    os.mkdir(p("d"))
    for flags, name, want in ((os.O_CREAT | os.O_EXCL, "f", errno.EEXIST), (os.O_NOFOLLOW, "link", errno.ELOOP),
                              (os.O_DIRECTORY, "f", errno.ENOTDIR), (os.O_WRONLY, "d", errno.EISDIR),
                              (0, "loop", errno.ELOOP), (0, "f/x", errno.ENOTDIR), (0, "none", errno.ENOENT),
                              (os.O_CREAT | os.O_EXCL, "link", errno.EEXIST), (0, "x" * 256, errno.ENAMETOOLONG),
                              (0, "d/" * 2100, errno.ENAMETOOLONG), (os.O_CREAT | os.O_WRONLY, "g/", errno.EISDIR)):
        with raises(want, (flags, name[:20])):
            os.open(p(name), flags)
    for flags in (os.O_SYNC, os.O_DSYNC, os.O_NOATIME, os.O_NONBLOCK, os.O_TRUNC):
        os.close(os.open(p("f"), os.O_RDWR | flags))


def case_truncate(p):
    fd = os.open(p.put("f", b"0123456789"), os.O_RDWR)
    os.ftruncate(fd, 5)
    os.ftruncate(fd, 9000)
    assert read(p("f")) == b"01234" + bytes(8995)
    with raises(errno.EINVAL):
        os.truncate(p("f"), -1)
    ro = os.open(p("f"), os.O_RDONLY)
    with raises(errno.EINVAL):
        os.ftruncate(ro, 1)
    with raises(errno.EBADF):
        os.write(ro, b"x")
    os.close(ro)
    os.close(fd)
    os.mkdir(p("d"))
    with raises(errno.EISDIR):
        os.truncate(p("d"), 0)


def case_size_limit(p):
    r = child("import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
              "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
              "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\nassert os.write(fd, bytes(20000)) == 10000\n"
              "try: os.write(fd, b'x')\nexcept OSError as e: print(e.errno)\n", p("f"))
    assert int(done(r)) == errno.EFBIG and os.path.getsize(p("f")) == 10000


def case_sparse(p):
    fd = os.open(p("f"), os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"x" * 65536, 1 << 20)
    os.ftruncate(fd, 4 << 20)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 20
    assert os.lseek(fd, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 65536
    with raises(errno.ENXIO):
        os.lseek(fd, 2 << 20, os.SEEK_DATA)
    assert os.fstat(fd).st_blocks * 512 < 1 << 20
    for mode, size in ((0x03, 4 << 20), (0x11, 4 << 20), (0x01, 4 << 20), (0, 5 << 20)):
        assert LIBC.fallocate64(fd, mode, ctypes.c_int64(1 << 20), ctypes.c_int64(4 << 20)) == 0 or \
            ctypes.get_errno() == errno.EOPNOTSUPP, mode
        assert os.fstat(fd).st_size == size
        assert os.pread(fd, 65536, 1 << 20) == bytes(65536)
    os.close(fd)


def case_mapped(p):
    fd = os.open(p.put("f", bytes(100000)), os.O_RDWR)
    other = os.open(p("f"), os.O_RDWR)
    with mmap.mmap(fd, 100000) as a, mmap.mmap(other, 100000) as b:
        a[5:9] = b"abcd"
        assert b[5:9] == b"abcd" and os.pread(other, 4, 5) == b"abcd"
        os.pwrite(other, b"wxyz", 70000)
        assert a[70000:70004] == b"wxyz"
        a.flush()
    private = mmap.mmap(fd, 0, mmap.MAP_PRIVATE)
    private[:4] = b"mine"
    assert os.pread(fd, 4, 0) == bytes(4)
    private.close()
    os.close(fd)
    os.close(other)
    assert read(p("f"))[70000:70004] == b"wxyz"


def case_direct(p):
    fd = os.open(p("f"), os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, 1 << 16) as buf:
        buf[:] = os.urandom(1 << 16)
        assert os.pwritev(fd, [buf], 4096) == 1 << 16
        assert read(p("f")) == bytes(4096) + buf[:]
        with open(p("f"), "r+b", buffering=0) as f:
            f.write(b"behind its back")
        assert os.preadv(fd, [buf], 0) == 1 << 16 and buf[:15] == b"behind its back"
    os.close(fd)


def case_vectors_and_pipes(p):
    fd = os.open(p("f"), os.O_RDWR | os.O_CREAT)
    assert os.pwritev(fd, [b"ab", b"", b"cde"], 3) == 5
    assert os.preadv(fd, [bytearray(4), bytearray(9)], 0) == 8
    out = os.open(p("g"), os.O_RDWR | os.O_CREAT)
    assert os.sendfile(out, fd, 0, 8) == 8 and read(p("g")) == bytes(3) + b"abcde"
    assert os.copy_file_range(fd, out, 5, 3, 8) == 5 and read(p("g"))[8:] == b"abcde"
    r, w = os.pipe()
    assert os.splice(fd, w, 8, offset_src=0) == 8 and os.read(r, 9) == bytes(3) + b"abcde"
    for x in (fd, out, r, w):
        os.close(x)


def case_shared_descriptor(p):
    """A child that inherits a descriptor and exits does not end the writing."""
    fd = os.open(p("f"), os.O_WRONLY | os.O_CREAT)
    os.set_inheritable(fd, True)
    done(child(f"os.write({fd}, b'child'); os.close({fd})\n", close_fds=False))
    os.write(fd, b" parent")
    os.close(os.dup(fd))
    os.write(fd, b" again")
    os.close(fd)
    assert read(p("f")) == b"child parent again"


def case_executed(p):
    shutil.copyfile(shutil.which("true"), p("x"))
    with raises(errno.EACCES):
        subprocess.run([p("x")], check=True)
    os.chmod(p("x"), 0o755)
    subprocess.run([p("x")], check=True)
    shutil.copyfile(shutil.which("sleep"), p("s"))
    os.chmod(p("s"), 0o755)
    q = subprocess.Popen([p("s"), "60"])
    with raises(errno.ETXTBSY):
        os.open(p("s"), os.O_WRONLY)
    os.unlink(p("s"))
    q.kill()
    q.wait()


# ---- names and directories --------------------------------------------------------------

def case_rename_rules(p):
    for d in ("d/sub", "e", "full/x"):
        os.makedirs(p(d))
    p.put("f"), p.put("g", b"other")
    for old, new, want in (("d", "d/sub/x", errno.EINVAL), ("f", "d", errno.EISDIR), ("d", "f", errno.ENOTDIR),
                           ("d", "full", errno.ENOTEMPTY), ("none", "f", errno.ENOENT), ("f", "none/x", errno.ENOENT)):
        with raises(want, (old, new)):
            os.rename(p(old), p(new))
    os.rename(p("d"), p("e"))
    os.link(p("f"), p("f2"))
    os.rename(p("f"), p("f2"))
    assert sorted(os.listdir(p())) == ["e", "f", "f2", "full", "g"] and os.listdir(p("e")) == ["sub"]
    held = open(p("g"), "rb")
    os.rename(p("f"), p("g"))
    assert held.read() == b"other" and os.fstat(held.fileno()).st_nlink == 0
    held.close()
    assert os.stat(p("e")).st_nlink in (1, 3) and os.stat(p("g")).st_nlink == 2


def case_names(p):
    model_bytes = read(saved(1))
    odd = [b"\xff\xfe", b"new\nline", b" ", b"...", b"caf\xc3\xa9", b"cafe\xcc\x81", b"\x01", b"-rf", b"a\\b",
           b"X" * 255, b"\xff" * 255, "ü".encode() * 127]
    for n in odd:
        with open(os.path.join(os.fsencode(p()), n), "wb") as f:
            f.write(n + model_bytes[len(n):] if n == b" " else n)
    assert sorted(os.listdir(os.fsencode(p()))) == sorted(odd)
    for n in odd:
        assert read(os.path.join(os.fsencode(p()), n))[:len(n)] == n
        os.unlink(os.path.join(os.fsencode(p()), n))
    assert os.listdir(p()) == []
    # A model whose archive's name would be too long stays plain, and works.
    for length, state in ((250, "archived"), (251, "name too long"), (255, "name too long")):
        p.put("m" * length, model_bytes)
        p.settle("m" * length, want=state)
        assert read(p("m" * length)) == model_bytes
    bad = os.path.join(os.fsencode(p()), b"\xe9\xff model")
    os.rename(p("m" * 250), bad)
    assert read(bad) == model_bytes


def case_symlinks(p):
    for target in ("x" * 4095, "nowhere", "../" * 1000, "/"):
        os.symlink(target, p("s"))
        assert os.readlink(p("s")) == target and os.lstat(p("s")).st_size == len(target)
        os.unlink(p("s"))
    with raises(errno.ENOENT):
        os.symlink("", p("s"))
    os.symlink("f", p("s"))
    os.utime(p("s"), ns=(1, 2), follow_symlinks=False)
    assert os.lstat(p("s")).st_mtime_ns == 2
    p.put("s", b"through") # which makes f
    assert read(p("f")) == b"through" and os.path.islink(p("s"))


def case_links(p):
    """Hard links of a model: it is encoded when but one name is left, and linked after."""
    data = read(saved(2))
    p.put("a", data)
    os.link(p("a"), p("b"))
    p.settle("b", want="hard links")
    assert os.stat(p("a")).st_nlink == 2 and os.path.samefile(p("a"), p("b"))
    with open(p("a"), "r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\x55")
    data = data[:-1] + b"\x55"
    assert read(p("b")) == data
    os.unlink(p("a"))
    p.settle("b")
    os.link(p("b"), p("c"))
    assert os.stat(p("b")).st_nlink == 2 and os.path.samefile(p("b"), p("c"))
    os.rename(p("b"), p("c")) # one file: nothing happens
    os.unlink(p("b"))
    assert os.listdir(p()) == ["c"] and read(p("c")) == data and os.stat(p("c")).st_nlink == 1
    os.mkdir(p("d"))
    with raises(errno.EPERM):
        os.link(p("d"), p("e"))


def case_many_files(p):
    n = 100000 if LONG else 1500
    for i in range(n):
        os.close(os.open(p(f"f{i}"), os.O_CREAT | os.O_WRONLY, 0o644))
    names = os.listdir(p())
    assert len(names) == n and len(set(names)) == n
    with os.scandir(p()) as it: # removing while reading
        for i, e in enumerate(it):
            if i % 2:
                os.unlink(e.path)
    assert i == n - 1 and len(os.listdir(p())) == n // 2
    shutil.rmtree(p())
    assert not os.path.exists(p())


def case_listing_while_renaming(p):
    """Names that stay are seen once in each listing, whatever happens beside them."""
    stay = {f"stay{i}" for i in range(300)}
    for n in stay | {f"move{i}" for i in range(300)}:
        p.put(n, b"")
    end, lists = time.monotonic() + (10 if LONG else 0.7), 0
    stop = threading.Event()

    def mover():
        k = 0
        while not stop.is_set():
            os.rename(p(f"move{k % 300}"), p("moving"))
            os.rename(p("moving"), p(f"move{k % 300}"))
            k += 1
    t = threading.Thread(target=mover)
    t.start()
    try:
        while time.monotonic() < end or lists < 4:
            names = os.listdir(p())
            assert len(names) == len(set(names)) and stay <= set(names), "a listing lost names"
            lists += 1
    finally:
        stop.set()
        t.join()


def case_positions(p):
    """A listing goes on where it was left, by lseek as telldir and seekdir do it; in another
    descriptor as well, which is how NFS servers read."""
    for i in range(500):
        p.put(f"f{i}", b"")
    fd = os.open(p(), os.O_RDONLY)
    buf = ctypes.create_string_buffer(1500)
    seen = []
    while True:
        n = LIBC.syscall(217, fd, buf, len(buf)) # getdents64
        assert n >= 0
        if not n:
            break
        at = 0
        while at < n:
            ino, off, size = struct.unpack_from("<QqH", buf.raw, at)
            name = buf.raw[at + 19:at + size].split(b"\0")[0].decode()
            seen.append((name, ino, off))
            at += size
    assert len({s[0] for s in seen}) == len(seen) == 502
    for k in (0, 77, 400, 500):
        other = os.open(p(), os.O_RDONLY)
        for at in fd, other:
            os.lseek(at, seen[k][2], os.SEEK_SET)
            n = LIBC.syscall(217, at, buf, len(buf))
            assert buf.raw[19:n].split(b"\0")[0].decode() == seen[k + 1][0], k
        os.close(other)
    os.close(fd)
    inos = {name: ino for name, ino, _ in seen}
    assert all(os.lstat(p(f"f{i}")).st_ino == inos[f"f{i}"] for i in range(0, 500, 50))


def case_special_files(p):
    os.mkfifo(p("fifo"))
    got = []
    t = threading.Thread(target=lambda: got.append(read(p("fifo"))))
    t.start()
    p.put("fifo", b"through the pipe")
    t.join(30)
    assert got == [b"through the pipe"]
    here = os.getcwd()
    os.chdir(p())
    try:
        with socket.socket(socket.AF_UNIX) as s, socket.socket(socket.AF_UNIX) as c:
            s.bind("sock")
            s.listen()
            c.connect("sock")
            assert stat.S_ISSOCK(os.stat("sock").st_mode)
    finally:
        os.chdir(here)
    with raises(errno.ENXIO):
        os.open(p("sock"), os.O_RDONLY)


# ---- attributes -------------------------------------------------------------------------

def times(path):
    st = os.stat(path)
    return st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns


def case_times(p):
    f = p.put("f")
    os.utime(f, ns=(10**18, 10**18 + 7))
    os.utime(p(), ns=(10**18, 10**18))
    a, m, c = times(f)
    assert (a, m) == (10**18, 10**18 + 7) and c > m
    os.chmod(f, 0o600)
    assert times(f)[:2] == (a, m) and times(f)[2] >= c
    assert times(p())[1] == 10**18
    with open(f, "ab", buffering=0) as w:
        w.write(b"x")
    assert times(f)[1] > m and times(f)[2] >= times(f)[1]
    os.rename(f, p("g"))
    assert times(p())[1] > 10**18, "the directory changed"
    m = times(p("g"))[1]
    os.truncate(p("g"), os.path.getsize(p("g")))
    os.utime(p("g"), ns=(0, 10**18))
    with open(p("g"), "wb"):
        pass
    assert times(p("g"))[1] > m - 1
    os.utime(p("g"), ns=(-5 * 10**9, -10**9 + 5))
    assert times(p("g"))[1] == -10**9 + 5, "before 1970"


def case_attributes_of_models(p):
    """What a model's attributes are does not change when it is encoded."""
    data = read(saved(3))
    f = p.put("m", data)
    os.chmod(f, 0o6750)
    os.setxattr(f, "user.origin", b"somewhere")
    os.utime(f, ns=(10**18, 10**18 + 1))
    before = os.stat(f)
    p.settle("m")
    after = os.stat(f)
    for k in ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns", "st_nlink"):
        assert getattr(before, k) == getattr(after, k), k
    assert os.getxattr(f, "user.origin") == b"somewhere" and read(f) == data


def case_xattrs(p):
    f = p.put("f")
    os.setxattr(f, "user.a", b"")
    os.setxattr(f, "user.b", b"x" * 3000)
    assert os.getxattr(f, "user.a") == b"" and os.getxattr(f, "user.b") == b"x" * 3000
    with raises(errno.EEXIST):
        os.setxattr(f, "user.a", b"", os.XATTR_CREATE)
    with raises(errno.ENODATA):
        os.setxattr(f, "user.c", b"", os.XATTR_REPLACE)
    with raises(errno.ENODATA):
        os.removexattr(f, "user.c")
    small = ctypes.create_string_buffer(10)
    assert LIBC.getxattr(f.encode(), b"user.b", small, 10) < 0 and ctypes.get_errno() == errno.ERANGE
    assert set(os.listxattr(f)) >= {"user.a", "user.b"}
    os.mkdir(p("d"))
    os.setxattr(p("d"), "user.a", b"1")
    assert os.getxattr(p("d"), "user.a") == b"1"


def acl(*entries):
    """POSIX access control list as its xattr: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", t, perm, i & 0xffffffff) for t, perm, i in entries)


def case_access_lists(p):
    if not ROOT:
        return
    data = read(saved(4))
    entries = acl((1, 6, -1), (2, 4, USER), (4, 0, -1), (16, 4, -1), (32, 0, -1))
    for name, contents, state in (("f", b"text", None), ("m", data, "archived")):
        f = p.put(name, contents)
        os.chmod(f, 0o600)
        assert "PermissionError" in child("open(__import__('sys').argv[1])", f, uid=USER).stderr
        os.setxattr(f, "system.posix_acl_access", entries)
        for _ in range(2): # before and after it is encoded
            done(child("open(__import__('sys').argv[1], 'rb').read(1)", f, uid=USER))
            r = child("open(__import__('sys').argv[1], 'ab')", f, uid=USER)
            assert "PermissionError" in r.stderr, r.stderr
            if state:
                p.settle(name, want=state)
        assert os.getxattr(f, "system.posix_acl_access") == entries
    # A directory's default list takes the place of the umask.
    os.mkdir(p("d"))
    os.setxattr(p("d"), "system.posix_acl_default", acl((1, 7, -1), (2, 7, USER), (4, 5, -1), (16, 7, -1), (32, 0, -1)))
    old = os.umask(0o077)
    try:
        os.close(os.open(p("d/f"), os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(p("d/sub"))
        os.close(os.open(p("plain"), os.O_CREAT | os.O_WRONLY, 0o666))
    finally:
        os.umask(old)
    assert os.stat(p("d/f")).st_mode & 0o777 == 0o660 and os.stat(p("plain")).st_mode & 0o777 == 0o600
    assert os.getxattr(p("d/sub"), "system.posix_acl_default")
    # What moves in keeps having none, also when it is encoded there.
    os.rename(p.put("n", data), p("d/n"))
    p.settle("d/n")
    assert "system.posix_acl_access" not in os.listxattr(p("d/n"))


def case_users(p):
    if not ROOT:
        return
    os.chmod(p(), 0o1777)
    f = p.put("f")
    os.chmod(f, 0o644)
    for code in ("os.unlink('f')", "os.rename('f', 'g')", "open('f', 'ab')", "os.chmod('f', 0o777)",
                 "os.utime('f', (1, 1))", "os.setxattr('f', 'user.x', b'')", "os.truncate('f', 0)",
                 "os.chown('f', os.getuid(), -1)"):
        assert "PermissionError" in child(code, uid=USER, cwd=p()).stderr, code
    done(child("os.utime('own') if os.path.exists('own') else os.mkdir('own', 0o700)\n"
               "open('own/f', 'w').write('x'); os.chmod('own/f', 0o4755)\n"
               "assert os.stat('own/f').st_uid == os.getuid()\n"
               "open('own/f', 'a').write('y')\nassert os.stat('own/f').st_mode & 0o7777 == 0o755, 'set-id kept'\n",
               uid=USER, cwd=p()))
    assert "PermissionError" in child("os.listdir('own')", uid=USER + 1, cwd=p()).stderr


def case_locks(p):
    fd = os.open(p.put("f"), os.O_RDWR)
    probe = ("import fcntl, sys\nfd = os.open(sys.argv[1], os.O_RDWR)\n"
             "try: fcntl.%s(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept OSError: print('held')\n")
    for how in ("lockf", "flock"):
        getattr(fcntl, how)(fd, fcntl.LOCK_EX)
        assert "held" in done(child(probe % how, p("f")))
        getattr(fcntl, how)(fd, fcntl.LOCK_UN)
        assert "held" not in done(child(probe % how, p("f")))
    fcntl.lockf(fd, fcntl.LOCK_EX)
    os.close(os.open(p("f"), os.O_RDONLY)) # POSIX: any close drops them
    assert "held" not in done(child(probe % "lockf", p("f")))
    os.close(fd)


def case_description_locks(p):
    """Locks of open file descriptions (F_OFD_SETLK) are their own, in one process, too."""
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 10, 20, 0)
    a, b = os.open(p.put("f"), os.O_RDWR), os.open(p("f"), os.O_RDWR)
    fcntl.fcntl(a, 37, lock)
    with raises(errno.EAGAIN):
        fcntl.fcntl(b, 37, lock)
    fcntl.fcntl(b, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 30, 20, 0))
    got = struct.unpack("hhqqi4x", fcntl.fcntl(b, 36, lock)) # F_OFD_GETLK
    assert got[0] == fcntl.F_WRLCK and got[2:] == (10, 20, -1), got
    os.close(os.dup(a)) # not dropped by that
    with raises(errno.EAGAIN):
        fcntl.fcntl(b, 37, lock)
    os.close(a)
    fcntl.fcntl(b, 37, lock)
    os.close(b)


def case_copies_of_models(p):
    """However the kernel copies, a model that was encoded comes out whole."""
    data = read(saved(9))
    p.put("m", data)
    p.settle("m")
    src = os.open(p("m"), os.O_RDONLY)
    for name, copy in (("range", os.copy_file_range), ("send", lambda i, o, n, at, _: os.sendfile(o, i, at, n))):
        dst, at = os.open(p(name), os.O_RDWR | os.O_CREAT), 0
        while at < len(data):
            at += copy(src, dst, len(data) - at, at, None)
        assert copy(src, dst, 4096, at, None) == 0
        os.close(dst)
        assert read(p(name)) == data
    with mmap.mmap(src, 0, prot=mmap.PROT_READ) as shared:
        assert shared[:] == data
    assert os.lseek(src, 5, os.SEEK_DATA) == 5 and os.lseek(src, 5, os.SEEK_HOLE) == len(data)
    os.close(src)


def case_statfs(p):
    st = os.statvfs(p())
    assert st.f_namemax == 255 and 0 < st.f_bavail <= st.f_blocks and st.f_bsize >= 512
    f = p.put("f", bytes(1 << 20))
    fsync = os.open(f, os.O_RDONLY)
    os.fsync(fsync)
    os.close(fsync)
    poll("blocks are counted", lambda: os.stat(f).st_blocks * 512 >= 1 << 20)
    assert os.stat(f).st_dev == os.stat(p()).st_dev and os.stat(f).st_ino != os.stat(p()).st_ino


def saved(n):
    """A small model, written once."""
    path = scratch(f"posix.model{n}")
    if not os.path.exists(path):
        save_file(model(n, rows=128, cols=256, layers=2), path)
    return path


def cases_in(names):
    return {n.removeprefix("case_"): f for n, f in names.items() if n.startswith("case_")}
