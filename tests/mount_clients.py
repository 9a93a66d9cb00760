# SPDX-License-Identifier: Apache-2.0
"""Programs that people point at a model store, each used on a mount as they use it."""
import importlib.util
import json

from client_lib import call, hub_env, settle_models
from hub_server import COMMIT, Hub
from mount_lib import *

REQUIRE = os.environ.get("EQFS_TEST_REQUIRE", "")
OLD = os.path.join(sys.prefix, "safetensors-0.7")       # where bootstrap puts it


def have(module):
    """Is it there? What bootstrap installs must be where EQFS_TEST_REQUIRE has python."""
    if importlib.util.find_spec(module):
        return True
    assert "python" not in REQUIRE, f"the Python module {module} is missing"
    print(f"  no {module} here")
    return False


def program(name):
    path = shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))
    if not path:
        assert "python" not in REQUIRE, f"{name} is missing"
        print(f"  no {name} here")
    return path


def python(code, *args, **how):
    return call(sys.executable, "-c", code, *args, **how)


def shards(n=3):
    """A repository with a sharded model: {name: bytes} and all its tensors."""
    files, index, tensors = {}, {}, {}
    for i in range(n):
        part = {f"model.layers.{i}.{k.split('.', 3)[-1] if 'layers' in k else k}": v
                for k, v in model(20 + i, rows=256, cols=256, layers=1).items()}
        name = f"model-{i + 1:05}-of-{n:05}.safetensors"
        save_file(part, scratch("shard"), metadata={"format": "pt"})
        files[name] = read(scratch("shard"))
        index |= {k: name for k in part}
        tensors |= part
    files["model.safetensors.index.json"] = json.dumps(
        {"metadata": {"total_size": sum(v.nbytes for v in tensors.values())}, "weight_map": index}).encode()
    files["config.json"] = b'{"model_type": "none"}'
    files["tokenizer/vocab.txt"] = b"\n".join(b"%d" % i for i in range(5000))
    return files, tensors


def load_shards(top):
    """As transformers does it: the index, then each shard's tensors by slices."""
    from safetensors import safe_open
    with open(os.path.join(top, "model.safetensors.index.json"), encoding="utf-8") as f:
        index = json.load(f)["weight_map"]
    got = {}
    for shard in sorted(set(index.values())):
        with safe_open(os.path.join(top, shard), framework="np") as f:
            for k in f.keys():
                assert index[k] == shard
                whole = f.get_slice(k)
                shape = whole.get_shape()
                got[k] = np.concatenate([whole[:shape[0] // 2], whole[shape[0] // 2:]]) if shape and shape[0] > 1 \
                    else f.get_tensor(k)
    return got


DOWNLOAD = ("import sys\nfrom huggingface_hub import snapshot_download\n"
            "print(snapshot_download('o/m', **({'local_dir': sys.argv[1]} if sys.argv[1:] else {})))\n")


def test_hub_cache():
    """A repository downloaded into a cache in the mount, broken off once, verified before
    and after it is encoded, and not downloaded again."""
    if not have("huggingface_hub"):
        return
    files, tensors = shards()
    names = [n for n in files if n.endswith(".safetensors")]
    with Mount(scratch("hub")) as m, Hub("o/m", files, large=names, cut=names[:1]) as hub:
        env = hub_env(hub, m.path("hf"))
        verify = [program("hf"), "cache", "verify", "o/m"]
        top = python(DOWNLOAD, env=env).strip()
        assert top.startswith(m.point) and top.endswith(COMMIT)
        tries = [first for name, first in hub.downloads if name == names[0]]
        assert len(tries) > 1, "it was to be broken off"
        assert all(os.path.islink(os.path.join(top, n)) for n in files)
        call(*verify, env=env)
        settle_models(m, top, 3)
        call(*verify, env=env)
        for name, data in files.items():
            assert read(os.path.join(top, name)) == data, name
        assert same(load_shards(top), tensors)
        blobs = os.listdir(m.path("hf/hub/models--o--m/blobs"))
        assert sorted(blobs) == sorted(map(hub.etag, files)), "blobs by their names, nothing else"
        hub.downloads.clear()
        assert python(DOWNLOAD, env=env).strip() == top and not hub.downloads
        with open(os.path.realpath(os.path.join(top, names[1])), "r+b") as f: # damage is seen
            f.seek(-9, os.SEEK_END)
            f.write(b"damage")
        r = subprocess.run(verify, env=env, capture_output=True, text=True, check=False)
        assert r.returncode and hub.etag(names[1])[:8] in r.stdout + r.stderr, r.stdout + r.stderr


def test_hub_local_dir():
    """As a directory of real files, which are hashed and fetched again if they look newer."""
    if not have("huggingface_hub"):
        return
    files, tensors = shards()
    names = [n for n in files if n.endswith(".safetensors")]
    with Mount(scratch("local")) as m, Hub("o/m", files, large=names) as hub:
        env = hub_env(hub, scratch("local.home"))
        python(DOWNLOAD, m.path("repo"), env=env)
        settle_models(m, m.path("repo"), 3)
        assert same(load_shards(m.path("repo")), tensors)
        hub.downloads.clear()
        python(DOWNLOAD, m.path("repo"), env=env)
        assert not hub.downloads, "downloaded again"
        call(program("hf"), "cache", "verify", "o/m", "--local-dir", m.path("repo"), env=env)


def test_hub_lossy():
    """Other weights than the hub has must not pass for its own."""
    if not have("huggingface_hub"):
        return
    files, _ = shards(1)
    names = [n for n in files if n.endswith(".safetensors")]
    with Mount(scratch("hublossy"), "bits=4") as m, Hub("o/m", files, large=names) as hub:
        env = hub_env(hub, m.path("hf"))
        settle_models(m, python(DOWNLOAD, env=env).strip(), 1)
        r = subprocess.run([program("hf"), "cache", "verify", "o/m"], env=env, capture_output=True, text=True,
                           check=False)
        assert r.returncode, "a lossy file passes for the original"


WRITER = ("import sys, numpy as np, safetensors\nfrom safetensors.numpy import load_file, save_file\n"
          "assert safetensors.__version__.startswith(sys.argv[1]), safetensors.__version__\n"
          "t = load_file(sys.argv[2])\nsave_file(t, sys.argv[3], metadata={'format': 'np'})\n"
          "u = load_file(sys.argv[3])\nassert all(t[k].tobytes() == u[k].tobytes() for k in t)\n")


def test_safetensors_writers():
    """In place as 0.7 does it, beside and renamed as 0.8 does it; anew and over."""
    save_file(model(30, dtype="f32"), scratch("writer.a"))
    save_file(model(31, dtype="f32"), scratch("writer.b"))
    with Mount(scratch("writers")) as m:
        for version, path in (("0.7", OLD), ("0.8", "")):
            if version == "0.7" and not os.path.isdir(path):
                assert "python" not in REQUIRE, "safetensors 0.7 is missing"
                print("  no safetensors 0.7 here")
                continue
            env = {**os.environ, "PYTHONPATH": path}
            for which in ("writer.a", "writer.b"):
                python(WRITER, version, scratch(which), m.path("m.safetensors"), env=env)
                python(WRITER, version, scratch(which), scratch("writer.out"), env=env)
                m.settle("m.safetensors")
                assert read(m.path("m.safetensors")) == read(scratch("writer.out")), (version, which)
        assert os.listdir(m.point) == ["m.safetensors"]


def test_gguf():
    if not have("gguf"):
        return
    import gguf
    rng = np.random.default_rng(32)
    tensors = {f"blk.{i}.ffn_up.weight": rng.standard_normal((64, 256)).astype(np.float32) for i in range(3)}
    with Mount(scratch("gguf")) as m:
        w = gguf.GGUFWriter(m.path("m.gguf"), "llama")
        w.add_block_count(3)
        for k, v in tensors.items():
            w.add_tensor(k, v)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        poll("looked at", lambda: m.state("m.gguf") == "plain")
        r = gguf.GGUFReader(m.path("m.gguf")) # by np.memmap
        assert {t.name for t in r.tensors} == set(tensors)
        for t in r.tensors:
            assert t.data.tobytes() == tensors[t.name].tobytes()
        assert read(m.path("m.gguf")) == read(m.disk("m.gguf"))


def test_memmap():
    """np.memmap in each mode that a model is read by, on an archive."""
    save_file(model(33, dtype="f32"), scratch("memmap"))
    with Mount(scratch("memmap.store")) as m:
        shutil.copyfile(scratch("memmap"), m.path("m"))
        m.settle("m")
        n = int.from_bytes(read(m.path("m"))[:8], "little")
        want = read(scratch("memmap"))[8 + n:]
        for mode in ("r", "c"):
            a = np.memmap(m.path("m"), np.uint8, mode, offset=8 + n)
            assert a[::-4097].tobytes() == want[::-4097] and a.tobytes() == want
            if mode == "c":
                a[:4] = 7
                assert read(m.path("m"))[8 + n:] == want
        assert m.state("m") == "archived"


def repository(top):
    files, tensors = shards()
    for name, data in files.items():
        path = os.path.join(top, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data)
    os.symlink("config.json", os.path.join(top, "link.json"))
    return files, tensors


def test_rsync():
    """In, out, and again: the second time nothing is transferred, with checksums too."""
    rsync = program("rsync")
    if not rsync:
        return
    files, _ = repository(scratch("rsync.src"))
    with Mount(scratch("rsync")) as m:
        call(rsync, "-a", scratch("rsync.src") + "/", m.path("in") + "/")
        settle_models(m, m.path("in"), 3)
        for extra in ([], ["-c"], ["--delete", "-H", "-X"]):
            for src, dst in ((scratch("rsync.src"), m.path("in")), (m.path("in"), scratch("rsync.out"))):
                call(rsync, "-a", src + "/", dst + "/")
                out = call(rsync, "-ai", "--stats", *extra, src + "/", dst + "/")
                assert "regular files transferred: 0\n" in out and not [s for s in out.splitlines() if s[:2] == ">f"], out
        assert all(read(os.path.join(scratch("rsync.out"), n)) == d for n, d in files.items())
        # In place, and a file that differs at its end only.
        data = bytearray(files["model-00001-of-00003.safetensors"])
        data[-5] ^= 1
        with open(os.path.join(scratch("rsync.src"), "model-00001-of-00003.safetensors"), "wb") as f:
            f.write(data)
        os.utime(f.name, ns=(0, 10**18)) # by the second is how it looks at times
        out = call(rsync, "-a", "--inplace", "--no-whole-file", "--stats", scratch("rsync.src") + "/", m.path("in") + "/")
        assert "regular files transferred: 1\n" in out, out
        assert read(m.path("in/model-00001-of-00003.safetensors")) == data
        settle_models(m, m.path("in"), 3)
        assert read(m.path("in/model-00001-of-00003.safetensors")) == data


def test_cp_and_tar():
    files, tensors = repository(scratch("cp.src"))
    with Mount(scratch("cp")) as m:
        call("cp", "-a", "--reflink=auto", scratch("cp.src"), m.path("a"))
        settle_models(m, m.path("a"), 3)
        for n in files: # or tar sees the time of the last change move
            m.settle("a", n, want="archived" if n.endswith("safetensors") else "plain")
        call("cp", "-a", "--reflink=auto", m.path("a"), m.path("b"))
        call("cp", "-a", "--reflink=auto", "--sparse=always", m.path("b"), scratch("cp.out"))
        call("diff", "-r", scratch("cp.src"), scratch("cp.out"))
        call("tar", "-C", m.point, "-cf", scratch("cp.tar"), "a")
        call("tar", "-C", m.point, "--compare", "-f", scratch("cp.tar"))
        os.mkdir(m.path("c"))
        call("tar", "-C", m.path("c"), "-xf", scratch("cp.tar"))
        settle_models(m, m.path("c"), 3)
        call("diff", "-r", scratch("cp.src"), m.path("c/a"))
        call("tar", "-C", m.path("c"), "--compare", "-f", scratch("cp.tar"))
        assert same(load_shards(m.path("c/a")), tensors)
        for n in files: # what copies keep
            a, b = os.stat(os.path.join(scratch("cp.src"), n)), os.stat(m.path("c/a", n))
            assert (a.st_size, a.st_mode) == (b.st_size, b.st_mode) and int(a.st_mtime) == int(b.st_mtime)


def test_git():
    """Into and out of the mount, with files that git takes for big ones; after encoding it sees
    no change."""
    git = program("git")
    if not git:
        return
    src = scratch("git.src")
    files, tensors = repository(src)
    env = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "HOME": TMP, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
           "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "GIT_TERMINAL_PROMPT": "0"}

    def run_git(*args):
        return call(git, "-c", "safe.directory=*", "-c", "core.bigFileThreshold=100k", *args, env=env)
    for args in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        run_git("-C", src, *args)
    with Mount(scratch("git")) as m:
        run_git("clone", "-q", src, m.path("in"))
        settle_models(m, m.path("in"), 3)
        assert run_git("-C", m.path("in"), "status", "--porcelain") == ""
        assert run_git("-C", m.path("in"), "fsck", "--no-progress", "--full") == ""
        run_git("clone", "-q", m.path("in"), scratch("git.out"))
        assert all(read(os.path.join(scratch("git.out"), n)) == d for n, d in files.items())
        assert same(load_shards(m.path("in")), tensors)
        run_git("-C", m.path("in"), "mv", "model-00001-of-00003.safetensors", "moved.safetensors")
        with open(m.path("in/config.json"), "w", encoding="utf-8") as f:
            f.write("{}")
        run_git("-C", m.path("in"), "commit", "-q", "-a", "-m", "y")
        run_git("-C", m.path("in"), "checkout", "-q", "HEAD~1")
        settle_models(m, m.path("in"), 3)
        assert run_git("-C", m.path("in"), "status", "--porcelain") == ""


run(globals())
