"""From a file to what can run it: its kind, contract, precision, and the runtimes that take it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexdeploy import files
from alexdeploy.contract import Contract
from alexdeploy.errors import InputError, UnavailableError, UsageError
from alexdeploy.optional import require, unavailable
from alexdeploy.runners.base import Runner
from alexdeploy.specs import Precision

RUNTIMES_OF_KIND = {
    "checkpoint": ("pytorch",),
    "onnx": ("onnxruntime-cpu", "openvino", "onnxruntime-cuda", "onnxruntime-tensorrt"),
    "engine": ("tensorrt", "tensorrt-rtx"),
}
RUNTIMES = tuple(name for names in RUNTIMES_OF_KIND.values() for name in names)
_OPTIONS = {  # arguments of the runners' classes
    "onnxruntime-cpu": ("threads",),
    **dict.fromkeys(("onnxruntime-cuda", "onnxruntime-tensorrt"), ("options",)),
    **dict.fromkeys(RUNTIMES_OF_KIND["engine"], ("contexts",)),
}
_KIND_OF_SUFFIX = {".safetensors": "checkpoint", ".onnx": "onnx", ".engine": "engine", ".plan": "engine"}


@dataclass(frozen=True)
class Artifact:
    """A file that classifies images.

    ``runtimes`` are those that can run this very file, the usual one first; ``classes`` is -1 where the file does not
    tell.
    """

    path: Path
    kind: str
    contract: Contract
    precision: Precision
    classes: int
    size_bytes: int
    runtimes: tuple[str, ...]


def kind_of(path: Path) -> str:
    """``checkpoint``, ``onnx`` or ``engine``, by suffix.

    Raises:
        InputError: missing or empty, or a suffix that says none of these.
    """
    files.check_input(path)
    kind = _KIND_OF_SUFFIX.get(path.suffix)
    if kind is None:
        raise InputError(f"{path}: unknown kind of file; expected {', '.join(_KIND_OF_SUFFIX)}")
    return kind


def open_artifact(path: Path) -> Artifact:
    """Read what the file says about itself; nothing is run and no engine is deserialised.

    Raises:
        InputError: not such a file, or without a preprocessing contract.
        GateError: an engine without its sidecar, or with one that does not match.
    """
    kind = kind_of(path)
    describe = {"checkpoint": _describe_checkpoint, "onnx": _describe_onnx, "engine": _describe_engine}[kind]
    contract, precision, classes, runtimes = describe(path)
    return Artifact(path, kind, contract, precision, classes, path.stat().st_size, runtimes)


def load(path: Path | str, *, runtime: str | None = None, trust: bool = False, **options: Any) -> Runner:
    """A runner for an engine, an ONNX file or a checkpoint; close it, or use it in a ``with`` statement.

    Args:
        path: the file; an engine with its sidecar beside it.
        runtime: such as ``onnxruntime-cpu``; None takes the first that runs the file on this machine.
        trust: run an engine whose sidecar is missing or does not match. An engine is executable code.
        options: of the runtime's runner: ``contexts=4`` (engines), ``threads=1`` (``onnxruntime-cpu``),
            ``options={"use_tf32": "1"}`` (ONNX Runtime's GPU providers); see their classes.

    Raises:
        UsageError: a runtime that does not run the file, or an option that it does not have.
        InputError: no such file, or not one of these.
        GateError: an engine that does not match its sidecar or this machine.
        UnavailableError: nothing on this machine runs it; says why.
    """
    path = Path(path)
    kind = kind_of(path)
    names = RUNTIMES_OF_KIND[kind]
    if kind == "engine":
        from alexdeploy.engine.trust import read_engine

        names = (read_engine(path, trust=trust).builder,)
    if runtime is not None and runtime not in names:
        raise UsageError(f"{path} does not run on {runtime}; it runs on {', '.join(names)}")
    asked = (runtime,) if runtime is not None else names
    able = [name for name in asked if options.keys() <= set(_OPTIONS.get(name, ()))]
    reasons = []
    for name in able or asked:  # those without the option say so
        try:
            return open_runner(path, name, trust=trust, **options)
        except UnavailableError as error:
            reasons.append(f"{name}: {error}")
    raise UnavailableError(f"{path} cannot run here: {'; '.join(reasons)}")


def open_runner(path: Path, runtime: str, *, trust: bool = False, **options: Any) -> Runner:
    """Load the file into a runtime that takes it; ``trust`` and ``options`` as for ``load``.

    Raises:
        UsageError: an option that the runtime does not have.
        UnavailableError: this machine cannot run it; the message is the reason.
    """
    known = _OPTIONS.get(runtime, ())
    for option in options.keys() - set(known):
        raise UsageError(f"{runtime} has no option '{option}'; it has {', '.join(known) or 'none'}")
    try:
        if runtime == "pytorch":
            from alexdeploy.runners.pytorch import PyTorchRunner

            return PyTorchRunner(path)
        if runtime == "onnxruntime-cpu":
            from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner

            return OnnxRuntimeRunner(path, **options)
        if runtime == "openvino":
            require("openvino")
            from alexdeploy.runners.openvino import OpenVinoRunner

            return OpenVinoRunner(path)
        if runtime in ("onnxruntime-cuda", "onnxruntime-tensorrt"):
            from alexdeploy.graph.model import load_onnx, precision_of
            from alexdeploy.runners.onnxruntime_gpu import CudaRunner, TensorRtProviderRunner

            provider = CudaRunner if runtime == "onnxruntime-cuda" else TensorRtProviderRunner
            return provider(path, precision_of(load_onnx(path)), **options)
    except ModuleNotFoundError as error:
        raise unavailable(error) or error from error
    from alexdeploy.runners.tensorrt import TensorRTRunner

    return TensorRTRunner(path, trust=trust, **options)


_Description = tuple[Contract, Precision, int, tuple[str, ...]]


def _describe_checkpoint(path: Path) -> _Description:
    from alexdeploy.zoo.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    return checkpoint.contract, Precision.FP32, checkpoint.classes, RUNTIMES_OF_KIND["checkpoint"]


def _describe_onnx(path: Path) -> _Description:
    from alexdeploy.graph.model import class_count, contract_of, load_onnx, precision_of

    model = load_onnx(path)
    return contract_of(model, str(path)), precision_of(model), class_count(model), RUNTIMES_OF_KIND["onnx"]


def _describe_engine(path: Path) -> _Description:
    from alexdeploy.engine.trust import read_engine

    details = read_engine(path)
    if details.contract is None or details.precision is None:
        raise InputError(f"{path}: carries no preprocessing contract; build it from an ONNX file that has one")
    return details.contract, details.precision, details.classes, (details.builder,)
