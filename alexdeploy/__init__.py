"""alexdeploy: PyTorch CNN → verified FP16/INT8 TensorRT engine, with what it cost and what it bought.

The names below are the public face: one function for each arrow of the chain, what they take and give, and two ways to
run the result. Each is imported when it is first used, so importing this package loads no framework.

The rooms, and what each loads: ``zoo`` and ``train`` (torch) · ``data`` (Pillow) · ``export`` (torch, onnx,
onnxruntime) · ``graph`` (onnx) · ``quantize`` (onnx, onnxruntime) · ``engine`` (tensorrt or tensorrt-rtx) · ``cuda``
(PyCUDA or cuda-python) · ``runners`` (one runtime each) · ``bench`` ·
``triton`` (tritonclient).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alexdeploy._version import __version__

if TYPE_CHECKING:
    from alexdeploy.bench.run import run_bench
    from alexdeploy.compare import compare_layers
    from alexdeploy.contract import Contract
    from alexdeploy.data.sources import load_dataset
    from alexdeploy.data.transforms import contract_from_transforms
    from alexdeploy.engine.plan import build_engine
    from alexdeploy.export.from_onnx import adopt_onnx
    from alexdeploy.export.from_torch import export_onnx
    from alexdeploy.inspect import inspect_artifact
    from alexdeploy.quantize.calibrate import calibrate
    from alexdeploy.quantize.quantize import QuantizeSettings, quantize_onnx
    from alexdeploy.quantize.rangefile import save_ranges
    from alexdeploy.recipe import load_contract
    from alexdeploy.runners.artifact import load
    from alexdeploy.runners.classifier import Classifier
    from alexdeploy.runners.predict import predict
    from alexdeploy.train.loop import train_network
    from alexdeploy.triton.publish import publish

__all__ = [
    "Classifier",
    "Contract",
    "QuantizeSettings",
    "__version__",
    "adopt_onnx",
    "build_engine",
    "calibrate",
    "compare_layers",
    "contract_from_transforms",
    "export_onnx",
    "inspect_artifact",
    "load",
    "load_contract",
    "load_dataset",
    "predict",
    "publish",
    "quantize_onnx",
    "run_bench",
    "save_ranges",
    "train_network",
]

_HOME = {
    "Classifier": "runners.classifier",
    "Contract": "contract",
    "QuantizeSettings": "quantize.quantize",
    "adopt_onnx": "export.from_onnx",
    "build_engine": "engine.plan",
    "calibrate": "quantize.calibrate",
    "compare_layers": "compare",
    "contract_from_transforms": "data.transforms",
    "export_onnx": "export.from_torch",
    "inspect_artifact": "inspect",
    "load": "runners.artifact",
    "load_contract": "recipe",
    "load_dataset": "data.sources",
    "predict": "runners.predict",
    "publish": "triton.publish",
    "quantize_onnx": "quantize.quantize",
    "run_bench": "bench.run",
    "save_ranges": "quantize.rangefile",
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
