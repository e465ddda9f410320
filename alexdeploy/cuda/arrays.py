"""Arrays of other libraries that lie on the GPU, seen without copying: DLPack or ``__cuda_array_interface__``.

PyTorch and CuPy have both, PyCUDA's GPUArray the second. DLPack is preferred, because with it the producer itself
orders its pending work before the stream that will read.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from alexdeploy.cuda.device import Device
from alexdeploy.errors import UsageError

_CUDA = 2  # DLDeviceType kDLCUDA
_ALIGNMENT = 256  # what TensorRT asks of every address


@dataclass(frozen=True)
class DeviceArray:
    """C-contiguous device memory.

    Attributes:
        after: a ``CUstream`` whose present work must be finished first; None when the producer has seen to that.
        owner: what must stay alive while the memory is used.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    after: int | None
    owner: object


def is_on_device(array: object) -> bool:
    """True if it lies on a CUDA device; False for anything in host memory."""
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) == _CUDA
    return hasattr(array, "__cuda_array_interface__")


def view(array: Any, device: Device, stream: int | None, what: str) -> DeviceArray:
    """The memory of ``array``, ready to be used on ``stream`` of ``device``; None when the caller sees to the order.

    Raises:
        UsageError: not on that device, not C-contiguous, or not 256-byte aligned; ``what`` names it in the message.
    """
    if not is_on_device(array):
        raise UsageError(f"{what} is not on the GPU; use infer() for arrays in host memory")
    if hasattr(array, "__dlpack__"):
        ordinal: int | None = int(array.__dlpack_device__()[1])
    else:  # the interface does not say, and a kernel that reads another device's memory ends the process
        ordinal = device.ordinal_of(int(array.__cuda_array_interface__["data"][0]))
    if ordinal != device.ordinal:
        place = f"on CUDA device {ordinal}" if ordinal is not None else "in no memory that CUDA knows"
        raise UsageError(f"{what} is {place}; the engine runs on device {device.ordinal}")
    found = _from_dlpack(array, stream, what) if hasattr(array, "__dlpack__") else _from_interface(array, stream, what)
    if found.pointer % _ALIGNMENT:
        raise UsageError(f"{what} begins at an address that is no multiple of {_ALIGNMENT} bytes; copy the slice first")
    return found


class _DLTensor(ctypes.Structure):
    """``DLTensor`` of dlpack.h, which is also how a ``DLManagedTensor`` begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_KINDS = {0: "i", 1: "u", 2: "f"}  # DLDataTypeCode


def _from_dlpack(array: Any, stream: int | None, what: str) -> DeviceArray:
    """Read the capsule and leave it unconsumed: it frees itself when ``owner`` goes."""
    try:
        capsule = array.__dlpack__(stream=-1 if stream is None else stream)
    except BufferError as error:  # such as a tensor that requires grad
        raise UsageError(f"{what}: {error}") from error
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = ctypes.cast(pointer_of(capsule, b"dltensor"), ctypes.POINTER(_DLTensor)).contents
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.code not in _KINDS or tensor.lanes != 1:
        raise UsageError(f"{what} has a type that NumPy does not know; expected float32")
    dtype = np.dtype(f"{_KINDS[tensor.code]}{tensor.bits // 8}")
    if tensor.strides:
        strides = tuple(count * dtype.itemsize for count in tensor.strides[: tensor.ndim])
        _check_contiguous(shape, strides, dtype, what)
    return DeviceArray(int(tensor.data or 0) + int(tensor.byte_offset), shape, dtype, None, capsule)


def _from_interface(array: Any, stream: int | None, what: str) -> DeviceArray:
    """``stream``: absent or None needs no waiting; 1 and 2 are the two default streams."""
    interface = array.__cuda_array_interface__
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    if interface.get("strides") is not None:
        _check_contiguous(shape, tuple(interface["strides"]), dtype, what)
    after = interface.get("stream") if stream is not None else None
    return DeviceArray(int(interface["data"][0]), shape, dtype, after, array)


def _check_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], what: str) -> None:
    step = dtype.itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != step:
            raise UsageError(f"{what} is not C-contiguous (strides {strides} bytes); make it contiguous first")
        step *= length
