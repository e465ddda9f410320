"""Optional libraries: one helper that imports them or says what to install.

A library is named by its own distribution, which installs the same wherever alexdeploy came from, and by the extra
that brings it. Where several extras do, it is the one for the runtime that is installed here: no advice may bring
``onnxruntime`` beside ``onnxruntime-gpu``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from types import ModuleType

from alexdeploy.errors import UnavailableError

_RUNTIMES = {"tensorrt": "gpu", "tensorrt_rtx": "rtx", "openvino": "openvino"}  # module → its extra
_SHARED = tuple(_RUNTIMES.values())

# module → distribution, and the extras that bring it, the usual one first
LIBRARIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("torch", ("train",)),
    "torchvision": ("torchvision", ("train",)),
    "safetensors": ("safetensors", ("cpu", "train", *_SHARED)),
    "onnxscript": ("onnxscript", ("cpu", *_SHARED)),
    "sklearn": ("scikit-learn", ("report", "train")),
    "matplotlib": ("matplotlib", ("report", "train")),
    "scipy": ("scipy", ("report",)),
    "jinja2": ("jinja2", ("report",)),
    "mlperf_loadgen": ("mlcommons-loadgen", ("loadgen",)),
    "tritonclient": ("tritonclient[http,grpc]", ("triton",)),
    "PIL": ("pillow", ("cpu", *_SHARED)),
    "cv2": ("opencv-python-headless", ("opencv",)),
    "onnx": ("onnx", ("cpu", *_SHARED)),
    "onnx_ir": ("onnx-ir", ("cpu", *_SHARED)),
    "onnxruntime": ("onnxruntime", ("cpu",)),
    "tensorrt": ("tensorrt-cu13", ("gpu", "gpu-trt10")),
    "tensorrt_rtx": ("tensorrt-rtx", ("rtx",)),
    "cuda": ("cuda-bindings", ("gpu", "rtx", "jetson")),
    "pycuda": ("pycuda", ("pycuda",)),
    "openvino": ("openvino", ("openvino",)),
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
    if root not in LIBRARIES:
        return None
    distribution, extras = LIBRARIES[root]
    here = [extra for module, extra in _RUNTIMES.items() if extra in extras and _is_installed(module)]
    advice = f"pip install {distribution} (in alexdeploy's extra '{(*here, *extras)[0]}')"
    if root == "onnxruntime":
        advice += ", or onnxruntime-gpu (extra 'gpu') on a machine with an NVIDIA GPU; never both"
    if root == "tensorrt":
        advice += "; pip fetches its libraries from https://pypi.nvidia.com (docs/install.md)"
    return UnavailableError(f"'{root}' is not installed; install it with: {advice}")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # a module without a spec, as tests put in place
        return True
