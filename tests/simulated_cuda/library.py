"""Builds the simulated ``libcuda.so.1`` and runs Python on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SOURCES = [Path(__file__).with_name(name) for name in ("driver.c", "kernels.c")]
ROOT = Path(__file__).resolve().parents[2]
NAME = "libcuda.so.1"


def why_not_pycuda() -> str | None:
    """None when PyCUDA is installed, else why tests cannot run on it."""
    return None if find_spec("pycuda") else "PyCUDA is not installed (tests/simulated_cuda/install_pycuda.py builds it)"


def build(folder: Path) -> Path:
    """Compile the driver, with a stub that returns CUDA_ERROR_NOT_SUPPORTED for what else PyCUDA links to."""
    compiler = shutil.which("cc")
    if compiler is None:
        import pytest

        pytest.skip("no C compiler (cc) to build the simulated CUDA driver")
    source = "".join(path.read_text() for path in SOURCES)
    stubs = folder / "stubs.c"
    missing = [name for name in _linked_by_pycuda() if not re.search(rf"\b{name}\(", source)]
    stubs.write_text("".join(f"int {name}(void) {{ return 801; }}\n" for name in missing))
    options = ["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{NAME}"]
    files = [*map(str, SOURCES), str(stubs)]
    subprocess.run([compiler, *options, *files, "-o", str(folder / NAME), "-lpthread", "-ldl"], check=True)
    return folder / NAME


def run(library: Path, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """``python *arguments`` from the root of the checkout, with the library in place of the driver."""
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _linked_by_pycuda() -> list[str]:
    """Driver functions that PyCUDA's extension module needs before it can be loaded."""
    spec = find_spec("pycuda")
    if spec is None or not spec.submodule_search_locations:
        return []
    (extension,) = Path(spec.submodule_search_locations[0]).glob("_driver*.so")
    return sorted({name.decode() for name in re.findall(rb"(?<=\0)cu[A-Z][A-Za-z0-9_]+(?=\0)", extension.read_bytes())})
