"""One real operation on every backend: what works here, what is missing, and the line that fixes it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from alexdeploy.errors import AlexdeployError, UnavailableError
from alexdeploy.optional import require, unavailable
from alexdeploy.specs import BuilderName, Profile, Progress

_SHAPE = (5, 4, 4)  # C, H, W of the probe: LRN over 5 channels


@dataclass(frozen=True)
class Finding:
    """``ok``: the operation ran and was right; ``missing``: not installed, or no device; ``broken``: anything else."""

    backend: str
    status: Literal["ok", "missing", "broken"]
    detail: str


def examine(*, progress: Progress = lambda what, share: None) -> list[Finding]:
    """Try every backend; never raises."""
    probes: dict[str, Callable[[], str]] = {
        "pytorch": _pytorch,
        "onnxruntime-cpu": _onnxruntime,
        "openvino": _openvino,
        "tensorrt-rtx (build)": lambda: _build("tensorrt-rtx"),
        "tensorrt (build)": lambda: _build("tensorrt"),
        "cuda device": _cuda,
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
        return Finding(name, "missing", str(error))
    except ModuleNotFoundError as error:
        return Finding(name, "missing", str(unavailable(error) or error))
    except Exception as error:  # a backend may fail in any way; the doctor reports it
        return Finding(name, "broken", " ".join(f"{type(error).__name__}: {error}".split())[:300])


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

    x = _images()
    with OnnxRuntimeRunner(_lrn_model()) as runner:
        _check(runner.infer(x), x)
    return f"onnxruntime {ort.__version__}, LRN right"


def _openvino() -> str:
    openvino = require("openvino")
    from alexdeploy.runners.openvino import OpenVinoRunner

    x = _images()
    with OpenVinoRunner(_lrn_model()) as runner:
        _check(runner.infer(x), x)
    return f"openvino {openvino.__version__}, LRN right"


def _build(builder: BuilderName) -> str:
    from alexdeploy.engine.build import BuilderInput, EngineBuild
    from alexdeploy.engine.options import BuilderOptions
    from alexdeploy.engine.versions import load_library

    library = load_library(builder)
    shapes = {"input": Profile.parse("1:2:2").with_sizes(_SHAPE)}
    graph = BuilderInput(_lrn_model(), shapes, weighted=(), quantized={})
    plan, _ = EngineBuild(graph, BuilderOptions(), library).run()
    return f"{builder} {library.version}, LRN built into a plan of {len(plan)} bytes"


def _cuda() -> str:
    from alexdeploy.cuda.open import open_device
    from alexdeploy.machine import current_gpu, why_no_cuda

    reason = why_no_cuda()
    if reason is not None:
        raise UnavailableError(f"{reason}; TensorRT engines can be built with tensorrt-rtx but not run here")
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
