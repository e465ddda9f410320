"""Find the first layer at which two versions of a network disagree: how far B is from A on the same images.

It is the route to the culprit when INT8 answers are wrong. Every inner tensor that both have is compared, and the
first layer whose error is more than B's precision explains is named. A tensor is compared before it is quantized, so a
wrong range shows in the layer that computes from it. A layer that only a Relu or Clip reads is judged after it: what
the activation removes has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alexdeploy.arrays import Batch
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import InputError, UsageError
from alexdeploy.runners.artifact import Artifact, CheckpointArtifact, OnnxArtifact, open_artifact
from alexdeploy.specs import Precision, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from alexdeploy.zoo.checkpoint import Checkpoint

# Relative errors between what is normal and what is a fault, with room on both sides. Measured on alexnet-half with
# flowers and on alexnet-mnist with digits, trained and untrained, the worst layer of each: the same weights in PyTorch
# 1.3e-7; FP16 2e-4 to 5e-4; INT8 0.01 to 0.10 (percentile), in every dialect and with --fp16; FP8, on the untrained
# alexnet-mnist only, 0.07. With one INT8 input range wrong by 100, the layer itself, trained: too narrow 0.89 to 0.98,
# too wide 0.40 to 0.98; untrained, where at the end the bias outweighs what is wrong, 0.16 to 0.97. Entropy ranges of
# digits are beyond the band, and rightly: the plain background makes it clip conv1's input at 15 % of the largest value
# (error 0.72, and top-1 falls from 96.7 to 86.6 %).
# On EfficientNet-Lite0 and ResNet-50-thin with flowers: bfloat16 0.03 to 0.08, FP8 0.38 to 0.61 (its 3 bits are coarser
# than INT8's 7, and 50 layers add up).
_BAND_OF = {"fp8": 0.7, "int8": 0.15, "bf16": 0.1, "fp16": 1e-2, "fp32": 1e-4}
BANDS = {precision: max(_BAND_OF[part] for part in precision.value.split("+")) for precision in Precision}
_BATCH = 8
_NO_LAYER = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Flatten", "Dropout"})  # compute nothing new
_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})

_Array = npt.NDArray[np.floating]
_Run = Callable[[Batch], list[_Array]]


@dataclass(frozen=True)
class LayerError:
    """How far the output of one layer is from the reference, over all images.

    Attributes:
        layer: its name in the ONNX graph, or in the checkpoint where there is no graph.
        type: its ONNX operator.
        relative_l2: ||b - a|| / ||a||; inf when a value is not finite.
        max_abs: max |b - a|, in the tensor's own unit; inf likewise.
        sqnr_db: ``relative_l2`` in decibels, positive when it is below 1; None when it is 0 or inf.
        judged_l2: the error that counts: that after the activation, where only a Relu or Clip reads the layer.
        judged_at: name of that activation, or else of the layer itself.
    """

    layer: str
    type: str
    relative_l2: float
    max_abs: float
    sqnr_db: float | None
    judged_l2: float
    judged_at: str


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

    Each gets the images as its own contract wants them: a uint8 graph has in it what another gets done before.

    Layers of two ONNX files are matched by the names of their outputs, otherwise by order and operator.

    Raises:
        UsageError: an engine, whose inner tensors cannot be read.
        InputError: not such a file, contracts of different networks, or other layers.

    Example:
        >>> from pathlib import Path
        >>> from alexdeploy import compare_layers
        >>> from alexdeploy.data.sources import load_dataset
        >>> found = compare_layers(Path("model.onnx"), Path("int8.onnx"), load_dataset("digits", "val"), samples=8)
        >>> found.first is None
        True
    """
    left, right = open_artifact(a), open_artifact(b)
    different = left.contract.differs_from(right.contract)
    if different is not None:
        raise InputError(f"{a} and {b} have different contracts ({different}); compare versions of one network")
    layers, run_a, run_b = _open_both(left, right)
    subset, images = dataset.subset(samples), 0
    for inputs, labels in subset.batches_for((left.contract, right.contract), _BATCH):
        outputs = run_a(inputs[left.contract]), run_b(inputs[right.contract])
        for layer, reference, actual in zip(layers, *outputs, strict=True):
            layer.add(reference, actual)
        images += len(labels)
        progress(f"{images} of {len(subset)} images", images / len(subset))
    by_output = {layer.output: layer for layer in layers}
    errors = [layer.error(by_output.get(layer.clipped or layer.output, layer)) for layer in layers]
    precision = max(left.precision, right.precision, key=BANDS.__getitem__)
    band = BANDS[precision]
    first = next((error.layer for error in errors if error.judged_l2 > band), None)
    return Divergence(str(a), str(b), precision, band, images, first, errors)


@dataclass
class _Layer:
    """A layer and its sums over the batches; ``clipped`` is the output of the Relu or Clip that alone reads it."""

    output: str
    name: str
    type: str
    clipped: str | None = None
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

    @property
    def relative_l2(self) -> float:
        if not math.isfinite(self.signal) or not math.isfinite(self.noise):
            return math.inf
        if self.noise == 0.0 or self.signal == 0.0:
            return math.inf if self.noise else 0.0
        return math.sqrt(self.noise / self.signal)

    def error(self, judged: _Layer) -> LayerError:
        relative, finite = self.relative_l2, math.isfinite(self.signal + self.noise)
        return LayerError(
            layer=self.name,
            type=self.type,
            relative_l2=relative,
            max_abs=self.largest if finite else math.inf,
            sqnr_db=-20 * math.log10(relative) if 0 < relative < math.inf else None,
            judged_l2=judged.relative_l2,
            judged_at=judged.name,
        )


def _open_both(a: Artifact, b: Artifact) -> tuple[list[_Layer], _Run, _Run]:
    """The shared layers, and for each side what computes their outputs from a batch."""
    if isinstance(a, OnnxArtifact) and isinstance(b, OnnxArtifact):
        return _open_graphs(a, b)
    same_input = a.contract == b.contract
    (layers, run_a), (others, run_b) = _open(a, whole=same_input), _open(b, whole=same_input)
    for number, (one, other) in enumerate(zip(layers, others, strict=False), 1):
        if one.type != other.type:
            found = f"{one.type} '{one.name}' in {a.path} and {other.type} '{other.name}' in {b.path}"
            raise InputError(f"layer {number} is {found}; compare versions of one network")
    if len(layers) != len(others):
        counts = f"{a.path} has {len(layers)} layers and {b.path} has {len(others)}"
        raise InputError(f"{counts}; compare versions of one network")
    return (others if isinstance(b, OnnxArtifact) else layers), run_a, run_b


def _open_graphs(a: OnnxArtifact, b: OnnxArtifact) -> tuple[list[_Layer], _Run, _Run]:
    names = {value.name for node in b.model.graph for value in node.outputs}
    shared = {name: layer for name, layer in _graph_layers(a.model).items() if name in names}
    if not shared:
        raise InputError(
            f"{a.path} and {b.path} have no layer in common (no output of one name); compare versions of one network"
        )
    return list(shared.values()), _run_graph(a.model, list(shared)), _run_graph(b.model, list(shared))


def _open(artifact: Artifact, *, whole: bool) -> tuple[list[_Layer], _Run]:
    """Its layers and what runs it; where not ``whole``, a graph without what it does to the pixels first."""
    if isinstance(artifact, CheckpointArtifact):
        return _open_checkpoint(artifact.checkpoint)
    if not isinstance(artifact, OnnxArtifact):
        raise UsageError(
            f"{artifact.path}: an engine does not show its inner tensors; compare the ONNX file it was built from"
        )
    layers = _graph_layers(artifact.model)
    if not whole:
        layers = dict(dropwhile(lambda found: found[1].type not in _WEIGHTED, layers.items()))
    return list(layers.values()), _run_graph(artifact.model, list(layers))


def _graph_layers(model: ir.Model) -> dict[str, _Layer]:
    """Output name → layer. Conversions and reshapes are left out, except at the graph's outputs."""
    from alexdeploy.graph.taps import clipped_by

    layers = (node for node in model.graph if node.op_type not in _NO_LAYER)
    found = {next(value for value in node.outputs if value.name): node for node in layers}  # others are left out
    for output in model.graph.outputs:
        node = output.producer()
        while node is not None and node.op_type in _NO_LAYER and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        if node is not None:
            found = {value: other for value, other in found.items() if other is not node}
            found[output] = node
    names: dict[ir.Node | None, str] = {node: str(value.name) for value, node in found.items()}
    return {
        str(value.name): _Layer(
            str(value.name), str(node.name or value.name), node.op_type, names.get(clipped_by(node))
        )
        for value, node in found.items()
    }


def _run_graph(model: ir.Model, names: list[str]) -> _Run:
    from alexdeploy.graph.emulate import for_cpu
    from alexdeploy.graph.equalize import scale_factors
    from alexdeploy.graph.model import model_bytes
    from alexdeploy.graph.taps import with_outputs
    from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner

    runner = OnnxRuntimeRunner(model_bytes(for_cpu(with_outputs(model, names))))
    factors = scale_factors(model)

    def run(batch: Batch) -> list[_Array]:
        found = runner.run(batch)
        for name, factor in factors.items():
            if name in found:  # back to the size it has in the other model
                array = found[name]
                per_column = np.repeat(factor, array.shape[1] // len(factor)).astype(array.dtype)
                found[name] = array / per_column.reshape(1, -1, *[1] * (array.ndim - 2))
        return list(found.values())

    return run


def _open_checkpoint(checkpoint: Checkpoint) -> tuple[list[_Layer], _Run]:
    import torch

    from alexdeploy.zoo.convnet import fold_batch_norm
    from alexdeploy.zoo.summary import summarize

    model = fold_batch_norm(checkpoint.model)
    rows = summarize(model, checkpoint.contract.input_shape)
    outputs: list[_Array] = []

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        outputs.append(output.numpy().copy())  # before a ReLU in place overwrites it

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(keep)

    def run(batch: Batch) -> list[_Array]:
        outputs.clear()
        with torch.inference_mode():
            model(torch.from_numpy(batch))
        return [output for row, output in zip(rows, outputs, strict=True) if row.type not in _NO_LAYER]

    shown = [row for row in rows if row.type not in _NO_LAYER]
    followers = [*shown[1:], None]  # the networks of the zoo are chains
    layers = [
        _Layer(row.name, row.name, row.type, after.name if after is not None and after.type == "Relu" else None)
        for row, after in zip(shown, followers, strict=True)
    ]
    return layers, run
