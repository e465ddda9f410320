"""OpenVINO on the CPU."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import openvino as ov

from alexdeploy.arrays import Batch, Logits
from alexdeploy.errors import InputError, InputWarning, UsageError, in_a_line
from alexdeploy.machine import saturates_int8
from alexdeploy.runners.base import CLOSED, Runner, check_input, frozen_pieces, logits_among, one_row_each
from alexdeploy.specs import TensorSpec


class OpenVinoRunner(Runner):
    """An ONNX model on OpenVINO's CPU plugin; threads may share it. Images and outputs as of ``OnnxRuntimeRunner``.

    Batches up to ``whole`` are one request over all cores, which is the least latency. Larger ones are cut into as many
    pieces as the CPU has streams, computed side by side; that takes a second copy of the model, made on first use.

    Args:
        model: a file, or a serialised model.
        precision: of the float layers. OpenVINO takes bf16 by itself where the CPU has it; here only when asked to.
        whole: largest batch computed in one piece.

    Raises:
        InputError: OpenVINO cannot load the model; the message is its own.
    """

    runtime = "openvino"

    def __init__(self, model: Path | bytes, *, precision: Literal["f32", "bf16"] = "f32", whole: int = 32) -> None:
        self._core: Any = ov.Core()
        self._precision, self._whole = precision, whole
        self._origin = str(model) if isinstance(model, Path) else "the model"
        try:
            self._model: Any = self._core.read_model(model)
            self._opened: ov.CompiledModel | None = self._compile("LATENCY")
        except RuntimeError as error:
            raise InputError(f"{self._origin}: OpenVINO cannot load it: {in_a_line(error)}") from error
        self.input = check_input([_spec(value) for value in self._compiled.inputs], self._origin)
        outputs = [_spec(value) for value in self._compiled.outputs]
        logits = logits_among(outputs, self._origin)
        self._logits, self.classes = outputs.index(logits), logits.classes
        if saturates_int8() and any(node.get_type_name() == "FakeQuantize" for node in self._model.get_ops()):
            warnings.warn(
                f"{self._origin}: OpenVINO's INT8 sums saturate on this CPU, which has neither VNNI nor AMX, and "
                "answers may be wrong; use `runtime` onnxruntime-cpu, or the float model",
                InputWarning,
                stacklevel=2,
            )
        self._own = threading.local()
        self._streams: list[ov.InferRequest] = []
        self._streams_lock = threading.Lock()

    @property
    def _compiled(self) -> ov.CompiledModel:
        compiled = self._opened
        if compiled is None:
            raise UsageError(CLOSED)
        return compiled

    def _release(self) -> None:
        with self._streams_lock:
            self._core = self._model = self._opened = None
            self._streams, self._own = [], threading.local()

    def infer(self, batch: Batch) -> Logits:
        self.check_batch(batch)
        size = self.frozen_batch
        if size is not None and size != len(batch):
            logits = [self._request().infer({0: piece})[self._logits] for piece in frozen_pieces(batch, size)]
            return one_row_each(np.concatenate(logits)[: len(batch)])
        if len(batch) > self._whole and size is None:
            return one_row_each(self._in_pieces(batch))
        return one_row_each(self._request().infer({0: batch})[self._logits])  # copied in and out

    def device_call(self, batch: Batch) -> Callable[[], object]:
        self.check_batch(batch)
        if len(batch) > self._whole or self.frozen_batch not in (None, len(batch)):
            return partial(self.infer, batch)
        request = self._compiled.create_infer_request()
        request.infer({0: batch})  # copied in; with `set_input_tensor` beside calls of other threads the process dies
        return partial(self._run_request, request)

    def _run_request(self, request: ov.InferRequest) -> object:
        if self._opened is None:
            raise UsageError(CLOSED)
        return request.infer(share_outputs=True)

    def _request(self) -> ov.InferRequest:
        """The one of this thread."""
        own, compiled = self._own, self._compiled
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        request: ov.InferRequest = own.request
        return request

    def _in_pieces(self, batch: Batch) -> npt.NDArray[np.floating]:
        with self._streams_lock:
            if self._opened is None:
                raise UsageError(CLOSED)
            if not self._streams:
                compiled = self._compile("THROUGHPUT")
                count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
                self._streams = [compiled.create_infer_request() for _ in range(count)]
            pieces = np.array_split(batch, -(-len(batch) // self._whole))
            # no callback: were it the last to refer to the runner, it would end OpenVINO's threads from one of them
            parts = []
            for index, piece in enumerate(pieces):
                request = self._streams[index % len(self._streams)]
                if index >= len(self._streams):
                    parts.append(self._result(request))
                request.start_async({0: piece})
            waiting = range(max(len(pieces) - len(self._streams), 0), len(pieces))
            parts += [self._result(self._streams[index % len(self._streams)]) for index in waiting]
        return np.concatenate(parts)

    def _result(self, request: ov.InferRequest) -> npt.NDArray[np.floating]:
        request.wait()
        logits: npt.NDArray[np.floating] = request.get_output_tensor(self._logits).data.copy()
        return logits

    def _compile(self, hint: str) -> ov.CompiledModel:
        settings = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": self._precision}
        # Compiling gives its thread an alternate signal stack. Models closed in the order they were opened leave that
        # pointing at freed memory, and Python's handlers run on it: the next Ctrl-C would crash the caller's thread.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self._core.compile_model, self._model, "CPU", settings).result()


def _spec(value: ov.ConstOutput) -> TensorSpec:
    shape = value.get_partial_shape()
    dims = tuple(dim.get_length() if dim.is_static else -1 for dim in shape) if shape.rank.is_static else ()
    return TensorSpec(value.get_any_name(), dims, value.get_element_type().to_dtype().name)
