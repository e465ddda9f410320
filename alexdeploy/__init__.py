"""alexdeploy: PyTorch CNN → verified FP16/INT8 TensorRT engine, with what it cost and what it bought.

``alexdeploy.load(path)`` gives a runner, ``alexdeploy.Classifier(path)`` labels images.

Importing this package loads no framework; each room below imports its own runtime when it is imported:

``zoo`` (torch) · ``data`` (Pillow) · ``train`` and ``export`` (torch) · ``graph`` (onnx) · ``quantize`` (onnx,
onnxruntime) · ``engine`` (tensorrt or tensorrt-rtx) · ``runners`` (one runtime each) · ``bench`` · ``pipeline``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alexdeploy._version import __version__

if TYPE_CHECKING:
    from alexdeploy.runners.artifact import load
    from alexdeploy.runners.classifier import Classifier

__all__ = ["Classifier", "__version__", "load"]

_HOME = {"load": "alexdeploy.runners.artifact", "Classifier": "alexdeploy.runners.classifier"}


def __getattr__(name: str) -> object:
    """``alexdeploy.load`` and ``alexdeploy.Classifier``, imported when they are first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'alexdeploy' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
