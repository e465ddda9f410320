"""The runtimes: what kind of file each takes, which class runs it, and the options of that class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alexdeploy.errors import UsageError
from alexdeploy.specs import Kind, Runtime, cuda_ordinal

_DEVICE = "device"  # which the classes take as a number, `ordinal`
_ENGINE_OPTIONS = (_DEVICE, "contexts", "graphs", "warm_up")


@dataclass(frozen=True)
class RuntimeEntry:
    """The kind of file that a runtime takes, its runner's class, and the options of that class."""

    kind: Kind
    home: str
    runner: str
    options: tuple[str, ...] = ()


RUNTIMES: Mapping[Runtime, RuntimeEntry] = {  # of each kind the usual one first
    "pytorch": RuntimeEntry("checkpoint", "pytorch", "PyTorchRunner", (_DEVICE,)),
    "onnxruntime-cpu": RuntimeEntry("onnx", "onnxruntime", "OnnxRuntimeRunner", ("threads",)),
    "openvino": RuntimeEntry("onnx", "openvino", "OpenVinoRunner"),
    "onnxruntime-cuda": RuntimeEntry("onnx", "onnxruntime_gpu", "CudaRunner", (_DEVICE, "options")),
    "onnxruntime-tensorrt": RuntimeEntry(
        "onnx", "onnxruntime_gpu", "TensorRtProviderRunner", (_DEVICE, "options", "batches")
    ),
    "tensorrt": RuntimeEntry("engine", "tensorrt", "TensorRTRunner", _ENGINE_OPTIONS),
    "tensorrt-rtx": RuntimeEntry("engine", "tensorrt", "TensorRTRunner", _ENGINE_OPTIONS),
}


def on_device(runtime: Runtime, device: str | None) -> dict[str, Any]:
    """The options that put a runtime on that GPU: none where it runs on the CPU, or where none was chosen."""
    return {_DEVICE: device} if device is not None and _DEVICE in RUNTIMES[runtime].options else {}


def arguments_of(runtime: Runtime, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``load`` as the runner's class takes them.

    Raises:
        UsageError: one that the runtime does not have, or no device.
    """
    valid = RUNTIMES[runtime].options
    for option in options.keys() - set(valid):
        raise UsageError(f"{runtime} has no option '{option}'; it has {', '.join(valid) or 'none'}")
    arguments = dict(options)
    if _DEVICE in arguments:
        arguments["ordinal"] = cuda_ordinal(arguments.pop(_DEVICE))
    return arguments
