#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A quantised file loses nothing more until somebody writes to it."""

import errno
import hashlib
import os
import shutil
import subprocess

from mount_lib import EQAR, EXCHANGE, Mount, eqar, model, poll, raises, read, renameat2, run, scratch, sha, xattr
from safetensors.numpy import save_file


def test_opened_at_once():
    """Whoever opens a file that was just encoded gets what the archive holds, also while
    somebody has the plain file open, who keeps that."""
    save_file(model(9), scratch("once"))
    plain, data = sha(scratch("once")), read(scratch("once"))
    for i in range(3):
        with Mount(scratch(f"once{i}"), "bits=4") as m:
            with open(m.path("m"), "wb") as f, open(m.path("m"), "rb") as held:
                f.write(data)
                f.close()
                poll("encoded", lambda m=m: os.stat(m.path("m")) and not os.path.exists(m.disk("m")))
                got = sha(m.path("m")) # which the kernel believes it knows, for a second
                again = sha(f"/proc/self/fd/{held.fileno()}")
                assert hashlib.sha256(held.read()).hexdigest() == plain == again
            eqar("unpack", "-f", m.disk("m.eqar"), scratch("once.out"))
            assert got == sha(scratch("once.out")) != plain


def quantised(name):
    """A mount of a store that holds m.safetensors at 4 bits; and what it reads as."""
    m = Mount(scratch(name), "bits=4")
    save_file(model(), m.path("m.safetensors"))
    m.settle("m.safetensors")
    assert 3 < float(xattr(m.path("m.safetensors"), "bits")) < 5
    return m, sha(m.path("m.safetensors"))


def test_readers_meanwhile():
    """Who reads while a file is encoded sees it as it was or as it became, never some of each,
    though the kernel caches both under one inode; and in the end what the archive holds."""
    with Mount(scratch("meanwhile"), "bits=4", settle="0") as m:
        for i in range(8):
            name = f"m{i}"
            save_file(model(i), scratch(name))
            shutil.copyfile(scratch(name), m.path(name))
            seen, encoding = {sha(scratch(name))}, True
            while encoding:
                encoding = m.state(name) != "archived"
                if i % 2 or not encoding: # or the file is closed when its turn comes
                    seen.add(sha(m.path(name)))
            eqar("unpack", "-f", m.disk(name + ".eqar"), scratch(name + ".out"))
            want = sha(scratch(name + ".out"))
            assert sha(m.path(name)) == want and seen == {sha(scratch(name)), want}, name


def test_open_for_writing():
    """Opened for writing and closed: plain again, the same bytes, and left so."""
    m, before = quantised("untouched")
    with m:
        with open(m.path("m.safetensors"), "r+b"):
            pass
        assert m.state("m.safetensors") == "plain"
        assert sha(m.path("m.safetensors")) == before
    with Mount(scratch("untouched"), "bits=4") as m:
        os.sync()
        # Whatever a new mount finds to do, it has not queued this.
        poll("mounted again", lambda: os.path.exists(m.path("m.safetensors")))
        assert m.state("m.safetensors") == "plain"
        assert sha(m.path("m.safetensors")) == before


def test_write():
    """Really written to: encoded again."""
    m, _ = quantised("written")
    with m:
        with open(m.path("m.safetensors"), "r+b") as f:
            head = f.read(64)
            f.seek(0)
            f.write(head)
        m.settle("m.safetensors")


def test_lossless_archive():
    """A lossless archive opened for writing under a lossy policy stays what it was, and
    what a lossless mount has left queued is not quantised by the next mount."""
    os.makedirs(scratch("mixed"))
    plain = scratch("plain.safetensors")
    save_file(model(seed=3), plain)
    eqar("pack", "-q", plain, scratch("mixed/m.eqar"))
    with Mount(scratch("mixed"), "bits=4") as m:
        with open(m.path("m"), "r+b"):
            pass
        assert m.state("m") == "plain" and sha(m.path("m")) == sha(plain)
    with Mount(scratch("mixed"), settle="3600") as m:
        shutil.copyfile(plain, m.path("queued"))
        assert m.state("queued") == "queued"
    with Mount(scratch("mixed"), "bits=4") as m:
        shutil.copyfile(plain, m.path("new"))
        m.settle("new")
        assert m.state("queued") == "plain" and sha(m.path("queued")) == sha(plain)
    with Mount(scratch("mixed")) as m:
        m.settle("queued")
        assert sha(m.path("queued")) == sha(plain)


def test_exchange():
    """With what is no archive: plain then, the same bytes; but not if it fails."""
    m, before = quantised("exchange")
    with m:
        os.mkdir(m.path("x.eqar"))
        os.mkdir(m.path("d"))
        for old, new in (("m.safetensors", "x.eqar"), ("x.eqar", "m.safetensors")):
            with raises(errno.EPERM, "a file took a name that is an archive's"):
                renameat2(m.path(old), m.path(new), EXCHANGE)
        long = m.path("x" * 250 + ".eqar")
        with raises(errno.EPERM, "renamed to a name that is an archive's"):
            os.rename(m.path("m.safetensors"), long)
        assert m.state("m.safetensors") == "archived"
        renameat2(m.path("m.safetensors"), m.path("d"), EXCHANGE)
        m.settle("d", want="plain")
        assert sha(m.path("d")) == before and os.path.isdir(m.path("m.safetensors"))


def test_links_of_archive():
    """Nobody can say which name was opened: no write, rather than one that is lost."""
    with Mount(scratch("links")) as m:
        save_file(model(seed=4), m.path("a"))
        m.settle("a")
        before = sha(m.path("a"))
        os.link(m.path("a"), m.path("b"))
        for name in "ab":
            with raises(errno.EPERM, "written to an archive with links"):
                open(m.path(name), "r+b").close()
            with raises(errno.EPERM, "truncated an archive with links"):
                os.truncate(m.path(name), 100)
        assert sha(m.path("a")) == sha(m.path("b")) == before
        os.unlink(m.path("b"))
        with open(m.path("a"), "r+b") as f:
            f.write(b"x")
        with open(m.path("a"), "rb") as f:
            assert f.read(1) == b"x"


def test_linked_plain():
    """A plain file is encoded once its other link is gone, whichever that is."""
    with Mount(scratch("linked")) as m:
        save_file(model(seed=5), m.path("h"))
        os.link(m.path("h"), m.path("h2"))
        m.settle("h", want="hard links")
        os.unlink(m.path("h2"))
        m.settle("h")


def test_nested():
    """Stores within a mounted store are left alone."""
    with Mount(scratch("outer")) as m:
        os.mkdir(m.path("sub"))
        for where in (m.disk("sub"), scratch("")):
            run_ = subprocess.run([EQAR, "pack", "-rq", where], capture_output=True, text=True)
            assert run_.returncode == 1 and "in use" in run_.stderr, (where, run_.stderr)
        inner = Mount(m.disk("sub"), fails=True)
        assert inner.wait() == 1 and "inside a store" in inner.log()
        os.rmdir(inner.point)
        os.unlink(inner.log_path)


def test_save_again():
    """Saving over it is a new file."""
    m, before = quantised("again")
    with m:
        save_file(model(seed=9), m.path("m.safetensors"))
        m.settle("m.safetensors")
        assert sha(m.path("m.safetensors")) != before


if __name__ == "__main__":
    run(globals())
