"""The machine: its CPU cores, and its CUDA devices as the driver describes them.

The driver is asked through ctypes, so that no package and no TensorRT is loaded for it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True)
class Gpu:
    """The device, and the newest CUDA version its driver runs: ``Gpu("NVIDIA L4", "8.9", "13.0")``."""

    name: str
    compute_capability: str
    cuda: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


def why_no_cuda(ordinal: int = 0) -> str | None:
    """None when that CUDA device can be used, otherwise the reason: ``no CUDA device (libcuda.so.1 not found)``."""
    found = _devices()
    if isinstance(found, str):
        return f"no CUDA device ({found})"
    return None if ordinal < found else f"no CUDA device {ordinal} (the driver has {found}, counted from 0)"


@cache
def _devices() -> int | str:
    """How many there are, or why none can be used."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "libcuda.so.1 not found"
    status = int(driver.cuInit(0))
    if status:
        return f"cuInit returned {status}"
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    return count.value or "the driver reports none"


def current_gpu(ordinal: int = 0) -> Gpu | None:
    """That device as the driver numbers them, or None where there is none."""
    if why_no_cuda(ordinal) is not None:
        return None
    driver = ctypes.CDLL("libcuda.so.1")
    device = _device(driver, ordinal)
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    major, minor, version = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    for number, attribute in zip((major, minor), _COMPUTE_CAPABILITY, strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", cuda)


_TF32 = "NVIDIA_TF32_OVERRIDE"


def forbid_tf32() -> None:
    """Keep NVIDIA's libraries from TF32 in this process, unless the user has said otherwise; they read it once."""
    os.environ.setdefault(_TF32, "0")


def tf32_is_forbidden() -> bool:
    """True where NVIDIA's libraries compute no FP32 as TF32, whatever their callers set.

    Source: NVIDIA, "Accelerating AI Training with NVIDIA TF32 Tensor Cores": ``NVIDIA_TF32_OVERRIDE=0``.
    """
    return os.environ.get(_TF32) == "0"


@dataclass(frozen=True)
class GpuIds:
    """What names a CUDA device on any machine: its number depends on ``CUDA_VISIBLE_DEVICES`` and the order of cards.

    Attributes:
        device: as CUDA has it, ``GPU-…``, or ``MIG-…`` where it is a slice of a card.
        card: the whole card, ``GPU-…``, as nvidia-smi takes it.
    """

    device: str
    card: str


def gpu_ids(ordinal: int = 0) -> GpuIds | None:
    """Of a CUDA device; None where there is none, or where the driver does not say."""
    if why_no_cuda(ordinal) is not None:
        return None
    driver = ctypes.CDLL("libcuda.so.1")
    handle = _device(driver, ordinal)
    of_card = driver.cuDeviceGetUuid  # by its old name of the card, also for a slice; _v2 (CUDA 11.4) is the slice's
    card, device = (_uuid(call, handle) for call in (of_card, getattr(driver, "cuDeviceGetUuid_v2", of_card)))
    if card is None or device is None:
        return None
    return GpuIds(f"{'GPU' if card == device else 'MIG'}-{device}", f"GPU-{card}")


def _uuid(call: Callable[..., int], device: ctypes.c_int) -> uuid.UUID | None:
    octets = (ctypes.c_ubyte * 16)()
    return uuid.UUID(bytes=bytes(octets)) if call(octets, device) == 0 else None


def free_memory_bytes(ordinal: int = 0) -> int | None:
    """Free memory of that device, or None where there is no device or the driver does not say.

    The driver answers in a context only: where nothing has made one yet, it is made for the question, which takes a
    moment and some of the memory.
    """
    if why_no_cuda(ordinal) is not None:
        return None
    driver = ctypes.CDLL("libcuda.so.1")
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    with _primary_context(driver, _device(driver, ordinal)):
        status = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    return None if status else free.value


def _device(driver: ctypes.CDLL, ordinal: int) -> ctypes.c_int:
    device = ctypes.c_int(ordinal)
    driver.cuDeviceGet(ctypes.byref(device), ordinal)
    return device


@contextmanager
def _primary_context(driver: ctypes.CDLL, device: ctypes.c_int) -> Iterator[None]:
    """Current for this thread while the block runs; calls inside it fail by themselves where there is none."""
    context = ctypes.c_void_p()
    retained = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    pushed = retained and driver.cuCtxPushCurrent_v2(context) == 0
    try:
        yield
    finally:
        if pushed:
            driver.cuCtxPopCurrent_v2(ctypes.byref(context))
        if retained:
            driver.cuDevicePrimaryCtxRelease_v2(device)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu(field: str) -> str:
    """A line of the first core in ``/proc/cpuinfo``, such as ``model name``; empty where there is none."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.is_file() else ():
        if line.startswith(field):
            return line.partition(":")[2].strip()
    return ""


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets as Linux names them (``avx2``, ``avx512_vnni``); empty on other systems."""
    return frozenset((cpu("flags") or cpu("Features")).split())


def saturates_int8() -> bool:
    """True on x86 without VNNI and AMX: sums of uint8 × int8 go through 16 bits there, unless a library avoids it."""
    exact = {"avx512_vnni", "avx_vnni", "amx_int8"}
    return platform.machine() in ("x86_64", "AMD64") and bool(cpu_flags()) and not cpu_flags() & exact
