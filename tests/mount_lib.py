# SPDX-License-Identifier: Apache-2.0
"""What the tests of the mount share: a scratch directory, a mount that is always
taken down again, small models, and a runner that fails when it ran nothing."""
import atexit
import contextlib
import ctypes
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

EQFS = os.environ.get("EQFS", "./eqfs")
EQAR = os.environ.get("EQAR", "./eqar")
DEADLINE = 60.0

if not os.path.exists("/dev/fuse"):
    if "fuse" in os.environ.get("EQFS_TEST_REQUIRE", ""):
        sys.exit("/dev/fuse is missing, and EQFS_TEST_REQUIRE asks for it")
    print("skipped: no /dev/fuse")
    sys.exit(77)

TMP = tempfile.mkdtemp(prefix="eqfs-test-", dir=os.environ.get("TMPDIR", "/var/tmp"))
_mounts = []
_LIBC = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE = 1, 2


def _clean_up():
    for m in list(_mounts):
        m.force()
    shutil.rmtree(TMP, ignore_errors=True)


atexit.register(_clean_up)
for _sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(_sig, lambda s, f: sys.exit(128 + s))


def poll(what, check, deadline=DEADLINE):
    """Wait until check() is true and return what it gave."""
    end = time.monotonic() + deadline
    while True:
        got = check()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"after {deadline} s still not: {what}")
        time.sleep(0.01)


def renameat2(old, new, flags):
    if _LIBC.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))


def mounted(path):
    for c in "\\ \t\n":
        path = path.replace(c, f"\\{ord(c):03o}")
    with open("/proc/self/mountinfo") as f:
        return any(line.split()[4] == path for line in f)


class Mount:
    """eqfs in the foreground over a store; a context manager."""

    def __init__(self, store, *options, settle="0.05", fails=False, env=None, limits=None):
        self.store = os.path.realpath(store)
        os.makedirs(self.store, exist_ok=True)
        # Not beside the store: its disk may be full.
        beside = scratch(os.path.relpath(self.store, os.path.realpath(TMP)).replace("/", "-"))
        self.point = beside + ".mnt"
        with contextlib.suppress(FileExistsError): # which a dead mount cannot say of itself
            os.makedirs(self.point)
        self.log_path = beside + ".log"
        opts = ",".join(["settle=" + settle, *options])
        with open(self.log_path, "ab") as log:
            self.offset = log.tell()
            self.proc = subprocess.Popen([EQFS, "-f", "-v", "-o", opts, self.store, self.point],
                                         stdin=subprocess.DEVNULL, stderr=log, preexec_fn=limits,
                                         env={**os.environ, **(env or {})})
        _mounts.append(self)
        # That line is printed when the mount is up.
        poll("mounted or dead", lambda: ", policy: " in self.log() or self.proc.poll() is not None)
        self.up = ", policy: " in self.log()
        if self.proc.poll() is not None and not fails:
            raise AssertionError("eqfs did not mount: " + self.log())

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        if kind:
            self.force()
        else:
            self.stop()

    def path(self, *names):
        return os.path.join(self.point, *names)

    def disk(self, *names):
        return os.path.join(self.store, *names)

    def log(self):
        with open(self.log_path, "rb") as f:
            f.seek(self.offset)
            return f.read().decode(errors="replace")

    def stop(self, how=signal.SIGTERM):
        """A clean end, which must be one."""
        if self.proc.poll() is None:
            self.proc.send_signal(how)
        rc = self.wait()
        assert not mounted(self.point), "still mounted after the end of eqfs"
        assert rc == 0, f"eqfs ended with {rc}: {self.log()}"

    def wait(self):
        try:
            rc = self.proc.wait(30)
        except subprocess.TimeoutExpired:
            self.force()
            raise AssertionError("eqfs does not end: " + self.log()) from None
        if self in _mounts:
            _mounts.remove(self)
        return rc

    def kill(self):
        """As a crash."""
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait(30)
        self.force()

    def force(self):
        if self.proc.poll() is None:
            self.proc.kill()
        if mounted(self.point): # -f: whatever waits for an answer gives up
            subprocess.run(["umount", "-lf", self.point] if os.geteuid() == 0 else
                           ["fusermount3", "-uz", self.point], check=False)
        self.proc.wait(30)
        if self in _mounts:
            _mounts.remove(self)

    def state(self, *names):
        return xattr(self.path(*names), "state")

    def settle(self, *names, want="archived"):
        """Wait until the file is encoded, or what else is wanted of it."""
        def check():
            s = self.state(*names)
            assert want in s or s in ("queued", "encoding", "plain"), f"{names}: {s}"
            return want in s
        poll(f"{'/'.join(names)} {want}", check)


def xattr(path, name):
    return os.getxattr(path, "user.eqfs." + name).decode()


def fds_of(m):
    """What the daemon has open, by name."""
    top, names = f"/proc/{m.proc.pid}/fd", []
    for n in os.listdir(top):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"{top}/{n}"))
    return names


def few_files(n=400):
    """For the daemon: descriptors are scarce, and it may not ask for more."""
    _LIBC.prctl(24, 24) # PR_CAPBSET_DROP, CAP_SYS_RESOURCE
    resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))


def scratch(name):
    return os.path.join(TMP, name)


def model(seed=1, rows=512, cols=512, layers=4, dtype="bf16"):
    rng = np.random.default_rng(seed)
    to = {"bf16": ml_dtypes.bfloat16, "f32": np.float32, "f16": np.float16}[dtype]
    d = {f"model.layers.{i}.mlp.up_proj.weight":
         (rng.standard_normal((rows, cols)) * 0.02).astype(np.float32).astype(to)
         for i in range(layers)}
    d["model.norm.weight"] = np.ones(cols, np.float32)
    d["ids"] = rng.integers(0, 1000, 3000)
    d["empty"] = np.zeros((0, 4), np.float32)
    return d


def same(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and
        a[k].tobytes() == b[k].tobytes() for k in a)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def sha(path):
    return hashlib.sha256(read(path)).hexdigest()


def eqar(*args):
    return subprocess.run([EQAR, *args], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def raises(errno_, what=""):
    try:
        yield
    except OSError as e:
        assert e.errno == errno_, f"{what}: {e} instead of {os.strerror(errno_)}"
    else:
        raise AssertionError(f"{what}: no {os.strerror(errno_)}")


def run(tests):
    """Run the functions whose name begins with test_; exit accordingly."""
    ran, failed = 0, []
    for name, fn in list(tests.items()):
        if not name.startswith("test_") or (len(sys.argv) > 1 and name not in sys.argv[1:]):
            continue
        ran += 1
        start = time.monotonic()
        try:
            fn()
            print(f"ok {name} ({time.monotonic() - start:.1f} s)", flush=True)
        except BaseException as e: # pylint: disable=broad-except
            failed.append(name)
            print(f"FAILED {name}", flush=True)
            traceback.print_exc(file=sys.stdout)
            for m in list(_mounts):
                print("log of", m.store + ":\n" + m.log())
                m.force()
            if isinstance(e, (KeyboardInterrupt, SystemExit)):
                break
    print(f"{ran - len(failed)} of {ran} passed" + (": failed " + " ".join(failed) if failed else ""))
    sys.exit(1 if failed or not ran else 0)


__all__ = [n for n in dir() if not n.startswith("_")]
