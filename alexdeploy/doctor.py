"""One real operation on every backend: what works here, what is missing, and the line that fixes it.

The operation is an LRN with a known answer, on each runtime that can be here. On a machine with a GPU that includes
PyTorch and ONNX Runtime on it, and an engine that is built and run.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from alexdeploy.cuda.wheels import LIBRARIES, Wheel, major, runs, wheels, why_too_old
from alexdeploy.errors import AlexdeployError, UnavailableError, in_a_line
from alexdeploy.machine import Gpu, current_gpu, why_no_cuda
from alexdeploy.optional import require, unavailable
from alexdeploy.specs import BuilderName, Precision, Profile, Progress

if TYPE_CHECKING:
    from alexdeploy.engine.record import EngineFile

_SHAPE = (5, 4, 4)  # C, H, W of the probe: LRN over 5 channels


@dataclass(frozen=True)
class Finding:
    """``ok``: the operation ran and was right; ``missing``: not installed, or no device; ``broken``: anything else.

    A driver that is too old for what is installed makes that ``broken``.
    """

    backend: str
    status: Literal["ok", "missing", "broken"]
    detail: str


@dataclass(frozen=True)
class Cuda:
    """The newest CUDA that the driver runs (None without a device), and what each installed library is built for."""

    driver: str | None
    libraries: tuple[Wheel, ...]

    def runs(self, wheel: Wheel) -> bool:
        """True if the driver's major version of CUDA is the library's or newer."""
        return runs(self.driver or "0", major(wheel.cuda))


def cuda_versions() -> Cuda:
    """The CUDA of the driver and of the libraries; nothing is imported for it."""
    gpu = current_gpu()
    return Cuda(gpu.cuda if gpu is not None else None, tuple(wheel for name in LIBRARIES for wheel in wheels(name)))


def examine(*, progress: Progress = lambda what, share: None) -> list[Finding]:
    """Try every backend; never raises."""
    built = functools.cache(_engine)  # minutes with TensorRT, so each is built once
    probes: dict[str, Callable[[], str]] = {
        "pytorch": _pytorch,
        "onnxruntime-cpu": _onnxruntime,
        "openvino": _openvino,
        "tensorrt-rtx (build)": lambda: _build("tensorrt-rtx", built),
        "cuda device": _cuda,
        "pytorch on cuda": _pytorch_cuda,
        "onnxruntime-cuda": _onnxruntime_cuda,
        "onnxruntime-tensorrt": _onnxruntime_tensorrt,
        "tensorrt (build)": lambda: _build("tensorrt", built),
        "tensorrt (run)": lambda: _run("tensorrt", built),
        "tensorrt-rtx (run)": lambda: _run("tensorrt-rtx", built),
    }
    findings: list[Finding] = []
    for name, probe in probes.items():
        progress(f"trying {name}", len(findings) / len(probes))
        findings.append(_try(name, probe))
    return findings


def _try(name: str, probe: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", probe())
    except UnavailableError as error:
        absent = isinstance(error, _AbsentError) or isinstance(error.__cause__, ModuleNotFoundError)
        return Finding(name, "missing" if absent else "broken", str(error))
    except ModuleNotFoundError as error:
        return Finding(name, "missing", str(unavailable(error) or error))
    except Exception as error:  # a backend may fail in any way; the doctor reports it
        return Finding(name, "broken", in_a_line(error))


class _AbsentError(UnavailableError):
    """There is nothing here to try, which is no fault."""


def _need_gpu() -> Gpu:
    gpu = current_gpu()
    if gpu is None:
        raise _AbsentError(str(why_no_cuda()))
    return gpu


def _images() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((2, *_SHAPE), dtype=np.float32)


def _expected(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """LRN(5, alpha 1, beta 0.75, k 2) by its formula (ONNX operator LRN)."""
    squares = np.pad(x**2, ((0, 0), (2, 2), (0, 0), (0, 0)))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(5))
    result: npt.NDArray[np.float32] = x / (2 + np.float32(1 / 5) * total) ** np.float32(0.75)
    return result


def _check(actual: npt.NDArray[np.float32], x: npt.NDArray[np.float32]) -> None:
    if not np.allclose(
        actual.reshape(x.shape), _expected(x), rtol=1e-3, atol=1e-3
    ):  # loose enough for bfloat16 arithmetic
        raise AlexdeployError("LRN gave a wrong result")


def _lrn_model() -> bytes:
    require("onnx")
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("LRN", ["input"], ["lrn"], "lrn", size=5, alpha=1.0, beta=0.75, bias=2.0),
        helper.make_node("Flatten", ["lrn"], ["output"], "flatten"),  # runners give one row for an image
    ]
    start = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *_SHAPE])
    end = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", math.prod(_SHAPE)])
    graph = helper.make_graph(nodes, "doctor", [start], [end])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _pytorch() -> str:
    torch = require("torch")
    x = _images()
    _check(torch.nn.functional.local_response_norm(torch.from_numpy(x), 5, 1.0, 0.75, 2.0).numpy(), x)
    return f"torch {torch.__version__}, LRN right"


def _onnxruntime() -> str:
    ort = require("onnxruntime")
    from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner

    return _ran(OnnxRuntimeRunner(_lrn_model()), f"onnxruntime {ort.__version__}")


def _openvino() -> str:
    openvino = require("openvino")
    from alexdeploy.runners.openvino import OpenVinoRunner

    return _ran(OpenVinoRunner(_lrn_model()), f"openvino {openvino.__version__}")


def _pytorch_cuda() -> str:
    gpu = _need_gpu()
    _need_driver("torch")
    torch = require("torch")
    if torch.version.cuda is None:
        raise _AbsentError(f"this torch {torch.__version__} is for the CPU; PyPI's has CUDA: pip install torch")
    x = _images()
    on_device = torch.from_numpy(x).cuda()  # which says why it cannot; torch.cuda.is_available() does not
    _check(torch.nn.functional.local_response_norm(on_device, 5, 1.0, 0.75, 2.0).cpu().numpy(), x)
    return f"torch {torch.__version__} on {gpu.name}, LRN right"


def _onnxruntime_cuda() -> str:
    _need_onnxruntime_gpu()
    from alexdeploy.runners.onnxruntime_gpu import CudaRunner

    return _ran(CudaRunner(_lrn_model(), Precision.FP32), f"onnxruntime-gpu {require('onnxruntime').__version__}")


def _onnxruntime_tensorrt() -> str:
    _need_onnxruntime_gpu()
    from alexdeploy.runners.onnxruntime_gpu import TensorRtProviderRunner

    version = require("onnxruntime").__version__
    try:
        return _ran(TensorRtProviderRunner(_lrn_model(), Precision.FP32), f"onnxruntime-gpu {version}")
    except UnavailableError as error:
        # the one that the provider loads: pip's, or the system's, as JetPack has it
        if any(wheel.version.startswith("10.") for wheel in wheels("tensorrt")) or _loads("libnvinfer.so.10"):
            raise
        raise _AbsentError(f"{error} (alexdeploy's extra 'gpu-trt10')") from error


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _need_onnxruntime_gpu() -> None:
    _need_gpu()
    ort = require("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise _AbsentError(
            f"this onnxruntime {ort.__version__} is for the CPU; in an environment without it: pip install "
            "onnxruntime-gpu (in alexdeploy's extra 'gpu')"
        )
    _need_driver("onnxruntime-gpu")


def _need_driver(library: str) -> None:
    reason = why_too_old(library)
    if reason is not None:
        raise UnavailableError(reason)


def _ran(runner: Any, what: str) -> str:
    x = _images()
    with runner:
        _check(runner.infer(x), x)
    return f"{what}, LRN right"


def _engine(builder: BuilderName) -> EngineFile:
    from alexdeploy.engine.build import BuilderInput, EngineBuild
    from alexdeploy.engine.options import BuilderOptions
    from alexdeploy.engine.record import EngineFile
    from alexdeploy.engine.versions import load_library

    shapes = {"input": Profile.parse("1:2:2").with_sizes(_SHAPE)}
    graph = BuilderInput(_lrn_model(), shapes, weighted=(), quantized={})
    plan, record = EngineBuild(graph, BuilderOptions(), load_library(builder)).run()
    return EngineFile(record, bytes(plan), "the doctor's engine")


def _build(builder: BuilderName, build: Callable[[BuilderName], EngineFile] = _engine) -> str:
    if builder == "tensorrt":
        _need_gpu()
    engine = build(builder)
    return f"{builder} {engine.record.version}, LRN built into a plan of {len(engine.plan)} bytes"


def _run(builder: BuilderName, build: Callable[[BuilderName], EngineFile] = _engine) -> str:
    from alexdeploy.engine.versions import Compatibility
    from alexdeploy.runners.tensorrt import TensorRTRunner

    gpu = _need_gpu()
    if builder == "tensorrt-rtx" and not Compatibility().takes_gpu(builder, None, gpu):
        raise _AbsentError(f"TensorRT-RTX does not run on {gpu}")
    engine = build(builder)
    return _ran(TensorRTRunner(engine), f"{builder} {engine.record.version} on {gpu.name}")


def _cuda() -> str:
    from alexdeploy.cuda.open import open_device

    reason = why_no_cuda()
    if reason is not None:
        raise _AbsentError(f"{reason}; TensorRT engines can be built with tensorrt-rtx but not run here")
    device, x = open_device(), _images()
    with contextlib.ExitStack() as held:
        held.enter_context(device.current())
        stream, memory, host = device.stream(), device.allocate(x.nbytes), device.pinned(x.shape, x.dtype)
        for thing in (stream, memory, host):
            held.callback(thing.release)
        host.array[...] = x
        stream.upload(memory.pointer, host.array)
        stream.synchronize()
        host.array[...] = 0
        stream.download(host.array, memory.pointer)
        stream.synchronize()
        if not np.array_equal(host.array, x):
            raise AlexdeployError("what was copied to the device came back changed")
    return f"{current_gpu()}, copies right through {device.binding}"
