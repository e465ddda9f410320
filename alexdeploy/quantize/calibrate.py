"""One streaming pass of a float model over a data set: the activations that quantization needs, observed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alexdeploy import artifacts
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import InputError
from alexdeploy.graph.lower_lrn import lower_lrn
from alexdeploy.graph.model import contract_of, image_input, load_onnx, model_bytes
from alexdeploy.graph.taps import with_outputs
from alexdeploy.graph.weighted import quantized_nodes, weighted_nodes
from alexdeploy.quantize.methods import ranges
from alexdeploy.quantize.observer import ActivationObserver
from alexdeploy.quantize.rangefile import RangeFile
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner

BATCH = 32


def calibrate(
    model_path: Path,
    dataset: ImageDataset,
    *,
    samples: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RangeFile:
    """Observe the input of every Conv, Gemm and MatMul with constant weights.

    Args:
        model_path: float ONNX with a preprocessing contract.
        dataset: images to learn from.
        samples: how many of them to take, spread evenly; all when there are fewer.
        progress: called with (images done, images planned) after each batch.

    Returns:
        The ranges by every method. Memory does not grow with the number of images.

    Raises:
        InputError: a model without contract or weighted layers, a fixed batch, an unreadable image, NaN or Inf.
    """
    model = load_onnx(model_path)
    if quantized_nodes(model):
        raise InputError(f"{model_path}: is quantized already; calibrate the float model it was made from")
    contract = contract_of(model, str(model_path))
    tensors = list(dict.fromkeys(str(node.activation.name) for node in weighted_nodes(model)))
    if not tensors:
        raise InputError(f"{model_path}: has no Conv, Gemm or MatMul with constant weights; nothing to calibrate")
    spec = image_input(model, str(model_path))
    batch_size = spec.shape[0] if isinstance(spec.shape[0], int) else BATCH
    chosen = dataset.subset(samples)
    observers = {name: ActivationObserver(name) for name in tensors}
    inner = [name for name in tensors if name != spec.name]
    fed = 0
    tapped = model_bytes(with_outputs(lower_lrn(model), inner))
    with OnnxRuntimeRunner(tapped) as runner, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(2) as counters:
        batches = chosen.batches(contract, batch_size)
        following = reader.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = reader.submit(next, batches, None)  # decoded while this one is run and counted
            images, _ = batch
            activations = {**runner.run(images), spec.name: images}
            seen = [activations[name] for name in observers]
            list(counters.map(ActivationObserver.update, observers.values(), seen))
            fed += len(images)
            progress(fed, len(chosen))
    result = RangeFile(
        model_sha256=artifacts.sha256_file(model_path),
        contract=contract.fingerprint,
        dataset={"name": Path(dataset.name).name, "fingerprint": chosen.fingerprint},
        samples=fed,
        tensors={name: {**ranges(o), "samples": o.samples} for name, o in observers.items()},
    )
    result.check_receipt()
    return result
