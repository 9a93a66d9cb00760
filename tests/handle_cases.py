# SPDX-License-Identifier: Apache-2.0
"""Cases, as those of posix_cases.py, of files that are reached without a name: by a file
handle (name_to_handle_at, which NFS servers use), also when the kernel has forgotten them."""
import re

from posix_cases import *

ESTALE = errno.ESTALE


class Handle(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]

    def bytes(self):
        return self.kind, bytes(self.data[:self.size])


def handle_of(path):
    h, mount_id = Handle(size=128), ctypes.c_int()
    if LIBC.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(h), ctypes.byref(mount_id), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return h


def open_handle(p, h, flags=os.O_RDONLY):
    top = os.open(p(), os.O_RDONLY)
    fd = LIBC.open_by_handle_at(top, ctypes.byref(h), flags)
    os.close(top)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    return fd


def content(p, h):
    with open(open_handle(p, h), "rb") as f:
        return f.read()


def forget(p):
    """The kernel forgets what it knows of this place; a mount then has nothing of it open."""
    for top, _, names in os.walk(p()):
        for n in names: # what has pages in the cache stays
            if stat.S_ISREG(os.lstat(os.path.join(top, n)).st_mode):
                fd = os.open(os.path.join(top, n), os.O_RDONLY)
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)
    below = p.mount and p.mount.disk(os.path.relpath(p(), p.mount.point)) + "/"

    def forgotten():
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("2")
        if not p.mount:
            return True
        pid = p.mount.proc.pid
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError): # a node's are O_PATH
                if os.readlink(f"/proc/{pid}/fd/{fd}").startswith(below) and \
                        int(re.search(rb"flags:\s*(\d+)", read(f"/proc/{pid}/fdinfo/{fd}"))[1], 8) & os.O_PATH:
                    return False
        return True
    poll("everything forgotten", forgotten)


def case_handles(p):
    """Of everything that a store may hold: it is found again, and nothing else is."""
    if not ROOT:
        return
    data = read(saved(5))
    os.makedirs(p("d/sub"))
    p.put("f", b"plain")
    p.put("d/sub/g", b"deep")
    p.put("m", data)
    os.symlink("f", p("s"))
    os.mkfifo(p("fifo"))
    p.settle("m")
    names = ("", "f", "d", "d/sub", "d/sub/g", "m", "s", "fifo")
    before = {n: os.lstat(p(n)) for n in names}
    handles = {n: handle_of(p(n)) for n in names}
    assert len({h.bytes() for h in handles.values()}) == len(names)
    for _ in range(3):
        forget(p)
        for n in names:
            fd = open_handle(p, handles[n], os.O_PATH)
            now = os.fstat(fd)
            for k in ("st_mode", "st_uid", "st_size", "st_ino", "st_dev", "st_nlink"):
                assert getattr(now, k) == getattr(before[n], k), (n, k)
            if n in ("f", "d/sub/g", "m"):
                assert read(f"/proc/self/fd/{fd}") == read(p(n))
            os.close(fd)
            assert handle_of(p(n)).bytes() == handles[n].bytes(), n
    assert content(p, handles["m"]) == data
    forget(p)
    fd = open_handle(p, handles["d"], os.O_RDONLY | os.O_DIRECTORY)
    assert os.listdir(fd) == ["sub"]
    os.chdir(fd) # its place in the tree is found again
    try:
        assert os.getcwd() == p("d")
        assert os.stat("..").st_ino == os.stat(p()).st_ino
    finally:
        os.chdir("/")
        os.close(fd)


def case_handles_of_changed(p):
    """Renamed, written to, encoded, deleted between the handle and its use."""
    if not ROOT:
        return
    data = read(saved(6))
    os.makedirs(p("d"))
    for n in ("moved", "grown", "gone", "replaced", "linked"):
        p.put(n, n.encode())
    p.put("model", data)
    handles = {n: handle_of(p(n)) for n in ("moved", "grown", "gone", "replaced", "linked", "model", "d")}
    os.rename(p("moved"), p("d/moved"))
    os.rename(p("d"), p("e"))
    with open(p("grown"), "ab") as f:
        f.write(b" up")
    os.unlink(p("gone"))
    os.rename(p.put("new", b"another"), p("replaced"))
    os.link(p("linked"), p("e/link"))
    os.unlink(p("linked"))
    p.settle("model")
    again = {n: p.put(n, b"not that one") for n in ("gone", "moved", "linked")}
    for _ in range(2):
        forget(p)
        assert content(p, handles["moved"]) == b"moved" and content(p, handles["grown"]) == b"grown up"
        assert content(p, handles["linked"]) == b"linked" and content(p, handles["model"]) == data
        fd = open_handle(p, handles["d"], os.O_RDONLY | os.O_DIRECTORY)
        assert sorted(os.listdir(fd)) == ["link", "moved"]
        os.close(fd)
        for n in ("gone", "replaced"):
            with raises(ESTALE, n):
                open_handle(p, handles[n])
    # A model becomes a plain file under its writer, and a model again.
    with open(p("model"), "r+b") as f:
        f.write(data[:1])
    forget(p)
    assert content(p, handles["model"]) == data
    p.settle("model")
    forget(p)
    assert content(p, handles["model"]) == data
    for path in (*again.values(), p("model"), p("e/moved")):
        os.unlink(path)
    forget(p)
    for n in ("moved", "model"):
        with raises(ESTALE, n):
            open_handle(p, handles[n])


def case_handles_written(p):
    """A file found by its handle is written to, archive or not, and then has its name still."""
    if not ROOT:
        return
    data = read(saved(7))
    os.makedirs(p("d"))
    handles = {n: handle_of(p.put(n, data)) for n in ("d/a", "d/b")}
    p.settle("d/a")
    p.settle("d/b")
    for how, n in ((os.O_RDWR, "d/a"), (os.O_RDWR | os.O_TRUNC, "d/b")):
        forget(p)
        fd = open_handle(p, handles[n], how)
        os.pwrite(fd, data[:100], 0)
        if how & os.O_TRUNC:
            os.pwrite(fd, data[100:], 100)
        os.close(fd)
        assert read(p(n)) == data
        forget(p)
        assert content(p, handles[n]) == data
        # An inode number that is shown longer than it is in use could be another file's.
        assert all(e.inode() == e.stat().st_ino for e in os.scandir(p("d")))
        p.settle(n)
        assert all(e.inode() == e.stat().st_ino for e in os.scandir(p("d")))
    if p.mount: # whose log has their names, though nobody has said them
        top = os.path.relpath(p(), p.mount.point)
        assert p.mount.log().count(f"made a plain file again: {top}/d/") == 2, p.mount.log()


def case_handles_outside(p):
    """What was moved out of the store, or about in it, is not found where its names are not."""
    if not ROOT or not p.mount:
        return
    below, out = p.mount.disk(os.path.relpath(p(), p.mount.point)), scratch("outside")
    os.makedirs(p("d"))
    os.mkdir(p("e"))
    os.mkdir(out)
    names = ("f", "m", "d/g", "s", "fifo")
    p.put("f", b"plain")
    p.put("m", read(saved(11)))
    p.put("d/g", b"deep")
    os.symlink("f", p("s"))
    os.mkfifo(p("fifo"))
    p.settle("m")
    handles = {n: handle_of(p(n)) for n in names}
    moves = [(n, n) for n in ("f", "s", "fifo")] + [("m.eqar", "m.eqar"), ("d", "d")]
    forget(p)
    for n, to in moves:
        os.rename(os.path.join(below, n), os.path.join(out, to))
    for n in names:
        for flags in (os.O_PATH, os.O_RDWR) if n in ("f", "m", "d/g") else (os.O_PATH,):
            with raises(ESTALE, n):
                open_handle(p, handles[n], flags)
    for n, to in moves:
        os.rename(os.path.join(out, to), os.path.join(below, n))
    for n in names:
        os.close(open_handle(p, handles[n], os.O_PATH))
    # Within the store its new name has to be seen first.
    forget(p)
    os.rename(os.path.join(below, "f"), os.path.join(below, "e/f"))
    with raises(ESTALE):
        open_handle(p, handles["f"])
    assert os.stat(p("e/f")).st_size == 5
    for _ in range(2):
        forget(p)
        assert content(p, handles["f"]) == b"plain"
    # Through the mount it is seen; and one name of two is enough.
    os.rename(p("e/f"), p("d/f"))
    os.link(p("d/f"), p("d/other"))
    os.stat(p("d/f"))
    os.unlink(p("d/f"))
    forget(p)
    assert content(p, handles["f"]) == b"plain"


def case_handles_of_open(p):
    """What is encoded while somebody reads it has two handles then, and both are good."""
    if not ROOT:
        return
    data = read(saved(8))
    handles = [handle_of(p.put("m", data))]
    with open(p("m"), "rb") as held:
        p.settle("m")
        assert held.read() == data and content(p, handles[0]) == data
    handles.append(handle_of(p("m")))
    for k in (0, 1):
        forget(p)
        assert content(p, handles[k]) == data and content(p, handles[1 - k]) == data
        assert read(p("m")) == data
    for k in (0, 1):
        data = bytes([data[0], *data[1:-1], data[-1] ^ 0x55])
        forget(p)
        fd = open_handle(p, handles[k], os.O_RDWR)
        os.pwrite(fd, data[-1:], len(data) - 1)
        os.close(fd)
        assert read(p("m")) == data and content(p, handles[k]) == data and content(p, handles[1 - k]) == data
        p.settle("m")
        assert read(p("m")) == data and content(p, handles[k]) == data and content(p, handles[1 - k]) == data
    forget(p)
    os.unlink(p("m"))
    for h in handles:
        with raises(ESTALE):
            open_handle(p, h)


def link_of(fd, path):
    """As open(2) says how a file without a name gets one; Python's os.link does not."""
    if LIBC.linkat(-100, f"/proc/self/fd/{fd}".encode(), -100, os.fsencode(path), 0x400):
        raise OSError(ctypes.get_errno(), "linkat")


def case_nameless(p):
    """O_TMPFILE: it has no name, and goes when it is closed, unless it was given one."""
    if p.mount and "its libfuse has no passthrough" in p.mount.log():
        with raises(errno.EOPNOTSUPP): # nor has it this operation
            os.open(p(), os.O_TMPFILE | os.O_RDWR, 0o600)
        return
    data = read(saved(10))
    fd = os.open(p(), os.O_TMPFILE | os.O_RDWR, 0o640)
    st = os.fstat(fd)
    assert st.st_nlink == 0 and stat.S_IMODE(st.st_mode) == 0o640 and os.listdir(p()) == []
    os.write(fd, data)
    assert os.pread(fd, 100, 0) == data[:100] and os.fstat(fd).st_size == len(data)
    link_of(fd, p("m"))
    assert os.fstat(fd).st_nlink == 1 and os.path.samestat(os.fstat(fd), os.stat(p("m")))
    os.write(fd, b"")
    os.close(fd)
    p.settle("m")
    assert read(p("m")) == data
    # By AT_EMPTY_PATH, and with no writer left when it gets its name.
    fd = os.open(p(), os.O_TMPFILE | os.O_WRONLY, 0o600)
    os.write(fd, data)
    only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    if ROOT:
        assert LIBC.linkat(only, b"", -100, os.fsencode(p("n")), 0x1000) == 0, os.strerror(ctypes.get_errno())
    else:
        link_of(only, p("n"))
    os.close(only)
    p.settle("n")
    assert read(p("n")) == data
    fd = os.open(p(), os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    with raises(errno.ENOENT):
        link_of(fd, p("x"))
    os.close(fd)
    with raises(errno.EINVAL):
        os.open(p(), os.O_TMPFILE | os.O_RDONLY)
    assert sorted(os.listdir(p())) == ["m", "n"]
    if ROOT:
        os.chmod(p(), 0o777)
        done(child("import sys\nos.umask(0o027)\nfd = os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR, 0o666)\n"
                   "assert os.fstat(fd).st_uid == os.getuid() and os.fstat(fd).st_mode & 0o777 == 0o640\n", p(), uid=USER))


def case_nameless_are_closed(p):
    """What is written to a file that was deleted while open does not outlive it."""
    for _ in range(3):
        fd = os.open(p("f"), os.O_RDWR | os.O_CREAT)
        os.unlink(p("f"))
        os.write(fd, bytes(1 << 20))
        os.close(fd)
    if p.mount:
        fds = f"/proc/{p.mount.proc.pid}/fd"
        gone = re.compile(re.escape(p.mount.disk(os.path.relpath(p(), p.mount.point))) + r"/f \(deleted\)")

        def left():
            for n in os.listdir(fds):
                with contextlib.suppress(OSError):
                    if gone.match(os.readlink(f"{fds}/{n}")):
                        return True
            return False
        poll("closed below", lambda: not left())


def case_handles_made_up(p):
    """Whatever bytes a handle has, it leads to an error or into the store."""
    if not ROOT:
        return
    own = handle_of(p.put("f", b"inside"))
    forget(p)
    top, rng = os.stat(p()).st_dev, np.random.default_rng(1)
    for i in range(3000):
        h = Handle.from_buffer_copy(own)
        if i % 3 == 0:
            h.data[i // 3 % own.size] ^= 1 << i % 8
        elif i % 3 == 1:
            h.data[i % own.size] = int(rng.integers(256))
        else:
            h.data[:own.size] = rng.bytes(own.size)
        try:
            fd = open_handle(p, h, os.O_PATH)
        except OSError as e:
            assert e.errno in (ESTALE, errno.ENOENT, errno.EINVAL), e
        else:
            assert os.fstat(fd).st_dev == top
            os.close(fd)
    assert content(p, own) == b"inside"
