"""The lean runtime, which a version-compatible engine carries in itself; TensorRT's own wheels do not bring it."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from importlib import import_module

from alexdeploy.cuda.wheels import Wheel, wheels
from alexdeploy.errors import UnavailableError


def load_lean_runtime(version: str) -> None:
    """Load ``libnvinfer_lean.so`` for the process, so that TensorRT's builder finds it when it asks by that name.

    Args:
        version: of the TensorRT that will build; the lean runtime must be of the same.

    Raises:
        UnavailableError: it is not installed, or of another version; the message has the pip line.
    """
    needed = f"libnvinfer_lean.so.{version.partition('.')[0]}"
    wheel = next(wheels("tensorrt"), None)
    fix = f"install libnvinfer-lean of TensorRT {version}" if wheel is None else f"pip install {_lean(wheel)}"
    for found in wheels("tensorrt-lean"):
        if not f"{found.version}.".startswith(f"{version}."):
            other = f"found {found.name} {found.version}"
            raise UnavailableError(f"`newer_versions` needs the lean runtime of TensorRT {version}, {other}; {fix}")
    with suppress(ModuleNotFoundError):
        import_module("tensorrt_lean_libs")  # which loads what it packs, and is silent where that fails
    try:
        ctypes.CDLL(needed)
    except OSError as error:
        raise UnavailableError(
            f"`newer_versions` puts TensorRT's lean runtime into the engine, and it is missing ({error}); {fix}"
        ) from error


def _lean(tensorrt: Wheel) -> str:
    return f"{tensorrt.name.replace('tensorrt-', 'tensorrt-lean-')}=={tensorrt.version}"
