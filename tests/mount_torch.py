# SPDX-License-Identifier: Apache-2.0
"""Loaders that need torch, on a mount: transformers from the hub's cache and from a
directory, safetensors, fastsafetensors, the Run:ai streamer. Torch is Debian's, in a Python
of its own (bootstrap); EQFS_TORCH_PYTHON names another."""
from client_lib import call, hub_env, settle_models
from hub_server import Hub
from mount_lib import *

PYTHON = os.environ.get("EQFS_TORCH_PYTHON") or os.path.join(sys.prefix, "torch", "bin", "python3")
LOAD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_load.py")
SHARDS = 4


def load(cases, *args, **how):
    """Cases of torch_load.py, one after the other; each that was gone through says so."""
    done = [s for s in call(PYTHON, LOAD, cases, *args, **how).splitlines() if s.startswith("done ")]
    assert done == ["done " + c for c in cases.split(",")], done


def repository():
    """The model outside the mount, made once: its directory and {name: bytes}."""
    top = scratch("model")
    if not os.path.isdir(top):
        load("save", top, "800KB")
    files = {n: read(os.path.join(top, n)) for n in sorted(os.listdir(top))}
    assert sum(n.endswith(".safetensors") for n in files) == SHARDS, list(files)
    return top, files


def test_hub():
    """from_pretrained of a name: downloaded into a cache in the mount, loaded, encoded,
    and loaded again from what is there."""
    top, files = repository()
    large = [n for n in files if n.endswith(".safetensors")]
    with Mount(scratch("hub")) as m, Hub("o/m", files, large=large) as hub:
        env = hub_env(hub, m.path("hf"))
        load("pretrained", "o/m", top, "0", env=env)
        assert len([n for n, _ in hub.downloads if n in large]) == SHARDS
        settle_models(m, m.path("hf"), SHARDS)
        hub.downloads.clear()
        load("pretrained", "o/m", top, "0", env=env)
        assert not hub.downloads, "downloaded again"
        settle_models(m, m.path("hf"), SHARDS)


def test_directory():
    """save_pretrained into the mount, over what is there too, and from_pretrained out of it."""
    top, files = repository()
    with Mount(scratch("directory")) as m:
        for _ in range(2):
            load("save", m.path("bert"), "800KB")
            settle_models(m, m.path("bert"), SHARDS)
            assert {n: read(m.path("bert", n)) for n in os.listdir(m.path("bert"))} == files
        load("pretrained", m.path("bert"), top, "0")


def test_quantised():
    """At 4 bits other weights, near to the first, and those that the archive decodes to."""
    top, _ = repository()
    with Mount(scratch("lossy"), "bits=4") as m:
        shutil.copytree(top, m.path("bert"))
        settle_models(m, m.path("bert"), SHARDS)
        load("pretrained", m.path("bert"), top, "0.15")
        shutil.copytree(m.disk("bert"), scratch("unpacked"))
        eqar("unpack", "-r", "-q", scratch("unpacked"))
        load("pretrained", m.path("bert"), scratch("unpacked"), "0")


def test_loaders():
    """Each reads the archive itself, cold and again, and the file while it is still plain."""
    # Larger than any loader's block, with odd sizes and tensors of no bytes.
    save_file(model(40, rows=1021, cols=1024, layers=12), scratch("loader"))
    with Mount(scratch("loaders"), "cache=8M") as m:
        shutil.copyfile(scratch("loader"), m.path("m.safetensors"))
        for _ in range(2):
            load("safetensors,fastsafetensors,runai", m.path("m.safetensors"), scratch("loader"))
            m.settle("m.safetensors")


if not os.path.exists(PYTHON):
    if "torch" in os.environ.get("EQFS_TEST_REQUIRE", ""):
        sys.exit(f"{PYTHON} is missing, and EQFS_TEST_REQUIRE asks for torch")
    print("skipped: no Python with torch")
    sys.exit(77)
run(globals())
