"""PyTorch, eager, on the GPU when there is one and otherwise on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from alexdeploy.runners.base import Runner
from alexdeploy.specs import TensorSpec
from alexdeploy.zoo.checkpoint import Checkpoint


class PyTorchRunner(Runner):
    """A checkpoint in evaluation mode. ``infer`` copies to the device and back, as every runner does."""

    runtime = "pytorch"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device.type == "cuda"
        self._model = checkpoint.model.to(self.device)
        self.input = TensorSpec("input", ("batch", *checkpoint.contract.input_shape), "float32")
        self.classes = checkpoint.classes

    def infer(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.check_batch(batch)
        logits: npt.NDArray[np.float32] = self._run(torch.from_numpy(batch).to(self.device)).cpu().numpy()
        return logits

    def device_call(self, batch: npt.NDArray[np.float32]) -> Callable[[], object]:
        self.check_batch(batch)
        return partial(self._run, torch.from_numpy(batch).to(self.device))

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self._model(images)
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return logits
