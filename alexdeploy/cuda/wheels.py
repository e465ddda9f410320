"""The CUDA that installed libraries were built for, held against the driver. None of them is imported for it.

A driver runs what was built for its own major version of CUDA and for older ones. With a newer one PyTorch computes on
the CPU, and TensorRT ends the process or says "error 35".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from alexdeploy.machine import current_gpu

# CUDA major → the oldest NVIDIA driver for Linux that runs it
# (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html)
_DRIVERS = {11: 450, 12: 525, 13: 580}
_PACKED = {  # one distribution for each major
    "tensorrt": "tensorrt-cu{}-libs",
    "tensorrt-lean": "tensorrt-lean-cu{}-libs",
    "tensorrt-rtx": "tensorrt-rtx-cu{}-libs",
}
_TELLING = {  # the file of a distribution that tells its CUDA, and how
    "onnxruntime-gpu": ("onnxruntime/capi/build_and_package_info.py", r"^cuda_version = '([\d.]+)'"),
    "torch": ("torch/version.py", r"^cuda\b.*= '([\d.]+)'"),
}
LIBRARIES = (*_PACKED, *_TELLING, "cuda-bindings")


@dataclass(frozen=True)
class Wheel:
    """An installed distribution and the CUDA that it was built for: ``Wheel("onnxruntime-gpu", "1.31.1", "13.0")``."""

    name: str
    version: str
    cuda: str


def wheels(library: str) -> Iterator[Wheel]:
    """What is installed of one of ``LIBRARIES``; nothing of a build that does not tell its CUDA, as the system's."""
    if library in _PACKED:
        for major in _DRIVERS:
            name = _PACKED[library].format(major)
            if (version := _version(name)) is not None:
                yield Wheel(name, version, str(major))
    elif (version := _version(library)) is not None:
        cuda = _told(*_TELLING[library], library) if library in _TELLING else version.partition(".")[0]
        if cuda is not None:
            yield Wheel(library, version, cuda)


def why_too_old(*libraries: str) -> str | None:
    """Why this driver does not run one of them, and what to install instead; None where it does or nothing is known."""
    for library in libraries:
        for wheel in wheels(library):
            in_extra = library != "tensorrt-rtx"
            reason = why_driver_too_old(f"{wheel.name} {wheel.version}", major(wheel.cuda), in_extra=in_extra)
            if reason is not None:
                return reason
    return None


def why_driver_too_old(what: str, cuda: int, *, in_extra: bool = True) -> str | None:
    """Why the driver does not run ``what``, which is built for a major version of CUDA; None where it does.

    ``in_extra``: alexdeploy's extra for older drivers brings it.

    Without a device there is nothing to say here: see ``machine.why_no_cuda``.
    """
    gpu = current_gpu()
    if gpu is None or runs(gpu.cuda, cuda):
        return None
    driver = f"an NVIDIA driver of {_DRIVERS[cuda]} or newer" if cuda in _DRIVERS else "a newer NVIDIA driver"
    other = ", or alexdeploy's extra 'gpu-cu12' in a new environment" if in_extra and major(gpu.cuda) == 12 else ""
    return f"{what} needs CUDA {cuda} and the driver runs CUDA {gpu.cuda}; install {driver}{other}"


def runs(driver: str, cuda: int) -> bool:
    """Whether a driver of that version of CUDA runs what is built for that major version: its own and older ones."""
    return major(driver) >= cuda


def major(version: str) -> int:
    """``major("12.4") == 12``."""
    return int(version.partition(".")[0])


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _told(file: str, pattern: str, name: str) -> str | None:
    path = metadata.distribution(name).locate_file(file)
    try:
        text = Path(str(path)).read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else None
