"""Builds PyCUDA from its source distribution, without a GPU: it has no wheels and wants a whole CUDA toolkit otherwise.

Needs a C++ compiler and the headers cuda.h and cudaProfiler.h (of a toolkit whose nvcc is on the PATH, or in
/usr/local/cuda). The driver library that it links to is an empty one with the right name; at run time the real or the
simulated driver takes its place. Where this fails, the tests on PyCUDA are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.simulated_cuda.library import NAME


def main() -> int:
    """Install into the running Python; the exit status is pip's."""
    if find_spec("pycuda") is not None:
        return 0
    include = next((folder for folder in _include_folders() if (folder / "cudaProfiler.h").exists()), None)
    compiler = shutil.which("cc")
    if include is None or compiler is None:
        print("PyCUDA is not built: no C compiler, or no CUDA headers", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "empty.c")
        empty.write_text("typedef int nothing;\n")
        command = [compiler, "-shared", str(empty), "-o", str(Path(folder, "libcuda.so")), f"-Wl,-soname,{NAME}"]
        subprocess.run(command, check=True)
        Path(folder, ".aksetup-defaults.py").write_text(
            f"CUDA_ROOT = {str(include.parent)!r}\nCUDA_INC_DIR = [{str(include)!r}]\n"
            f"CUDADRV_LIB_DIR = [{folder!r}]\nCUDA_ENABLE_CURAND = False\n"
        )
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pycuda"]
        return subprocess.run(pip, env={**os.environ, "HOME": folder}, check=False).returncode


def _include_folders() -> list[Path]:
    nvcc = shutil.which("nvcc")
    toolkits = [Path(nvcc).resolve().parents[1]] if nvcc else []
    return [toolkit / "include" for toolkit in (*toolkits, Path("/usr/local/cuda"))]


if __name__ == "__main__":
    sys.exit(main())
