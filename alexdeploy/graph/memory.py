"""The device memory that a graph will need, from its shapes alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from alexdeploy.graph.infer import infer_shapes

# Fused with their neighbour or only another shape of it: the result takes no memory of its own.
_IN_PLACE = frozenset(
    {"Clip", "DequantizeLinear", "Dropout", "Flatten", "Identity", "Relu", "Reshape", "Squeeze", "Unsqueeze"}
)
_SCRATCH = frozenset({"LRN"})  # computed from squares as large as its input

_RESERVED_BYTES = 8 << 20  # of any plan, seen in what TensorRT-RTX 1.7 reports


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of the weights, of the values that must be there at once, and of input and output, at a batch size.

    Beside that the kernels' workspace (as much as the builder is given) and the runtime itself need memory. A runner
    has activations, input and output once for each of its ``contexts``. TensorRT keeps memory, how much it does not
    tell beforehand, for each execution context: one, and one more for each batch size with a CUDA graph, at most eight.
    """

    batch: int
    weights_bytes: int
    activations_bytes: int
    io_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.activations_bytes + self.io_bytes


def predict_memory(model: ir.Model, batch: int, largest: Mapping[str, Sequence[int]] = {}) -> MemoryNeed:
    """Weights as stored, and the largest sum of values alive at one node when the nodes run in order.

    A value is alive from the node that makes it to the last that reads it. What has no shape counts as nothing.

    Args:
        model: not changed.
        batch: images at once.
        largest: by name, the largest shape of each input that is dynamic beyond the batch.
    """
    if largest or any(value.shape is None for node in model.graph for value in node.outputs):
        model = _with_shapes(model.clone(), largest)
    ends = {*model.graph.inputs, *model.graph.outputs}
    owner: dict[ir.Value, ir.Value] = {}  # value → the value whose memory it lies in
    last_use: dict[ir.Value, int] = {}
    constant = set(model.graph.initializers.values())  # and what is computed from them, before the first image
    for index, node in enumerate(model.graph):
        inputs = [owner.get(value, value) for value in node.inputs if value is not None]
        last_use.update(dict.fromkeys(inputs, index))
        if constant.issuperset(inputs):
            constant.update(node.outputs)
        if node.op_type in _IN_PLACE:
            owner.update(dict.fromkeys(node.outputs, inputs[0]))
    alive = peak = 0
    released: Counter[int] = Counter()  # bytes, by the node behind which nothing reads them
    for index, node in enumerate(model.graph):
        for value in node.outputs:
            if value not in owner and value not in ends and value not in constant:
                alive += _bytes(value, batch)
                released[max(last_use.get(value, index), index)] += _bytes(value, batch)
        scratch = _bytes(node.inputs[0], batch) if node.op_type in _SCRATCH else 0
        peak = max(peak, _RESERVED_BYTES + scratch + alive)
        alive -= released[index]
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    return MemoryNeed(batch, weights, peak, sum(_bytes(value, batch) for value in ends))


def _with_shapes(model: ir.Model, largest: Mapping[str, Sequence[int]]) -> ir.Model:
    for value in model.graph.inputs:
        if str(value.name) in largest:
            value.shape = ir.Shape(largest[str(value.name)])
    for value in (value for node in model.graph if largest for value in node.outputs):
        value.shape = None  # to be inferred anew
    infer_shapes(model)
    return model


def _bytes(value: ir.Value | None, batch: int) -> int:
    if value is None or value.shape is None or value.dtype is None or value.is_initializer():
        return 0
    dims = [dim if isinstance(dim, int) else batch for dim in value.shape]
    return math.ceil(math.prod(dims) * value.dtype.itemsize)
