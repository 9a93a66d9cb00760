# SPDX-License-Identifier: Apache-2.0
"""A mount whose back end is a GPU: what is written through it is encoded there, to the bytes
that the CPU makes. Exits with 77 where there is no GPU, unless EQFS_TEST_REQUIRE names "gpu"."""
import ctypes

from mount_lib import *

LOST = "going on with the CPU"
GPU = os.environ.get("EQFS_TEST_GPU", "0")


class Driver:
    """The device's memory, by the driver itself."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.taken = []

    def there(self):
        count = ctypes.c_int()
        return self.cuda.cuInit(0) == 0 and self.cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0

    def take_all(self):
        context = ctypes.c_void_p()
        assert self.cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), int(GPU)) == 0
        assert self.cuda.cuCtxSetCurrent(context) == 0
        size = 1 << 32
        while size >= 1 << 20:
            p = ctypes.c_uint64()
            if self.cuda.cuMemAlloc_v2(ctypes.byref(p), ctypes.c_size_t(size)) == 0:
                self.taken.append(p)
            else:
                size //= 2

    def give_back(self):
        while self.taken:
            self.cuda.cuMemFree_v2(self.taken.pop())


def driver():
    """Or None, and why."""
    if not os.path.exists(os.environ["EQFS_CUDA_MODULE"]):
        return None, "no module"
    try:
        d = Driver()
    except OSError as e:
        return None, str(e)
    return (d, "") if d.there() else (None, "no device")


def packed(source, *options):
    """What the CPU makes of it."""
    out = source + ".cpu"
    eqar("pack", "-f", "-q", "--gpu", "off", *options, source, out)
    return read(out)


def backend(m):
    return next(line.split(None, 2)[2] for line in eqar("status", m.point).splitlines() if "back end" in line)


def encoded(m, name, source, *options):
    """Written through the mount it becomes the CPU's archive, and reads as that."""
    with open(source, "rb") as f, open(m.path(name), "wb") as to:
        shutil.copyfileobj(f, to, 1 << 20)
        to.flush()
        os.utime(to.fileno(), ns=(os.stat(source).st_mtime_ns,) * 2) # which the archive has
    m.settle(name)
    assert read(m.disk(name + ".eqar")) == packed(source, *options), f"{name}: another archive than the CPU's"
    eqar("unpack", "-f", "--gpu", "off", m.disk(name + ".eqar"), source + ".out")
    assert sha(m.path(name)) == sha(source + ".out"), f"{name}: other bytes than the CPU's"


def test_encode():
    """All types of weights, lossless and quantised; with as little device memory as there may be."""
    for n, (mount, pack) in enumerate(((["gpu=auto"], []), ([f"gpu={GPU}", "bits=4"], ["--bits", "4"]),
                                       (["gpu=auto", "bits=2", "gpu-mem=32M"], ["--bits", "2"]))):
        with Mount(scratch(f"encode{n}"), *mount) as m:
            assert backend(m).startswith("cuda"), backend(m)
            for dtype in ("bf16", "f16", "f32"):
                source = scratch(f"source-{dtype}")
                save_file(model(3, 1024, 2048, dtype=dtype), source)
                encoded(m, dtype, source, *pack)
            assert backend(m).startswith("cuda/") and LOST not in m.log(), m.log()


def test_number():
    """Where there is no device of that number the log says so once."""
    source = scratch("number.source")
    save_file(model(6), source)
    with Mount(scratch("number"), "gpu=99") as m:
        encoded(m, "a", source)
        encoded(m, "b", source)
        assert m.log().count("GPU: ") == 1, m.log()
        assert backend(m).startswith("cpu/"), backend(m)


def test_full():
    """Without device memory the mount says so once, and goes on with the same bytes."""
    small, large = scratch("small"), scratch("large")
    save_file(model(4, 1024, 1024), small)
    save_file(model(5, 4096, 4096, layers=2), large)
    with Mount(scratch("full"), f"gpu={GPU}", "bits=4", "cache=8M") as m:
        encoded(m, "small", small, "--bits", "4")
        with open(m.path("small"), "rb") as f:
            begin = f.read(1 << 20)
            DRIVER.take_all()
            try:
                encoded(m, "large", large, "--bits", "4")
                assert begin + f.read() == read(small + ".out")
                encoded(m, "again", small, "--bits", "4")
            finally:
                DRIVER.give_back()
        assert m.log().count(LOST) == 1, m.log()
        assert backend(m).startswith("cpu/"), backend(m)


DRIVER, WHY = driver()
if not DRIVER:
    print("no GPU:", WHY)
    sys.exit(1 if "gpu" in os.environ.get("EQFS_TEST_REQUIRE", "") else 77)
if __name__ == "__main__":
    run(globals())
