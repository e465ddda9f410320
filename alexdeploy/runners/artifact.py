"""A file that classifies images, opened once: what it holds, and what runs it."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from alexdeploy import files
from alexdeploy.contract import Contract
from alexdeploy.errors import InputError, InputWarning, UnavailableError, UsageError
from alexdeploy.optional import require, unavailable
from alexdeploy.runners.base import Runner
from alexdeploy.runners.onnxruntime_libraries import cuda_is_here
from alexdeploy.runners.runtimes import RUNTIMES, arguments_of
from alexdeploy.specs import Kind, Layer, Precision, Runtime

if TYPE_CHECKING:
    import onnx_ir as ir

    from alexdeploy.engine.record import EngineFile, EngineRecord
    from alexdeploy.zoo.checkpoint import Checkpoint

_ON_GPU: Runtime = "onnxruntime-cuda"
_KIND_OF_SUFFIX: Mapping[str, Kind] = {
    **dict.fromkeys((".safetensors", ".pth", ".pt", ".ckpt"), "checkpoint"),
    ".onnx": "onnx",
    ".engine": "engine",
    ".plan": "engine",
}
_PLAN_MAGIC = (b"vtrt", b"ftrt")  # seen at the start of plans; NVIDIA does not document the header


class Artifact(ABC):
    """A file that classifies images. It is read when something of it is first needed, and only once.

    Attributes:
        kind: see ``specs.Kind``.
        source: the file, or its bytes.
        origin: its path, or what to call it in a message.
    """

    kind: Kind

    def __init__(self, source: Path | bytes) -> None:
        self.source = source
        self.origin = str(source) if isinstance(source, Path) else "the model"

    @property
    def path(self) -> Path:
        """The file.

        Raises:
            UsageError: it was opened from bytes.
        """
        if not isinstance(self.source, Path):
            raise UsageError("this needs a file, not bytes in memory; give its path")
        return self.source

    @property
    def size_bytes(self) -> int:
        return self.source.stat().st_size if isinstance(self.source, Path) else len(self.source)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the file."""
        source = self.source
        return files.sha256_file(source) if isinstance(source, Path) else hashlib.sha256(source).hexdigest()

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        """Those that can run this very file, the usual one first."""
        return tuple(name for name, entry in RUNTIMES.items() if entry.kind == self.kind)

    @cached_property
    @abstractmethod
    def contract(self) -> Contract:
        """Preprocessing and labels that the file carries.

        Raises:
            InputError: it carries none.
        """

    @property
    @abstractmethod
    def precision(self) -> Precision: ...

    @property
    @abstractmethod
    def classes(self) -> int | None:
        """Columns of the result; None where the file does not say."""

    @property
    def ends_in_softmax(self) -> bool:
        """True if the file gives probabilities in place of logits; False where it does not tell."""
        return False

    def release(self) -> None:  # noqa: B027 (most hold no file open)
        """Let go of what was read of the file. It is read again when something of it is next needed."""

    @abstractmethod
    def layers(self) -> list[Layer] | None:
        """The layer table for one image; None for an engine, whose fused kernels have no such costs."""

    @abstractmethod
    def _open(self, runtime: Runtime, runner: type[Any], options: dict[str, Any]) -> Runner: ...

    def with_labels(self, labels: tuple[str, ...]) -> Artifact:
        """The same file with the class names that it lacks.

        Raises:
            InputError: another number of names than the file has outputs, or other names than the file carries.
        """
        if self.classes not in (None, len(labels)):
            raise InputError(f"{self.origin} has {self.classes} outputs but {len(labels)} class names were given")
        if self.contract.labels not in ((), labels):
            raise InputError(f"{self.origin} carries other class names than were given; leave them out")
        relabelled = copy.copy(self)
        relabelled.__dict__["contract"] = msgspec.structs.replace(self.contract, labels=labels)
        return relabelled

    def runner(self, runtime: str | None = None, **options: Any) -> Runner:
        """Load the file into a runtime; see ``load``."""
        options = {name: value for name, value in options.items() if (name, value) != ("device", None)}  # not chosen
        if runtime is not None and runtime not in self.runtimes:
            raise UsageError(f"{self.origin} does not run on {runtime}; it runs on {', '.join(self.runtimes)}")
        asked = tuple(name for name in self.runtimes if runtime in (None, name))
        able = [name for name in asked if options.keys() <= set(RUNTIMES[name].options)]
        reasons = []
        for name in able or asked[:1]:  # one without the option names those that it has
            try:
                opened = self._open_with(name, options)
            except UnavailableError as error:
                if runtime is not None:
                    raise
                reasons.append(f"{name}: {error}")
            else:
                if asked[0] == _ON_GPU and reasons:
                    warnings.warn(f"{self.origin} runs on {name}: {reasons[0]}", InputWarning, stacklevel=3)
                return opened
        raise UnavailableError(f"{self.origin} cannot run here: {'; '.join(reasons)}")

    def _open_with(self, runtime: Runtime, options: dict[str, Any]) -> Runner:
        entry, arguments = RUNTIMES[runtime], arguments_of(runtime, options)
        try:
            runner = getattr(import_module(f"alexdeploy.runners.{entry.home}"), entry.runner)
            return self._open(runtime, runner, arguments)
        except ModuleNotFoundError as error:
            raise unavailable(error) or error from error


class CheckpointArtifact(Artifact):
    """PyTorch weights."""

    kind = "checkpoint"

    @property
    def precision(self) -> Precision:
        return Precision.of(int8=self.checkpoint.is_tuned)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The network with its weights."""
        require("torch")
        from alexdeploy.zoo.checkpoint import load_checkpoint

        return load_checkpoint(self.path)

    @cached_property
    def contract(self) -> Contract:
        return self.checkpoint.contract

    @property
    def classes(self) -> int | None:
        return self.checkpoint.classes

    def layers(self) -> list[Layer] | None:
        from alexdeploy.zoo.summary import summarize

        return summarize(self.checkpoint.model, self.contract.input_shape)

    def _open(self, runtime: Runtime, runner: type[Any], options: dict[str, Any]) -> Runner:  # noqa: ARG002
        opened: Runner = runner(self.checkpoint, **options)
        return opened


class OnnxArtifact(Artifact):
    """An ONNX graph, in any precision."""

    kind = "onnx"

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        """CUDA first where ONNX Runtime is built for it and a device answers, but for INT8 and FP8, which it lacks."""
        usual = super().runtimes
        with contextlib.suppress(UnavailableError):  # of the libraries that read a graph
            if cuda_is_here() and not self.precision.quantized:
                return (_ON_GPU, *(name for name in usual if name != _ON_GPU))
        return usual

    @cached_property
    def model(self) -> ir.Model:
        """The graph; its large weights stay in the file, mapped."""
        for library in ("onnx", "onnx_ir"):
            require(library)
        from alexdeploy.graph.model import load_onnx

        return load_onnx(self.source)

    @cached_property
    def contract(self) -> Contract:
        from alexdeploy.graph.model import contract_of

        return contract_of(self.model, self.origin)

    @property
    def precision(self) -> Precision:
        from alexdeploy.graph.model import precision_of

        return precision_of(self.model)

    @property
    def classes(self) -> int | None:
        from alexdeploy.graph.model import class_count

        return class_count(self.model)

    @property
    def ends_in_softmax(self) -> bool:
        from alexdeploy.graph.interface import ends_in_softmax

        return ends_in_softmax(self.model)

    def layers(self) -> list[Layer] | None:
        from alexdeploy.graph.table import layer_table

        return layer_table(self.model)

    def _open(self, runtime: Runtime, runner: type[Any], options: dict[str, Any]) -> Runner:
        if runtime == "onnxruntime-cpu":
            from alexdeploy.runners.fast_lrn import open_with_fast_lrn

            return open_with_fast_lrn(self.source, self.origin, lambda: self.model, runner, options)
        precision = () if runtime == "openvino" else (self.precision,)
        opened: Runner = runner(self.source, *precision, **options)
        return opened

    def release(self) -> None:
        model = self.__dict__.pop("model", None)
        if model is not None:
            from alexdeploy.graph.model import release_weights

            release_weights(model)


class EngineArtifact(Artifact):
    """A TensorRT engine that matches its sidecar, or is trusted; it is read, verified and deserialised as one."""

    kind = "engine"

    def __init__(self, source: Path | bytes, *, trust: bool = False) -> None:
        super().__init__(source)
        self._trust = trust
        self._file: EngineFile | None = self._read()
        self.record: EngineRecord = self._file.record

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        return (self.record.builder,)

    @cached_property
    def contract(self) -> Contract:
        if self.record.contract is None:
            raise InputError(
                f"{self.origin}: carries no preprocessing contract; build it from an ONNX file that has one"
            )
        return self.record.contract

    @property
    def precision(self) -> Precision:
        if self.record.precision is None:
            raise InputError(f"{self.origin}: its precision is not known without its sidecar")
        return self.record.precision

    @property
    def classes(self) -> int | None:
        return self.record.classes

    @property
    def ends_in_softmax(self) -> bool:
        return self.record.probabilities

    def layers(self) -> list[Layer] | None:
        return None

    def _read(self) -> EngineFile:
        from alexdeploy.engine.record import read_engine

        return read_engine(self.source, trust=self._trust)

    def _open(self, runtime: Runtime, runner: type[Any], options: dict[str, Any]) -> Runner:  # noqa: ARG002
        engine, self._file = self._file or self._read(), None  # the plan is not kept beside what is loaded from it
        opened: Runner = runner(engine, trust=self._trust, **options)
        return opened


_CLASSES: Mapping[Kind, type[Artifact]] = {one.kind: one for one in (CheckpointArtifact, OnnxArtifact, EngineArtifact)}


def _kind_of(path: Path) -> Kind:
    files.check_input(path)
    kind = _KIND_OF_SUFFIX.get(path.suffix.casefold())
    if kind is None:
        raise InputError(f"{path}: unknown kind of file; expected {', '.join(_KIND_OF_SUFFIX)}")
    return kind


def open_artifact(source: Path | str | bytes | Artifact) -> Artifact:
    """Open what carries a preprocessing contract; nothing is run and no engine is deserialised.

    Raises:
        InputError: not such a file, or without a preprocessing contract.
        GateError: an engine without its sidecar, or with one that does not match.
    """
    artifact = artifact_of(source)
    _ = artifact.contract
    return artifact


def load(
    source: Path | str | bytes | Artifact, *, runtime: str | None = None, trust: bool = False, **options: Any
) -> Runner:
    """A runner for an engine, an ONNX file or a checkpoint; close it, or use it in a ``with`` statement.

    Args:
        source: the file, an engine with its sidecar beside it; the bytes of an ONNX file or of a trusted engine; or
            what ``open_artifact`` gave.
        runtime: such as ``onnxruntime-cpu``; None takes the first that runs the file on this machine: of an ONNX file
            ``onnxruntime-cuda`` where that is installed with a GPU. The runner's ``runtime`` tells which was taken.
        trust: run an engine whose sidecar is missing or does not match. An engine is executable code.
        options: of the runtime's runner: ``device="cuda:1"`` (all that run on a GPU), ``contexts=4``, ``graphs=False``,
            ``warm_up=(1, 8)`` (engines), ``threads=1`` (``onnxruntime-cpu``), ``options={"use_tf32": "1"}`` (ONNX
            Runtime's GPU providers); see their classes.

    Raises:
        UsageError: a runtime that does not run the file, or an option that it does not have.
        InputError: no such file, or not one of these.
        GateError: an engine that does not match its sidecar or this machine.
        UnavailableError: nothing on this machine runs it; the message has the reasons.

    Example:
        >>> import alexdeploy, numpy
        >>> with alexdeploy.load("model.onnx") as runner:
        ...     runner.infer(numpy.zeros((3, 1, 28, 28), numpy.float32)).shape
        (3, 10)
    """
    artifact = artifact_of(source, runtime, trust=trust)
    try:
        return artifact.runner(runtime, **options)
    finally:
        if artifact is not source:
            artifact.release()


def artifact_of(source: Path | str | bytes | Artifact, runtime: str | None = None, *, trust: bool = False) -> Artifact:
    """The file or bytes as one of its kind, whether or not it carries a contract; see ``load`` for the arguments.

    Raises:
        UsageError: something else.
        InputError: missing or empty, or not one of these.
        GateError: an engine without its sidecar, or with one that does not match.
    """
    if isinstance(source, Artifact):
        return source
    if isinstance(source, (str, os.PathLike)):
        source = Path(source)
    if not isinstance(source, (Path, bytes, bytearray, memoryview)):
        raise UsageError(f"got a {type(source).__name__} in place of a model file; give its path or its bytes")
    kind = _kind_of(source) if isinstance(source, Path) else _kind_of_bytes(source, runtime)
    return EngineArtifact(source, trust=trust) if kind == "engine" else _CLASSES[kind](source)


def _kind_of_bytes(content: bytes, runtime: str | None) -> Kind:
    """By the runtime that is to run it, else by how it begins."""
    for name, entry in RUNTIMES.items():
        if name == runtime:
            return entry.kind
    if content[:4] in _PLAN_MAGIC:
        return "engine"
    return "checkpoint" if content[8:9] == b"{" else "onnx"
