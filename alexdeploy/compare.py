"""Where two versions of one network part: layer by layer, how far B is from A on the same images.

It is the route to the culprit when INT8 answers are wrong. Every inner tensor that both have is compared, and the
first layer whose error is more than B's precision explains is named. A tensor is compared before it is quantized, so a
wrong range shows in the layer that computes from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import InputError, UsageError
from alexdeploy.runners.artifact import Artifact, open_artifact
from alexdeploy.specs import Precision, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

# Relative errors between what is normal and what is a fault, with room on both sides. Measured on alexnet-half with
# flowers and on alexnet-mnist with digits, trained and untrained, the worst layer of each: the same weights in PyTorch
# 1.3e-7; FP16 2e-4 to 5e-4; INT8 0.01 to 0.10 (percentile), in every dialect and with --fp16. With one input range
# wrong by 100, the layer itself, trained: too narrow 0.89 to 0.98, too wide 0.40 to 0.98; untrained, where at the end
# the bias outweighs what is wrong, 0.16 to 0.97. Entropy ranges of digits are beyond the band, and rightly: the plain
# background makes it clip conv1's input at 15 % of the largest value (error 0.72, and top-1 falls from 96.7 to 86.6 %).
BANDS = {Precision.FP32: 1e-4, Precision.FP16: 1e-2, Precision.INT8: 0.15, Precision.INT8_FP16: 0.15}
_BATCH = 8
_NO_LAYER = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Flatten", "Dropout"})  # compute nothing new

_Array = npt.NDArray[np.floating]
_Run = Callable[[npt.NDArray[np.float32]], list[_Array]]


@dataclass(frozen=True)
class LayerError:
    """How far the output of one layer is from the reference, over all images.

    Attributes:
        layer: its name in the ONNX graph, or in the checkpoint where there is no graph.
        type: its ONNX operator.
        relative_l2: ||b - a|| / ||a||; inf when a value is not finite.
        max_abs: max |b - a|, in the tensor's own unit; inf likewise.
        sqnr_db: ``relative_l2`` in decibels, positive when it is below 1; None when it is 0 or inf.
    """

    layer: str
    type: str
    relative_l2: float
    max_abs: float
    sqnr_db: float | None


@dataclass(frozen=True)
class Divergence:
    """Every layer that A and B share, in order of execution.

    ``precision`` is the coarser of the two, ``band`` the relative error that is normal for it, ``first`` the first
    layer beyond the band.
    """

    a: str
    b: str
    precision: Precision
    band: float
    images: int
    first: str | None
    layers: list[LayerError]


def compare_layers(
    a: Path,
    b: Path,
    dataset: ImageDataset,
    *,
    samples: int = 64,
    progress: Progress = lambda what, share: None,
) -> Divergence:
    """Run checkpoints or ONNX files on the same images; A is the reference. Memory does not grow with ``samples``.

    Layers of two ONNX files are matched by the names of their outputs, otherwise by order and operator.

    Raises:
        UsageError: an engine, whose inner tensors cannot be read.
        InputError: not such a file, another preprocessing, or other layers.

    Example:
        >>> from pathlib import Path
        >>> from alexdeploy import compare_layers
        >>> from alexdeploy.data.sources import load_dataset
        >>> found = compare_layers(Path("model.onnx"), Path("int8.onnx"), load_dataset("digits", "val"), samples=8)
        >>> found.first is None
        True
    """
    left, right = open_artifact(a), open_artifact(b)
    if left.contract.fingerprint != right.contract.fingerprint:
        raise InputError(
            f"{a} and {b} have different contracts (preprocessing or labels); compare versions of one network"
        )
    layers, run_a, run_b = _open_both(left, right)
    subset, images = dataset.subset(samples), 0
    for batch, _ in subset.batches(left.contract, _BATCH):
        for layer, reference, actual in zip(layers, run_a(batch), run_b(batch), strict=True):
            layer.add(reference, actual)
        images += len(batch)
        progress(f"{images} of {len(subset)} images", images / len(subset))
    errors = [layer.error() for layer in layers]
    precision = max(left.precision, right.precision, key=BANDS.__getitem__)
    band = BANDS[precision]
    first = next((error.layer for error in errors if error.relative_l2 > band), None)
    return Divergence(str(a), str(b), precision, band, images, first, errors)


@dataclass
class _Layer:
    """A layer and its sums over the batches."""

    name: str
    type: str
    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0

    def add(self, reference: _Array, actual: _Array) -> None:
        if reference.shape != actual.shape:
            raise InputError(f"layer '{self.name}' has shape {reference.shape} in one and {actual.shape} in the other")
        exact = reference.astype(np.float64)
        with np.errstate(invalid="ignore"):  # inf - inf, which error() reports
            difference = actual.astype(np.float64) - exact
        self.signal += float(np.vdot(exact, exact))
        self.noise += float(np.vdot(difference, difference))
        self.largest = max(self.largest, float(np.max(np.abs(difference), initial=0.0)))

    def error(self) -> LayerError:
        if not math.isfinite(self.signal) or not math.isfinite(self.noise):
            return LayerError(self.name, self.type, math.inf, math.inf, None)
        if self.noise == 0.0 or self.signal == 0.0:
            return LayerError(self.name, self.type, math.inf if self.noise else 0.0, self.largest, None)
        relative = math.sqrt(self.noise / self.signal)
        return LayerError(self.name, self.type, relative, self.largest, -20 * math.log10(relative))


def _open_both(a: Artifact, b: Artifact) -> tuple[list[_Layer], _Run, _Run]:
    """The shared layers, and for each side what computes their outputs from a batch."""
    if a.kind == b.kind == "onnx":
        return _open_graphs(a.path, b.path)
    (layers, run_a), (others, run_b) = _open(a), _open(b)
    for number, (one, other) in enumerate(zip(layers, others, strict=False), 1):
        if one.type != other.type:
            found = f"{one.type} '{one.name}' in {a.path} and {other.type} '{other.name}' in {b.path}"
            raise InputError(f"layer {number} is {found}; compare versions of one network")
    if len(layers) != len(others):
        counts = f"{a.path} has {len(layers)} layers and {b.path} has {len(others)}"
        raise InputError(f"{counts}; compare versions of one network")
    return (others if b.kind == "onnx" else layers), run_a, run_b


def _open_graphs(a: Path, b: Path) -> tuple[list[_Layer], _Run, _Run]:
    from alexdeploy.graph.model import load_onnx

    left, right = load_onnx(a), load_onnx(b)
    names = {value.name for node in right.graph for value in node.outputs}
    shared = {name: layer for name, layer in _graph_layers(left).items() if name in names}
    if not shared:
        raise InputError(
            f"{a} and {b} have no layer in common (no output of one name); compare versions of one network"
        )
    return list(shared.values()), _run_graph(left, list(shared)), _run_graph(right, list(shared))


def _open(artifact: Artifact) -> tuple[list[_Layer], _Run]:
    if artifact.kind == "checkpoint":
        return _open_checkpoint(artifact.path)
    if artifact.kind != "onnx":
        raise UsageError(f"{artifact.path}: an engine does not show its inner tensors; compare the ONNX file behind it")
    from alexdeploy.graph.model import load_onnx

    model = load_onnx(artifact.path)
    layers = _graph_layers(model)
    return list(layers.values()), _run_graph(model, list(layers))


def _graph_layers(model: ir.Model) -> dict[str, _Layer]:
    """Output name → layer. What only converts or reshapes is left out; the graph's outputs are there all the same."""
    found = {node.outputs[0]: node for node in model.graph if node.op_type not in _NO_LAYER}
    for output in model.graph.outputs:
        node = output.producer()
        while node is not None and node.op_type in _NO_LAYER and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        if node is not None:
            found.pop(node.outputs[0], None)
            found[output] = node
    return {str(value.name): _Layer(str(node.name or value.name), node.op_type) for value, node in found.items()}


def _run_graph(model: ir.Model, names: list[str]) -> _Run:
    from alexdeploy.graph.equalize import scale_factors
    from alexdeploy.graph.model import model_bytes
    from alexdeploy.graph.taps import with_outputs
    from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner

    runner = OnnxRuntimeRunner(model_bytes(with_outputs(model, names)))
    factors = scale_factors(model)

    def run(batch: npt.NDArray[np.float32]) -> list[_Array]:
        found = runner.run(batch)
        for name, factor in factors.items():
            if name in found:  # back to the size it has in the other model
                array = found[name]
                per_column = np.repeat(factor, array.shape[1] // len(factor)).astype(array.dtype)
                found[name] = array / per_column.reshape(1, -1, *[1] * (array.ndim - 2))
        return list(found.values())

    return run


def _open_checkpoint(path: Path) -> tuple[list[_Layer], _Run]:
    import torch

    from alexdeploy.zoo.checkpoint import load_checkpoint
    from alexdeploy.zoo.convnet import fold_batch_norm
    from alexdeploy.zoo.summary import summarize

    checkpoint = load_checkpoint(path)
    model = fold_batch_norm(checkpoint.model)
    rows = summarize(model, checkpoint.contract.input_shape)
    outputs: list[_Array] = []

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        outputs.append(output.numpy().copy())  # before a ReLU in place overwrites it

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(keep)

    def run(batch: npt.NDArray[np.float32]) -> list[_Array]:
        outputs.clear()
        with torch.inference_mode():
            model(torch.from_numpy(batch))
        return [output for row, output in zip(rows, outputs, strict=True) if row.type not in _NO_LAYER]

    return [_Layer(row.name, row.type) for row in rows if row.type not in _NO_LAYER], run
