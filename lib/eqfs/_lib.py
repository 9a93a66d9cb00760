# SPDX-License-Identifier: Apache-2.0
"""libeqfs by ctypes: one class for each of its objects, exceptions for its errors."""

import ctypes
import errno
import os
import threading
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p

HOST = -1
_NAME = "libeqfs.so.0"
_CORRUPT, _UNSUPPORTED, _LIMIT, _NOT_EQAR = -7001, -7002, -7003, -7004


class EqfsError(Exception):
    """The archive cannot be used: no archive, a corrupt one, or one too new."""


class CorruptError(EqfsError):
    """The archive's bytes contradict its format or a checksum."""


class _Error(Structure):
    _fields_ = [("text", ctypes.c_char * 512)]


class _Tensor(Structure):
    _fields_ = [("name", c_void_p), ("dtype", c_char_p), ("bits", c_uint32), ("ndim", c_uint32),
                ("shape", POINTER(c_uint64)), ("n_bytes", c_uint64), ("stored", c_uint64),
                ("lossy", c_int), ("name_len", c_uint32)]


class _Options(Structure):
    _fields_ = [("device", c_int), ("threads", c_uint), ("staging", c_uint64),
                ("log", c_void_p), ("log_arg", c_void_p)]


def _find():
    """The library: $EQFS_LIBRARY, as the dynamic linker finds it, or in the prefix
    that this module was installed to."""
    given = os.environ.get("EQFS_LIBRARY")
    if given:
        return ctypes.CDLL(given)
    try:
        return ctypes.CDLL(_NAME)
    except OSError:
        lib = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
        return ctypes.CDLL(os.path.join(lib, _NAME))


_lib = _find()
_ERR = POINTER(_Error)
for _name, _result, _args in (
        ("eqfs_file_open", c_int, [c_char_p, POINTER(c_void_p), _ERR]),
        ("eqfs_file_close", None, [c_void_p]),
        ("eqfs_file_count", c_size_t, [c_void_p]),
        ("eqfs_file_tensor", POINTER(_Tensor), [c_void_p, c_size_t]),
        ("eqfs_file_header", c_void_p, [c_void_p, POINTER(c_size_t)]),
        ("eqfs_device_open", c_int, [POINTER(_Options), POINTER(c_void_p), _ERR]),
        ("eqfs_device_close", None, [c_void_p]),
        ("eqfs_device_alloc", c_int, [c_void_p, c_size_t, POINTER(c_void_p), _ERR]),
        ("eqfs_device_free", None, [c_void_p, c_void_p]),
        ("eqfs_load", c_int, [c_void_p, c_void_p, POINTER(c_size_t), POINTER(c_void_p), c_size_t, _ERR]),
        ("eqfs_dlpack", c_int, [c_void_p, POINTER(_Tensor), c_void_p, c_int, POINTER(c_void_p), _ERR])):
    _function = getattr(_lib, _name)
    _function.restype, _function.argtypes = _result, _args


def _check(rc, err):
    if rc == 0:
        return
    text = err.text.decode("utf-8", "replace")
    if rc == _CORRUPT:
        raise CorruptError(text)
    if rc in (_UNSUPPORTED, _LIMIT, _NOT_EQAR):
        raise EqfsError(text)
    if rc == -errno.ENOMEM:
        raise MemoryError(text)
    if rc == -errno.EINVAL:
        raise ValueError(text)
    raise OSError(-rc, text)


class Tensor:
    """What an archive says of a tensor; keeps its file open."""

    def __init__(self, file, index, raw):
        self._file, self.index, self.raw = file, index, raw
        self.name = ctypes.string_at(raw.contents.name, raw.contents.name_len).decode() # may hold NULs
        self.dtype = raw.contents.dtype.decode()
        self.bits = raw.contents.bits
        self.shape = tuple(raw.contents.shape[:raw.contents.ndim])
        self.n_bytes = raw.contents.n_bytes
        self.stored = raw.contents.stored
        self.lossy = bool(raw.contents.lossy)


class File:
    """An open archive."""

    def __init__(self, path):
        self._handle, err = c_void_p(), _Error()
        _check(_lib.eqfs_file_open(os.fsencode(path), byref(self._handle), byref(err)), err)

    def tensors(self):
        """All tensors, in the order of the file."""
        n = _lib.eqfs_file_count(self._handle)
        return [Tensor(self, i, _lib.eqfs_file_tensor(self._handle, i)) for i in range(n)]

    def header(self):
        """The safetensors header as bytes."""
        size = c_size_t()
        at = _lib.eqfs_file_header(self._handle, byref(size))
        return ctypes.string_at(at, size.value)

    def load(self, device, tensors, addresses):
        """Load tensors to those addresses, memory of the device."""
        n, err = len(tensors), _Error()
        index = (c_size_t * n)(*(t.index for t in tensors))
        to = (c_void_p * n)(*addresses)
        _check(_lib.eqfs_load(self._handle, device.handle, index, to, n, byref(err)), err)

    def __del__(self):
        if getattr(self, "_handle", None):
            _lib.eqfs_file_close(self._handle)


class Device:
    """A device, opened once a process and number by Device.get."""

    _open, _lock = {}, threading.Lock()

    def __init__(self, number, threads=0, staging=0):
        self.number, self.handle, err = number, c_void_p(), _Error()
        options = _Options(number, threads, staging, None, None)
        _check(_lib.eqfs_device_open(byref(options), byref(self.handle), byref(err)), err)

    @classmethod
    def get(cls, number):
        with cls._lock:
            if number not in cls._open:
                cls._open[number] = cls(number)
            return cls._open[number]

    @classmethod
    def forget(cls):
        with cls._lock:
            cls._open.clear()

    def __del__(self):
        if getattr(self, "handle", None):
            _lib.eqfs_device_close(self.handle)


class Memory:
    """Memory of a device until it becomes a DLPack tensor's."""

    def __init__(self, device, tensor):
        self.address, self._device, self._tensor, err = c_void_p(), device, tensor, _Error()
        _check(_lib.eqfs_device_alloc(device.handle, tensor.n_bytes, byref(self.address), byref(err)), err)

    def capsule(self, versioned):
        """Give the memory away in a DLPack capsule."""
        out, err = c_void_p(), _Error()
        if not self.address:
            raise ValueError(f"{self._tensor.name}: has been given away already")
        _check(_lib.eqfs_dlpack(self._device.handle, self._tensor.raw, self.address, versioned,
                                byref(out), byref(err)), err)
        self.address = c_void_p()
        return _new_capsule(out, _NAMES[versioned], _destroy)

    def __del__(self):
        if getattr(self, "address", None):
            _lib.eqfs_device_free(self._device.handle, self.address)


# ---- capsules ----------------------------------------------------------------------

_NAMES = (b"dltensor", b"dltensor_versioned")
# Offset of the deleter in DLManagedTensor and DLManagedTensorVersioned.
_DELETER = (56, 16)
_Destructor = ctypes.PYFUNCTYPE(None, c_void_p)
_api = ctypes.pythonapi
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, c_char_p, _Destructor)(("PyCapsule_New", _api))
_is_valid = ctypes.PYFUNCTYPE(c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", _api))
_pointer = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", _api))


@_Destructor
def _destroy(capsule):
    """Nobody took the tensor (who does renames the capsule): delete it."""
    for name, offset in zip(_NAMES, _DELETER):
        if _is_valid(capsule, name):
            managed = _pointer(capsule, name)
            deleter = c_void_p.from_address(managed + offset).value
            ctypes.CFUNCTYPE(None, c_void_p)(deleter)(managed)


# Capsules may die after this module has, so the destructor never does.
_api.Py_IncRef(ctypes.py_object(_destroy))
