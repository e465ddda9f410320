"""The machine of a benchmark: everything a reader needs to compare or repeat it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from alexdeploy import files
from alexdeploy._version import __version__
from alexdeploy.machine import cores, cpu, cpu_flags

_LIBRARIES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "openvino", "numpy")
_SPEED_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "asimd", "i8mm")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_GPU_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "persistence_mode")


def environment() -> dict[str, Any]:
    """CPU with its flags and governor, threads, system, library versions, CUDA device or why there is none.

    ``load`` is the 1-minute load average before the bench; a machine that is busy with other things shows here.
    """
    from alexdeploy.machine import why_no_cuda

    no_cuda = why_no_cuda()
    return {
        "alexdeploy": __version__,
        "cpu": cpu("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in _SPEED_FLAGS if flag in cpu_flags()],
        "governor": _GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else None,
        "cores": cores(),
        "thread_variables": {name: os.environ[name] for name in _THREADS if name in os.environ},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": files.library_versions(*_LIBRARIES),
        "cuda": no_cuda or "available",
        "gpu": None if no_cuda else _gpu(),
    }


def _gpu() -> dict[str, str] | None:
    """The first GPU by nvidia-smi; None without nvidia-smi."""
    query = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(_GPU_FIELDS, (value.strip() for value in answer.split(",")), strict=False))
