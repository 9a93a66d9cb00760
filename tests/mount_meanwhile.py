# SPDX-License-Identifier: Apache-2.0
"""What is done to a file while it changes from an archive to a plain file or back: nothing
of it may be lost. A preloaded library holds the change up at its first sync or write."""
import errno
import itertools
import re
import select
import threading

from mount_lib import *

SHIM = os.environ.get("EQFS_FAULT_SHIM", "")

if not os.path.exists(SHIM):
    sys.exit("EQFS_FAULT_SHIM names no library to preload")


def shim_env(store, op, fault, **more):
    """The environment in which this happens to these calls for a store."""
    return {"LD_PRELOAD": SHIM, "EQFS_FAULT_ROOT": os.path.realpath(store), "EQFS_FAULT": fault,
            "EQFS_FAULT_OPS": f",{op},", "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0",
            **more}


class Gate:
    """Holds the n-th event of this kind up; a context manager for what is done meanwhile.
    The next one fails then, if there is an error."""

    def __init__(self, store, op, n=1, error=0, root=None):
        path = store + ".gate"
        os.makedirs(store, exist_ok=True)
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.env = shim_env(root or store, op, f"wait:{n}:{error}:1", EQFS_FAULT_GATE=path)

    def __enter__(self):
        assert select.select([self.fd], [], [], DEADLINE)[0], "the change did not begin"

    def __exit__(self, *exc):
        os.close(self.fd)


def archive(store, name="m"):
    """A store with one archive, and what is in it."""
    plain = os.path.join(store, name)
    os.makedirs(store, exist_ok=True)
    save_file(model(), plain)
    os.chmod(plain, 0o644)
    want = read(plain)
    eqar("pack", "-q", "-r", store)
    assert os.listdir(store).count(name + ".eqar") == 1 and not os.path.exists(plain)
    return want


class Opening(threading.Thread):
    """Opens a file for writing, and may fail."""

    def __init__(self, path):
        super().__init__()
        self.path, self.error = path, None
        self.start()

    def run(self):
        try:
            os.close(os.open(self.path, os.O_RDWR))
        except OSError as e:
            self.error = e.errno

    def result(self):
        self.join(DEADLINE)
        assert not self.is_alive(), "the open does not return"
        return self.error


def change(path):
    """Attributes, and a function that finds them there."""
    owner = (4321, 4322) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    os.chown(path, *owner)
    os.chmod(path, 0o600)
    os.setxattr(path, "user.note", b"new")
    os.utime(path, ns=(5, 1500000000123456789))

    def check(at, mtime=True):
        st = os.stat(at)
        assert st.st_mode & 0o7777 == 0o600, oct(st.st_mode)
        assert (st.st_uid, st.st_gid) == owner
        assert os.getxattr(at, "user.note") == b"new"
        assert not mtime or st.st_mtime_ns == 1500000000123456789
    check(path)
    return check


def test_attributes_while_restored():
    store = scratch("restored")
    want = archive(store)
    gate = Gate(store, "fsync")
    with Mount(store, settle="3600", env=gate.env) as m:
        opening = Opening(m.path("m"))
        with gate:
            check = change(m.path("m"))
        assert opening.result() is None
        assert os.path.exists(m.disk("m")) and not os.path.exists(m.disk("m.eqar"))
        check(m.path("m"))
        check(m.disk("m"))
        assert read(m.path("m")) == want


def test_link_while_restored():
    """It stays an archive, as one that had a link before."""
    store = scratch("linked")
    want = archive(store)
    gate = Gate(store, "fsync")
    with Mount(store, settle="3600", env=gate.env) as m:
        opening = Opening(m.path("m"))
        with gate:
            os.link(m.path("m"), m.path("l"))
        assert opening.result() == errno.EPERM
        assert os.path.samefile(m.path("m"), m.path("l")) and os.stat(m.path("m")).st_nlink == 2
        assert sorted(os.listdir(store)) == ["l.eqar", "m.eqar"]
        assert read(m.path("m")) == want == read(m.path("l"))


def test_attributes_while_encoded():
    """It is encoded again, with the new ones."""
    store = scratch("encoded")
    gate = Gate(store, "fsync")
    with Mount(store, env=gate.env) as m:
        save_file(model(), m.path("m"))
        want = read(m.path("m"))
        with gate:
            assert m.state("m") == "encoding"
            check = change(m.path("m"))
        m.settle("m")
        check(m.path("m"))
        check(m.disk("m.eqar"), mtime=False)
        assert read(m.path("m")) == want


def test_written_while_looked_at():
    """What is found to be no model is one by the time that is said: it is looked at again."""
    store = scratch("looked")
    save_file(model(), scratch("looked.model"))
    want = read(scratch("looked.model"))
    gate = Gate(store, "pread", 2)
    with Mount(store, settle="0", env=gate.env) as m:
        with open(m.path("m"), "wb") as f:
            f.write((16).to_bytes(8, "little") + bytes(4096)) # a header's length, of which none comes
        with gate:
            with open(m.path("m"), "wb") as f:
                f.write(want)
        m.settle("m")
        assert read(m.path("m")) == want


def test_link_while_encoded():
    """It stays plain until the link is gone."""
    store = scratch("encoded2")
    gate = Gate(store, "fsync")
    with Mount(store, env=gate.env) as m:
        save_file(model(), m.path("m"))
        with gate:
            assert m.state("m") == "encoding"
            os.link(m.path("m"), m.path("l"))
        m.settle("m", want="has hard links")
        assert os.path.samefile(m.disk("m"), m.disk("l"))
        os.unlink(m.path("l"))
        m.settle("m")


def test_many_waiting():
    """What waits to be encoded takes no descriptor, and nobody waits for the encoder."""
    store = scratch("many")
    gate = Gate(store, "fsync")
    with Mount(store, env=gate.env, limits=few_files) as m:
        save_file(model(1, layers=1), scratch("model"))
        data = read(scratch("model"))
        save_file(model(2), m.path("first"))
        names = [f"{'de'[i % 2]}/{i:03}" for i in range(600)]
        os.mkdir(m.path("d"))
        os.mkdir(m.path("e"))
        with gate:
            start = time.monotonic()
            for i, n in enumerate(names):
                with open(m.path(n), "wb") as f:
                    f.write(data if i % 50 == 0 else data[:4096])
            for n in names:
                os.stat(m.path(n))
            assert time.monotonic() < start + 60, "requests have to wait"
            few = 230 # half of what there may be, and what it has for itself
            poll("descriptors are let go", lambda: len(fds_of(m)) < few)
            assert all(m.state(n) == "queued" for n in names)
            # What is done to one that is remembered by its name alone.
            poll("let go again", lambda: len(fds_of(m)) < few)
            os.rename(m.path("d"), m.path("c"))
            os.rename(m.path("c/000"), m.path("c/moved"))
            os.unlink(m.path("c/050"))
            os.link(m.path("c/100"), m.path("c/link"))
            os.rename(m.disk("c/150"), m.disk("e/beside"))
            with open(m.path("c/200"), "r+b") as f:
                f.write(data[:1])
            os.unlink(m.disk("c/250"))
        for n in ("first", "c/moved", "c/200", "c/300", "e/beside"):
            m.settle(n)
        for n in (n.replace("d/", "c/") for n in names[1::25]):
            m.settle(n, want="plain")
        m.settle("c/100", want="has hard links")
        os.unlink(m.path("c/link"))
        m.settle("c/100")
        assert read(m.path("c/moved")) == data == read(m.path("e/beside"))
        marked = [n for d in "ce" for n in os.listdir(m.disk(d))
                  if "user.eqfs.queued" in os.listxattr(m.disk(d, n))]
        assert not marked, marked


def test_parked_below():
    """What waits, remembered by its name alone, and is deleted in the store keeps nothing of it
    open, nor does what waits for other links to go."""
    if os.geteuid():
        print("  not root: the kernel cannot be made to forget")
        return
    store = scratch("parked")
    gate = Gate(store, "fsync")
    with Mount(store, env=gate.env, limits=few_files) as m:
        for d in "cde":
            os.mkdir(m.path(d))
        save_file(model(1), m.path("d/linked"))
        os.link(m.path("d/linked"), m.path("d/link"))
        m.settle("d/linked", want="has hard links")
        save_file(model(2), m.path("first"))
        names, many = ("c/m", "d/linked", "d/link"), itertools.count()

        def crowded_out():
            for i in itertools.islice(many, 300):
                with open(m.path(f"e/{i}"), "wb") as f:
                    f.write(b"x" * 100)
            return not {m.disk(n) for n in names} & set(forgotten(m))
        with gate:
            save_file(model(3), m.path("c/m"))
            poll("remembered by name", crowded_out)
            for n in names:
                os.unlink(m.disk(n))
            for d in "cd":
                os.rmdir(m.disk(d))
        m.settle("first")
        for d in "cd":
            poll("gone", lambda d=d: not os.path.exists(m.path(d)))
        poll("closed", lambda: not [n for n in forgotten(m) if "(deleted)" in n and m.store in n])


def forgotten(m):
    """What the daemon has open when the kernel has let go what it can."""
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("2")
    return fds_of(m)


def counted(m, name):
    return int(re.search(rb"^eqfs_%b (\d+)$" % name.encode(), read(m.path(".eqfs", "stats")), re.M)[1])


def test_moved_below():
    """A file that is moved in the store while it waits is encoded when it is seen there, and not
    sought; one that is deleted is given up. Neither is queued for ever, nor held."""
    store = scratch("moved")
    gate = Gate(store, "fsync")
    with Mount(store, env=gate.env) as m:
        os.mkdir(m.path("d"))
        save_file(model(2), m.path("first"))
        with gate:
            for n in ("m", "gone"):
                save_file(model(8), m.path(n))
            poll("both wait", lambda: counted(m, "queue_files") == 2)
            os.rename(m.disk("m"), m.disk("d/n"))
            os.unlink(m.disk("gone"))
        poll("given up", lambda: counted(m, "queue_files") + counted(m, "encoding_files") == 0)
        assert counted(m, "encode_interrupted_files_total") == 1
        assert os.listdir(m.disk("d")) == ["n"]
        assert same(load_file(m.path("d/n")), model(8)) # which is seeing it
        m.settle("d/n")
        assert os.listdir(m.disk("d")) == ["n.eqar"]
        if os.geteuid() == 0:
            poll("seen to be gone", lambda: not os.path.exists(m.path("gone")))
            poll("closed", lambda: m.disk("gone") + " (deleted)" not in forgotten(m))


def test_ended_before_the_first_request():
    """Who ends a mount before the kernel has said a word ends it well."""
    store, mnt = scratch("early"), scratch("early.mnt")
    os.makedirs(mnt)
    gate = Gate(store, "read", root="/dev/fuse")
    with subprocess.Popen([EQFS, "-f", "-v", store, mnt], env={**os.environ, **gate.env}, stderr=subprocess.PIPE,
                          text=True) as p:
        try:
            with gate:
                p.send_signal(signal.SIGTERM)
                log = p.communicate(timeout=DEADLINE)[1]
        finally:
            p.kill()
            if mounted(mnt):
                subprocess.run(["umount", "-lf", mnt], check=False)
    assert p.returncode == 0 and ": unmounting\n" in log and "policy" not in log, log


def test_no_attributes():
    """A store that cannot mark files: what is written is encoded while the mount lasts; what
    still waits at its end stays plain, until it is written again."""
    store = os.path.realpath(scratch("bare"))
    env = shim_env(store, "setxattr", f"errno:1:{errno.EOPNOTSUPP}:1000000")
    want = [model(i) for i in range(3)]
    with Mount(store, env=env) as m:
        save_file(want[0], m.path("a"))
        m.settle("a")
    with Mount(store, settle="1000", env=env) as m:
        save_file(want[1], m.path("b"))
        assert m.state("b") == "queued"
    with Mount(store, settle="0") as m:
        poll("walked", lambda: counted(m, "store_known"))
        assert m.state("b") == "plain" and sorted(os.listdir(store)) == ["a.eqar", "b"]
        assert same(load_file(m.path("a")), want[0]) and same(load_file(m.path("b")), want[1])
        save_file(want[2], m.path("b"))
        m.settle("b")
        assert same(load_file(m.path("b")), want[2])


def hold(target, gate, *args):
    """An eqar at work on a store or a file, which comes to the gate."""
    return subprocess.Popen([EQAR, *args, target], env={**os.environ, **gate.env}, stderr=subprocess.PIPE, text=True)


def test_unpacked():
    """Likewise by eqar, without a mount: while it decodes, and as the archive goes."""
    for op in "write", "unlink":
        store = scratch("unpacked-" + op)
        want = archive(store)
        os.setxattr(os.path.join(store, "m.eqar"), "user.old", b"1")
        gate = Gate(store, op)
        with hold(store, gate, "unpack", "-q", "-r") as p:
            with gate:
                check = change(os.path.join(store, "m.eqar"))
                os.removexattr(os.path.join(store, "m.eqar"), "user.old")
            assert p.wait(DEADLINE) == 0
        check(os.path.join(store, "m"), mtime=False)
        assert os.listxattr(os.path.join(store, "m")) == ["user.note"]
        assert os.listdir(store) == ["m"] and read(os.path.join(store, "m")) == want


def test_changed_while_unpacked():
    """What is done to the plain file as soon as it is there stays as it is."""
    for op, n in ("fsync", 2), ("unlink", 1):
        store = scratch("unpacked-changed-" + op)
        want = archive(store)
        plain = os.path.join(store, "m")
        gate = Gate(store, op, n)
        with hold(store, gate, "unpack", "-q", "-r") as p:
            with gate:
                change(os.path.join(store, "m.eqar"))
                with open(plain, "ab") as f:
                    f.write(b"more")
                os.chmod(plain, 0o640)
                os.setxattr(plain, "user.own", b"1")
                before = os.stat(plain)
            assert p.wait(DEADLINE) == 0
        now = os.stat(plain)
        assert os.listdir(store) == ["m"] and read(plain) == want + b"more"
        assert (now.st_mtime_ns, oct(now.st_mode)) == (before.st_mtime_ns, oct(before.st_mode))
        assert os.listxattr(plain) == ["user.own"]


def test_name_taken():
    """What has got the name of the result by the time it is finished stays, unless -f is given."""
    for command in ("unpack", "-r"), ("unpack",), ("pack",), ("unpack", "-f"):
        store = scratch("taken" + "".join(command))
        archive(store)
        source, result = os.path.join(store, "m.eqar"), os.path.join(store, "m")
        if command[0] == "pack":
            eqar("unpack", "-q", source)
            os.unlink(source)
            source, result = result, source
        before = read(source)
        gate = Gate(store, "fsync")
        with hold(store if "-r" in command else source, gate, *command, "-q") as p:
            with gate:
                with open(result, "wb") as f:
                    f.write(b"newer")
            status, said = p.wait(DEADLINE), p.stderr.read()
        assert read(source) == before and sorted(os.listdir(store)) == ["m", "m.eqar"], os.listdir(store)
        if "-f" in command:
            assert status == 0 and read(result) != b"newer", said
        else:
            assert status == 1 and read(result) == b"newer", said
            assert said == f"eqar: {result}: already exists; -f overwrites it\n", said


def test_packed():
    """Attributes that are set while the finished archive is synced and the plain file goes."""
    for op, n in ("fsync", 2), ("fsync", 3), ("rename", 2):
        store = scratch(f"packed-{op}{n}")
        os.makedirs(store)
        plain, packed = os.path.join(store, "m"), os.path.join(store, "m.eqar")
        save_file(model(), plain)
        want = read(plain)
        gate = Gate(store, op, n)
        with hold(store, gate, "pack", "-q", "-r") as p:
            with gate:
                check = change(plain)
            assert p.wait(DEADLINE) == 0, p.stderr.read()
        assert os.listdir(store) == ["m.eqar"]
        check(packed)
        # The time is also what a mount shows, and what comes out again.
        with Mount(store) as m:
            check(m.path("m"))
        eqar("unpack", "-q", packed, scratch("again"))
        assert os.stat(scratch("again")).st_mtime_ns == os.stat(packed).st_mtime_ns
        os.unlink(scratch("again"))
        eqar("unpack", "-q", "-r", store)
        check(plain)
        assert os.listdir(store) == ["m"] and read(plain) == want


def test_changed_and_not_put_back():
    """The plain file is written to as it goes, and cannot get its name back: the archive stays."""
    store = scratch("not-back")
    os.makedirs(store)
    plain = os.path.join(store, "m")
    save_file(model(), plain)
    want = read(plain)
    gate = Gate(store, "rename", 2, errno.EIO)
    with hold(store, gate, "pack", "-q", "-r") as p:
        with gate:
            assert sorted(os.listdir(store))[-1] == "m.eqar"
            os.unlink(plain)
            with open(plain, "wb") as f:
                f.write(b"other")
        assert p.wait(DEADLINE) == 1
        assert "m: cannot remove the plain file: Input/output error" in p.stderr.read()
    eqar("unpack", "-q", plain + ".eqar", scratch("not-back.out"))
    assert read(scratch("not-back.out")) == want
    left = [n for n in os.listdir(store) if n != "m.eqar"]
    assert len(left) == 1 and read(os.path.join(store, left[0])) == b"other", left


def test_replaced_while_packed():
    """Another file with the same size and time that takes the name, at whatever step, is not
    removed for the archive of the first one."""
    for step in ("fsync", 1), ("fsync", 2), ("rename", 1), ("rename", 2), ("unlink", 1):
        store = scratch("packed-over-%s%d" % step)
        os.makedirs(store)
        plain, other = os.path.join(store, "m"), scratch("other")
        save_file(model(), plain)
        want = bytearray(read(plain))
        want[-1] ^= 1
        with open(other, "wb") as f:
            f.write(want)
        os.utime(other, ns=(os.stat(plain).st_mtime_ns,) * 2)
        gate = Gate(store, *step)
        with hold(store, gate, "pack", "-q", "-r") as p:
            with gate:
                os.rename(other, plain)
            assert p.wait(DEADLINE) == (step[0] != "unlink"), (step, p.stderr.read())
        assert read(plain) == want, step
        # By then the archive was right; a mount and eqar know that the plain file counts.
        assert os.listdir(store) == ["m"] or step[0] == "unlink", (step, os.listdir(store))
        with Mount(store) as m:
            assert os.listdir(m.point) == ["m"] and read(m.path("m")) == want, step


def test_link_while_unpacked():
    """Two names of an archive are not to become two files."""
    store = scratch("unpacked-linked")
    archive(store)
    packed = [os.path.join(store, n) for n in ("l.eqar", "m.eqar")]
    before = read(packed[1])
    gate = Gate(store, "write")
    with hold(store, gate, "unpack", "-q", "-r") as p:
        with gate:
            os.link(packed[1], packed[0])
        assert p.wait(DEADLINE) == 1
        assert "m.eqar: has hard links" in p.stderr.read()
    r = subprocess.run([EQAR, "unpack", "-r", store], check=False, capture_output=True, text=True)
    assert r.returncode == 1 and r.stderr.count("has hard links") == 2, r
    assert sorted(os.listdir(store)) == ["l.eqar", "m.eqar"]
    assert os.path.samefile(*packed) and read(packed[1]) == before


def refused(store, *options):
    """The one line with which a second mount of a store is refused."""
    os.makedirs(scratch("second"), exist_ok=True)
    r = subprocess.run([EQFS, *options, store, scratch("second")], capture_output=True, text=True, check=False,
                       timeout=DEADLINE)
    assert r.returncode == 1 and r.stderr.count("\n") == 1 and store in r.stderr, r
    return r.stderr


def copy_in(m):
    """Without a rename, for which a gate may be."""
    save_file(model(), scratch("copied"))
    shutil.copyfile(scratch("copied"), m.path("m"))
    return sha(scratch("copied"))


def test_mounted_twice():
    """While a file is encoded there is no other mount, be it only to read and by another
    name, and no eqar; and the encode is none the worse for it."""
    store = scratch("twice")
    gate = Gate(store, "rename")
    os.symlink(store, scratch("twice.link"))
    with Mount(store, settle="0", env=gate.env) as m:
        want = copy_in(m)
        with gate:
            for at in (store, scratch("twice.link")):
                for options in ([], ["-o", "ro"]):
                    assert "mounted already" in refused(at, *options)
            r = subprocess.run([EQAR, "pack", "-r", store], capture_output=True, text=True, check=False)
            assert r.returncode == 1 and "in use" in r.stderr, r
        m.settle("m")
        assert os.listdir(store) == ["m.eqar"] and sha(m.path("m")) == want


def test_mounted_above():
    """A directory above is mounted between an archive's coming and its plain file's going:
    that one does not take the two for what a crash has left."""
    store = scratch("above/inner")
    os.makedirs(store)
    gate = Gate(store, "rename", 2)
    with Mount(store, settle="0", env=gate.env) as m:
        want = copy_in(m)
        with gate:
            assert {"m", "m.eqar"} <= set(os.listdir(store)), os.listdir(store)
            with Mount(scratch("above"), settle="0") as outer:
                poll("walked", lambda: b"\neqfs_store_known 1\n" in read(outer.path(".eqfs", "stats")))
                assert "inner: mounted by another eqfs" in outer.log(), outer.log()
        m.settle("m")
        assert os.listdir(store) == ["m.eqar"] and sha(m.path("m")) == want


def test_killed_and_mounted():
    """The lock goes with a daemon that is killed in an encode. Who mounts to read then
    changes nothing, and keeps those out that would; the next one goes on."""
    store = scratch("stale")
    gate = Gate(store, "rename")
    m = Mount(store, settle="0", env=gate.env)
    want = copy_in(m)
    with gate:
        m.kill()
        left = sorted(os.listdir(store))
        assert len(left) == 2 and left[1] == "m", left
        with Mount(store, "ro") as m:
            assert os.listdir(m.point) == ["m"] and sha(m.path("m")) == want
            assert "mounted already" in refused(store)
        assert sorted(os.listdir(store)) == left
    with Mount(store, settle="0") as m:
        m.settle("m")
        assert sha(m.path("m")) == want
        poll("litter swept", lambda: os.listdir(store) == ["m.eqar"])


def test_no_locks():
    """A filesystem without locks holds no store, as nobody could tell who has it mounted."""
    store = os.path.realpath(scratch("lockless"))
    os.makedirs(store)
    for error in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
        env = shim_env(store, "flock", f"errno:1:{error}:1000")
        for options in ([], ["ro"]):
            m = Mount(store, *options, env=env, fails=True)
            assert m.wait() == 1 and not mounted(m.point), m.log()
            assert f"{store}: cannot be locked: {os.strerror(error)}\n" in m.log(), m.log()


run(globals())
