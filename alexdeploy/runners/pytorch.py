"""PyTorch, eager, on the GPU when there is one and otherwise on the CPU."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from alexdeploy.arrays import Batch, Logits
from alexdeploy.cuda.faults import Watch
from alexdeploy.cuda.wheels import why_too_old
from alexdeploy.errors import InputWarning, UnavailableError, UsageError
from alexdeploy.runners.base import CLOSED, Runner
from alexdeploy.specs import TensorSpec
from alexdeploy.zoo.checkpoint import Checkpoint


class PyTorchRunner(Runner):
    """A checkpoint in evaluation mode. ``infer`` copies to the device and back, as every runner does.

    On a GPU it computes FP32 without TF32, as our engines do, whatever the application has set for its own calls.

    ``ordinal``: number of the CUDA device; None for the first, where there is one, else the CPU.

    Raises:
        UnavailableError: PyTorch finds no such device; from every call that PyTorch fails in.
        DeviceLostError: from every call after a fault of the GPU.
    """

    runtime = "pytorch"

    def __init__(self, checkpoint: Checkpoint, ordinal: int | None = None) -> None:
        reason = why_too_old("torch")
        count = torch.cuda.device_count() if reason is None else 0
        if ordinal is not None and ordinal >= count:
            raise UnavailableError(
                reason or f"PyTorch finds {count} CUDA devices, and cuda:{ordinal} is not among them"
            )
        if reason is not None:  # not for PyTorch to say, which warns in six lines
            warnings.warn(f"PyTorch runs on the CPU: {reason}", InputWarning, stacklevel=2)
        self.device = torch.device(f"cuda:{ordinal or 0}" if reason is None and torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device.type == "cuda"
        self._model: torch.nn.Module | None = checkpoint.model.to(self.device)
        self.input = TensorSpec("input", ("batch", *checkpoint.contract.input_shape), "float32")
        self.classes = checkpoint.classes
        self._watch = Watch(_in_words, RuntimeError)

    def infer(self, batch: Batch) -> Logits:
        self.check_batch(batch)
        with self._watch.calls():
            logits: Logits = self._run(self._on_device(batch)).cpu().numpy()
        return logits

    def device_call(self, batch: Batch) -> Callable[[], object]:
        self.check_batch(batch)
        with self._watch.calls():
            return partial(self._watched_run, self._on_device(batch))

    def _release(self) -> None:
        self._model = None

    def _watched_run(self, images: torch.Tensor) -> torch.Tensor:
        with self._watch.calls():
            return self._run(images)

    def _on_device(self, batch: Batch) -> torch.Tensor:
        """Copied where PyTorch would refuse the array or warn of it: negative strides, read-only memory."""
        if min(batch.strides) < 0:  # of an axis of length 1 as well, which NumPy takes for contiguous
            batch = batch.copy()
        return torch.from_numpy(np.require(batch, requirements=("C", "W"))).to(self.device)

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        model = self._model
        if model is None:
            raise UsageError(CLOSED)
        with torch.inference_mode(), _WITHOUT_TF32.held() if self.on_gpu else contextlib.nullcontext():
            logits: torch.Tensor = model(images)
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return logits


def _in_words(error: BaseException) -> str:
    """The first line: behind it PyTorch explains itself."""
    return f"PyTorch: {str(error).partition(chr(10))[0][:300]}"


class _WithoutTf32:
    """PyTorch's FP32 precision is one of the process: set when the first call begins, restored when the last has ended.

    PyTorch reads it while it enqueues. By default it computes convolutions in TF32 from Ampere on, and products not.
    Meanwhile calls of other threads lack TF32, too, and reading the older flags (``allow_tf32``) may raise.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._before: list[tuple[Any, str]] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            self._calls += 1
            if self._calls == 1:
                backends: Any = torch.backends
                # from the general to the special: once its parent says ieee, another value is a place's own
                for place in (backends, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul):
                    if place.fp32_precision != "ieee":
                        self._before.append((place, place.fp32_precision))
                        place.fp32_precision = "ieee"
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if not self._calls:
                    while self._before:
                        place, precision = self._before.pop()
                        place.fp32_precision = precision


_WITHOUT_TF32 = _WithoutTf32()
