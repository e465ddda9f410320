"""PyTorch, eager, on the GPU when there is one and otherwise on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from alexdeploy.arrays import Batch, Logits
from alexdeploy.errors import UnavailableError
from alexdeploy.runners.base import Runner
from alexdeploy.specs import TensorSpec
from alexdeploy.zoo.checkpoint import Checkpoint


class PyTorchRunner(Runner):
    """A checkpoint in evaluation mode. ``infer`` copies to the device and back, as every runner does.

    ``ordinal``: number of the CUDA device; None for the first, where there is one, else the CPU.

    Raises:
        UnavailableError: PyTorch finds no such device.
    """

    runtime = "pytorch"

    def __init__(self, checkpoint: Checkpoint, ordinal: int | None = None) -> None:
        count = torch.cuda.device_count()
        if ordinal is not None and ordinal >= count:
            raise UnavailableError(f"PyTorch finds {count} CUDA devices, and cuda:{ordinal} is not among them")
        self.device = torch.device(f"cuda:{ordinal or 0}" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device.type == "cuda"
        self._model = checkpoint.model.to(self.device)
        self.input = TensorSpec("input", ("batch", *checkpoint.contract.input_shape), "float32")
        self.classes = checkpoint.classes

    def infer(self, batch: Batch) -> Logits:
        self.check_batch(batch)
        logits: Logits = self._run(self._on_device(batch)).cpu().numpy()
        return logits

    def device_call(self, batch: Batch) -> Callable[[], object]:
        self.check_batch(batch)
        return partial(self._run, self._on_device(batch))

    def _on_device(self, batch: Batch) -> torch.Tensor:
        """Copied where PyTorch would refuse the array or warn of it: negative strides, read-only memory."""
        return torch.from_numpy(np.require(batch, requirements=("C", "W"))).to(self.device)

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self._model(images)
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return logits
