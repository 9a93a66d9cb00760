# SPDX-License-Identifier: Apache-2.0
"""Models through the mount: saved, encoded, loaded, mapped, read in every way."""
import errno
import mmap
import threading

from mount_lib import *


def encoded(m, name, tensors):
    save_file(tensors, m.path(name))
    m.settle(name)
    assert not os.path.exists(m.disk(name)), "the plain file is still there"
    assert os.path.exists(m.disk(name + ".eqar"))


def test_lossless():
    plain = scratch("plain.safetensors")
    for dtype in ("bf16", "f32", "f16"):
        tensors = model(2, dtype=dtype)
        save_file(tensors, plain, metadata={"format": "pt"})
        with Mount(scratch("lossless-" + dtype)) as m:
            shutil.copyfile(plain, m.path("m.safetensors"))
            os.utime(m.path("m.safetensors"), ns=(10**18, 10**18 + 123456789))
            m.settle("m.safetensors")
            st, disk = os.stat(m.path("m.safetensors")), os.stat(m.disk("m.safetensors.eqar"))
            assert st.st_size == os.path.getsize(plain)
            assert st.st_mtime_ns == 10**18 + 123456789, st.st_mtime_ns
            assert st.st_blocks == disk.st_blocks and disk.st_size < st.st_size
            assert os.listdir(m.point) == ["m.safetensors"]
            assert same(load_file(m.path("m.safetensors")), tensors)
            assert sha(m.path("m.safetensors")) == sha(plain)
            assert xattr(m.path("m.safetensors"), "sha256") == sha(plain)
            assert xattr(m.path("m.safetensors"), "codec") == "planes"
            assert float(xattr(m.path("m.safetensors"), "error")) == 0
            with raises(errno.ENODATA, "bits of a lossless file"):
                xattr(m.path("m.safetensors"), "bits")


def test_lossy():
    tensors = model(3, rows=1024, cols=1024)
    with Mount(scratch("lossy"), "bits=4") as m:
        assert "bits=4" in xattr(m.point, "policy")
        encoded(m, "m.safetensors", tensors)
        assert abs(float(xattr(m.path("m.safetensors"), "bits")) - 4) < 0.1
        assert 0 < float(xattr(m.path("m.safetensors"), "error")) < 0.2
        eqar("unpack", m.disk("m.safetensors.eqar"), scratch("unpacked"))
        assert read(m.path("m.safetensors")) == read(scratch("unpacked"))
        got = load_file(m.path("m.safetensors"))
        assert same(got, load_file(scratch("unpacked")))
        assert not same(got, tensors), "lossy, and yet identical"
        assert (got["ids"] == tensors["ids"]).all()
    with Mount(scratch("lossy"), "ro") as m:
        assert read(m.path("m.safetensors")) == read(scratch("unpacked"))


def test_readers():
    tensors = model(4, rows=1024, cols=1024, layers=6)
    with Mount(scratch("readers")) as m:
        encoded(m, "m", tensors)
        path = m.path("m")
    eqar("unpack", m.disk("m.eqar"), scratch("readers.plain"))
    want = read(scratch("readers.plain"))
    with Mount(scratch("readers"), "ro", "cache=1M") as m:
        # Mapped: shared and private, back to front.
        for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
            with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, flags, mmap.PROT_READ) as mm:
                step = 300001
                for off in range(len(want) // step * step, -1, -step):
                    assert mm[off:off + step] == want[off:off + step]
        a = np.memmap(path, dtype=np.uint8, mode="c")
        assert a.tobytes() == want
        del a
        # Directly: whole blocks of an aligned buffer, and a mapping beside it.
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, 1 << 22) as buf:
            for off in range(0, len(want), 1 << 22):
                n = os.preadv(fd, [buf], off)
                assert n == min(1 << 22, len(want) - off), "a short read"
                assert buf[:n] == want[off:off + n]
        os.close(fd)
        # In pieces, anywhere, by several at once.
        bad = []

        def reader(seed):
            r = np.random.default_rng(seed)
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            for _ in range(60):
                off = int(r.integers(0, len(want)))
                n = int(r.integers(1, 1 << 20))
                if os.pread(fd, n, off) != want[off:off + n]:
                    bad.append((off, n))
            os.close(fd)
        with open(path, "rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        threads = [threading.Thread(target=reader, args=(s,)) for s in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not bad, bad
        fd = os.open(path, os.O_RDONLY)
        assert os.pread(fd, 100, len(want)) == b"" and os.pread(fd, 100, len(want) - 7) == want[-7:]
        assert os.lseek(fd, 5, os.SEEK_DATA) == 5 and os.lseek(fd, 5, os.SEEK_HOLE) == len(want)
        os.close(fd)


def test_many_small_tensors():
    tensors = {f"t{i:04}": np.full(3, i, np.float32) for i in range(2000)}
    tensors["model.layers.0.up_proj.weight"] = model(5)["model.layers.0.mlp.up_proj.weight"]
    with Mount(scratch("small")) as m:
        encoded(m, "m", tensors)
        assert same(load_file(m.path("m")), tensors)


def test_save_over_loaded():
    one, two = model(6), model(7)
    with Mount(scratch("over")) as m:
        encoded(m, "m.safetensors", one)
        old = open(m.path("m.safetensors"), "rb")
        mapped = mmap.mmap(old.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        before = read(m.path("m.safetensors"))
        save_file(two, m.path("m.safetensors")) # temporary file, ftruncate, rename
        assert same(load_file(m.path("m.safetensors")), two)
        assert mapped[:] == before and old.read() == before, "the old file has changed"
        m.settle("m.safetensors")
        assert same(load_file(m.path("m.safetensors")), two)
        assert mapped[:] == before
        mapped.close()
        old.close()
        assert sorted(os.listdir(m.store)) == ["m.safetensors.eqar"]


def test_open_during_encode():
    tensors = model(8)
    with Mount(scratch("during"), settle="0.3") as m:
        save_file(tensors, m.path("m"))
        f = open(m.path("m"), "rb")
        head = f.read(1000)
        m.settle("m")
        f.seek(0)
        assert f.read(1000) == head
        f.seek(0)
        assert hashlib.sha256(f.read()).hexdigest() == sha(m.path("m"))
        # What is behind f has no name any more: writing to it would be lost.
        with raises(errno.ESTALE, "the replaced file for writing"):
            os.open(f"/proc/self/fd/{f.fileno()}", os.O_WRONLY)
        f.close()


def test_by_content():
    with Mount(scratch("content")) as m:
        blob = "0a" * 32
        save_file(model(9), scratch("blob"))
        data = read(scratch("blob"))
        part = m.path(blob + ".1234abcd.incomplete")
        with open(part, "wb") as f: # a download, as huggingface_hub does it
            f.write(data)
        with open(m.path("config.json"), "w") as f:
            f.write("{}")
        with open(m.path("random.safetensors"), "wb") as f:
            f.write(os.urandom(100000))
        poll("config.json looked at", lambda: m.state("config.json") == "plain")
        poll("random looked at", lambda: m.state("random.safetensors") == "plain")
        assert m.state(blob + ".1234abcd.incomplete") == "plain"
        os.chmod(part, 0o640)
        os.rename(part, m.path(blob))
        m.settle(blob)
        assert read(m.path(blob)) == data
        assert os.stat(m.path(blob)).st_mode & 0o777 == 0o640
        os.makedirs(m.path("snapshots/rev"))
        os.symlink("../../" + blob, m.path("snapshots/rev/model.safetensors"))
        assert same(load_file(m.path("snapshots/rev/model.safetensors")), model(9))
        assert sorted(n for n in os.listdir(m.store) if "eqfs-tmp" not in n) == \
            sorted([blob + ".eqar", "config.json", "random.safetensors", "snapshots"])


def test_never_by_mounting():
    store = scratch("existing")
    os.makedirs(store)
    save_file(model(10), store + "/old.safetensors")
    with Mount(store, "bits=4") as m:
        before = read(m.path("old.safetensors"))
        os.rename(m.path("old.safetensors"), m.path("moved.safetensors"))
        os.utime(m.path("moved.safetensors"))
        os.close(os.open(m.path("moved.safetensors"), os.O_RDWR))
        encoded(m, "new.safetensors", model(11)) # the worker has been at it
        assert m.state("moved.safetensors") == "plain"
        assert read(m.disk("moved.safetensors")) == before


def test_quiet():
    with Mount(scratch("quiet"), settle="0.2") as m:
        save_file(model(12), m.path("m"))
        f = open(m.path("m"), "r+b")
        encoded(m, "other", model(14)) # later quiet, and done: the open writer holds m back
        assert os.path.exists(m.disk("m")) and m.state("m") == "queued"
        f.seek(100000)
        f.write(b"changed")
        f.close()
        want = read(m.path("m"))
        m.settle("m")
        assert read(m.path("m")) == want and want[100000:100007] == b"changed"


def test_hard_links():
    with Mount(scratch("links")) as m:
        save_file(model(13), m.path("tmp"))
        data = read(m.path("tmp"))
        os.link(m.path("tmp"), m.path("final"))
        m.settle("final", want="hard links")
        assert os.stat(m.disk("final")).st_nlink == 2
        os.unlink(m.path("tmp")) # as git does
        m.settle("final")
        assert read(m.path("final")) == data
        os.link(m.path("final"), m.path("second"))
        assert sorted(os.listdir(m.store)) == ["final.eqar", "second.eqar"]
        assert read(m.path("second")) == data and os.stat(m.path("second")).st_nlink == 2
        os.unlink(m.path("final"))
        assert os.listdir(m.point) == ["second"] and read(m.path("second")) == data


run(globals())
