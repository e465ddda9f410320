"""Makes an environment of its own for what serves models: Triton's server with its Python backend, and Ray.

The folder is ``$SERVING``, else ``serving`` in the running environment. nvidia-pytriton holds the server (2.51, with no
backend but Python's) and keeps NumPy below 2, so it must not stand among the packages that the other tests use. Where
this fails, the tests on it are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("SERVING", Path(sys.prefix, "serving")))
PYTHON = FOLDER / "bin" / "python"
PACKAGES = FOLDER / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
TRITON = PACKAGES / "pytriton" / "tritonserver"
_WANTED = ("nvidia-pytriton", "ray[data]", "pyarrow<26")  # later ones want NumPy 2, and do not say so to pip
_STUB = "triton_python_backend_stub"  # Python, as the server starts it for each instance of a model


def main() -> int:
    """The exit status is pip's."""
    stub = TRITON / "backends" / "python" / _STUB
    if stub.exists() and (PACKAGES / "pyarrow").is_dir():
        return 0
    venv.create(FOLDER, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *_WANTED, "--editable", ".[cpu]"], cwd=ROOT, check=False)
    if done.returncode == 0 and not stub.exists():
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        shutil.copy(TRITON / "python_backend_stubs" / version / _STUB, stub)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
