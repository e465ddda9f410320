"""Optional libraries: which extra brings which module, and one helper that imports them or says what to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from alexdeploy.errors import UnavailableError

EXTRA_OF_MODULE = {
    "torch": "train",
    "torchvision": "train",
    "safetensors": "train",
    "onnxscript": "train",
    "sklearn": "train",
    "matplotlib": "train",
    "scipy": "report",
    "jinja2": "report",
    "mlperf_loadgen": "loadgen",
    "PIL": "cpu",
    "onnx": "cpu",
    "onnx_ir": "cpu",
    "onnxruntime": "cpu",
    "tensorrt": "gpu",
    "tensorrt_rtx": "rtx",
    "cuda": "gpu",
    "pycuda": "pycuda",
    "openvino": "openvino",
}


def require(module: str) -> ModuleType:
    """Import an optional module.

    Raises:
        UnavailableError: it is not installed (the message is the pip line), or its own import failed (the message
            is the library's).
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise unavailable(error) or error from error
    except (ImportError, OSError) as error:
        raise UnavailableError(f"'{module}' is installed but cannot be imported: {error}") from error


def unavailable(error: ModuleNotFoundError) -> UnavailableError | None:
    """The error to show for a missing optional module, or None when the module is not one of ours."""
    root = (error.name or "").partition(".")[0]
    extra = EXTRA_OF_MODULE.get(root)
    if extra is None:
        return None
    return UnavailableError(f"'{root}' is not installed; install it with: pip install 'alexdeploy[{extra}]'")
