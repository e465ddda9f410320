"""OpenVINO on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import openvino as ov

from alexdeploy.errors import InputError
from alexdeploy.runners.base import Runner, frozen_pieces, one_row_each
from alexdeploy.specs import TensorSpec


class OpenVinoRunner(Runner):
    """An ONNX model on OpenVINO's CPU plugin; threads may share it.

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
        self._core, self._precision, self._whole = ov.Core(), precision, whole
        self._origin = str(model) if isinstance(model, Path) else "the model"
        try:
            self._model = self._core.read_model(model)
            self._compiled = self._compile("LATENCY")
        except RuntimeError as error:
            raise InputError(f"{self._origin}: OpenVINO cannot load it: {error}") from error
        image, logits = self._compiled.input(0), self._compiled.output(0)
        shape = tuple(dim.get_length() if dim.is_static else -1 for dim in image.get_partial_shape())
        self.input = TensorSpec(image.get_any_name(), shape, image.get_element_type().to_dtype().name)
        if len(self._compiled.inputs) != 1 or self.input.dtype != "float32":
            raise InputError(f"{self._origin}: expected one float32 input, found {self._compiled.inputs}")
        columns = logits.get_partial_shape()[1]
        self.classes = columns.get_length() if columns.is_static else None
        self._own = threading.local()
        self._queue: ov.AsyncInferQueue | None = None
        self._queue_lock = threading.Lock()

    def infer(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.check_batch(batch)
        size = self.input.shape[0]
        if isinstance(size, int) and size not in (-1, len(batch)):
            logits = [self._request().infer({0: piece})[0] for piece in frozen_pieces(batch, size)]
            return one_row_each(np.concatenate(logits)[: len(batch)])
        if len(batch) > self._whole and size == -1:
            return one_row_each(self._in_pieces(batch))
        return one_row_each(self._request().infer({0: batch})[0])  # copied in and out

    def device_call(self, batch: npt.NDArray[np.float32]) -> Callable[[], object]:
        self.check_batch(batch)
        if len(batch) > self._whole or self.input.shape[0] not in (-1, len(batch)):
            return partial(self.infer, batch)
        request = self._compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(batch.copy()))
        return partial(request.infer, share_outputs=True)

    def _request(self) -> ov.InferRequest:
        """The one of this thread."""
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        request: ov.InferRequest = self._own.request
        return request

    def _in_pieces(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with self._queue_lock:
            if self._queue is None:
                self._queue = ov.AsyncInferQueue(self._compile("THROUGHPUT"))
            pieces = np.array_split(batch, -(-len(batch) // self._whole))
            parts: dict[int, npt.NDArray[np.float32]] = {}
            self._queue.set_callback(lambda request, i: parts.__setitem__(i, request.get_output_tensor(0).data.copy()))
            for index, piece in enumerate(pieces):
                self._queue.start_async({0: piece}, index)
            self._queue.wait_all()
        return np.concatenate([parts[index] for index in range(len(pieces))])

    def _compile(self, hint: str) -> ov.CompiledModel:
        settings = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": self._precision}
        # Compiling gives its thread an alternate signal stack. Models closed in the order they were opened leave that
        # pointing at freed memory, and Python's handlers run on it: the next Ctrl-C would crash the caller's thread.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self._core.compile_model, self._model, "CPU", settings).result()
