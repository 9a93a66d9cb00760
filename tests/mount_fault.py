# SPDX-License-Identifier: Apache-2.0
"""Crashes, failing calls, full disks, power cuts and lack of memory at every step that the
daemon takes, one after the other. EQFS_CRASH_POINTS: how many to try of each kind; 0: all
that there are, and 1000 kills in all; EQFS_CRASH_PART: which part of them."""
import functools
import resource
import threading

from fault_cases import *

POINTS = int(os.environ.get("EQFS_CRASH_POINTS", "12"))
KILLS = POINTS or 1000
ERRORS = (errno.ENOSPC, errno.EIO)


def baseline(scenarios=SCENARIOS, **how):
    """{scenario: events of a run without a fault}, which must go through."""
    seen = {}
    for s in scenarios:
        r = Run(s, **how)
        assert not r.failed and not r.died(), r.what
        seen[s] = r.events()
        r.finish()
        assert seen[s], r.what
    return seen


EVENTS = baseline()


def killed(r):
    """Did the kill come? If the scenario was over before, it comes now."""
    hit = r.died()
    r.m.proc.kill()
    r.m.proc.wait(30)
    return hit


def test_kill_steps():
    """SIGKILL before each event in turn, and in the middle of each write."""
    points = [(s, how, e) for s, events in EVENTS.items() for e in events
              for how in (("before", "torn") if e.op == "write" else ("before",))]
    hit = 0
    chosen = spread(points, POINTS)
    for s, how, e in chosen:
        r = Run(s, f"{how}:{e.n}")
        hit += killed(r)
        r.finish()
    print(f"  {len(chosen)} of {len(points)} points, killed at {hit}")
    assert hit >= len(chosen) * 3 // 4


def test_kill_moments():
    """SIGKILL at random moments."""
    rng = random.Random(2 + PART)
    n = max(KILLS - sum(map(len, EVENTS.values())), 0) // PARTS if not POINTS else POINTS // 2
    hit = 0
    for _ in range(n):
        s = rng.choice(SCENARIOS)

        @functools.wraps(s) # its options, too
        def scenario(w, s=s):
            timer = threading.Timer(rng.expovariate(1 / 0.03), w.m.proc.kill)
            timer.start()
            try:
                s(w)
            finally:
                timer.join()
        r = Run(scenario)
        hit += r.failed
        killed(r)
        r.finish()
    print(f"  {n} kills, {hit} during an operation")


def test_kill_recovery():
    """The mount that puts right what a kill has left is killed in turn."""
    points = [(s, e.n) for s, events in EVENTS.items() for e in events]
    chosen = spread(points, POINTS // 2, 6)
    hit = 0
    for s, n in chosen:
        r = Run(s, f"before:{n}")
        killed(r)

        def between(r=r, n=n):
            nonlocal hit
            m = Mount(r.store, settle="0", env={**r.env, "EQFS_FAULT": f"before:{1 + n % 9}"}, fails=True)
            try:
                recover(m, True)
            except OSError as e:
                assert e.errno in (errno.ENOTCONN, errno.ECONNABORTED), e
                hit += 1
            m.kill()
        r.finish(between)
    print(f"  {len(chosen)} of {len(points)} points, killed again at {hit}")


def test_short():
    """Reads and writes that do half of what they could."""
    for s in spread(SCENARIOS, POINTS // 4, 7):
        for ops in ("", ",pread,"):
            r = Run(s, "short:1", ops=ops)
            assert not r.failed and not r.died(), r.what
            r.finish()


def test_order():
    """What a power cut must not turn round: contents are synced before they get their
    name, and the name before what it replaces goes."""
    swaps = 0
    for s, events in EVENTS.items():
        for i, e in enumerate(events):
            if e.op != "rename" or not is_tmp(e.paths[0]):
                continue
            tmp, name = e.paths
            before = [b.op for b in events[:i] if b.paths == [tmp]]
            assert before[-1] == "fsync" and "write" not in before[before.index("fsync"):], (s, before)
            other = name.removesuffix(".eqar") if name.endswith(".eqar") else name + ".eqar"
            rest = events[i + 1:]
            gone = [k for k, b in enumerate(rest) if b.op in ("rename", "unlink") and b.paths[0] == other]
            if gone:
                synced = [b for b in rest[:gone[0]] if b.op == "fsync" and b.paths == [os.path.dirname(name)]]
                assert synced, (s, rest[:gone[0] + 1])
                swaps += 1
    assert swaps >= 8, f"only {swaps} swaps seen"


def test_power():
    """The disk as it was at the moment of a power cut: what was synced is there."""
    if os.geteuid() or not disks():
        return
    points = []
    with Disk("power", ",noauto_da_alloc") as disk:
        for s, events in baseline(sample(SCENARIOS, POINTS // 4, 3), store=disk.store, durable=True).items():
            points += [(s, e.n) for e in events]
        chosen = spread(points, POINTS // 2)
        for s, n in chosen:
            r = Run(s, f"before:{n}", store=disk.store, durable=True)
            killed(r)
            r.finish(between=disk.cut)
    print(f"  {len(chosen)} of {len(points)} points")


def test_no_attributes():
    """A store without extended attributes forgets what is to be encoded, and nothing else."""
    if os.geteuid():
        return
    point = scratch("bare")
    os.makedirs(point)
    if subprocess.run(["mount", "-t", "ramfs", "ramfs", point], check=False).returncode:
        print("  no ramfs here")
        return
    try:
        with raises(errno.EOPNOTSUPP):
            os.setxattr(point, "user.x", b"")
        others = [s for s in SCENARIOS if s not in (archive_over_plain, attributes, parked)]
        seen = baseline((archive_over_plain, *spread(others, POINTS // 4, 4)), store=point + "/store")
        points = [(s, e.n) for s, events in seen.items() for e in events if s is not archive_over_plain]
        chosen = [(archive_over_plain, e.n) for e in seen[archive_over_plain]] + spread(points, POINTS // 2)
        for s, n in chosen:
            r = Run(s, f"before:{n}", store=point + "/store")
            killed(r)
            r.finish()
        print(f"  {len(chosen)} points")
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def test_errors():
    """The n-th call fails, once or from then on."""
    points = [(s, e, error, count) for s, events in EVENTS.items() for e in events
              for error in ERRORS for count in (1, 10**6)]
    failed = 0
    # Always: what a swap leaves half done, before a writer comes.
    chosen = [(quantise, e, errno.EIO, 1) for e in EVENTS[quantise] if e.op in ("rename", "unlink", "fsync")]
    chosen += spread(points, POINTS)
    for s, e, error, count in chosen:
        r = Run(s, f"errno:{e.n}:{error}:{count}")
        assert not r.died(), r.m.log()
        r.healthy = count == 1 # what cannot be undone now is for the next mount
        failed += r.failed
        r.finish()
    print(f"  {len(chosen)} of {len(points)} points, {failed} seen by the application")


def test_read_errors():
    chosen = spread([(s, n) for s in SCENARIOS for n in range(1, 12)], POINTS // 2)
    for s, n in chosen:
        r = Run(s, f"errno:{n}:{errno.EIO}:1", ops=",pread,")
        assert not r.died(), r.m.log()
        r.finish()


def test_reported():
    """An error of the disk comes to who called for it, and to nobody else."""
    for op, act in (("write", lambda fd: os.write(fd, TEXT)), ("fsync", os.fsync), ("fsync", os.fdatasync),
                    ("truncate", lambda fd: os.ftruncate(fd, 5)),
                    ("write", lambda fd: os.posix_fallocate(fd, 0, 5)), ("chmod", lambda fd: os.fchmod(fd, 0o600))):
        for error in ERRORS:
            def scenario(w, act=act, error=error):
                fd = os.open(w.path("x.incomplete"), os.O_WRONLY | os.O_CREAT)
                with raises(error):
                    act(fd)
                act(fd) # it was for once
                os.close(fd)
                w.allowed[0]["x.incomplete"] = sha(w.path("x.incomplete"))
            r = Run(scenario, f"errno:1:{error}:1", ops=f",{op},")
            assert not r.failed and not r.died(), r.what
            r.finish()


def test_full():
    """A disk that is full from the beginning, or so many KiB later."""
    if os.geteuid() or not disks():
        return
    chosen = spread([(s, kib) for s in SCENARIOS for kib in (0, 4, 8, 40, 100, 160, 200, 260, 330)], POINTS // 2)
    with Disk("small", mib=8) as disk:
        for s, kib in chosen:
            r = Run(s, store=disk.store, prepare=lambda kib=kib: disk.fill(kib << 10))
            assert not r.died(), r.m.log()
            r.what += f" {kib} KiB"
            r.finish(between=lambda: os.unlink(disk.filler))


def test_memory():
    """Less and less memory: what works is right, and nothing is lost."""
    if sanitized(EQFS):
        return
    ran = 0
    for mib in spread(list(range(40, 400, 10)), POINTS // 2):
        size = mib << 20
        try:
            r = Run(copy_in, limits=lambda size=size: resource.setrlimit(resource.RLIMIT_AS, (size, size)))
        except AssertionError as e:
            assert "did not mount" in str(e), e
            continue
        if r.died(): # it gave up, in order
            assert r.m.proc.returncode == 1 and not mounted(r.m.point), r.m.log()
            continue
        ran += 1
        r.finish()
    assert ran, "it never mounted"


def without_memory(scenario, place, count):
    """Returns what came of it: 0 nothing, 1 an error, 2 no mount at all."""
    r = Run(scenario, alloc=(place, count))
    r.what += f"without memory at {place}:{count}{stack_of(r.alloc_log)}\n"
    if not r.m.up:
        # libfuse does not tell a lack of memory from wrong usage.
        assert r.m.proc.returncode in (1, 2) and not mounted(r.m.point), r.what + r.m.log()
        return 2
    assert not r.died(), r.what + r.m.log()
    r.healthy = count == 1
    r.finish()
    return int(r.failed)


def test_allocations():
    """No memory at each place where the daemon asks for some: once, always there, or
    everywhere from then on."""
    if sanitized(EQFS):
        return
    places = {}
    for s in (*SCENARIOS, look):
        r = Run(s, alloc=("", 0)) # none fails
        assert not r.failed and not r.died(), r.what
        r.finish()
        for p in places_of(r.alloc_log)[0]:
            places.setdefault(p, s)
    points = [(s, p, count) for p, s in places.items() for count in COUNTS]
    chosen = spread(points, POINTS)
    results = [without_memory(*point) for point in chosen]
    print(f"  {len(chosen)} of {len(points)} points, {results.count(2)} before the mount, "
          f"{results.count(1)} seen by the application")


run(globals())
