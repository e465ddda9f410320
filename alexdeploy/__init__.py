"""alexdeploy: PyTorch CNN → verified FP16/INT8 TensorRT engine, with what it cost and what it bought.

The names below are the public face: one function for each arrow of the chain, and two ways to run the result. Each is
imported when it is first used, so importing this package loads no framework.

The rooms, and what each loads: ``zoo`` and ``train`` (torch) · ``data`` (Pillow) · ``export`` (torch, onnx,
onnxruntime) · ``graph`` (onnx) · ``quantize`` (onnx, onnxruntime) · ``engine`` (tensorrt or tensorrt-rtx) · ``cuda``
(PyCUDA or cuda-python) · ``runners`` (one runtime each) · ``bench``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alexdeploy._version import __version__

if TYPE_CHECKING:
    from alexdeploy.bench.run import run_bench
    from alexdeploy.compare import compare_layers
    from alexdeploy.engine.plan import build_engine
    from alexdeploy.export.from_onnx import adopt_onnx
    from alexdeploy.export.from_torch import export_onnx
    from alexdeploy.inspect import inspect_artifact
    from alexdeploy.quantize.calibrate import calibrate
    from alexdeploy.quantize.quantize import quantize_onnx
    from alexdeploy.runners.artifact import load
    from alexdeploy.runners.classifier import Classifier
    from alexdeploy.runners.predict import predict
    from alexdeploy.train.loop import train_network

__all__ = [
    "Classifier",
    "__version__",
    "adopt_onnx",
    "build_engine",
    "calibrate",
    "compare_layers",
    "export_onnx",
    "inspect_artifact",
    "load",
    "predict",
    "quantize_onnx",
    "run_bench",
    "train_network",
]

_HOME = {
    "Classifier": "runners.classifier",
    "adopt_onnx": "export.from_onnx",
    "build_engine": "engine.plan",
    "calibrate": "quantize.calibrate",
    "compare_layers": "compare",
    "export_onnx": "export.from_torch",
    "inspect_artifact": "inspect",
    "load": "runners.artifact",
    "predict": "runners.predict",
    "quantize_onnx": "quantize.quantize",
    "run_bench": "bench.run",
    "train_network": "train.loop",
}


def __getattr__(name: str) -> object:
    """A public name, imported when it is first used; a library that it lacks is named with its pip line."""
    if name not in _HOME:
        raise AttributeError(f"module 'alexdeploy' has no attribute '{name}'")
    from importlib import import_module

    from alexdeploy.optional import unavailable

    try:
        return getattr(import_module(f"alexdeploy.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        raise unavailable(error) or error from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
