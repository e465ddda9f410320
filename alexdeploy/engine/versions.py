"""The only file that knows which TensorRT this is: module names, flags that differ, what needs a GPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from alexdeploy.errors import UnavailableError
from alexdeploy.optional import require

Builder = Literal["auto", "tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Library:
    """An importable TensorRT: its name on the command line, its version, its module."""

    name: str
    version: str
    module: Any

    def network_flags(self) -> int:
        """Strongly typed: precision comes from the graph. The bit moved between 10 and 11, so go by its name."""
        return 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def load_library(builder: Builder) -> Library:
    """The library to build with; ``auto`` is TensorRT where it is installed and a GPU answers, else TensorRT-RTX.

    Raises:
        UnavailableError: not installed, or TensorRT (which builds on the GPU) without a CUDA device.
    """
    if builder == "auto":
        builder = "tensorrt" if why_no_cuda() is None and _installed("tensorrt") else "tensorrt-rtx"
    if builder == "tensorrt":
        # asked before the import: without a driver TensorRT's libraries may crash the process
        reason = why_no_cuda()
        if reason is not None:
            raise UnavailableError(f"TensorRT builds on the GPU and there is {reason}; use --builder tensorrt-rtx")
    module = require("tensorrt" if builder == "tensorrt" else "tensorrt_rtx")
    return Library(builder, str(module.__version__), module)


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


@cache
def why_no_cuda() -> str | None:
    """None when a CUDA device can be used, otherwise the reason: ``no CUDA device (libcuda.so.1 not found)``."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA device (libcuda.so.1 not found)"
    status = int(driver.cuInit(0))
    if status:
        return f"no CUDA device (cuInit returned {status})"
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value else "no CUDA device (the driver reports none)"


@cache
def process_logger(library: Library) -> Any:
    """The one logger of this process for a library; TensorRT keeps the first it is given.

    It collects (severity, text) in ``messages``; the builder clears it before and reads it after each build.
    """
    interface: Any = library.module.ILogger

    class CollectingLogger(interface):  # type: ignore[misc]
        def __init__(self) -> None:
            interface.__init__(self)
            self.messages: list[tuple[int, str]] = []

        def log(self, severity: Any, text: str) -> None:
            self.messages.append((int(severity), text))

    return CollectingLogger()
