# SPDX-License-Identifier: Apache-2.0
"""eqar packing and restoring while each of its steps is the last one, or fails, or finds the
disk full: what was there is there, as a plain file or an archive, and the next run goes on.
EQFS_CRASH_POINTS and EQFS_CRASH_PART as in mount_fault.py."""
from fault_lib import *

POINTS = int(os.environ.get("EQFS_CRASH_POINTS", "12"))
ERRORS = (errno.ENOSPC, errno.EIO)


class Command:
    """One of eqar's, on a directory with the archives a and b, the text t and the model m."""

    def __init__(self, name, *args, wanted, either=None):
        self.name, self.args = name, args
        self.wanted = wanted            # names when it has been successful
        self.either = either or {}      # what else a name may have then, or before

    def run(self, top, env=None):
        return subprocess.run([EQAR, *(a.replace("@", top) for a in self.args)], env={**os.environ, **(env or {})},
                              check=False, capture_output=True, text=True, errors="replace", timeout=DEADLINE)


ALL = {"a", "b", "m", "t"}
COMMANDS = (
    Command("pack", "pack", "-q", "-r", "@", wanted={"a.eqar", "b.eqar", "m.eqar", "t"}),
    Command("quantise", "pack", "-q", "-r", "--bits=4", "@", wanted={"a.eqar", "b.eqar", "m.eqar", "t"},
            either={"m": quantised}),
    Command("restore", "unpack", "-q", "-r", "@", wanted=ALL),
    Command("pack over", "pack", "-q", "-f", "@/m", "@/a.eqar", wanted={"a.eqar", "b.eqar", "m", "t"},
            either={"a": lambda: sha(source(3))}),
    Command("unpack over", "unpack", "-q", "-f", "@/a.eqar", "@/m", wanted={"a.eqar", "b.eqar", "m", "t"},
            either={"m": lambda: sha(source(1))}),
)


def shown(top):
    """{name: digest}, as a mount shows it: plain files before archives."""
    got = {}
    for name in os.listdir(top):
        path = os.path.join(top, name)
        if is_tmp(name):
            continue
        if not name.endswith(".eqar"):
            got[name] = sha(path)
        elif not os.path.exists(path.removesuffix(".eqar")):
            r = subprocess.run([EQAR, "unpack", "-c", path], check=False, capture_output=True)
            assert r.returncode == 0, (name, r.stderr)
            got[name.removesuffix(".eqar")] = digest(r.stdout)
    return got


class Run:
    """A command in a fresh directory under one fault ("" for none)."""

    def __init__(self, command, fault="", ops="", top=None, prepare=None):
        self.command, self.top = command, top or scratch("eqar")
        self.what = f"{command.name} {fault} {ops}"
        self.log = scratch("eqar.events")
        store, self.files = template()
        shutil.rmtree(self.top, ignore_errors=True)
        shutil.copytree(store, self.top)
        shutil.copyfile(source(3), os.path.join(self.top, "m"))
        self.files = {**self.files, "m": sha(source(3))}
        if prepare:
            prepare()
        with open(self.log, "wb"):
            pass
        env = {"LD_PRELOAD": SHIM, "EQFS_FAULT_ROOT": os.path.realpath(self.top), "EQFS_FAULT": fault,
               "EQFS_FAULT_LOG": self.log, "EQFS_FAULT_OPS": ops or ",create,write,truncate,fsync,chown,chmod,utimens,"
               "setxattr,removexattr,unlink,mkdir,link,rename,",
               "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"}
        self.result = command.run(self.top, env)

    def killed(self):
        return self.result.returncode == -signal.SIGKILL

    def check(self):
        got = shown(self.top)
        assert got.keys() == self.files.keys(), (got.keys(), self.files.keys())
        for name, what in got.items():
            assert what == self.files[name] or what == self.command.either.get(name, str)(), name

    def finish(self, between=None):
        """What was interrupted has lost nothing, and a second run makes all of it true."""
        try:
            if between:
                between()
            self.check()
            if self.result.returncode == 1: # one line says what, and why
                assert self.result.stderr.startswith("eqar: ") and ": " in self.result.stderr[6:], self.result
            elif not self.killed():
                assert self.result.returncode == 0 and set(os.listdir(self.top)) == self.command.wanted, self.result
            r = self.command.run(self.top)
            assert r.returncode == 0, r
            self.check()
            left = set(os.listdir(self.top))
            if "-r" not in self.command.args: # which sweeps what a crash has left
                left = {n for n in left if not is_tmp(n)}
            assert left == self.command.wanted, left
        except BaseException:
            print(f"  after {self.what}: {self.result}; its last events:", *log_of(self.log)[-8:], sep="\n    ")
            raise


def baseline(**how):
    """{command: events of a run without a fault}"""
    seen = {}
    for c in COMMANDS:
        r = Run(c, **how)
        assert r.result.returncode == 0, r.result
        seen[c] = log_of(r.log)
        r.finish()
        assert len(seen[c]) > 5, seen[c]
    return seen


EVENTS = baseline()


def test_kill():
    """SIGKILL before each event, and in the middle of each write."""
    points = [(c, how, e.n) for c, events in EVENTS.items() for e in events
              for how in (("before", "torn") if e.op == "write" else ("before",))]
    chosen = spread(points, POINTS)
    hit = 0
    for c, how, n in chosen:
        r = Run(c, f"{how}:{n}")
        hit += r.killed()
        r.finish()
    print(f"  {len(chosen)} of {len(points)} points, killed at {hit}")
    assert hit >= len(chosen) * 3 // 4


def test_errors():
    """The n-th call fails, once or from then on."""
    points = [(c, e.n, error, count) for c, events in EVENTS.items() for e in events
              for error in ERRORS for count in (1, 10**6)]
    chosen = spread(points, POINTS)
    said = 0
    for c, n, error, count in chosen:
        r = Run(c, f"errno:{n}:{error}:{count}")
        said += r.result.returncode == 1
        r.finish()
    print(f"  {len(chosen)} of {len(points)} points, {said} reported")


def test_read_errors():
    points = [(c, n) for c in COMMANDS for n in range(1, 16)]
    for c, n in spread(points, POINTS // 2):
        Run(c, f"errno:{n}:{errno.EIO}:1", ops=",pread,").finish()


def test_short():
    """Reads and writes that do half of what they could."""
    for c in COMMANDS:
        for ops in ("", ",pread,"):
            r = Run(c, "short:1", ops=ops)
            assert r.result.returncode == 0, r.result
            r.finish()


def test_power():
    """The disk as it was at the moment of a power cut."""
    if os.geteuid() or not disks():
        return
    with Disk("power", ",noauto_da_alloc") as disk:
        points = [(c, e.n) for c, events in baseline(top=disk.store, prepare=os.sync).items() for e in events]
        chosen = spread(points, POINTS // 2)
        for c, n in chosen:
            Run(c, f"before:{n}", top=disk.store, prepare=os.sync).finish(between=disk.cut)
    print(f"  {len(chosen)} of {len(points)} points")


def test_full():
    """A disk that is full from the beginning, or so many KiB later."""
    if os.geteuid() or not disks():
        return
    chosen = spread([(c, kib) for c in COMMANDS for kib in (0, 4, 40, 100, 160, 200, 260)], POINTS // 2)
    with Disk("small", mib=8) as disk:
        for c, kib in chosen:
            r = Run(c, top=disk.store, prepare=lambda kib=kib: disk.fill(kib << 10))
            r.what += f" {kib} KiB"
            r.check()
            r.finish(between=lambda: os.unlink(disk.filler))


run(globals())
