# SPDX-License-Identifier: Apache-2.0
"""eqar without memory: at every place where it allocates some, that fails once, or always,
or nothing can be had from then on. It says so in one line, or goes through with what is
right; no file is ever lost, and nothing else is left. EQFS_CRASH_POINTS: how many to try;
0: all that there are."""
import random

from memory_lib import *

POINTS = int(os.environ.get("EQFS_CRASH_POINTS", "12"))

if sanitized(EQAR):
    sys.exit(77)


def files_of(top):
    """{relative name: bytes} of a directory."""
    return {os.path.relpath(os.path.join(d, n), top): read(os.path.join(d, n))
            for d, _, names in os.walk(top) for n in names}


class Command:
    """A command line, run in a copy of a directory of files."""

    def __init__(self, files, *args):
        self.files, self.args = files, args
        self.top, self.log = scratch("command"), scratch("command.log")
        self.want = self.run()
        assert self.want[0] == 0, self.want
        self.places = places_of(self.log)[0]
        assert self.places, args

    def run(self, place="", count=0):
        shutil.rmtree(self.top, ignore_errors=True)
        for name, data in self.files.items():
            path = os.path.join(self.top, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as f:
                f.write(data)
            os.utime(path, ns=(10**18, 10**18))
        r = subprocess.run([EQAR, *self.args], cwd=self.top, check=False, capture_output=True, timeout=DEADLINE,
                           env={**os.environ, **alloc_env(self.log, place, count)})
        return r.returncode, r.stdout, files_of(self.top), r.stderr

    def check(self, place, count):
        """Whether anything failed."""
        rc, out, files, err = self.run(place, count)
        try:
            assert rc in (0, 1), f"status {rc}"
            assert not any(".eqfs-tmp." in n for n in files), f"litter: {sorted(files)}"
            if rc == 0:
                assert out == self.want[1], "another output"
                assert files == self.want[2], "other files"
            else:
                # One for each file, and one for each object that could not be printed.
                most = 2 * len(self.files)
                assert re.fullmatch(rb"(eqar: [^\n]+\n){1,%d}" % most, err), "not one line"
                self.check_left(files)
        except AssertionError as e:
            raise AssertionError(f"{' '.join(self.args)}, {place}:{count}: {e}; it said {err.decode()}"
                                 f"{stack_of(self.log)}") from None
        return rc != 0

    def check_left(self, files):
        """Each file is as before or as after."""
        before, after = self.files, self.want[2]
        for name in {*before, *after, *files}:
            assert files.get(name) in (before.get(name), after.get(name)), f"{name} is something else"
        for name, data in before.items():
            pair = name + ".eqar" if name + ".eqar" in after else name.removesuffix(".eqar")
            assert files.get(name) == data or files.get(pair) == after[pair], f"{name} is lost"


def source(name, *how, **dims):
    path = scratch(name)
    if not os.path.exists(path):
        save_file(model(*how, **dims), path)
    return read(path)


def plain(name):
    return source("m", 1, rows=128, cols=256, layers=2) if name == "m" else \
        source("n", 2, rows=64, cols=64, layers=1, dtype="f32")


def archive(*options):
    plain("m")
    path = scratch("m.eqar")
    eqar("pack", "-f", *options, scratch("m"), path)
    return read(path)


def attempt(*commands):
    """Each command line with its files, at each place. -j1 meets the same ones each time."""
    commands = [Command(files, *line.split()) for files, line in commands]
    points = [(c, place, count) for c in commands for place in c.places for count in COUNTS]
    chosen = points if not POINTS else random.Random(1).sample(points, POINTS)
    failed, wrong = 0, []
    for c, place, count in chosen:
        try:
            failed += c.check(place, count)
        except AssertionError as e:
            wrong.append(e)
    print(f"  {len(chosen)} of {len(points)} points, {failed} failed")
    assert not wrong, "\n".join(map(str, wrong))
    assert failed > len(chosen) // 3


def test_pack():
    attempt(({"m": plain("m")}, "pack -j1 m"),
            ({"m": plain("m")}, "pack -j2 --json m"),
            ({"m": plain("m")}, "pack --dry-run --json -j1 m"))


def test_quantise():
    conf = b"[policy]\nbits = 4\nexclude = *.norm.*\n"
    attempt(({"m": plain("m"), ".eqfs.conf": conf}, "pack -j1 --include=*.weight --exclude=x m"),
            ({"n": plain("n")}, "pack -j1 --bits=3 --format=int8 n"))


def test_repository():
    a, q = archive(), archive("--bits=4")
    attempt(({"d/m": plain("m"), "d/e/n": plain("n")}, "pack -r -j1 d"),
            ({"d/m.eqar": a, "d/e/n.eqar": q}, "unpack -r -j1 d"))


def test_read():
    a, q = archive(), archive("--bits=4")
    attempt(({"m.eqar": a}, "unpack -j2 --json m.eqar"),
            ({"q.eqar": q}, "unpack -c -j1 q.eqar"),
            ({"m.eqar": a, "m": plain("m")}, "verify -j1 --json --against=m m.eqar"),
            ({"q.eqar": q}, "verify -j2 q.eqar"))


def test_look():
    a, q = archive(), archive("--bits=4")
    attempt(({"q.eqar": q}, "ls --json q.eqar"),
            ({"q.eqar": q}, "stat --json q.eqar"),
            ({"d/m.eqar": a, "d/n": plain("n")}, "du --json d"),
            ({"m": plain("m"), "m.eqar": a}, "diff --json m m.eqar"))


run(globals())
