"""The machine of a benchmark: everything a reader needs to compare or repeat it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from alexdeploy import files
from alexdeploy._version import __version__
from alexdeploy.bench.gpu_state import ask_nvidia_smi
from alexdeploy.machine import cores, cpu, cpu_flags, current_gpu, gpu_ids, why_no_cuda

_LIBRARIES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "openvino", "numpy", "pillow")
_SPEED_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "asimd", "i8mm")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_GPU_FIELDS = ("driver_version", "clocks.max.sm", "power.limit", "persistence_mode")


def environment(ordinal: int = 0) -> dict[str, Any]:
    """CPU with its flags and governor, threads, system, library versions, CUDA device or why there is none.

    ``ordinal``: of the device that is asked for.
    ``load`` is the 1-minute load average before the bench; a machine that is busy with other things shows here.
    """
    no_cuda = why_no_cuda(ordinal)
    return {
        "alexdeploy": __version__,
        "cpu": cpu("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in _SPEED_FLAGS if flag in cpu_flags()],
        "governor": _GOVERNOR.read_text(encoding="utf-8").strip() if _GOVERNOR.is_file() else None,
        "cores": cores(),
        "thread_variables": {name: os.environ[name] for name in _THREADS if name in os.environ},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": files.library_versions(*_LIBRARIES),
        "cuda": no_cuda or "available",
        "gpu": _gpu(ordinal),
    }


def _gpu(ordinal: int) -> dict[str, str] | None:
    """The CUDA device that everything here runs on; what only nvidia-smi knows is left out where it does not tell.

    ``card`` is the whole card where the device is a MIG slice of it.
    """
    gpu, ids = current_gpu(ordinal), gpu_ids(ordinal)
    if gpu is None:
        return None
    facts = {"name": gpu.name}
    if ids is not None:
        facts |= {"uuid": ids.device} | ({"card": ids.card} if ids.card != ids.device else {})
        facts |= ask_nvidia_smi(ids.card, _GPU_FIELDS)
    return facts
