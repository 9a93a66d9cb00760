#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Python module: what it loads is what eqar unpacks, to numpy, to DLPack, and to
torch where there is one; on the host, on the device of tests/fake_cuda.c, and on a GPU
where there is one. Errors, and who frees the memory of capsules."""

import ctypes
import gc
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

LIBRARY, EQAR = os.environ["EQFS_LIBRARY"], os.environ["EQAR"]
HERE = Path(__file__).resolve().parent
MODULE = os.environ.get("EQFS_CUDA_MODULE", "")

needed = subprocess.run(["ldd", LIBRARY], capture_output=True, text=True, check=True).stdout
asan = [word for word in needed.split() if word.startswith("/") and "libasan" in word]
if asan and "LD_PRELOAD" not in os.environ:  # it has to come before everything else
    os.environ.update(LD_PRELOAD=asan[0], ASAN_OPTIONS="detect_leaks=0")
    os.execv(sys.executable, [sys.executable, *sys.argv])

sys.path.insert(0, str(HERE.parent / "lib"))
import numpy as np  # noqa: E402

import eqfs  # noqa: E402

TMP = Path(tempfile.mkdtemp(prefix="eqfs-test-"))
TENSORS = ("model.layers.0.mlp.up_proj.weight:BF16:300x1024", "model.layers.1.mlp.up_proj.weight:F32:128x1024",
           "embed:BF16:700x400", "half:F16:64x100", "e4m3:F8_E4M3:300x512", "e5m2:F8_E5M2:70x512",
           "raw:U8:400007:bytes", "flags:BOOL:77:zero", "i8:I8:50x3:int", "i32:I32:40:int", "i64:I64:5000:int",
           "four:F4:16x32:bytes", "double:F64:33x3", "scalar:F32:", "empty:F32:0x4", "ones:F32:300x1024:const")


def unpacked(path):
    """Names to (dtype, shape, bytes) of a safetensors file."""
    data = path.read_bytes()
    n, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    header.pop("__metadata__", None)
    return {k: (v["dtype"], tuple(v["shape"]), data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]])
            for k, v in header.items()}


def set_up():
    plain, archive, lossless = TMP / "m.safetensors", TMP / "m.eqar", TMP / "lossless.eqar"
    subprocess.run([sys.executable, HERE / "gen_model.py", "--metadata", "format=pt", *sum(
        (["--tensor", t] for t in TENSORS), []), plain], check=True)
    subprocess.run([EQAR, "pack", "-q", "--bits", "4", plain, archive], check=True)
    subprocess.run([EQAR, "pack", "-q", plain, lossless], check=True)
    subprocess.run([EQAR, "unpack", "-q", archive, TMP / "out"], check=True)
    return plain, archive, lossless, unpacked(TMP / "out")


PLAIN, ARCHIVE, LOSSLESS, EXPECTED = set_up()
# Sizes in DLPack and dtypes of numpy by name.
DTYPES = {"BF16": "bfloat16", "F32": "float32", "F16": "float16", "F8_E4M3": "float8_e4m3fn",
          "F8_E5M2": "float8_e5m2", "U8": "uint8", "BOOL": "bool", "I8": "int8", "I32": "int32", "I64": "int64",
          "F64": "float64", "F4": "uint8"}


def check(got, expected, bytes_of, flat=("F4",)):
    assert list(got) == list(expected), (list(got), list(expected))
    for name, (dtype, shape, data) in expected.items():
        if dtype in flat:
            shape = (len(data),)
        assert tuple(got[name].shape) == shape, (name, got[name].shape, shape)
        assert bytes_of(got[name]) == data, f"{name}: wrong bytes"


def fake(plan=""):
    """From here on, devices are those of fake_cuda."""
    eqfs.release()
    gc.collect()
    os.environ.update(EQFS_CUDA_MODULE=os.environ["EQFS_FAKE_CUDA"], EQFS_FAKE=plan)


def raises(kind, what, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except kind as e:
        assert type(e) is kind, f"{type(e).__name__} instead of {kind.__name__}: {e}"
        assert what in str(e) and "\n" not in str(e), f"'{e}' does not say '{what}'"
        return
    raise AssertionError(f"no {kind.__name__}")


def test_numpy():
    got = eqfs.load_file(ARCHIVE, framework="np")
    check(got, EXPECTED, lambda a: a.tobytes())
    for name, (dtype, _, _) in EXPECTED.items():
        assert got[name].dtype.name == DTYPES[dtype], (name, got[name].dtype)
    check(eqfs.load_file(str(LOSSLESS), framework="numpy"), unpacked(PLAIN), lambda a: a.tobytes())


def test_odd_names_and_many_empty_tensors():
    """NULs in names, and more tensors without bytes in a row than any batch has."""
    names = ["w", "w\0x", "w\0"]
    header = {f"e{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(2000)}
    header.update({n: {"dtype": "U8", "shape": [3], "data_offsets": [3 * i, 3 * i + 3]} for i, n in enumerate(names)})
    text = json.dumps(header).encode()
    plain = TMP / "odd.safetensors"
    plain.write_bytes(len(text).to_bytes(8, "little") + text + b"onetwosix")
    subprocess.run([EQAR, "pack", "-q", str(plain), str(TMP / "odd.eqar")], check=True)
    got = eqfs.load_file(str(TMP / "odd.eqar"), framework="np")
    assert len(got) == 2003
    assert [got[n].tobytes() for n in names] == [b"one", b"two", b"six"]


def test_no_archive_and_no_hang():
    os.mkfifo(TMP / "fifo.eqar")
    raises(eqfs.EqfsError, "fifo.eqar", eqfs.load_file, str(TMP / "fifo.eqar"), framework="np")


def test_safe_open():
    with eqfs.safe_open(ARCHIVE, framework="np") as f:
        assert list(f.keys()) == list(EXPECTED)
        assert f.metadata() == {"format": "pt"}
        assert f.get_tensor("half").tobytes() == EXPECTED["half"][2]
        both = f.get_tensors(["ones", "embed", "ones"])
        assert list(both) == ["ones", "embed"]
        raises(KeyError, "missing", f.get_tensors, ["half", "missing"])
    raises(ValueError, "closed", f.get_tensor, "half")
    raises(ValueError, "framework 'jax'", eqfs.safe_open, ARCHIVE, framework="jax")
    raises(ValueError, "device 'cuda'", eqfs.load_file, ARCHIVE, "cuda", "np")
    raises(ValueError, "device 'tpu'", eqfs.load_file, ARCHIVE, "tpu", "dlpack")


def test_errors():
    raises(FileNotFoundError, "no-such-file", eqfs.load_file, TMP / "no-such-file", framework="np")
    raises(eqfs.EqfsError, f"{PLAIN}: not an archive", eqfs.load_file, PLAIN, framework="np")
    data = bytearray(ARCHIVE.read_bytes())
    for at, what in ((len(data) // 3, "checksum mismatch"), (len(data) - 20, "")):
        bad = TMP / "bad.eqar"
        data[at] ^= 1
        bad.write_bytes(data)
        data[at] ^= 1
        raises(eqfs.CorruptError, str(bad), eqfs.load_file, bad, framework="np")
        raises(eqfs.CorruptError, what, eqfs.load_file, bad, framework="np")
    fake()
    raises(OSError, "no such device", eqfs.load_file, ARCHIVE, "cuda:1", "dlpack")
    fake("memory")
    raises(MemoryError, "bytes", eqfs.load_file, ARCHIVE, "cuda", "dlpack")
    fake("lost=1")
    raises(OSError, "device 0", eqfs.load_file, ARCHIVE, "cuda", "dlpack")
    fake("corrupt=2")
    raises(eqfs.CorruptError, "corrupt data", eqfs.load_file, ARCHIVE, "cuda", "dlpack")


def test_dlpack_host():
    for name, t in eqfs.load_file(ARCHIVE, framework="dlpack").items():
        dtype, _, data = EXPECTED[name]
        assert t.__dlpack_device__() == (1, 0)
        if dtype == "BF16":
            continue  # numpy takes no bfloat16
        a = np.from_dlpack(t)
        assert a.tobytes() == data, name
        assert a.dtype.name == ("uint8" if dtype.startswith("F8") else DTYPES[dtype]), (name, a.dtype)
        if data:
            raises(ValueError, "given away already", np.from_dlpack, t)
        view, a, t = a.reshape(-1)[:1], None, None
        gc.collect()
        assert view.tobytes() == data[:view.nbytes]


def consume(capsule, name):
    """As a consumer does: rename it, and have the tensor; returns its first fields and
    what deletes it."""
    api = ctypes.pythonapi
    get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", api))
    rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", api))
    at = get(capsule, name)
    assert rename(capsule, USED[name]) == 0
    tensor, deleter = (at, at + 56) if name == b"dltensor" else (at + 32, at + 16)
    data, kind, number, ndim = struct.unpack("<Qiii", ctypes.string_at(tensor, 20))
    delete = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ctypes.c_void_p.from_address(deleter).value)
    return (data, kind, number, ndim), lambda: delete(at)


USED = {b"dltensor": b"used_dltensor", b"dltensor_versioned": b"used_dltensor_versioned"}


def test_dlpack_device():
    """fake_cuda aborts when its device is closed before all of its memory is free."""
    fake()
    loaded = eqfs.load_file(ARCHIVE, "cuda", "dlpack")
    for name, t in loaded.items():
        data = EXPECTED[name][2]
        assert ctypes.string_at(t.address(), len(data)) == data, name
    deleters = []
    for i, (name, t) in enumerate(loaded.items()):
        if i % 4 == 0:
            continue  # never given away
        capsule = t.__dlpack__(**({"max_version": (1, 0)} if i % 2 else {"stream": 1}))
        if i % 4 == 3:
            del capsule  # given away, and not taken
            continue
        fields, delete = consume(capsule, b"dltensor_versioned" if i % 2 else b"dltensor")
        dtype, shape, data = EXPECTED[name]
        assert fields[1:] == (2, 0, 1 if dtype == "F4" else len(shape)), (name, fields)
        assert ctypes.string_at(fields[0], len(data)) == data, name
        deleters.append(delete)
    raises(BufferError, "copied", eqfs.load_file(ARCHIVE, "cuda", "dlpack")["half"].__dlpack__, copy=True)
    loaded = t = None
    eqfs.release()
    gc.collect()
    for delete in deleters:
        delete()


def torch_bytes(t):
    import torch

    return t.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""


def test_torch():
    try:
        import torch
    except ImportError:
        return "no torch"
    check(eqfs.load_file(ARCHIVE), EXPECTED, torch_bytes)
    names = eqfs.load_file(ARCHIVE)
    assert names["e4m3"].dtype == torch.float8_e4m3fn and names["embed"].dtype == torch.bfloat16
    if not torch.cuda.is_available():
        return "no GPU"
    eqfs.release()
    os.environ["EQFS_CUDA_MODULE"] = MODULE
    other = torch.cuda.device_count() - 1
    for path, expected in ((ARCHIVE, EXPECTED), (LOSSLESS, unpacked(PLAIN))):
        for device in ("cuda", "cuda:0", torch.device("cuda"), f"cuda:{other}"):
            got = eqfs.load_file(path, device=device)
            assert {t.device for t in got.values()} == {torch.device("cuda", torch.device(device).index or 0)}
            check(got, expected, torch_bytes)
            assert torch.cuda.current_device() == 0
    for number in {0, other}:
        torch_dlpack(torch, number)
    return f"{other + 1} devices"


def torch_dlpack(torch, number):
    """Tensors that torch takes over, and that their deleters free: the device's free memory
    would not tell, which other processes use as well."""
    for _ in range(12):
        got = {k: torch.from_dlpack(t) for k, t in eqfs.load_file(ARCHIVE, f"cuda:{number}", "dlpack").items()}
        check(got, EXPECTED, torch_bytes)
        assert got["embed"].dtype == torch.bfloat16 and got["e4m3"].dtype == torch.uint8
        assert got["embed"].device == torch.device("cuda", number)
        total = got["ones"].float().sum().item() + got["embed"].float().sum().item()
        assert total == total
        with torch.cuda.device(number):
            at = {k: t.data_ptr() for k, t in got.items() if t.numel()}
            assert all(is_allocated(p) for p in at.values())
            del got
            gc.collect()
            kept = [k for k, p in at.items() if is_allocated(p)]
            assert not kept, f"DLPack tensors are not freed: {kept}"


def is_allocated(address):
    """Does an allocation of this process begin there, on the device that is current?"""
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    rc = ctypes.CDLL("libcuda.so.1").cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size),
                                                              ctypes.c_uint64(address))
    assert rc in (0, 1, 500), f"cuMemGetAddressRange: {rc}"  # success, invalid value, not found
    return rc == 0 and base.value == address


def require_gpu():
    required = os.environ.get("EQFS_TEST_REQUIRE", "")
    if "gpu" not in required:
        return
    import torch

    assert torch.cuda.is_available(), "a GPU is required"


def main():
    ran = failed = 0
    try:
        require_gpu()
        for name, test in list(globals().items()):
            if not name.startswith("test_"):
                continue
            ran += 1
            try:
                os.environ["EQFS_CUDA_MODULE"] = MODULE
                print("ok", name, test() or "", flush=True)
            except Exception:  # pylint: disable=broad-except
                failed += 1
                print("FAILED", name, flush=True)
                traceback.print_exc(file=sys.stdout)
        eqfs.release()
    finally:
        shutil.rmtree(TMP, ignore_errors=True)
    return 1 if failed or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
