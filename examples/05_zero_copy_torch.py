"""Run an engine on PyTorch tensors that lie on the GPU: nothing is copied to the host and back.

    python examples/05_zero_copy_torch.py model.engine

Random pixels stand for frames that a decoder has left on the GPU. They are preprocessed by PyTorch, classified by
TensorRT and read by PyTorch again, all on one stream. Needs an NVIDIA GPU; elsewhere it says so.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from alexdeploy import Classifier
from alexdeploy.errors import AlexdeployError, UnavailableError, UsageError
from alexdeploy.runners.tensorrt import TensorRTRunner

BATCH = 8


def main(engine: str) -> None:
    """Classify a batch on the GPU, and check it against the same batch from host memory."""
    with Classifier(engine) as classifier:
        runner, contract = classifier.runner, classifier.contract
        if not isinstance(runner, TensorRTRunner):
            raise UsageError(f"{engine} runs on {runner.runtime}; expected an engine of TensorRT")
        if not torch.cuda.is_available():
            raise UnavailableError("PyTorch sees no GPU; install a build of it with CUDA")
        classes = runner.classes or len(contract.labels)
        frames = torch.randint(0, 256, (BATCH, *contract.input_shape), dtype=torch.uint8, device="cuda")
        mean, std = (
            torch.tensor(values, device="cuda").reshape(1, -1, 1, 1) for values in (contract.mean, contract.std)
        )
        images = ((frames / 255 - mean) / std).contiguous()
        logits = torch.empty((BATCH, classes), device="cuda")
        stream = torch.cuda.current_stream().cuda_stream
        runner.infer_on_device(images, logits, stream=stream)  # returns at once
        best = logits.argmax(dim=1)  # on the same stream, so after the engine
        for frame, index in enumerate(best.tolist()):
            print(f"frame {frame}: {contract.labels[index] if contract.labels else index}")
        on_host = runner.infer(images.cpu().numpy())
        error = np.abs(logits.cpu().numpy() - on_host).max() / np.abs(on_host).max()
        print(f"largest difference from infer() on host arrays: {error:.1e} of the largest logit")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except AlexdeployError as error:  # such as: no CUDA device
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
