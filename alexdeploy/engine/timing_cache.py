"""TensorRT's timing cache on disk: what it measured on this GPU in earlier builds, so that it need not again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from alexdeploy import files
from alexdeploy.engine.versions import Library
from alexdeploy.errors import UnavailableError
from alexdeploy.machine import current_gpu

if TYPE_CHECKING:
    import tensorrt as trt


def cache_path(folder: Path, library: Library, ordinal: int = 0) -> Path:
    """One file per version, model of GPU and CUDA version: ``tensorrt-10.16.1.11-NVIDIA-L4-8.9-cuda13.0.timing``."""
    gpu = current_gpu(ordinal)
    machine = f"{gpu.name}-{gpu.compute_capability}-cuda{gpu.cuda}" if gpu is not None else "no-gpu"
    return folder / f"{library.name}-{library.version}-{re.sub(r'[^A-Za-z0-9.]+', '-', machine)}.timing"


def attach(config: trt.IBuilderConfig, path: Path) -> None:
    """Give the builder the cache; one that it does not take, or none, is begun anew.

    Raises:
        UnavailableError: not even an empty one is taken.
    """
    blobs = [path.read_bytes()] if path.exists() else []
    for blob in (*blobs, b""):
        cache: trt.ITimingCache | None = config.create_timing_cache(blob)
        if cache is not None and config.set_timing_cache(cache, False):
            return
    raise UnavailableError("TensorRT takes no timing cache here; leave `timing_cache` out")


def save(config: trt.IBuilderConfig, path: Path) -> None:
    """Write what the builder knows now, atomically."""
    cache: trt.ITimingCache | None = config.get_timing_cache()
    if cache is not None:
        files.write_bytes(path, memoryview(cache.serialize()))
