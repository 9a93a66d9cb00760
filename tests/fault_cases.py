# SPDX-License-Identifier: Apache-2.0
"""What applications do to a store that holds the archives a and b and the text t, in short
scenarios. Each may be cut off anywhere."""
import mmap

from fault_lib import *

PARKED, PARKED_FILES = 40, 72 # files that wait, and descriptors that the daemon may have


def copy_in(w):
    w.write("new.incomplete", read(source(3)))
    w.rename("new.incomplete", "new")
    w.settle("new")
    w.unlink("new")


def archive_over_plain(w):
    w.rename("a", "t")


def archive_over_archive(w):
    w.rename("a", "b")


def plain_over_archive(w):
    w.write("x", read(source(3)))
    w.rename("x", "a")
    w.settle("a")


def text_over_archive(w):
    w.rename("t", "a")


def plain_over_plain(w):
    w.write("x", read(source(3)))
    w.rename("x", "t")
    w.settle("t")


def safetensors_writer(w):
    """Temporary file, ftruncate, writes, rename over."""
    data = read(source(3))
    tmp = w.path("tmp")

    def save():
        with open(tmp, "wb", buffering=0) as f:
            os.ftruncate(f.fileno(), len(data))
            for at in range(0, len(data), 100000):
                write_all(f, data[at:at + 100000])
    w.step(save, {"tmp": ANY}, {"tmp": digest(data)})
    w.rename("tmp", "a")
    w.settle("a")


def modify(w):
    w.poke("a", changed(1))
    w.settle("a")


def rewrite(w):
    w.step(lambda: put(w.path("a"), b"short"), {"a": digest(b"")}, {"a": ANY}, {"a": digest(b"short")})


def cut(w):
    data = read(source(1))[:-1]
    w.step(lambda: os.truncate(w.path("a"), len(data)), {"a": digest(data)})
    w.settle("a")


def links(w):
    w.link("a", "l")
    w.unlink("a")
    w.link("t", "u")
    w.unlink("t")
    w.write("x", read(source(3)))
    w.link("x", "y")
    w.unlink("x")
    w.settle("y")


def busy_directory(w):
    """The swap comes while the directory is locked by others in the kernel."""
    w.write("x", read(source(3)))
    for _ in range(15):
        w.rename("t", "u")
        w.rename("u", "t")
    w.settle("x")


def directories(w):
    w.step(lambda: os.mkdir(w.path("d")), {"d": DIRECTORY})
    w.rename("a", "d/a")
    w.step(lambda: os.symlink("d/a", w.path("s")), {"s": "d/a"})
    w.step(lambda: os.rename(w.path("d"), w.path("e")),
           {"d": None, "d/a": None, "e": DIRECTORY, "e/a": w.allowed[0]["d/a"]})
    w.unlink("e/a")
    w.step(lambda: os.rmdir(w.path("e")), {"e": None})


def attributes(w):
    for name in ("a", "t"):
        w.step(lambda name=name: os.chmod(w.path(name), 0o640), {})
        w.step(lambda name=name: os.chown(w.path(name), os.getuid(), os.getgid()), {})
        w.step(lambda name=name: os.utime(w.path(name), ns=(1, 2)), {})
        w.step(lambda name=name: os.setxattr(w.path(name), "user.x", b"1"), {})


def long_name(w):
    w.rename("a", "x" * 255)


def exchange(w):
    w.exchange("a", "b")
    w.exchange("a", "t")
    w.write("x", read(source(3)))
    w.exchange("x", "b") # which may be encoded at this moment
    w.settle("b")


def unlink_encoding(w):
    for n in (3, 2):
        w.write("x", read(source(n)))
        w.unlink("x")
    w.write("x", read(source(3)))
    w.settle("x")


def change_encoding(w):
    """Written to, and then replaced, while it is encoded."""
    w.write("x", read(source(3)))
    w.poke("x", changed(3))
    w.write("y.incomplete", read(source(2)))
    w.rename("y.incomplete", "x")
    w.settle("x")


def move_encoding(w):
    """Its directory moves, that is."""
    w.step(lambda: os.mkdir(w.path("d")), {"d": DIRECTORY})
    w.write("d/x", read(source(3)))
    for old, new in (("d", "e"), ("e", "d"), ("d", "e")):
        w.step(lambda old=old, new=new: os.rename(w.path(old), w.path(new)),
               {old: None, old + "/x": None, new: DIRECTORY, new + "/x": sha(source(3))})
    w.settle("e/x")


def quantise(w):
    """An encode that changes the contents, and a writer to what came of it."""
    either = frozenset((sha(source(3)), quantised()))
    w.step(lambda: put(w.path("x"), read(source(3))), {"x": ANY}, {"x": either})
    w.settle("x")
    now = read(w.path("x"))
    assert digest(now) in either
    w.step(lambda: os.truncate(w.path("x"), len(now) - 1), {"x": digest(now[:-1])})


quantise.options = ("bits=4",)


def hot(w):
    """Archives of which decoded copies are kept, and open, while they go."""
    def made(): # those that are not made for want of memory do not count
        kept, total = (int(re.search(rf"^eqfs_hot_{n} (\d+)$", read(w.path(".eqfs/stats")).decode(), re.M)[1])
                       for n in ("files", "made_files_total"))
        return total >= kept
    with open(w.path("a"), "rb"), open(w.path("b"), "rb"):
        poll("copies made", made)
        w.poke("a", changed(1))
        w.rename("t", "b")
    w.settle("a")


hot.options = ("hot=64M",)


def ranges(w):
    """What is copied, or allocated, without passing through the application."""
    def copy():
        with open(w.path("t"), "rb") as f, open(w.path("x"), "wb") as out:
            while os.copy_file_range(f.fileno(), out.fileno(), len(TEXT)):
                pass

    def extend():
        with open(w.path("x"), "r+b") as f:
            os.posix_fallocate(f.fileno(), len(TEXT), 5000)
    w.step(copy, {"x": ANY}, {"x": digest(TEXT)})
    w.step(extend, {"x": ANY}, {"x": digest(TEXT + bytes(5000))})


def unnamed(w):
    """A file that gets its name when it is complete; a copy where the mount has no such files."""
    try:
        fd = os.open(w.m.point, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as e:
        if e.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        w.write("x", read(source(3)))
    else:
        with open(fd, "wb", buffering=0) as f:
            write_all(f, read(source(3)))
            os.fsync(fd)
            # src_dir_fd makes it linkat(), which follows links.
            w.step(lambda: os.link(f"/proc/self/fd/{fd}", w.path("x"), src_dir_fd=fd), {"x": sha(source(3))})
    w.settle("x")


def parked(w):
    """Descriptors are so scarce that files which wait have none."""
    w.step(lambda: os.mkdir(w.path("d")), {"d": DIRECTORY})
    for i in range(PARKED):
        w.write(f"d/{i}", read(source(3))[:40 + i])
    if all("user.eqfs.queued" in os.listxattr(w.m.disk(f"d/{i}")) for i in range(PARKED)):
        with contextlib.suppress(AssertionError): # that needs memory
            poll("descriptors let go", lambda: w.m.proc.poll() is not None or len(fds_of(w.m)) < PARKED, 5)
    w.rename("d/0", "d/x")
    w.unlink("d/1")
    w.link("d/2", "d/l")
    w.rename("a", "d/3")
    w.write("d/4", TEXT)


parked.settle = "3600" # what follows is the next mount's to encode
parked.limits = lambda: few_files(PARKED_FILES)


def look(w):
    """Changes nothing."""
    for name, want in w.allowed[0].items():
        path = w.path(name)
        assert sha(path) == want
        os.stat(path)
        os.listxattr(path)
        for x in ("state", "codec", "bits", "error", "sha256"):
            try:
                xattr(path, x)
            except OSError as e:
                if e.errno != errno.ENODATA:
                    raise
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        with contextlib.closing(mmap.mmap(-1, 1 << 20)) as buf:
            n = os.preadv(fd, [buf], 0)
            assert want == digest(buf[:n])
        os.lseek(fd, 0, os.SEEK_DATA)
        os.fsync(fd)
        os.close(fd)
    assert sorted(os.listdir(w.m.point)) == sorted(w.allowed[0])
    assert b"eqfs_" in read(w.path(".eqfs/stats"))
    os.listdir(w.path(".eqfs"))
    os.statvfs(w.m.point)


SCENARIOS = (copy_in, archive_over_plain, archive_over_archive, plain_over_archive, text_over_archive,
             plain_over_plain, safetensors_writer, modify, rewrite, cut, links, busy_directory,
             directories, attributes, long_name, exchange, unlink_encoding, change_encoding, move_encoding,
             quantise, hot, ranges, unnamed, parked)


__all__ = [n for n in dir() if not n.startswith("_")]
