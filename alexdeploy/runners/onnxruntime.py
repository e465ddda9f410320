"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from alexdeploy.errors import InputError
from alexdeploy.runners.base import Runner
from alexdeploy.specs import TensorSpec

_PROVIDER = "CPUExecutionProvider"
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
_FATAL_ONLY = 4


_WARMUP_RUNS, _PROFILED_RUNS = 3, 10


def _session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY  # errors come as exceptions
    # else idle workers go on spinning; beside three idle sessions a call took 3 × as long on two cores
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


class OnnxRuntimeRunner(Runner):
    """An ONNX model on ``CPUExecutionProvider``.

    Args:
        model: a file, or a serialised model.
        threads: that one call uses; None for as many as there are cores.

    Raises:
        InputError: ONNX Runtime cannot load the model; the message is its own.
    """

    runtime = "onnxruntime-cpu"

    def __init__(self, model: Path | bytes, *, threads: int | None = None) -> None:
        self._model = str(model) if isinstance(model, Path) else model
        options = _session_options()
        options.intra_op_num_threads = threads or 0
        try:
            self._session = ort.InferenceSession(self._model, options, providers=[_PROVIDER])
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            name = str(model) if isinstance(model, Path) else "the model"
            raise InputError(f"{name}: ONNX Runtime cannot load it: {error}") from error
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
        """(N, C, H, W) → (N, classes), the mean over the map of a fully convolutional network."""
        logits = self._outputs(batch, self.output_names[:1])[0]
        return logits.mean(axis=(2, 3)) if logits.ndim == 4 else logits

    def layer_times_ms(self, batch: npt.NDArray[np.float32]) -> dict[str, float]:
        """By ONNX Runtime's profiler, in a session of its own; a frozen batch is filled up."""
        self.check_batch(batch)
        if isinstance(self.input.shape[0], int):
            batch = np.resize(batch, (self.input.shape[0], *batch.shape[1:]))
        options = _session_options()
        options.enable_profiling = True
        with tempfile.TemporaryDirectory() as folder:
            options.profile_file_prefix = str(Path(folder, "profile"))
            session = ort.InferenceSession(self._model, options, providers=[_PROVIDER])
            for _ in range(_WARMUP_RUNS + _PROFILED_RUNS):
                session.run(self.output_names[:1], {self.input.name: batch})
            events = json.loads(Path(session.end_profiling()).read_bytes())
        taken_us: dict[str, list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                taken_us.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"])
        return {name: float(np.median(times[_WARMUP_RUNS:])) / 1e3 for name, times in taken_us.items()}

    def _outputs(self, batch: npt.NDArray[np.float32], names: list[str]) -> list[npt.NDArray[np.float32]]:
        """Run the batch; where the model's batch is frozen, in pieces of that size, the last one filled with zeros."""
        self.check_batch(batch)
        size = self.input.shape[0]
        if not isinstance(size, int) or size == len(batch):
            results: list[npt.NDArray[np.float32]] = self._session.run(names, {self.input.name: batch})
            return results
        padded = np.concatenate([batch, np.zeros((-len(batch) % size, *batch.shape[1:]), np.float32)])
        pieces = [self._session.run(names, {self.input.name: piece}) for piece in np.split(padded, len(padded) // size)]
        return [  # a scalar is a maximum over the batch (alexdeploy.graph.taps)
            np.concatenate(parts)[: len(batch)] if parts[0].ndim else np.max(parts, axis=0)
            for parts in zip(*pieces, strict=True)
        ]
