# SPDX-License-Identifier: Apache-2.0
"""Load eqfs archives (.eqar) as tensors, on the host or straight into the memory of
a CUDA device, where they are decoded.

    import eqfs
    state = eqfs.load_file("model.safetensors.eqar", device="cuda")

    with eqfs.safe_open("mnt/model.safetensors", framework="pt", device="cuda:1") as f:
        w = f.get_tensor("model.embed_tokens.weight")

Paths are those of archives, or of files in a mounted store that are kept as archives.
Frameworks: "pt" (torch; it owns the memory), "np" (numpy, on the host; bfloat16 and
fp8 need ml_dtypes), "dlpack" (objects for any from_dlpack). fp8 is uint8 in DLPack;
types of less than a byte are flat uint8 everywhere.

Errors: CorruptError and EqfsError for archives that cannot be used, MemoryError,
OSError. A tensor whose checksum is wrong is never delivered.
"""

import json

from ._lib import HOST, CorruptError, Device, EqfsError, File, Memory

__all__ = ["CorruptError", "DLPackTensor", "EqfsError", "load_file", "release", "safe_open"]

_NUMPY = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16",
          "I32": "int32", "U32": "uint32", "F32": "float32", "C64": "complex64", "F64": "float64",
          "I64": "int64", "U64": "uint64"}
_ML_DTYPES = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
              "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
              "F8_E8M0": "float8_e8m0fnu"}
# What torch calls the same in its own words.
_TORCH = {**_NUMPY, **_ML_DTYPES}


class DLPackTensor:
    """A loaded tensor for any framework's from_dlpack, which takes it over: once."""

    def __init__(self, device, tensor):
        self.name, self.dtype, self.shape = tensor.name, tensor.dtype, tensor.shape
        self._number, self._memory = device.number, Memory(device, tensor)

    def address(self):
        """Where the bytes are, until the tensor is given away; then None."""
        return self._memory.address.value

    def __dlpack_device__(self):
        return (1, 0) if self._number == HOST else (2, self._number)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """The capsule. The bytes are in place for every stream."""
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError(f"{self.name}: can be given away, but not copied")
        return self._memory.capsule(versioned=int(max_version is not None and max_version[0] >= 1))


class _DLPack:
    @staticmethod
    def number(device):
        kind, _, index = str(device).partition(":")
        if kind == "cpu" and not index:
            return HOST
        if kind == "cuda" and (index.isdigit() or not index):
            return int(index or 0)
        raise ValueError(f"device '{device}': neither cpu nor cuda[:N]")

    @staticmethod
    def make(tensors, device):
        made = [DLPackTensor(device, t) for t in tensors]
        return made, [m.address() for m in made]


class _Numpy:
    @staticmethod
    def number(device):
        if str(device) != "cpu":
            raise ValueError(f"device '{device}': numpy has none but cpu")
        return HOST

    @staticmethod
    def _dtype(name):
        import numpy

        if name in _NUMPY:
            return numpy.dtype(_NUMPY[name])
        import ml_dtypes

        return numpy.dtype(getattr(ml_dtypes, _ML_DTYPES[name]))

    @classmethod
    def make(cls, tensors, device):
        import numpy

        made = [numpy.empty(t.n_bytes, "uint8") if t.bits % 8 else numpy.empty(t.shape, cls._dtype(t.dtype))
                for t in tensors]
        return made, [m.ctypes.data for m in made]


class _Torch:
    @staticmethod
    def number(device):
        import torch

        d = torch.device(device if isinstance(device, (str, torch.device)) else f"cuda:{device}")
        if d.type == "cuda":
            return torch.cuda.current_device() if d.index is None else d.index
        if d.type != "cpu":
            raise ValueError(f"device '{device}': neither cpu nor cuda[:N]")
        return HOST

    @staticmethod
    def make(tensors, device):
        import torch

        where = "cpu" if device.number == HOST else f"cuda:{device.number}"
        made = [torch.empty(t.n_bytes, dtype=torch.uint8, device=where) if t.bits % 8 else
                torch.empty(t.shape, dtype=getattr(torch, _TORCH[t.dtype]), device=where) for t in tensors]
        if device.number != HOST:
            # Memory that torch had before may still be in use by what is queued.
            torch.cuda.synchronize(device.number)
        return made, [m.data_ptr() for m in made]


_FRAMEWORKS = {"pt": _Torch, "torch": _Torch, "pytorch": _Torch, "np": _Numpy, "numpy": _Numpy,
               "dlpack": _DLPack}


class safe_open:
    """An archive, tensor by tensor; the interface of safetensors.safe_open."""

    def __init__(self, filename, framework="pt", device="cpu"):
        if framework not in _FRAMEWORKS:
            raise ValueError(f"framework '{framework}': none of {', '.join(_FRAMEWORKS)}")
        self._framework = _FRAMEWORKS[framework]
        number = self._framework.number(device)
        self._file = File(filename)
        self._tensors = {t.name: t for t in self._file.tensors()}
        self._device = Device.get(number)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._file, self._tensors = None, {}

    def keys(self):
        """Names in the order of the file."""
        return list(self._tensors)

    def metadata(self):
        """The file's own metadata, or None."""
        return json.loads(self._open().header()).get("__metadata__")

    def get_tensor(self, name):
        """Load one tensor. Several at once are faster: see get_tensors."""
        return self.get_tensors([name])[name]

    def get_tensors(self, names=None):
        """Load these tensors, or all, and return them by name."""
        file = self._open()
        missing = [n for n in names or () if n not in self._tensors]
        if missing:
            raise KeyError(missing[0])
        tensors = [self._tensors[n] for n in (self._tensors if names is None else dict.fromkeys(names))]
        made, addresses = self._framework.make(tensors, self._device)
        file.load(self._device, tensors, addresses)
        return {t.name: m for t, m in zip(tensors, made)}

    def _open(self):
        if self._file is None:
            raise ValueError("the archive is closed")
        return self._file


def load_file(filename, device="cpu", framework="pt"):
    """All tensors of an archive, by name."""
    with safe_open(filename, framework=framework, device=device) as f:
        return f.get_tensors()


def release():
    """Let go of threads and of the pinned memory that is kept between loads."""
    Device.forget()
