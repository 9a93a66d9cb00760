# SPDX-License-Identifier: Apache-2.0
"""No failure in a mount that the filesystem below it does not have: our own cases, and
those suites and tools that are installed, in both, if EQFS_POSIX=long asks for that."""
import re

import handle_cases
import posix_cases
from posix_cases import *

# Of stress-ng's class of filesystem stressors, those that do not run: io would sync every mount
# of the machine, and the others are not about the files in a directory.
NO_STRESS = "io,bind-mount,binderfs,eventfd,procfs"


def places(name):
    """The two to be compared, the plain one first. A generator, so that they end."""
    os.chmod(TMP, 0o755)
    yield Place(scratch(name + ".plain"))
    with Mount(scratch(name), *(["allow_other"] if ROOT else [])) as m:
        yield Place(m.path("place"), m)


def test_cases():
    below, broken = {}, {}
    cases = cases_in({**vars(posix_cases), **vars(handle_cases)})
    some = cases.keys() & set(sys.argv[1:])
    if some:
        cases = {n: cases[n] for n in some}
    for p in places("cases"):
        for name, fn in cases.items():
            try:
                fn(Place(p(name), p.mount))
            except Exception as e: # pylint: disable=broad-except
                if not p.mount:
                    below[name] = e
                elif name not in below:
                    broken[name] = e
                    traceback.print_exc(file=sys.stdout)
    for name, e in below.items():
        print(f"  {name}: not below either: {e!r}")
    assert len(below) <= len(cases) // 4, "a strange filesystem to test on"
    assert not broken, "only in the mount: " + " ".join(broken)
    print(f"  {len(cases)} cases")


def test_handles_of_another_mount():
    """They are stale, whatever has their numbers by now; but the root's is good for ever."""
    if not ROOT:
        print("  not root")
        return
    names = ["", "d", "d/e", "m", *(f"d/{i}" for i in range(20))]
    with Mount(scratch("again")) as m:
        os.makedirs(m.path("d/e"))
        for n in names[4:]:
            with open(m.path(n), "wb") as f:
                f.write(n.encode())
        save_file(model(12), m.path("m"))
        m.settle("m")
        handles = {n: handle_cases.handle_of(m.path(n)) for n in names}
    with Mount(m.store) as m:
        for n in (*names[::-1], ".eqfs"): # each gets another's number
            os.stat(m.path(n))
        for n, h in handles.items():
            try:
                fd = handle_cases.open_handle(m.path, h, os.O_PATH)
            except OSError as e:
                assert n and e.errno == errno.ESTALE, (n, e)
            else:
                assert not n and os.path.samestat(os.fstat(fd), os.stat(m.point)), n
                os.close(fd)


def tool(name, variable=None):
    """A program that need not be there; and its absence is said."""
    if not LONG:
        return None
    path = os.environ.get(variable or "") or shutil.which(name)
    if not path:
        print(f"  no {name} here")
    return path


def failures(text):
    """{(file, test)} of prove's summary."""
    found, name, listed = set(), None, False
    for line in text.splitlines():
        if "Wstat: " in line:
            name = line.split()[0]
        elif name and line.startswith("  "):
            what, _, numbers = line.rpartition(":") # the list may go on in lines of its own
            listed = what.startswith("  Failed test") if what else listed
            for first, last in re.findall(r"(\d+)(?:-(\d+))?", numbers if listed else ""):
                found |= {(name, n) for n in range(int(first), int(last or first) + 1)}
            if what and not listed and not what.startswith("  TODO"):
                found.add((name, line.strip()))
    return found


def test_pjdfstest():
    """configure finds it, or PJDFSTEST says where: the program, with tests/ beside it."""
    path = tool("pjdfstest", "PJDFSTEST")
    if not path:
        return
    if not ROOT:
        print("  not root: nothing to run")
        return
    tests = os.path.join(os.path.dirname(os.path.realpath(path)), "tests")
    results = []
    for p in places("pjd"):
        os.chmod(p(), 0o755)
        r = subprocess.run(["prove", "-r", "-j2", tests], cwd=p(), capture_output=True, text=True, check=False)
        print("  " + "\n  ".join(r.stdout.splitlines()[-2:]))
        assert "Files=" in r.stdout, r.stdout + r.stderr
        results.append(failures(r.stdout))
        assert bool(results[-1]) == ("Result: FAIL" in r.stdout), r.stdout
        if results[-1]:
            print(f"  failed: {len(results[-1])}, in {' '.join(sorted({os.path.relpath(n, tests) for n, _ in results[-1]}))}")
    more = results[1] - results[0]
    if os.stat(TMP).st_nlink == 1: # btrfs, whose link counts of directories pjdfstest excuses by its name
        more = {(n, t) for n, t in more if not n.endswith("/rename/24.t")}
    assert not more, f"only in the mount: {more}"


def test_fsx():
    fsx = tool("fsx", "FSX")
    if not fsx:
        return
    for p in places("fsx"):
        for args in (["-S", "1"], ["-S", "2", "-Z", "-r", "4096", "-w", "4096"], ["-S", "3", "-l", "1000000", "-W"]):
            r = subprocess.run([fsx, "-q", "-N", "100000", *args, p("f")], capture_output=True, text=True, check=False)
            assert r.returncode == 0 and "A-OK" in r.stdout, (p.mount, r.stdout, r.stderr)


def test_fio():
    fio = tool("fio")
    if not fio:
        return
    for p in places("fio"):
        for engine, extra in (("psync", []), ("mmap", []), ("psync", ["--direct=1"]), ("libaio", ["--direct=1", "--iodepth=8"])):
            r = subprocess.run([fio, "--name=v", "--directory=" + p(), "--aux-path=" + TMP, "--rw=randwrite",
                                "--bsrange=4k-128k", "--size=256M", "--numjobs=3", "--verify=crc32c",
                                "--verify_fatal=1", "--do_verify=1",
                                "--verify_backlog=64", "--ioengine=" + engine, *extra],
                               capture_output=True, text=True, check=False)
            assert r.returncode == 0 and "err= 0" in r.stdout, (p.mount, engine, r.stdout[-3000:], r.stderr)


def test_dbench():
    dbench = tool("dbench")
    if not dbench:
        return
    for p in places("dbench"):
        r = subprocess.run([dbench, "-t", "60", "-D", p(), "4"], capture_output=True, text=True,
                           check=False)
        bad = [s for s in r.stdout.splitlines() if "failed" in s and "barrier" not in s]
        assert r.returncode == 0 and "Throughput" in r.stdout and not bad, (p.mount, r.stdout[-3000:])
        print("  " + [s for s in r.stdout.splitlines() if "Throughput" in s][0])


def test_stress():
    """stress-ng's stressors, all at once, models being encoded beside them."""
    stress = tool("stress-ng")
    if not stress:
        return
    failed = []
    for p in places("stress"):
        for i in range(4):
            p.put(f"m{i}", read(saved(i)))
        r = subprocess.run([stress, "--class", "filesystem", "--all", "1", "-x", NO_STRESS, "--timeout", "60",
                            "--temp-path", p(), "--verify"], capture_output=True, text=True, check=False)
        out = r.stdout + r.stderr
        assert "run completed" in out or "successful run" in out, out[-3000:]
        # One that gives up waiting says more about the machine.
        failed.append(set(re.findall(r"fail: *\[\d+\] (?:stress-ng-)?(\S+?): (?!timed waiting)", out)))
        print(f"  stressors: {re.search('dispatching hogs: (.*)', out)[1]}\n  failed: {failed[-1] or 'none'}")
        for i in range(4):
            assert read(p(f"m{i}")) == read(saved(i))
        if p.mount:
            assert not failed[1] - failed[0], out[-6000:]
            assert p.mount.proc.poll() is None


@contextlib.contextmanager
def filesystem(kind):
    """A new one of this kind, in memory or on a loop device; None if there can be none."""
    top, image = scratch(kind), scratch(kind + ".img")
    os.mkdir(top)
    with open(image, "wb") as f:
        f.truncate(4 << 30)
    make = shutil.which("mkfs." + kind)
    what = ["-t", kind, "-o", "size=2G", kind] if kind == "tmpfs" else ["-o", "loop", image]
    done = kind == "tmpfs" or make and subprocess.run([make, "-q", image], check=False).returncode == 0
    done = done and subprocess.run(["mount", *what, top], check=False).returncode == 0
    try:
        yield top if done else None
    finally:
        if done:
            subprocess.run(["umount", "-l", top], check=True)
        os.unlink(image)


def test_backings():
    """The shorter ones of these on other filesystems than where the tests usually run."""
    if not LONG or not ROOT:
        return
    tried = 0
    for kind in ("tmpfs", "ext4", "xfs", "btrfs"):
        with filesystem(kind) as top:
            if not top:
                print(f"  no {kind} here")
                continue
            tried += 1
            r = subprocess.run([sys.executable, __file__, "test_cases", "test_handles_of_another_mount", "test_pjdfstest",
                                "test_fsx"], env={**os.environ, "TMPDIR": top}, capture_output=True, text=True, check=False)
            print(f"  {kind}: " + r.stdout.replace("\n", "\n    ").rstrip())
            assert r.returncode == 0, (kind, r.stderr)
    assert tried


run(globals())
