"""The libraries that ONNX Runtime's GPU providers need, loaded beforehand, so that a missing one is named.

Without that a session starts on the CPU, with the reason on stderr alone. ``onnxruntime.preload_dlls`` is not used: it
prints to stdout, looks only beside the package, and knows no TensorRT.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import struct
import sys
from contextlib import suppress
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

from alexdeploy.cuda.wheels import why_driver_too_old
from alexdeploy.errors import UnavailableError
from alexdeploy.machine import why_no_cuda

_FILES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}
_CUDNN = "libcudnn.so.9"  # newer providers load it at the first convolution, which is too late to say so
_OURS = re.compile(r"lib(cublas|cublasLt|cudart|cudnn|cufft|curand|nvrtc|nvinfer|nvonnxparser)\.so\.")
_PROGRAM_HEADER = "<IIQQQQQQ"  # of ELF64: type, flags, offset, address, …, size in the file, …
_LOAD, _DYNAMIC = 1, 2  # types of program headers
_NEEDED, _STRINGS = 1, 5  # tags of dynamic entries


def cuda_is_here() -> bool:
    """True if the installed ONNX Runtime is built for CUDA and a device answers; nothing is imported for it."""
    library = _library("CUDAExecutionProvider")
    return library is not None and why_no_cuda() is None


def load_libraries(provider: str) -> None:
    """Load what the provider's own library is linked to: what the process has, else NVIDIA's wheels, else the system's.

    Raises:
        UnavailableError: the driver is too old, TensorRT is of another major version, or a library is missing; the
            message names it and what to install.
    """
    library = _library(provider)
    if library is None:
        return  # another system, or built another way: ONNX Runtime itself has the word
    needed = [name for name in needed_libraries(library) if _OURS.match(name)]
    cuda, tensorrt = _major(needed, "libcudart"), [name for name in needed if name.startswith("libnv")]
    reason = why_driver_too_old(_version(), cuda)
    if reason is not None:
        raise UnavailableError(reason)
    if tensorrt:
        _check_tensorrt(tensorrt, cuda)
    for name in dict.fromkeys((*needed, _CUDNN)):
        try:
            if name not in tensorrt:
                _load(name, cuda)
        except OSError as error:
            raise UnavailableError(
                f"{error}; {_version()} needs CUDA {cuda} and cuDNN 9: pip install 'onnxruntime-gpu[cuda,cudnn]'"
            ) from error
    for name in (f"libnvrtc.so.{cuda}", f"libcufft.so.{cuda - 1}"):  # loaded when an operator needs them
        with suppress(OSError):
            _load(name, cuda)
    if tensorrt:
        _load_tensorrt(tensorrt, cuda)


def why_not_loaded(provider: str) -> str | None:
    """What the dynamic linker says of the provider's own library, after ONNX Runtime failed to load it; else None.

    Not for use before that: the library expects ONNX Runtime to have been there first.
    """
    library = _library(provider)
    try:
        if library is not None:
            ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return None


def needed_libraries(path: Path) -> list[str]:
    """Names of the libraries that an ELF file (64 bits, little-endian) is linked to; empty for another kind of file.

    Source: System V ABI, chapters 4 and 5 (program header, dynamic section).
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
        if image[:6] != b"\x7fELF\x02\x01":
            return []
        (start,), (size, count) = struct.unpack_from("<Q", image, 32), struct.unpack_from("<HH", image, 54)
        headers = [struct.unpack_from(_PROGRAM_HEADER, image, start + index * size) for index in range(count)]
        _, _, begin, _, _, length, *_ = next(header for header in headers if header[0] == _DYNAMIC)
        entries = [struct.unpack_from("<qQ", image, at) for at in range(begin, begin + length, 16)]
        address = next(value for tag, value in entries if tag == _STRINGS)
        strings = next(
            offset + address - lowest
            for kind, _, offset, lowest, _, size, *_ in headers
            if kind == _LOAD and lowest <= address < lowest + size
        )
        places = [strings + value for tag, value in entries if tag == _NEEDED]
        return [image[place : image.find(b"\0", place)].decode() for place in places]


def tensorrt_version() -> str:
    """Of the TensorRT that ``load_libraries`` loaded, as one number (101601 is 10.16.1); "" where it does not say."""
    library = _library("TensorrtExecutionProvider")
    names = [name for name in needed_libraries(library) if name.startswith("libnvinfer.so.")] if library else []
    with suppress(OSError, AttributeError):
        return str(ctypes.CDLL(names[0]).getInferLibVersion()) if names else ""
    return ""


def _library(provider: str) -> Path | None:
    spec = find_spec("onnxruntime")
    folders = spec.submodule_search_locations if spec is not None else None
    found = [Path(folder, "capi", _FILES[provider]) for folder in folders or ()]
    return next((path for path in found if path.is_file()), None)


def _load(name: str, cuda: int) -> None:
    """Load a library for the process.

    Those of torch, where it was imported, are the same wheels and are there already.

    Raises:
        OSError: it, or what it needs, is nowhere.
    """
    with suppress(OSError):
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LOCAL)
        return
    found = [path for entry in sys.path for path in Path(entry or ".", "nvidia").glob(f"*/lib/{name}")]
    found.sort(key=lambda path: path.parts[-3] != f"cu{cuda}")  # libcurand has one name in CUDA 12 and 13
    ctypes.CDLL(str(found[0]) if found else name)


def _packed_tensorrt() -> list[Path]:
    """The libraries in TensorRT's wheel; empty where that is not installed."""
    spec = find_spec("tensorrt_libs")
    folders = spec.submodule_search_locations if spec is not None else None
    return [path for folder in folders or () for path in sorted(Path(folder).glob("libnv*.so.*"))]


def _check_tensorrt(needed: list[str], cuda: int) -> None:
    packed = [path.name for path in _packed_tensorrt()]
    if packed and not set(packed) & set(needed):
        raise _wrong_tensorrt(f"TensorRT {_major(packed, 'libnvinfer')} is installed", needed, cuda)


def _load_tensorrt(needed: list[str], cuda: int) -> None:
    """By its wheel, whose import loads all that it packs and is silent where that fails, else the system's."""
    packed = {path.name: path for path in _packed_tensorrt()}
    try:
        if packed:
            import_module("tensorrt_libs")
        for name in needed:
            _load(str(packed.get(name, name)), cuda)
    except (ImportError, OSError) as error:
        raise _wrong_tensorrt(str(error), needed, cuda) from error


def _wrong_tensorrt(found: str, needed: list[str], cuda: int) -> UnavailableError:
    major = _major(needed, "libnvinfer")
    return UnavailableError(
        f"{found}; the TensorRT provider of {_version()} needs TensorRT {major} ({needed[0]}): "
        f"pip install 'tensorrt-cu{cuda}<{major + 1}'"
    )


def _major(names: list[str], library: str) -> int:
    """``_major(["libcudart.so.13"], "libcudart") == 13``; 0 where it is not among them."""
    found = (re.fullmatch(rf"{library}\.so\.(\d+)(\..*)?", name) for name in names)
    return next((int(match[1]) for match in found if match), 0)


def _version() -> str:
    with suppress(metadata.PackageNotFoundError):
        return f"onnxruntime-gpu {metadata.version('onnxruntime-gpu')}"
    return "this onnxruntime"
