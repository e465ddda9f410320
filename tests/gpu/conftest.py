"""``GPU_BINDING`` says which CUDA binding the tests are to run through; by default the one that is installed."""

from __future__ import annotations

import os
import sys

if os.environ.get("GPU_BINDING") == "cuda-python":
    sys.modules["pycuda"] = None  # type: ignore[assignment]  # as if it were not installed
