"""Engines of ONNX Runtime's TensorRT provider, kept from one start to the next.

The provider finds an engine by the names of the file and of its tensors, not by the weights: a network that was trained
again would get its old engine. It also writes the file in place. So each entry here is a folder of its own, named by
all that an engine depends on; it comes to be whole or not at all, and is used only while its files are what they were.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from alexdeploy import files
from alexdeploy.errors import UsageError

_PARTIAL, _LEFT_S = ".partial-", 24 * 3600.0  # no build takes so long
_LISTED = "files.json"  # name → SHA-256 of the entry's files


def cache_folder() -> Path | None:
    """``$XDG_CACHE_HOME/alexdeploy/onnxruntime-tensorrt``, else in ``~/.cache``; None where it cannot be written."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        folder = root / "alexdeploy" / "onnxruntime-tensorrt"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # an engine is executable code
    except (OSError, RuntimeError):  # read-only, or a user without a home
        return None
    return folder if os.access(folder, os.W_OK) else None


@contextlib.contextmanager
def engine_cache(folder: Path, key: Mapping[str, str], machine: str) -> Iterator[dict[str, str]]:
    """Provider options for a session that is started inside the block, and whose engine is built there if need be.

    Args:
        folder: of all entries.
        key: all that the engine depends on: model, options, versions, GPU.
        machine: what the measurements of kernels depend on, which entries of several models share.
    """
    entry = folder / hashlib.sha256(msgspec.json.encode(sorted(key.items()))).hexdigest()[:32]
    timings = folder / "timings" / hashlib.sha256(machine.encode()).hexdigest()[:32]
    if _is_whole(entry):
        yield _options(entry)
        return
    _sweep(folder)
    work = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder))
    try:
        for path in timings.glob("*.timing"):
            shutil.copy(path, work)
        yield _options(work)
        _keep(work, entry, timings)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what processes have left that ended while they built."""
    for left in folder.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - left.stat().st_mtime > _LEFT_S:
                shutil.rmtree(left, ignore_errors=True)


def _options(folder: Path) -> dict[str, str]:
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


def _is_whole(entry: Path) -> bool:
    try:
        listed = msgspec.json.decode((entry / _LISTED).read_bytes(), type=dict[str, str])
        return bool(listed) and _digests(entry) == listed
    except (OSError, *files.UNDECODABLE):
        return False


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: files.sha256_file(path) for path in folder.iterdir() if path.name != _LISTED}


def _keep(work: Path, entry: Path, timings: Path) -> None:
    """Publish what the session wrote; nothing where it wrote no engine, or where that cannot be done."""
    with contextlib.suppress(OSError, UsageError):
        for path in work.glob("*.timing"):
            timings.mkdir(parents=True, exist_ok=True)
            files.write_bytes(timings / path.name, path.read_bytes())
            path.unlink()
        if any(work.glob("*.engine")) and not _is_whole(entry):  # another process may have been faster
            (work / _LISTED).write_bytes(msgspec.json.encode(_digests(work)))
            shutil.rmtree(entry, ignore_errors=True)  # one that was damaged
            work.rename(entry)
