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
    """Renamed, written to, deleted between the handle and its use."""
    if not ROOT:
        return
    os.makedirs(p("d"))
    for n in ("moved", "grown", "gone", "replaced", "linked"):
        p.put(n, n.encode())
    handles = {n: handle_of(p(n)) for n in ("moved", "grown", "gone", "replaced", "linked", "d")}
    os.rename(p("moved"), p("d/moved"))
    os.rename(p("d"), p("e"))
    with open(p("grown"), "ab") as f:
        f.write(b" up")
    os.unlink(p("gone"))
    os.rename(p.put("new", b"another"), p("replaced"))
    os.link(p("linked"), p("e/link"))
    os.unlink(p("linked"))
    again = {n: p.put(n, b"not that one") for n in ("gone", "moved", "linked")}
    for _ in range(2):
        forget(p)
        assert content(p, handles["moved"]) == b"moved" and content(p, handles["grown"]) == b"grown up"
        assert content(p, handles["linked"]) == b"linked"
        fd = open_handle(p, handles["d"], os.O_RDONLY | os.O_DIRECTORY)
        assert sorted(os.listdir(fd)) == ["link", "moved"]
        os.close(fd)
        for n in ("gone", "replaced"):
            with raises(ESTALE, n):
                open_handle(p, handles[n])
    for path in (*again.values(), p("e/moved")):
        os.unlink(path)
    forget(p)
    for n in ("moved",):
        with raises(ESTALE, n):
            open_handle(p, handles[n])


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
