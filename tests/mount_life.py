# SPDX-License-Identifier: Apache-2.0
"""From mount(8) to unmount: readiness, fstab, systemd, privileges, and an end that
comes in bounded time whatever the queue, the readers and the disk are doing."""
import errno
import re
import resource
import socket
import threading

from mount_lib import *

SHIM = os.environ.get("EQFS_FAULT_SHIM", "")
SOON = 12.0  # seconds that an end may take on a busy machine, beyond what was asked for
ROOT = os.geteuid() == 0


def need(what, there):
    """Is it there? If not, the rest of the test is left out, and that is said."""
    if not there:
        print("  left out:", what)
    return there


def point(name):
    os.makedirs(scratch(name), exist_ok=True)
    os.makedirs(scratch(name) + ".mnt", exist_ok=True)
    return scratch(name), scratch(name) + ".mnt"


def daemon(*args, **how):
    return subprocess.run([EQFS, *args], capture_output=True, text=True, check=False, timeout=60, **how)


def unmount(mnt):
    subprocess.run(["fusermount3", "-u", mnt], check=True)


# ---- the beginning ----


def test_ready():
    """When eqfs returns the mount answers; when it does not come up, that is told."""
    store, mnt = point("ready")
    r = daemon(store, mnt)
    try:
        assert r.returncode == 0 and r.stderr == f"eqfs: {store} on {mnt}, policy: lossless\n", r
        assert mounted(mnt) and b"eqfs_info" in read(mnt + "/.eqfs/stats")
        other = point("ready.other")[1]
        assert "mounted already" in daemon(store, other).stderr and not mounted(other)
    finally:
        unmount(mnt)
    store, mnt = point("unready") # the store, a pipe, the device, and then no more
    r = daemon(store, mnt, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6)))
    assert r.returncode == 1 and r.stderr.startswith(f"eqfs: {store}: Too many open files"), r
    assert "policy" not in r.stderr and not mounted(mnt)


def test_notify():
    """systemd's protocol, with both kinds of socket."""
    store, mnt = point("notify")
    for name in (scratch("notify.socket"), "\0" + scratch("notify.abstract")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.bind(name)
            s.settimeout(30)
            with subprocess.Popen([EQFS, "-f", "-q", store, mnt],
                                  env={**os.environ, "NOTIFY_SOCKET": name.replace("\0", "@")}) as p:
                try:
                    got = s.recv(1000).decode().split("\n")
                    assert got == ["READY=1", f"MAINPID={p.pid}"], got
                    assert b"eqfs_info" in read(mnt + "/.eqfs/stats")
                finally:
                    p.terminate()
                assert s.recv(1000) == b"STOPPING=1" and p.wait(30) == 0
    # Something odd there is nobody's concern.
    for name in ("x", scratch("nothing"), "/" + "x" * 200, ""):
        with subprocess.Popen([EQFS, "-f", "-q", store, mnt], env={**os.environ, "NOTIFY_SOCKET": name}) as p:
            poll("mounted", lambda: mounted(mnt) and b"eqfs_info" in read(mnt + "/.eqfs/stats")) # it is up
            p.terminate()
            assert p.wait(30) == 0


def test_unit():
    """The unit that is installed is one, and keeps the mount where others see it."""
    unit = os.path.join(os.environ.get("abs_top_builddir") or os.path.dirname(EQFS), "tools", "eqfs@.service")
    text = read(unit).decode()
    assert "Type=notify" in text and re.search(r"^ExecStart=/\S+/eqfs -f ", text, re.M), text
    # Each of these would give the unit a mount namespace of its own.
    assert not re.search("^(Private|Protect(System|Home|Kernel|Control|Proc)|ReadOnly|ReadWrite|Inaccessible|"
                         "MountFlags|RootDirectory|TemporaryFileSystem|BindPaths)", text, re.M), text
    if need("systemd-analyze", shutil.which("systemd-analyze")):
        with open(scratch("eqfs@.service"), "w") as f: # as if it were installed
            f.write(re.sub(r"=/\S+/eqfs ", f"={os.path.realpath(EQFS)} ", text))
        r = subprocess.run(["systemd-analyze", "verify", "--man=no", scratch("eqfs@.service")], capture_output=True,
                           text=True, check=False)
        ours = [s for s in r.stderr.splitlines() if "eqfs" in s]
        assert not ours, r.stderr


KILLED = """set -e
mknod -m 666 $1 c 10 229
mount --bind $1 /dev/fuse
$2 -f -q -o setuid=nobody $3 $4 &
for i in $(seq 2000); do ! grep -q " $4 " /proc/self/mountinfo || break; sleep 0.01; done
kill -9 $!
wait $! || [ $? = 137 ]
$2 -o setuid=nobody $3 $4
setpriv --reuid=nobody --regid=nogroup --clear-groups cat $4/.eqfs/stats
umount $4
if grep " $4 " /proc/self/mountinfo; then exit 9; fi
"""


def test_killed():
    """What a killed daemon leaves mounted is in nobody's way who mounts there again, be it
    root or an ordinary user; a mount that answers is."""
    dead = Mount(scratch("killed"))
    dead.proc.kill()
    dead.proc.wait()
    with raises(errno.ENOTCONN):
        os.listdir(dead.point)
    with Mount(scratch("killed")) as m:
        assert "took away the mount of an eqfs that was killed" in m.log(), m.log()
        with open("/proc/self/mountinfo", encoding="utf-8") as f:
            assert sum(f" {m.point} " in s for s in f) == 1
        r = daemon(scratch("killed"), m.point)
        assert r.returncode == 1 and "mounted already" in r.stderr, r
        assert b"eqfs_info" in read(m.path(".eqfs/stats"))
    dead.force()
    if not need("root", ROOT):
        return
    store, mnt = point("killed.user")
    os.chmod(TMP, 0o755)
    for path in (store, mnt):
        os.chown(path, 65534, 65534)
    r = subprocess.run(["unshare", "-m", "sh", "-c", KILLED, "sh", scratch("killed.fuse"), os.path.realpath(EQFS),
                        store, mnt], capture_output=True, text=True, check=False, timeout=60)
    assert r.returncode == 0 and "eqfs_info" in r.stdout and "took away" in r.stderr, r


FSTAB = """set -e
mount -t tmpfs tmpfs /run
mkdir /run/upper /run/work
mount -t overlay -o lowerdir=/usr/sbin,upperdir=/run/upper,workdir=/run/work overlay /usr/sbin
if [ "$1" = fuse ]; then name=eqfs; else name=mount.fuse.eqfs; fi
ln -s "$EQFS" /usr/sbin/$name
mount -T "$2" "$3"
echo "up: $(head -n 3 "$3/.eqfs/stats" | grep eqfs_info)"
grep fuse.eqfs /proc/self/mountinfo
umount "$3"
if mount -T "$2" "$3.bad" 2>&1; then exit 9; else echo "refused: $?"; fi
"""


def test_fstab():
    """mount(8), by our helper and by fuse's, with all that an fstab line may hold."""
    store, mnt = point("fstab")
    os.makedirs(mnt + ".bad")
    with open(scratch("fstab.txt"), "w") as f:
        f.write(f"{store} {mnt} fuse.eqfs defaults,allow_other,bits=4,nofail,noauto,user,_netdev,noatime,nodev,"
                "x-systemd.automount,x-systemd.requires=network.target,comment=models 0 0\n"
                f"{store}/nothing {mnt}.bad fuse.eqfs defaults,noauto 0 0\n")
    if not need("root", ROOT) or not need("overlay", subprocess.run(
            ["unshare", "-m", "sh", "-ec", "mkdir -p $1/u $1/w; mount -t tmpfs t $1; mkdir $1/u $1/w; mount -t "
             "overlay -o lowerdir=/usr/sbin,upperdir=$1/u,workdir=$1/w o /usr/sbin", "sh", scratch("ovl")],
            capture_output=True, check=False).returncode == 0):
        return
    for how in ("helper", "fuse"):
        if how == "fuse" and not need("mount.fuse", os.path.exists("/sbin/mount.fuse")):
            continue
        r = subprocess.run(["unshare", "-m", "sh", "-c", FSTAB, "sh", how, scratch("fstab.txt"), mnt],
                           capture_output=True, text=True, check=False, timeout=60,
                           env={**os.environ, "EQFS": os.path.realpath(EQFS)})
        assert r.returncode == 0, (how, r)
        assert 'policy="bits=4' in r.stdout and "allow_other" in r.stdout and store + " " in r.stdout, (how, r)
        assert "default_permissions" in r.stdout, (how, r)
        assert "nothing: No such file" in r.stdout + r.stderr and re.search(r"refused: [1-9]", r.stdout), (how, r)
        assert how == "fuse" or not r.stderr, r


CAPS = {"CHOWN": 0, "DAC_OVERRIDE": 1, "DAC_READ_SEARCH": 2, "FOWNER": 3, "FSETID": 4, "SETGID": 6,
        "SETUID": 7, "SYS_ADMIN": 21, "MKNOD": 27, "LEASE": 28, "SETFCAP": 31}


def test_privileges():
    """No thread of root's daemon keeps what it does not need, or can gain it back."""
    if not need("root", ROOT):
        return
    allowed = sum(1 << n for n in CAPS.values())
    with Mount(scratch("caps"), "allow_other") as m:
        save_file(model(1), m.path("m"))
        m.settle("m")
        os.chown(m.path("m"), 1234, 1234)
        task, checked = f"/proc/{m.proc.pid}/task", 0
        for t in os.listdir(task):
            fields = dict(s.split(":\t") for s in read(f"{task}/{t}/status").decode().splitlines() if ":\t" in s)
            for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
                assert not int(fields[name], 16) & ~allowed, (name, fields[name])
            assert fields["NoNewPrivs"] == "1"
            checked += 1
        assert checked > 3
    store, mnt = point("setuid")
    os.chown(store, 65534, 65534)
    os.chown(mnt, 65534, 65534)
    os.chmod(TMP, 0o755)
    assert "no such user" in daemon("-o", "setuid=nobody-at-all", store, mnt).stderr
    # With a device that is for everybody, as udev makes it.
    with subprocess.Popen(["unshare", "-m", "sh", "-ec", "mknod -m 666 $1 c 10 229; mount --bind $1 /dev/fuse; "
                           "exec $2 -f -q -o setuid=nobody $3 $4", "sh", scratch("fuse"), os.path.realpath(EQFS),
                           store, mnt]) as p:
        poll("mounted or ended", lambda: p.poll() is not None or
             f" {mnt} ".encode() in read(f"/proc/{p.pid}/mountinfo"))
        status = read(f"/proc/{p.pid}/status").decode()
        assert re.search(r"^Uid:\t65534\t65534\t65534\t65534$", status, re.M), status
        assert re.search(r"^CapPrm:\t0+$", status, re.M), status
        p.terminate()
        assert p.wait(30) == 0


# ---- the end ----


def slow_queue(store, n=16):
    """Files that take a while each, and that the next mount finds waiting; returns their
    digests."""
    want = {}
    save_file(model(7, rows=1024, cols=1024, layers=4), scratch("slow.source"))
    digest = sha(scratch("slow.source"))
    with Mount(store, settle="1000") as m:
        for i in range(n):
            shutil.copyfile(scratch("slow.source"), m.path(f"m{i:02}"))
            want[f"m{i:02}"] = digest
    assert plain(m) == sorted(want)
    return want


def ends(m, within, how=(signal.SIGTERM,)):
    """Seconds from the signals to a clean end, which must come in time."""
    for s in how:
        m.proc.send_signal(s)
        time.sleep(0.02)
    start = time.monotonic()
    rc = m.wait()
    took = time.monotonic() - start
    assert rc == 0 and not mounted(m.point), (rc, m.log())
    assert took < within + SOON, f"took {took} s: {m.log()}"
    return took


def plain(m):
    return sorted(n for n in os.listdir(m.store) if not n.endswith(".eqar"))


def test_drain():
    """A large queue: what is due is encoded as time allows, the rest at the next mount."""
    store = scratch("drain")
    want = slow_queue(store)
    m = Mount(store, "drain=0.1", settle="0")
    poll("at it", lambda: b"\neqfs_encoding_files 1\n" in read(m.path(".eqfs", "stats")))
    ends(m, 0.1)
    left = plain(m)
    assert left, "a queue too short to tell anything"
    assert not [n for n in left if n.startswith(".eqfs-tmp")], left
    m = Mount(store, "drain=0", settle="0")
    poll("at it", lambda: any(m.state(n) == "encoding" for n in left) or not plain(m))
    ends(m, 0)
    m = Mount(store, "drain=120", settle="0")
    poll("queued", lambda: b"eqfs_store_known 1" in read(m.path(".eqfs", "stats")))
    ends(m, 120)
    assert not plain(m), plain(m)
    with Mount(store, "ro") as m:
        for name, digest in want.items():
            assert sha(m.path(name)) == digest, name
    with Mount(scratch("later"), "drain=100", settle="1000") as m: # queued, but not due
        save_file(model(1), m.path("m"))
        ends(m, 0)
        assert plain(m) == ["m"]


def test_second_signal():
    slow_queue(scratch("second"))
    m = Mount(scratch("second"), "drain=1000", settle="0")
    took = ends(m, 0, (signal.SIGTERM, signal.SIGINT))
    assert plain(m), f"encoded all in {took} s"


def test_readers():
    """Readers in the middle of it get their bytes or an error, and keep nobody."""
    for how in ("signal", "lazy"):
        m = Mount(scratch("readers." + how), "cache=4M", settle="0")
        save_file(model(5, rows=2048, cols=1024, layers=4), m.path("m"))
        m.settle("m")
        want, stop, wrong, reads = sha(m.path("m")), threading.Event(), [], [0]

        def reader(m=m, want=want, stop=stop, wrong=wrong, reads=reads):
            while not stop.is_set():
                try:
                    fd = os.open(m.path("m"), os.O_RDONLY | os.O_DIRECT)
                    with os.fdopen(fd, "rb") as f:
                        got = hashlib.sha256(f.read()).hexdigest()
                except OSError:
                    continue
                reads[0] += 1
                if got != want and not stop.is_set():
                    wrong.append(got)
        threads = [threading.Thread(target=reader) for _ in range(3)]
        for t in threads:
            t.start()
        try:
            poll("reading", lambda reads=reads: reads[0] > 3)
            if how == "signal":
                ends(m, 0)
            else:
                subprocess.run(["fusermount3", "-uz", m.point], check=True)
                stop.set()
                assert m.wait() == 0
        finally:
            stop.set()
            for t in threads:
                t.join(30)
        assert not wrong and not any(t.is_alive() for t in threads)


def test_full_store():
    """No room to encode anything: the end comes all the same."""
    if not need("root", ROOT):
        return
    os.makedirs(scratch("full"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12M", "tmpfs", scratch("full")], check=True)
    try:
        m = Mount(scratch("full") + "/store", "drain=1", settle="0.2")
        save_file(model(3, rows=1024, cols=1024), m.path("m"))
        with contextlib.suppress(OSError), open(m.path("filler"), "wb") as f:
            while True:
                f.write(b"x" * 65536)
                f.flush()
        digest = sha(m.path("m"))
        poll("no room", lambda: "No space" in m.state("m") or m.state("m") == "queued")
        ends(m, 1)
        assert hashlib.sha256(read(m.disk("m"))).hexdigest() == digest
    finally:
        subprocess.run(["umount", "-l", scratch("full")], check=True)


def dying(store, ops, fault, *options):
    """A mount over a disk that dies, and a function that counts the calls that reached it."""
    log = store + ".faults"
    open(log, "wb").close()
    m = Mount(store, "drain=0.2", *options,
              env={"LD_PRELOAD": SHIM, "EQFS_FAULT_ROOT": store, "EQFS_FAULT_OPS": ops,
                   "EQFS_FAULT": fault, "EQFS_FAULT_LOG": log,
                   "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"})
    return m, lambda: read(log).count(b"\n")


def is_left(m, then=lambda: None):
    """It ends in time, though not cleanly, after two signals."""
    m.proc.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    m.proc.send_signal(signal.SIGTERM)
    start = time.monotonic()
    rc = m.wait()
    then()
    assert not mounted(m.point), m.log()
    assert rc == 1 and "does not end: leaving it" in m.log(), (rc, m.log())
    assert time.monotonic() - start < SOON + 4, m.log()


def test_dead_disk():
    """A call that never returns, in an encode or in a request: the mount goes anyhow."""
    if not need("the library of faults", os.path.exists(SHIM)):
        return
    for ops, request in ((",fsync,", False), (",write,", True)):
        store = os.path.realpath(scratch("dead" + str(request)))
        os.makedirs(store)
        m, calls = dying(store, ops, "hang:1")

        def act(m=m):
            with contextlib.suppress(OSError), open(m.path("m"), "wb") as f:
                f.write(read(scratch("dead.source")))
        save_file(model(3), scratch("dead.source"))
        t = threading.Thread(target=act)
        t.start()
        poll("caught", calls)
        is_left(m, lambda t=t: t.join(30))
        assert not t.is_alive(), m.log()


def test_dead_disk_behind_readers():
    """Likewise in threads that decode ahead of a reader, or a hot archive."""
    if not need("the library of faults", os.path.exists(SHIM)):
        return
    save_file(model(3, rows=2048, cols=1024), scratch("behind.source"))
    for name, options, offsets in (("ahead", [], (1 << 16, (1 << 16) + 4096)), ("hot", ["hot=1G"], ())):
        store = os.path.realpath(scratch(name))
        os.makedirs(store)
        eqar("pack", scratch("behind.source"), store + "/m.eqar")

        def act(m, offsets):
            poll("walked", lambda: b"eqfs_store_known 1" in read(m.path(".eqfs", "stats")))
            fd = os.open(m.path("m"), os.O_RDONLY | os.O_DIRECT)
            for at in offsets:
                os.pread(fd, 4096, at)
            return fd
        m, calls = dying(store, ",pread,", "") # how often the reader comes to the disk
        os.close(act(m, offsets[:1]))
        n = calls()
        m.stop()
        m, calls = dying(store, ",pread,", f"hang:{n + 1}", *options)
        fd = act(m, offsets) # whose last one is in memory already
        poll("caught", lambda calls=calls, n=n: calls() == n + 1)
        is_left(m)
        with contextlib.suppress(OSError): # nobody is there to hear of it
            os.close(fd)


run(globals())
