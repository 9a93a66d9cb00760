# SPDX-License-Identifier: Apache-2.0
"""Stores on which the daemon is killed or its calls fail while applications are at work
(fault_cases.py), and what such a store may then hold.

A World knows which contents each name may have at any moment. A step that has returned
leaves one possibility; one that was interrupted, those before, in the middle and after.
"""
import collections
import errno
import random

from memory_lib import *

SHIM = os.environ.get("EQFS_FAULT_SHIM", "")
ANY = "any contents"        # of a file that is being written
DIRECTORY = "a directory"
TEXT = b"not a model, and not to be lost either\n" * 100
# EQFS_CRASH_PART=1/3: the second third of the points.
PART, PARTS = map(int, os.environ.get("EQFS_CRASH_PART", "0/1").split("/"))

if not os.path.exists(SHIM):
    sys.exit("EQFS_FAULT_SHIM names no library to preload")


def digest(data):
    return hashlib.sha256(data).hexdigest()


def source(n):
    """The bytes of the n-th model, written once."""
    path = scratch(f"source{n}")
    if not os.path.exists(path):
        save_file(model(n, rows=128, cols=256, layers=2), path)
    return path


def changed(n):
    """Those of the n-th model but for one, which still make a model."""
    data = bytearray(read(source(n)))
    data[-5] ^= 1
    return data


def quantised():
    """The digest of what the third model becomes at 4 bits."""
    archive, plain = scratch("quantised.eqar"), scratch("quantised")
    if not os.path.exists(plain):
        eqar("pack", "-q", "--bits=4", source(3), archive)
        eqar("unpack", "-q", archive, plain)
    return sha(plain)


class World:
    """durable: what a step has made is synced before the step counts as done. Where a
    file may have one of several contents, a set of digests stands for them."""

    def __init__(self, mount, files, durable=False, probe=None):
        self.m, self.durable, self.probe = mount, durable, probe
        self.allowed = [dict(files)]

    def path(self, name):
        return self.m.path(name)

    def step(self, act, *worlds):
        """act() changes the world by these, of which the last is the outcome. A world
        is {name: digest, or None for gone}."""
        for change in worlds:
            new = {**self.allowed[0], **change}
            self.allowed.append({k: v for k, v in new.items() if v is not None})
        act()
        if self.durable:
            self.sync(worlds[-1])
        self.allowed = self.allowed[-1:]

    def sync(self, names):
        for name, what in names.items():
            if what and what != DIRECTORY and not os.path.islink(self.path(name)):
                fsync(self.path(name))
            try:
                fsync(os.path.dirname(self.path(name)))
            except FileNotFoundError: # a directory that is gone
                pass
        if self.probe: # a journal that fails tells one of those who wait for it, and later callers
            os.setxattr(self.probe, "user.probe", b"")

    def write(self, name, data):
        self.step(lambda: put(self.path(name), data), {name: ANY}, {name: digest(data)})

    def rename(self, old, new):
        self.step(lambda: os.rename(self.path(old), self.path(new)),
                  {old: None, new: self.allowed[0][old]})

    def unlink(self, name):
        self.step(lambda: os.unlink(self.path(name)), {name: None})

    def exchange(self, one, other):
        self.step(lambda: renameat2(self.path(one), self.path(other), EXCHANGE),
                  {one: self.allowed[0][other], other: self.allowed[0][one]})

    def link(self, old, new):
        self.step(lambda: os.link(self.path(old), self.path(new)), {new: self.allowed[0][old]})

    def poke(self, name, data):
        """One byte of the file becomes that of data, which is the rest of it."""
        def change():
            with open(self.path(name), "r+b", buffering=0) as f:
                f.seek(-5, os.SEEK_END)
                f.write(data[-5:-4])
        self.step(change, {name: digest(data)})

    def settle(self, name):
        """Until the daemon has done with the file, whatever came of it."""
        poll(f"{name} settled", lambda: self.m.state(name) not in ("queued", "encoding"))

    def check(self, m):
        got = contents(m.point)
        for want in self.allowed:
            if got.keys() == want.keys() and all(fits(want[k], got[k]) for k in got):
                return
        raise AssertionError(f"the store holds\n  {got}\nbut should hold one of\n  " +
                             "\n  ".join(map(str, self.allowed)))


def fits(want, got):
    return want in (ANY, got) or isinstance(want, frozenset) and got in want


def write_all(f, data):
    while data:
        data = data[f.write(data):]


def put(path, data):
    with open(path, "wb", buffering=0) as f:
        write_all(f, data)


def fsync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def contents(top):
    """{relative name: digest} of everything below a directory."""
    got = {}

    def fail(e):
        raise e
    for d, dirs, files in os.walk(top, onerror=fail):
        for n in dirs + files:
            path = os.path.join(d, n)
            name = os.path.relpath(path, top)
            if os.path.islink(path):
                got[name] = os.readlink(path)
            else:
                got[name] = DIRECTORY if n in dirs else sha(path)
    return got


# ---- running them ---------------------------------------------------------------------

def template():
    """A store to copy, and what it shows."""
    store = scratch("template")
    if not os.path.exists(store):
        os.makedirs(store)
        for n, name in ((1, "a"), (2, "b")):
            eqar("pack", source(n), os.path.join(store, name + ".eqar"))
        put(os.path.join(store, "t"), TEXT)
    return store, {"a": sha(source(1)), "b": sha(source(2)), "t": digest(TEXT)}


Event = collections.namedtuple("Event", "n op paths result")


def log_of(path):
    """The events of a run, with paths relative to the store."""
    events = []
    with open(path, encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            m = re.fullmatch(r"(\d+) (\w+) (.*) (-?\d+)\n", line)
            assert m, line
            paths = [p[1:] for p in m[3].replace(" (deleted)", "").split(" ")]
            events.append(Event(int(m[1]), m[2], paths, int(m[4])))
    return events


def is_tmp(name):
    return ".eqfs-tmp." in name


class Run:
    """One scenario in a fresh store under one fault ("" for none). A scenario may have
    options, settle and limits for its mount."""

    def __init__(self, scenario, fault="", ops="", store=None, durable=False, limits=None, prepare=None,
                 alloc=None, probe=None):
        self.log_path = scratch("fault.events")
        self.failed = False
        self.healthy = "pread" not in ops and not limits # as far as reading goes
        self.store = store or scratch("fault")
        self.what = f"{scenario.__name__} {fault} {ops}"
        origin, files = template()
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(origin, self.store)
        if durable:
            os.sync()
        if prepare:
            prepare()
        with open(self.log_path, "wb"):
            pass
        self.env = env = {"LD_PRELOAD": SHIM, "EQFS_FAULT_ROOT": os.path.realpath(self.store), "EQFS_FAULT": fault,
               "EQFS_FAULT_LOG": self.log_path,
               "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"}
        if ops:
            env["EQFS_FAULT_OPS"] = ops
        if alloc: # a place and a count; it may not come to a mount
            self.alloc_log = scratch("fault.places")
            env.update(alloc_env(self.alloc_log, *alloc, preload=":" + SHIM))
        self.m = Mount(self.store, *getattr(scenario, "options", ()), settle=getattr(scenario, "settle", "0"),
                       env=env, limits=limits or getattr(scenario, "limits", None), fails=alloc)
        self.world = World(self.m, files, durable, probe)
        try:
            if self.m.up:
                scenario(self.world)
        except OSError as e:
            self.failed = True
            self.what += f" ({e})"
            # Of a daemon that was killed there may still be a last breath.
            if e.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                self.m.proc.wait(30)
        except BaseException:
            print(f"  in {self.what}")
            raise

    def died(self):
        return self.m.proc.poll() is not None

    def events(self):
        return log_of(self.log_path)

    def end(self):
        """The daemon goes, by itself if it is still there."""
        if self.died():
            assert self.m.proc.returncode == -signal.SIGKILL, self.m.log()
            self.m.kill()
            return
        if self.healthy:
            try:
                self.world.check(self.m)
            except OSError as e:
                if e.errno != errno.ENOMEM: # which may come here first, but only once
                    raise
                self.world.check(self.m)
        self.m.stop()

    def finish(self, between=None):
        """The daemon goes, and with the next one everything must be right again."""
        # Without its mark a file is not known to be wanted or not.
        unmarked = any(e.op == "setxattr" and e.result < 0 for e in self.events())
        try:
            self.end()
            if between:
                between()
            with Mount(self.store, settle="0") as m:
                self.world.check(m)
                recover(m, not unmarked)
                self.world.check(m)
            tidy(self.store, not unmarked)
        except BaseException:
            print(f"  after {self.what}; its last events:", *self.events()[-8:], sep="\n    ")
            raise


def recover(m, converge):
    """Until the mount has swept and encoded what there was."""
    models = {sha(source(n)) for n in (1, 2, 3)}
    for name, what in contents(m.point).items():
        if not converge or what not in models or "incomplete" in name or len(name) > 250:
            continue
        if os.stat(m.path(name)).st_nlink == 1:
            m.settle(name)
    poll("all seen", lambda: b"\neqfs_store_known 1\n" in read(m.path(".eqfs/stats")))
    poll("litter swept", lambda: not any(map(is_tmp, os.listdir(m.store))))


def tidy(store, marked):
    for _, dirs, files in os.walk(store):
        both = {n for n in files if n + ".eqar" in files}
        assert not both or not marked, f"both forms of {both}"
        assert not any(map(is_tmp, files + dirs)), (dirs, files)


def sample(points, n, seed):
    """n of the points, or all if there are no more."""
    return points if not n or n >= len(points) else random.Random(seed).sample(points, n)


def spread(points, n, seed=1):
    """What this process is to try of a sample."""
    return sample(points, n, seed)[PART::PARTS]


class Disk:
    """A small ext4 of its own, which can be filled, or lose power."""

    def __init__(self, name, options="", mib=24):
        self.options, self.point = options, scratch(name)
        self.image, self.fresh = scratch(name + ".img"), scratch(name + ".fresh")
        os.makedirs(self.point, exist_ok=True)
        with open(self.fresh, "wb") as f:
            f.truncate(mib << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-I", "256", self.fresh], check=True)
        self.store = os.path.join(self.point, "store")
        self.filler = os.path.join(self.point, "filler")

    def __enter__(self):
        shutil.copyfile(self.fresh, self.image)
        self.attach()
        return self

    def __exit__(self, *exc):
        self.detach()

    def attach(self):
        subprocess.run(["mount", "-o", "loop" + self.options, self.image, self.point], check=True)

    def detach(self):
        subprocess.run(["umount", "-l", self.point], check=True)

    def cut(self):
        """What is on the medium at this moment is all that is left."""
        shutil.copyfile(self.image, self.image + ".cut")
        self.detach()
        os.rename(self.image + ".cut", self.image)
        self.attach()

    def fill(self, left):
        """All but about so many bytes."""
        with open(self.filler, "wb", buffering=0) as f:
            st = os.statvfs(self.point)
            for _ in range(max(st.f_bavail * st.f_bsize - left, 0) >> 12):
                try:
                    f.write(bytes(4096))
                except OSError:
                    break
            os.fsync(f.fileno())


def disks():
    """Can there be any? Says why not."""
    try:
        with Disk("probe", mib=4):
            return True
    except (OSError, subprocess.CalledProcessError) as e:
        print("  no loop devices here:", e)
        return False


__all__ = [n for n in dir() if not n.startswith("_")]
