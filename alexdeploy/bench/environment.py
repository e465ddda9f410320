"""Where a benchmark was run: what a reader needs in order to compare or repeat it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from alexdeploy import __version__, artifacts

_LIBRARIES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "openvino", "numpy")


def environment() -> dict[str, Any]:
    """CPU, cores this process may use, system, Python, library versions, CUDA device or why there is none."""
    from alexdeploy.engine.driver import why_no_cuda

    return {
        "alexdeploy": __version__,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": artifacts.library_versions(*_LIBRARIES),
        "cuda": why_no_cuda() or "available",
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
