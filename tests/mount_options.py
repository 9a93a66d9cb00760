# SPDX-License-Identifier: Apache-2.0
"""Options, policies, refusals, the life of the daemon."""
import errno
import re

from mount_lib import *


def refused(*args, code=1):
    r = subprocess.run([EQFS, *args], capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert r.returncode == code, (args, r.returncode, r.stderr)
    assert r.stderr.startswith("eqfs: "), r.stderr
    lines = r.stderr.splitlines()
    assert len(lines) == (1 if code == 1 else 2), r.stderr
    return lines[0]


def test_refusals():
    for d in ("r/store/in", "r/mnt"):
        os.makedirs(scratch(d))
    store, mnt = scratch("r/store"), scratch("r/mnt")
    os.symlink("store/in", scratch("r/link"))
    for point in (store + "/in", scratch("r/link"), store):
        assert "inside the store" in refused(store, point)
    assert "inside the mountpoint" in refused(store, scratch("r"))
    assert "No such file" in refused(store + "/nothing", mnt)
    assert "No such file" in refused(store, mnt + "/nothing")
    for opt in ("bits=9", "bits=x", "lambda=-1", "format=fp4"):
        assert opt.split("=")[1] in refused("-o", opt, store, mnt, code=2)
    for opt in ("settle=-1", "settle=x", "cache=1", "cache=1X", "cache=", "threads=0", "threads=x"):
        assert opt in refused("-o", opt, store, mnt, code=2)
    assert "unknown option" in refused("--frobnicate", store, mnt, code=2)
    refused(store, code=2)
    refused(code=2)
    refused(store, mnt, "third", code=2)
    r = subprocess.run([EQFS, "-o", "frobnicate", store, mnt], capture_output=True, text=True, check=False)
    assert r.returncode and "frobnicate" in r.stderr, r.stderr
    with open(store + "/.eqfs.conf", "w") as f:
        f.write("[policy]\nbitz = 4\n")
    assert ".eqfs.conf:2: " in refused(store, mnt)
    assert not mounted(mnt)


def test_help():
    for opt in ("--help", "-h"):
        assert "settle=SEC" in subprocess.run([EQFS, opt], capture_output=True, text=True, check=True).stdout
    for opt in ("--version", "-V"):
        assert re.match(r"eqfs .*\d+\.\d+\.\d+", subprocess.run([EQFS, opt], capture_output=True, text=True,
                                                              check=True).stdout)


def test_policy():
    store = scratch("policy")
    os.makedirs(store)
    with Mount(store) as m:
        assert xattr(m.point, "policy") == "lossless" and "policy: lossless" in m.log()
    with open(store + "/.eqfs.conf", "w") as f:
        f.write("# ours\n[policy]\nbits = 3\nexclude = *.0.*\n")
    with Mount(store) as m:
        assert "bits=3" in xattr(m.point, "policy") and "*.0.*" in xattr(m.point, "policy")
        save_file(model(1), m.path("m"))
        m.settle("m")
        got, want = load_file(m.path("m")), model(1)
        assert got["model.layers.0.mlp.up_proj.weight"].tobytes() == \
            want["model.layers.0.mlp.up_proj.weight"].tobytes()
        assert got["model.layers.1.mlp.up_proj.weight"].tobytes() != \
            want["model.layers.1.mlp.up_proj.weight"].tobytes()
    with Mount(store, "bits=2.5", "format=int8", "exclude=*.1.*", "exclude=*.2.*") as m:
        text = xattr(m.point, "policy")
        assert "bits=2.5" in text and "format=int8" in text and "*.2.*" in text, text
        assert "bits=2.5" in m.log()
    with Mount(store, "bits=0") as m:
        assert "bits" not in xattr(m.point, "policy")


def test_locks():
    with Mount(scratch("locks")) as m:
        save_file(model(2), m.path("m"))
        m.settle("m")
        os.makedirs(scratch("other"))
        for opt in ("rw", "ro"):
            assert "mounted already" in refused("-o", opt, m.store, scratch("other"))
    with Mount(m.store, "ro") as m:
        second = subprocess.Popen([EQFS, "-f", "-o", "ro", m.store, scratch("other")],
                                  stderr=subprocess.DEVNULL)
        try:
            poll("mounted twice", lambda: mounted(scratch("other")))
            assert read(m.path("m")) == read(scratch("other") + "/m")
            assert "mounted already" in refused(m.store, scratch("other"))
        finally:
            second.terminate()
            assert second.wait(30) == 0


def test_read_only():
    with Mount(scratch("ro")) as m:
        save_file(model(3), m.path("m"))
        m.settle("m")
        with open(m.path("p"), "w") as f:
            f.write("plain")
    before = {n: os.stat(m.disk(n)) for n in os.listdir(m.store)}
    with Mount(m.store, "ro") as m:
        assert same(load_file(m.path("m")), model(3)) and read(m.path("p")) == b"plain"
        for what in (lambda: open(m.path("p"), "ab"), lambda: open(m.path("m"), "r+b"),
                     lambda: os.unlink(m.path("p")), lambda: os.mkdir(m.path("d")),
                     lambda: os.rename(m.path("p"), m.path("q")), lambda: os.utime(m.path("m"))):
            with raises(errno.EROFS):
                what()
    for n, st in before.items():
        now = os.stat(m.disk(n))
        assert (st.st_mtime_ns, st.st_ctime_ns, st.st_ino) == (now.st_mtime_ns, now.st_ctime_ns, now.st_ino)


def test_daemon():
    store, mnt = scratch("daemon"), scratch("daemon.point")
    os.makedirs(store)
    os.makedirs(mnt)
    for _ in range(2): # the second time only when the first has let go
        start = time.monotonic()
        def up():
            return subprocess.run([EQFS, "-q", "-o", "settle=0", store, mnt], capture_output=True,
                                  text=True, check=False, timeout=DEADLINE)
        r = poll("mounted", lambda: (lambda r: r if r.returncode == 0 else None)(up()))
        assert not r.stdout and not r.stderr, r
        try:
            assert mounted(mnt)
            with open("/proc/self/mountinfo") as f:
                line = next(s for s in f if s.split()[4] == mnt).split(" - ")[1].split()
            assert line[:2] == ["fuse.eqfs", store], line
            save_file(model(4), mnt + "/m")
            poll("archived", lambda: xattr(mnt + "/m", "state") == "archived")
            assert same(load_file(mnt + "/m"), model(4))
        finally:
            subprocess.run(["fusermount3", "-u", mnt], check=True)
        assert time.monotonic() - start < 60


def test_log_to_terminal_only_when_asked():
    """-q says nothing; -v says what became of a file."""
    with Mount(scratch("verbose")) as m:
        save_file(model(5), m.path("m"))
        m.settle("m")
        poll("a line of the encode", lambda: "encoded m: " in m.log())


run(globals())
