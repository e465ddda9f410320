"""Calls of ONNX Runtime as CUDA graphs.

A graph repeats what it captured, with the addresses of then. So each batch size has its own buffers on the device and
its own graph, and only one call is under way at a time (ONNX Runtime's condition).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import count

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from alexdeploy.arrays import Batch

_MOST = 16  # batch sizes with a graph; others run as usual
_NO_GRAPH = -1


class GraphCalls:
    """The calls of one session, whose provider was told to capture graphs.

    Args:
        session: all of it on that provider.
        device: ONNX Runtime's name of its memory, and the number of the device.
    """

    def __init__(self, session: ort.InferenceSession, device: tuple[str, int]) -> None:
        self._session, self._device = session, device
        self._lock, self._numbers = threading.Lock(), count(1)
        self._bound: dict[tuple[tuple[int, ...], tuple[str, ...]], BoundCall] = {}

    def run(self, batch: Batch, names: Sequence[str]) -> list[npt.NDArray[np.float32]]:
        """The outputs of those names; the caller owns them."""
        with self._lock:
            key = (batch.shape, tuple(names))
            call = self._bound.get(key)
            if call is None and len(self._bound) == _MOST:
                feed = {self._session.get_inputs()[0].name: batch}
                plain: list[npt.NDArray[np.float32]] = self._session.run(names, feed, _run_options(_NO_GRAPH))
                return plain
            if call is None:
                call = self._bound[key] = self._bind(batch, names)
            return call.run(batch)

    def call_on(self, batch: Batch, name: str) -> BoundCall:
        """A call on buffers of its own, filled now."""
        with self._lock:
            return self._bind(batch, [name])

    def _bind(self, batch: Batch, names: Sequence[str]) -> BoundCall:
        return BoundCall(self._session, self._device, batch, names, next(self._numbers), self._lock)


class BoundCall:
    """A call whose buffers stay where they are."""

    def __init__(
        self,
        session: ort.InferenceSession,
        device: tuple[str, int],
        batch: Batch,
        names: Sequence[str],
        number: int,
        lock: threading.Lock,
    ) -> None:
        self._session, self._lock = session, lock
        self._images = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(batch), *device)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, self._images)
        for name in names:
            self._binding.bind_output(name, *device)
        self._session.run_with_iobinding(self._binding, _run_options(_NO_GRAPH))  # tells the shapes of the outputs
        self._outputs = self._binding.get_outputs()
        for name, output in zip(names, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, output)
        self._options = _run_options(number)

    def run(self, batch: Batch) -> list[npt.NDArray[np.float32]]:
        """For a caller that holds the lock."""
        self._images.update_inplace(np.ascontiguousarray(batch))
        self._launch()
        return [np.array(output.numpy()) for output in self._outputs]

    def __call__(self) -> object:
        """On the batch that it was made with; the result stays on the device."""
        with self._lock:
            self._launch()
        return self._outputs

    def _launch(self) -> None:
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()


def _run_options(number: int) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options
