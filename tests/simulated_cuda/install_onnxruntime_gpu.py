"""Puts onnxruntime-gpu's wheel (250 MB) into a folder of its own, beside the environment's packages, not among them.

The folder is ``$ONNXRUNTIME_GPU``, else ``onnxruntime-gpu`` in the environment. Nothing that it depends on is
installed: the tests on it want to see what happens without CUDA's libraries. Where this fails, they are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

VERSION = "1.31.1"  # whose libraries the tests name
FOLDER = Path(os.environ.get("ONNXRUNTIME_GPU", Path(sys.prefix, "onnxruntime-gpu")))


def main() -> int:
    """The exit status is pip's."""
    if (FOLDER / "onnxruntime").is_dir():
        return 0
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    return subprocess.run([*pip, "--target", str(FOLDER), f"onnxruntime-gpu=={VERSION}"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
