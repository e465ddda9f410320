"""alexdeploy: PyTorch CNN → verified FP16/INT8 TensorRT engine, with what it cost and what it bought.

Importing this package loads no framework; each room below imports its own runtime when it is imported:

``zoo`` (torch) · ``data`` (Pillow) · ``train`` and ``export`` (torch) · ``graph`` (onnx) · ``quantize`` (onnx,
onnxruntime) · ``engine`` (tensorrt or tensorrt-rtx) · ``runners`` (one runtime each) · ``bench`` · ``pipeline``.
"""

__version__ = "0.1.0"
