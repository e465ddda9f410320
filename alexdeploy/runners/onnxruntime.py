"""ONNX Runtime on the CPU, and the session that its GPU providers share."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from alexdeploy.arrays import Batch, Logits
from alexdeploy.cuda.faults import Watch
from alexdeploy.errors import InputError, UnavailableError, UsageError
from alexdeploy.files import is_text
from alexdeploy.machine import saturates_int8
from alexdeploy.runners.base import (
    CLOSED,
    PROFILE_RUNS,
    PROFILE_WARMUP,
    Runner,
    check_input,
    frozen_pieces,
    logits_among,
    medians_ms,
    one_row_each,
)
from alexdeploy.specs import TensorSpec, find_logits

_DTYPES = {"float": "float32", "double": "float64"}  # the others are called as in NumPy
_FATAL_ONLY = 4
NO_KERNEL = "ONNX Runtime has no kernel"


def session_options() -> ort.SessionOptions:
    """Quiet, and idle as soon as a call has ended."""
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY  # errors come as exceptions
    # else idle workers go on spinning; beside three idle sessions a call took 3 × as long on two cores
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if saturates_int8():  # an error of 0.14 in place of 0.02; elsewhere the same bits would take twice the time
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


class OnnxRuntimeRunner(Runner):
    """An ONNX model on ``CPUExecutionProvider``, as it is; threads may share it.

    Images are (N, C, H, W) or (N, H, W, C), of the type and size that the graph takes. Of several outputs ``infer``
    returns the one that ``specs.find_logits`` finds, and ``run`` all.

    Args:
        model: a file, or a serialised model.
        weights: initializers that a serialised model refers to and does not hold; not copied.
        folder: holds the file that a serialised model names as the place of its other weights.
        threads: that one call uses; None for as many as there are cores.
        optimized: by ONNX Runtime; else node by node, as the graph says.

    Raises:
        InputError: ONNX Runtime cannot load the model; the message is its own.
        UnavailableError: from every call that ONNX Runtime fails in.
        DeviceLostError: from every call after a fault of the GPU.
    """

    runtime = "onnxruntime-cpu"
    _provider, _device, _ordinal = "CPUExecutionProvider", "cpu", 0
    _folder: Path | None = None
    _most: int | None = None  # images that one call takes, where that is less than any number

    def __init__(
        self,
        model: Path | bytes,
        weights: Mapping[str, npt.NDArray[np.generic]] = MappingProxyType({}),
        *,
        folder: Path | None = None,
        threads: int | None = None,
        optimized: bool = True,
    ) -> None:
        self._folder = folder
        options = session_options()
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads or 0
        self._start_with(model, weights, options, {})

    def _start_with(
        self,
        model: Path | bytes,
        weights: Mapping[str, npt.NDArray[np.generic]],
        options: ort.SessionOptions,
        provider_options: Mapping[str, str],
    ) -> None:
        self._model: Path | bytes | None = model
        self._origin, self._provider_options = _origin(model), dict(provider_options)
        self._watch = Watch(self._in_words)  # ONNX Runtime's exceptions have no common public base
        self._weights = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in weights.items()
        }
        self._opened: ort.InferenceSession | None = None
        self._open(options)

    @property
    def _session(self) -> ort.InferenceSession:
        session = self._opened
        if session is None:
            raise UsageError(CLOSED)
        return session

    def _release(self) -> None:
        self._opened, self._model, self._weights = None, None, {}

    def _start(self, options: ort.SessionOptions) -> ort.InferenceSession:
        if self._model is None:
            raise UsageError(CLOSED)
        source = session_source(self._model) if isinstance(self._model, Path) else self._model
        if self._folder is not None and is_text(self._folder):
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._folder))
        if self._weights:
            options.add_external_initializers([*self._weights], [*self._weights.values()])
        try:
            # without enable_fallback=0 a failure is printed to stdout, and the CPU's session is tried in its place
            return ort.InferenceSession(
                source, options, providers=[(self._provider, self._provider_options)], enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            raise InputError(f"{self._origin}: {why_not_loaded(error)}") from error

    def _open(self, options: ort.SessionOptions) -> None:
        """Start the session and read what goes in and out."""
        self._opened = self._start(options)
        self.input = check_input([_spec(value) for value in self._session.get_inputs()], self._origin)
        outputs = [_spec(value) for value in self._session.get_outputs()]
        self.output_names = [output.name for output in outputs]
        self._outputs, logits = outputs, find_logits(outputs)
        self.classes = logits.classes if logits is not None else None

    @cached_property
    def _logits(self) -> list[str]:
        """The name of the output that ``infer`` returns."""
        return [logits_among(self._outputs, self._origin).name]

    def run(self, batch: Batch) -> dict[str, npt.NDArray[np.float32]]:
        """All outputs by name."""
        return dict(zip(self.output_names, self._run(batch, self.output_names), strict=True))

    def infer(self, batch: Batch) -> Logits:
        return one_row_each(self._run(batch, self._logits)[0])

    def device_call(self, batch: Batch) -> Callable[[], object]:
        self.check_batch(batch)
        pieces = self._pieces(batch)
        if len(pieces) > 1 or len(pieces[0]) != len(batch):
            return partial(self.infer, batch)
        with self._watch.calls():
            return partial(self._watched, self._bound(batch))

    def _watched(self, call: Callable[[], object]) -> object:
        with self._watch.calls():
            return call()

    def _bound(self, batch: Batch) -> Callable[[], object]:
        session = self._session
        binding = session.io_binding()
        images = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(batch), self._device, self._ordinal)
        binding.bind_ortvalue_input(self.input.name, images)
        binding.bind_output(self._logits[0], self._device, self._ordinal)
        return partial(self._run_bound, binding, session)

    def _run_bound(self, binding: Any, bound_to: ort.InferenceSession) -> object:  # noqa: ARG002 (it must outlive it)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding.get_outputs()

    def _in_words(self, error: BaseException) -> str:
        """One line for a failure of ONNX Runtime."""
        return f"{self._provider}: {' '.join(str(error).split())[:300]}"

    def layer_times_ms(self, batch: Batch) -> dict[str, float]:
        """By ONNX Runtime's profiler, in a session of its own; a frozen batch is filled up."""
        self.check_batch(batch)
        if self.frozen_batch is not None:
            batch = np.resize(batch, (self.frozen_batch, *batch.shape[1:]))
        options = session_options()
        options.enable_profiling = True
        with tempfile.TemporaryDirectory() as folder:
            options.profile_file_prefix = str(Path(folder, "profile"))
            session = self._start(options)
            for _ in range(PROFILE_WARMUP + PROFILE_RUNS):
                session.run(self._logits, {self.input.name: batch})
            try:
                events = json.loads(Path(session.end_profiling()).read_bytes())
            except ValueError as error:  # it does not say that it could not write all
                raise UnavailableError(f"{folder}: ONNX Runtime's profile is cut off; free space there") from error
        taken_ms: dict[str, list[float]] = {}
        types: dict[str, str] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time")
                taken_ms.setdefault(name, []).append(event["dur"] / 1e3)
                types[name] = str(event.get("args", {}).get("op_name", ""))
        self.layer_types = types
        return medians_ms(taken_ms)

    def _run(self, batch: Batch, names: list[str]) -> list[npt.NDArray[np.float32]]:
        """Run the batch, in pieces where the model or its engine takes no more; a frozen batch is filled with zeros."""
        self.check_batch(batch)
        with self._watch.calls():
            pieces = [self._run_piece(piece, names) for piece in self._pieces(batch)]
        if len(pieces) == 1 and self.frozen_batch in (None, len(batch)):
            return pieces[0]
        return [  # a scalar is a maximum over the batch (alexdeploy.graph.taps)
            np.concatenate(parts)[: len(batch)] if parts[0].ndim else np.max(parts, axis=0)
            for parts in zip(*pieces, strict=True)
        ]

    def _run_piece(self, piece: Batch, names: list[str]) -> list[npt.NDArray[np.float32]]:
        results: list[npt.NDArray[np.float32]] = self._session.run(names, {self.input.name: piece})
        return results

    def _pieces(self, batch: Batch) -> list[Batch]:
        size = self.frozen_batch
        if size is not None and size != len(batch):
            return frozen_pieces(batch, size)
        step = self._most or len(batch)
        return [batch[start : start + step] for start in range(0, len(batch), step)]


def session_source(path: Path) -> str | bytes:
    """The file as a session takes it."""
    return str(path) if is_text(path) else path.read_bytes()


def why_not_loaded(error: Exception) -> str:
    """One line, behind the file's name, for what ONNX Runtime raises where it cannot load a model."""
    newer = re.search(r"Opset (\d+) is under development.*?till opset (\d+)", str(error), re.DOTALL)
    if newer is not None:
        return f"has opset {newer[1]}; ONNX Runtime {ort.__version__} has {newer[2]} at most; export it in opset 21"
    lacks = re.search(r"Could not find an implementation for (\w+)\((\d+)\) node with name '(.*?)'", str(error))
    if lacks is None:
        return f"ONNX Runtime cannot load it: {' '.join(str(error).split())[:300]}"
    operator, opset, name = lacks.groups()
    fix = "in opset 13 or later" if int(opset) < 13 else "with float32 arithmetic, or without that operator"
    return f"{NO_KERNEL} for node '{name}' ({operator} as in opset {opset}, of its types); export it {fix}"


def _spec(value: ort.NodeArg) -> TensorSpec:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(value.name, tuple(-1 if dim is None else dim for dim in value.shape), _DTYPES.get(kind, kind))


def _origin(model: Path | bytes) -> str:
    return str(model) if isinstance(model, Path) else "the model"
