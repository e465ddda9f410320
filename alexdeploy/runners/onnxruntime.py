"""ONNX Runtime on the CPU, and the session that its GPU providers share."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from alexdeploy.errors import InputError
from alexdeploy.metrics import relative_error
from alexdeploy.runners.base import PROFILE_RUNS, PROFILE_WARMUP, Runner, frozen_pieces, medians_ms, one_row_each
from alexdeploy.specs import TensorSpec

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
_FATAL_ONLY = 4
_LRN_TOLERANCE = 1e-5


def session_options() -> ort.SessionOptions:
    """Quiet, and idle as soon as a call has ended."""
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY  # errors come as exceptions
    # else idle workers go on spinning; beside three idle sessions a call took 3 × as long on two cores
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


class OnnxRuntimeRunner(Runner):
    """An ONNX model on ``CPUExecutionProvider``; threads may share it.

    LRN, whose kernel is slow there, is written with fast operators in memory (``alexdeploy.graph.lrn.lower``), once
    that form has given the native kernel's answers; where it does not, a warning says so and the kernel stays.

    Args:
        model: a file, or a serialised model.
        as_written: run the graph as it is, its LRN too.
        threads: that one call uses; None for as many as there are cores.

    Raises:
        InputError: ONNX Runtime cannot load the model; the message is its own.
    """

    runtime = "onnxruntime-cpu"
    _provider, _device = "CPUExecutionProvider", "cpu"

    def __init__(self, model: Path | bytes, *, as_written: bool = False, threads: int | None = None) -> None:
        self._model, self._as_written = model, as_written
        self._provider_options: dict[str, str] = {}
        options = session_options()
        options.intra_op_num_threads = threads or 0
        self._open(options)

    def _start(self, options: ort.SessionOptions) -> ort.InferenceSession:
        model = self._model if self._as_written else with_fast_lrn(self._model)
        source = str(model) if isinstance(model, Path) else model
        try:
            return ort.InferenceSession(source, options, providers=[(self._provider, self._provider_options)])
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            raise InputError(f"{_origin(self._model)}: ONNX Runtime cannot load it: {error}") from error

    def _open(self, options: ort.SessionOptions) -> None:
        """Start the session and read what goes in and out."""
        self._session = self._start(options)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise InputError(f"expected a model with one input, found {len(inputs)}")
        self.input = TensorSpec(inputs[0].name, tuple(inputs[0].shape), _DTYPES.get(inputs[0].type, inputs[0].type))
        if self.input.dtype != "float32":
            raise InputError(f"the model takes {self.input.dtype} images; this runner feeds float32, so export it so")
        self.output_names = [output.name for output in self._session.get_outputs()]
        columns = self._session.get_outputs()[0].shape[1:2]
        self.classes = columns[0] if columns and isinstance(columns[0], int) else -1

    def run(self, batch: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """All outputs by name."""
        return dict(zip(self.output_names, self._outputs(batch, self.output_names), strict=True))

    def infer(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return one_row_each(self._outputs(batch, self.output_names[:1])[0])

    def device_call(self, batch: npt.NDArray[np.float32]) -> Callable[[], object]:
        self.check_batch(batch)
        if isinstance(self.input.shape[0], int) and self.input.shape[0] != len(batch):
            return partial(self.infer, batch)  # in pieces
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self.input.name, ort.OrtValue.ortvalue_from_numpy(batch, self._device, 0))
        binding.bind_output(self.output_names[0], self._device)
        return partial(self._run_bound, binding)

    def _run_bound(self, binding: Any) -> object:
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding.get_outputs()

    def layer_times_ms(self, batch: npt.NDArray[np.float32]) -> dict[str, float]:
        """By ONNX Runtime's profiler, in a session of its own; a frozen batch is filled up."""
        self.check_batch(batch)
        if isinstance(self.input.shape[0], int):
            batch = np.resize(batch, (self.input.shape[0], *batch.shape[1:]))
        options = session_options()
        options.enable_profiling = True
        with tempfile.TemporaryDirectory() as folder:
            options.profile_file_prefix = str(Path(folder, "profile"))
            session = self._start(options)
            for _ in range(PROFILE_WARMUP + PROFILE_RUNS):
                session.run(self.output_names[:1], {self.input.name: batch})
            events = json.loads(Path(session.end_profiling()).read_bytes())
        taken_ms: dict[str, list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                taken_ms.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] / 1e3)
        return medians_ms(taken_ms)

    def _outputs(self, batch: npt.NDArray[np.float32], names: list[str]) -> list[npt.NDArray[np.float32]]:
        """Run the batch; where the model's batch is frozen, in pieces of that size, the last one filled with zeros."""
        self.check_batch(batch)
        size = self.input.shape[0]
        if not isinstance(size, int) or size == len(batch):
            results: list[npt.NDArray[np.float32]] = self._session.run(names, {self.input.name: batch})
            return results
        pieces = [self._session.run(names, {self.input.name: piece}) for piece in frozen_pieces(batch, size)]
        return [  # a scalar is a maximum over the batch (alexdeploy.graph.taps)
            np.concatenate(parts)[: len(batch)] if parts[0].ndim else np.max(parts, axis=0)
            for parts in zip(*pieces, strict=True)
        ]


def with_fast_lrn(model: Path | bytes) -> Path | bytes:
    """The model with its LRN lowered and proven; the model itself where it has none, or the proof fails."""
    if b"LRN" not in (model.read_bytes() if isinstance(model, Path) else model):
        return model
    try:
        from alexdeploy.graph.lrn.lower import lower_lrn, lrn_alone
        from alexdeploy.graph.model import load_onnx, model_bytes, parse_onnx
    except ModuleNotFoundError as error:
        warnings.warn(f"{_origin(model)}: its LRN runs slowly, for want of '{error.name}'", stacklevel=3)
        return model
    graph = load_onnx(model) if isinstance(model, Path) else parse_onnx(model)
    lowered = lower_lrn(graph)
    left = {node.outputs[0].name for node in lowered.graph if node.op_type == "LRN"}
    for node in graph.graph:
        if node.op_type != "LRN" or node.outputs[0].name in left:
            continue
        probe = lrn_alone(node)
        distance = _distance(model_bytes(lower_lrn(probe)), model_bytes(probe))
        if not distance <= _LRN_TOLERANCE:
            warnings.warn(
                f"{_origin(model)}: the fast form of LRN '{node.outputs[0].name}' is {distance:.1e} away from ONNX "
                f"Runtime's own (relative, at most {_LRN_TOLERANCE:.0e}); the slow one is used",
                stacklevel=3,
            )
            return model
    return model_bytes(lowered)


def _origin(model: Path | bytes) -> str:
    return str(model) if isinstance(model, Path) else "the model"


def _distance(fast: bytes, native: bytes) -> float:
    """Largest relative error over images from small to large, where LRN hardly acts and where it rules."""
    with OnnxRuntimeRunner(fast, as_written=True) as a, OnnxRuntimeRunner(native, as_written=True) as b:
        noise = np.random.default_rng(0).standard_normal((1, *map(int, a.input.shape[1:])), dtype=np.float32)
        images = [noise * np.float32(10.0**exponent) for exponent in range(-2, 4)]
        name = a.output_names[0]
        return max(relative_error(a.run(image)[name], b.run(image)[name]) for image in images)
