"""Quantization-aware fine-tuning: from a range file to the ranges that ``train_network`` tunes weights with."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.samples import real_images
from alexdeploy.errors import GateError, UsageError
from alexdeploy.export.from_torch import export_onnx
from alexdeploy.graph.model import load_onnx
from alexdeploy.graph.weighted import weighted_nodes
from alexdeploy.quantize import tensorrt_cache
from alexdeploy.quantize.apply import default_method
from alexdeploy.recipe import Recipe
from alexdeploy.specs import Progress
from alexdeploy.zoo.registry import build_network
from alexdeploy.zoo.weights import start_from


def ranges_by_layer(
    ranges_path: Path,
    recipe: Recipe,
    weights: Path,
    learn: ImageDataset,
    *,
    progress: Progress = lambda what, share: None,
) -> dict[str, float]:
    """The largest |x| of each layer's input, by ``mse``, from a range file of what export writes of ``weights``.

    Args:
        ranges_path: what ``calibrate`` wrote, or a calibration cache of TensorRT.
        recipe: of the network.
        weights: what is to be tuned; they are exported again, in memory, to compare.
        learn: the images to tune with; their classes are the network's.
        progress: called with what is being done and the share that is done before.

    Raises:
        InputError: an unusable file of weights or ranges.
        UsageError: weights for other classes than those of ``learn``.
        GateError: the ranges were calibrated on another model, or with other preprocessing.
    """
    ranges = tensorrt_cache.load(ranges_path)
    network = build_network(recipe.network, len(learn.classes))
    if start_from(network, weights, recipe.network.name):
        raise UsageError(f"{weights}: made for other classes than {learn.name} has; train them there first")
    contract = msgspec.structs.replace(recipe.preprocess, labels=learn.classes)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder, f"{weights.stem}.onnx")
        images = real_images(contract, learn)
        export_onnx(network, contract, exported, real_images=images, progress=progress)
        model = load_onnx(exported)
        try:
            ranges.check_fits(model, exported)
        except GateError as error:
            raise GateError(
                f"{ranges_path}: not calibrated on what export writes of {weights} with the classes of {learn.name}; "
                "export these weights, calibrate that file, and name its ranges"
            ) from error
    found = ranges.of(default_method(ranges))
    return {node.name: found[str(node.activation.name)].amax for node in weighted_nodes(model)}
