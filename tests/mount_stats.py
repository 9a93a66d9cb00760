# SPDX-License-Identifier: Apache-2.0
"""Statistics: .eqfs/stats as Prometheus reads it, what it counts, and that it is in
nobody's way."""
import errno
import json
import mmap
import re
import threading

from prometheus_client.parser import text_string_to_metric_families

from mount_lib import *


def stats_text(m):
    return read(m.path(".eqfs", "stats")).decode()


def parse(text):
    """{name with labels: value}, by Prometheus's own parser and stricter than that."""
    lines = text.splitlines()
    assert text.endswith("\n") and lines
    helped, typed, out = set(), {}, {}
    for line in lines:
        if line.startswith("# HELP "):
            name = line.split()[2]
            assert name not in helped and len(line.split()) > 3, line
            helped.add(name)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name in helped and name not in typed and kind in ("counter", "gauge"), line
            typed[name] = kind
        else: # samples follow their own head
            assert re.match(r"[a-z_]+(\{([a-z]+=\"([^\"\\\n]|\\.)*\",?)+\})? [-+.e0-9]+$", line), line
            name = re.match("[a-z_]+", line).group()
            assert name == list(typed)[-1], line
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.samples, family
        for s in family.samples:
            assert s.name.startswith("eqfs_") and typed[s.name] == family.type, s
            assert (family.type == "counter") == s.name.endswith("_total"), s
            assert family.type != "counter" or s.value >= 0, s
            assert re.search("_(bytes|seconds|files|archives|extents|ratio|requests|errors|hits|misses|"
                             "evictions|known|info)(_total)?$", s.name), s
            key = s.name + "".join(f"{{{k}={v}}}" for k, v in sorted(s.labels.items())
                                   if s.name != "eqfs_info")
            assert key not in out, key
            out[key] = s.value
            if s.name == "eqfs_info":
                out["labels"] = s.labels
    assert len(out) > 30, out
    return out


def stats(m):
    return parse(stats_text(m))


def backend(m):
    """As both ways to ask tell it."""
    r = subprocess.run([EQAR, "status", m.point], check=True, capture_output=True, text=True)
    shown = stats(m)["labels"]["backend"]
    assert re.search(r"^ *back end +" + re.escape(shown) + "$", r.stdout, re.M), (shown, r.stdout)
    return shown


def test_backend():
    """That of a GPU is shown as long as it works."""
    save_file(model(5), scratch("backend.source"))
    want = sha(scratch("backend.source"))
    for plan, after in (("", "cuda/0 fake"), ("broken=2", "cpu/"), ("nodevice", "cpu/")):
        store = scratch("backend" + plan)
        os.makedirs(store)
        eqar("pack", scratch("backend.source"), store + "/m.eqar")
        with Mount(store, "gpu=auto", env={"EQFS_CUDA_MODULE": os.environ["EQFS_FAKE_CUDA"], "EQFS_FAKE": plan}) as m:
            assert backend(m) == "cuda (not opened yet)"
            with open(m.path("m"), "rb") as f:
                got = hashlib.sha256()
                while data := f.read(100000):
                    got.update(data)
            assert got.hexdigest() == want
            assert backend(m).startswith(after), (plan, backend(m))


def test_terminal():
    """What a mount says of itself reaches no terminal as it is."""
    with Mount(scratch("terminal"), "bits=4", "include=a\x1b[31mb") as m:
        assert "\x1b[31m" in stats(m)["labels"]["policy"]
        shown = eqar("status", "-v", m.point)
        assert shown.count("a?[31mb") == 2 and "\x1b" not in shown, shown


def counters_grow(a, b):
    for key, value in a.items():
        if key.split("{")[0].endswith("_total"):
            assert b[key] >= value, f"{key} went from {value} to {b[key]}"


def test_counts():
    size = {}
    with Mount(scratch("counts")) as m:
        s = stats(m)
        assert s["labels"]["policy"] == "lossless" and s["labels"]["mode"] == "rw", s["labels"]
        assert s["labels"]["backend"].startswith("cpu/"), s["labels"]
        assert s["eqfs_encoded_files_total"] == s["eqfs_queue_files"] == 0
        assert s["eqfs_store_files"] == s["eqfs_store_logical_bytes"] == 0
        save_file(model(1), m.path("m"))
        size["m"] = os.stat(m.path("m")).st_size
        m.settle("m")
        with open(m.path("plain"), "wb") as f:
            f.write(b"x" * 100000)
        size["plain"] = 100000
        poll("looked at", lambda: m.state("plain") == "plain")
        one = stats(m)
        counters_grow(s, one)
        assert one["eqfs_encoded_files_total"] == 1 == one["eqfs_encode_skipped_files_total"], one
        assert one["eqfs_encoded_input_bytes_total"] == size["m"]
        assert one["eqfs_encoded_output_bytes_total"] == os.stat(m.disk("m.eqar")).st_size
        assert one["eqfs_encode_seconds_total"] > 0
        assert one["eqfs_written_bytes_total"] == sum(size.values())
        assert one["eqfs_store_logical_bytes"] == sum(size.values()), one
        assert one["eqfs_store_files"] == 2 and one["eqfs_store_archives"] == 1
        disk = sum(os.stat(m.disk(n)).st_blocks * 512 for n in os.listdir(m.store))
        assert abs(one["eqfs_store_physical_bytes"] - disk) <= 65536, (one, disk)
        read(m.path("m"))
        two = stats(m)
        counters_grow(one, two)
        assert two["eqfs_read_bytes_total{file=archive}"] >= size["m"]
        assert two["eqfs_cache_misses_total"] + two["eqfs_decode_ahead_extents_total"] > 0
        assert two["eqfs_decoded_bytes_total"] > 0 and two["eqfs_decode_errors_total"] == 0
        assert 0 < two["eqfs_cache_bytes"] <= two["eqfs_cache_limit_bytes"] + (32 << 20)
        with open(m.path("m"), "r+b") as f: # a plain file again, and then an archive again
            f.write(read(m.path("m"))[:8])
        m.settle("m")
        three = stats(m)
        assert three["eqfs_restored_files_total"] == 1 and three["eqfs_restored_bytes_total"] == size["m"]
        assert three["eqfs_store_archives"] == 1 and three["eqfs_store_logical_bytes"] == sum(size.values())
        os.truncate(m.path("plain"), 40000)
        size["plain"] = 40000
        poll("truncated", lambda: stats(m)["eqfs_store_logical_bytes"] == sum(size.values()))
    with Mount(m.store, "ro") as m: # the same by the walk
        s = poll("walked", lambda: (lambda s: s if s["eqfs_store_known"] else None)(stats(m)))
        assert s["eqfs_store_logical_bytes"] == sum(size.values()) and s["eqfs_store_files"] == 2
        assert s["eqfs_store_archives"] == 1 and s["labels"]["mode"] == "ro"
    with Mount(m.store) as m:
        poll("walked", lambda: stats(m)["eqfs_store_known"])
        os.unlink(m.path("m"))
        os.rename(m.path("plain"), m.path("p2"))
        s = stats(m)
        assert s["eqfs_store_logical_bytes"] == size["plain"] and s["eqfs_store_files"] == 1
        assert s["eqfs_store_archives"] == 0, s


def status(*args, code=0):
    r = subprocess.run([EQAR, "status", *args], capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert r.returncode == code, (args, r.returncode, r.stderr)
    if code:
        assert not r.stdout and r.stderr.startswith("eqar: "), r
    return r.stdout if code == 0 else r.stderr


def test_status():
    store = scratch("stat us\\x\n")
    with Mount(store, "bits=4") as m:
        save_file(model(3), m.path("m"))
        m.settle("m")
        read(m.path("m"))
        text = status(m.point)
        assert "1 files, 1 of them archives" in text and "bits=4" in text and "cpu/" in text, text
        assert re.search(r"encoded +1 files, .* -> .* \(\d", text) and "% hits" in text, text
        assert status(m.path("m")).splitlines()[1:2] == text.splitlines()[1:2] # any path in it
        now, raw = json.loads(status("--json", m.point)), stats(m)
        assert now["mount"] == m.point and now["store"] == m.store, now
        assert now["policy"] == raw["labels"]["policy"] and now["mode"] == "rw"
        for key, v in raw.items():
            if key != "labels" and "info" not in key and not re.search("seconds|read", key):
                name = re.sub(r"_total$", "", key[5:])
                assert now[name] == v, (key, v, now)
        assert now["read_bytes_archive"] == raw["eqfs_read_bytes_total{file=archive}"]
        assert "decoded_bytes_total" in status("-v", m.point)
        assert status("-q", m.point) == ""
        rates = json.loads(status("--json", "-i", "0.05", m.point))
        assert rates["read_bytes_per_second"] == 0 == rates["encoded_bytes_per_second"], rates
        everyone = subprocess.run([EQAR, "status"], capture_output=True, text=True, check=False)
        assert m.point.replace("\n", "?") + ": " in everyone.stdout, everyone # others may be dead
        assert "not in a mount of eqfs" in status(m.store, code=1)
        assert "No such file" in status(m.store + "/nothing", code=1)
        for bad in ("-i0", "-ix", "--frobnicate"):
            status(bad, code=2)
        assert "Usage: eqar status" in status("--help")


def stopped(pid):
    """A signal reaches one thread, and the others when that one runs."""
    return all(b") T " in read(f"/proc/{pid}/task/{t}/stat") for t in os.listdir(f"/proc/{pid}/task"))


def test_hung():
    """A daemon that does not answer is said to be one, in bounded time."""
    with Mount(scratch("hung")) as m:
        m.proc.send_signal(signal.SIGSTOP)
        try:
            poll("stopped, every thread", lambda: stopped(m.proc.pid))
            assert "timed out" in status(m.point, code=1)
        finally:
            m.proc.send_signal(signal.SIGCONT)
        assert "0 files" in status(m.point)


def du(*args, code=0):
    r = subprocess.run([EQAR, "du", *args], capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert r.returncode == code, (args, r.returncode, r.stderr)
    return r.stdout


def du_json(*args):
    return {d["path"]: d for d in map(json.loads, du("--json", *args).splitlines())}


def test_du():
    """The same sums of the store and of the mount, and those of stat."""
    with Mount(scratch("du")) as m:
        for d in ("a", "a/b", "c", "empty"):
            os.mkdir(m.path(d))
        for i, name in enumerate(("m", "a/m", "a/b/m")):
            save_file(model(i, rows=256), m.path(name))
            m.settle(name)
        with open(m.path("c", "plain"), "wb") as f:
            f.write(b"x" * 50000)
        os.link(m.path("c", "plain"), m.path("a", "link"))
        os.symlink("plain", m.path("c", "symbolic"))
        sizes, room, seen = {}, {}, set()
        for d, dirs, names in os.walk(m.point):
            dirs.sort()
            for n in sorted(names):
                st = os.lstat(os.path.join(d, n))
                if not os.path.islink(os.path.join(d, n)) and st.st_ino not in seen:
                    seen.add(st.st_ino)
                    up = os.path.relpath(d, m.point)
                    while True:
                        sizes[up] = sizes.get(up, 0) + st.st_size
                        room[up] = room.get(up, 0) + st.st_blocks * 512
                        if up == ".":
                            break
                        up = os.path.dirname(up) or "."
        for top in (m.point, m.store, m.store + "/"):
            got = du_json(top)
            assert len(got) == 5 and got[os.path.join(top.rstrip("/"), "empty")]["files"] == 0, got
            for d, want in sizes.items():
                one = got[os.path.normpath(os.path.join(top, d))]
                assert one["logical_size"] == want, (top, d, one, want)
                assert one["physical_size"] == room[d], (top, d, one, room[d])
            assert du(top).splitlines()[-1].split("\t")[:2] == [str(sizes["."]), str(room["."])]
            assert len(du("-s", top).splitlines()) == 1 and "MiB\t" in du("-sh", top)
        assert du_json(m.store)[m.store]["archives"] == 3
        one = du_json(m.disk("m.eqar"))[m.disk("m.eqar")]
        assert one["logical_size"] == os.stat(m.path("m")).st_size and one["archives"] == 1
        both = du("-s", m.path("c"), m.path("a", "link")) # the second is the first one's
        assert len(both.splitlines()) == 1, both
        assert du("-s", m.point, m.store + "/nothing", code=1).count("\n") == 1
        shutil.copy(m.disk("m.eqar"), m.disk("c", "plain.eqar")) # hidden: it only takes room
        assert du_json(m.store)[m.store]["logical_size"] == sizes["."]
        with open(m.disk("broken.eqar"), "wb") as f:
            f.write(b"not an archive")
        assert du("-s", m.store, code=1).startswith(str(sizes["."] + 14))
        du("-x", code=2)


def test_queue():
    """What waits is counted, with its bytes, and not what has left the queue."""
    with Mount(scratch("queue"), settle="1000") as m:
        total = 0
        for i in range(3):
            save_file(model(i, rows=64, cols=128, layers=1), m.path(f"m{i}"))
            total += os.stat(m.path(f"m{i}")).st_size
        s = poll("queued", lambda: (lambda s: s if s["eqfs_queue_files"] == 3 else None)(stats(m)))
        assert s["eqfs_queue_bytes"] == total, (s, total)
        os.unlink(m.path("m0"))
        total -= os.stat(m.path("m1")).st_size
        s = poll("one left", lambda: (lambda s: s if s["eqfs_queue_files"] == 2 else None)(stats(m)))
        assert s["eqfs_queue_bytes"] == total, (s, total)
    with Mount(m.store, settle="1000") as m: # marked by the mount before
        poll("queued again", lambda: stats(m)["eqfs_queue_files"] == 2)


def test_errors():
    with Mount(scratch("errors"), "cache=4M") as m:
        save_file(model(2, rows=1024, cols=1024), m.path("m"))
        m.settle("m")
        with open(m.disk("m.eqar"), "r+b") as f:
            f.seek(8192)
            f.write(b"\xff" * 64)
        before = stats(m)
        with raises(errno.EIO):
            read(m.path("m"))
        after = stats(m)
        assert after["eqfs_decode_errors_total"] > before["eqfs_decode_errors_total"]
        assert after["eqfs_read_errors_total{file=archive}"] > 0


def test_consistent():
    """One reader sees one text, also in small pieces; many may ask at once."""
    with Mount(scratch("consistent"), "bits=4", "exclude=a\"b:caf\u00e9") as m:
        with open(m.path(".eqfs", "stats"), "rb", buffering=0) as f:
            pieces = b"".join(iter(lambda: f.read(7), b""))
            s = parse(pieces.decode())
            assert f.read(10) == b"" and os.fstat(f.fileno()).st_size == 0
        assert 'a"b' in s["labels"]["policy"], s["labels"]
        failed = []

        def ask():
            try:
                last = stats(m)
                for _ in range(20):
                    now = stats(m)
                    counters_grow(last, now)
                    last = now
            except BaseException as e: # pylint: disable=broad-except
                failed.append(e)
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for t in threads:
            t.start()
        for i in range(20):
            with open(m.path(f"f{i}"), "wb") as f:
                f.write(b"x" * 1000)
        for t in threads:
            t.join()
        assert not failed, failed
        held = open(m.path(".eqfs", "stats"), "rb") # pylint: disable=consider-using-with
        held.read(1)
        m.proc.send_signal(signal.SIGTERM) # an open handle does not keep it
        assert m.wait() == 0
        with contextlib.suppress(OSError):
            held.close()


def test_out_of_the_way():
    """Never listed, never copied, never written, and never in front of a real entry."""
    with Mount(scratch("way")) as m:
        with open(m.path("file"), "w") as f:
            f.write("x")
        assert os.listdir(m.point) == ["file"] and os.listdir(m.path(".eqfs")) == ["stats"]
        subprocess.run(["cp", "-a", m.point, scratch("way.copy")], check=True)
        assert os.listdir(scratch("way.copy")) == ["file"]
        for what in (lambda: open(m.path(".eqfs", "stats"), "wb"), lambda: open(m.path(".eqfs", "x"), "wb"),
                     lambda: os.mkdir(m.path(".eqfs", "d")), lambda: os.unlink(m.path(".eqfs", "stats")),
                     lambda: os.rmdir(m.path(".eqfs")), lambda: os.rename(m.path(".eqfs"), m.path("y")),
                     lambda: os.rename(m.path("file"), m.path(".eqfs", "stats")),
                     lambda: os.rename(m.path(".eqfs", "stats"), m.path("y")),
                     lambda: os.link(m.path("file"), m.path(".eqfs", "y")),
                     lambda: os.link(m.path(".eqfs", "stats"), m.path("y")),
                     lambda: os.symlink("x", m.path(".eqfs", "y")), lambda: os.chmod(m.path(".eqfs"), 0o777),
                     lambda: os.chmod(m.path(".eqfs", "stats"), 0o666), lambda: os.truncate(m.path(".eqfs/stats"), 0),
                     lambda: os.utime(m.path(".eqfs", "stats")),
                     lambda: os.setxattr(m.path(".eqfs", "stats"), "user.x", b"1")):
            try:
                what()
            except OSError as e:
                assert e.errno in (errno.EPERM, errno.EACCES), e
            else:
                raise AssertionError(f"{what} was let through")
        os.mkdir(m.path("d"))
        with raises(errno.EPERM):
            os.rename(m.path("d"), m.path(".eqfs"))
        with raises(errno.EEXIST):
            os.mkdir(m.path(".eqfs"))
        with raises(errno.ENOENT):
            os.stat(m.path("d", ".eqfs")) # of the root only
        os.mkdir(m.path("d", ".eqfs"))
        assert sorted(os.listdir(m.store)) == ["d", "file"]
        # Through a descriptor of ours nothing real is reached.
        with open(m.path(".eqfs", "stats"), "rb") as f, open(m.path("copy"), "wb") as g:
            with contextlib.suppress(OSError):
                os.copy_file_range(f.fileno(), g.fileno(), 100)
            assert os.fstat(f.fileno()).st_ino not in (os.stat(m.point).st_ino, os.stat(m.path("file")).st_ino)
    os.mkdir(m.disk(".eqfs"))
    with open(m.disk(".eqfs", "stats"), "w") as f:
        f.write("the user's own")
    with Mount(m.store) as m:
        poll("a warning", lambda: ".eqfs, which is shown in place of the statistics" in m.log())
        assert ".eqfs" in os.listdir(m.point) and read(m.path(".eqfs", "stats")) == b"the user's own"
        os.unlink(m.path(".eqfs", "stats"))
        os.rmdir(m.path(".eqfs"))
        poll("statistics back", lambda: os.path.exists(m.path(".eqfs", "stats")) and stats(m))


def anonymous(m):
    with open(f"/proc/{m.proc.pid}/smaps_rollup") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("Anonymous:"))


def test_cache_limit():
    """What is resident stays within cache=, whatever sizes chunks had before, and though one
    chunk in 2 MiB is read again and again."""
    limit, slack, rng = 32 << 20, 12 << 20, np.random.default_rng(6)
    names = {"odd": np.float32, "u8": np.uint8, "bf16": ml_dtypes.bfloat16, "f32": np.float32,
             "f64": np.float64} # odd: no chunk has one of the usual sizes
    chunk = 1 << 17 # units
    store = scratch("limit")
    os.makedirs(store)
    for name, dtype in names.items():
        units = (36 << 20) // np.dtype(dtype).itemsize
        w = rng.standard_normal(units, np.float32)
        w = (w.view(np.uint32) >> 30).astype(np.uint8) if name == "u8" else (w * 0.02).astype(dtype)
        parts = 120 if name == "odd" else 1
        save_file({f"w{i}": part for i, part in enumerate(np.array_split(w, parts))}, scratch(name))
        eqar("pack", scratch(name), f"{store}/{name}.eqar")
    with Mount(store, "ro", f"cache={limit >> 20}M") as m:
        before, buf = anonymous(m), mmap.mmap(-1, 4096)
        for name in [*names, "odd"]:
            dtype = names[name]
            step = 300 << 10 if name == "odd" else chunk * np.dtype(dtype).itemsize
            fd = os.open(m.path(name), os.O_RDONLY | os.O_DIRECT)
            hot = []
            for n, at in enumerate(range(os.fstat(fd).st_size // step * step, 0, -step)):
                # backwards, so that nothing is decoded ahead
                assert os.preadv(fd, [buf], at - 4096) == 4096
                if n % ((2 << 20) // step) == 0:
                    hot.append(at - 4096)
                for h in hot:
                    assert os.preadv(fd, [buf], h) == 4096
            os.close(fd)
            s, now = stats(m), anonymous(m) - before
            print(f"  {name}: {now / 1e6:.1f} MB resident, eqfs_cache_bytes {s['eqfs_cache_bytes'] / 1e6:.1f}")
            assert limit // 2 < s["eqfs_cache_bytes"] <= limit + (1 << 20), s
            assert now <= limit + slack or re.search(rb"lib[at]san", read(EQFS)), (name, now)


run(globals())
