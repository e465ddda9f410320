"""Cross-layer equalization: one range per tensor serves all its channels better when they are of similar size.

Between two weighted layers with nothing but ReLU, max pooling and flattening in between, each channel may be scaled by
any positive factor in the first layer and back in the second (M. Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", ICCV 2019). Here a channel that reaches up to ``a`` of a range ``T`` is enlarged by
sqrt(T/a): nothing is clipped that was not, ``T`` stays, and so does the float function but for its last bits. Behind a
ReLU6 that holds for images whose channels stay within what was seen; beyond it a channel is clipped earlier. The
metadata of the model tell the factors, so that ``scale_factors`` can undo them in a comparison.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from alexdeploy.graph.names import new_constant, taken_names
from alexdeploy.graph.weighted import WeightedNode, weighted_nodes

_HOMOGENEOUS = frozenset({"Relu", "MaxPool", "Flatten", "Identity", "Dropout"})
_Pair = tuple[WeightedNode, WeightedNode, float]  # the layers, and the bound of a Clip between them
_MOST = 8.0  # a channel that was small on the images seen may not be on others
_PER_UNIT = 256  # a factor is a multiple of 1/256, which float16 holds
METADATA_KEY = "alexdeploy.channel_factors"

Floats = npt.NDArray[np.floating]


def equalizable(model: ir.Model) -> list[str]:
    """Names of the tensors whose channels can be scaled: inputs of a weighted node that only another one makes."""
    return [str(second.activation.name) for _, second, _ in _pairs(model)]


def equalize(model: ir.Model, channels: Mapping[str, Floats], ranges: Mapping[str, float]) -> ir.Model:
    """The same function with channels of similar size.

    Args:
        model: float graph; not changed.
        channels: largest |x| at each index of axis 1, for those of ``equalizable(model)`` that are to be scaled.
        ranges: the magnitude up to which each of those tensors is to be represented.
    """
    model = model.clone()
    told: dict[str, str] = {}
    taken = taken_names(model)
    for first, second, bound in _pairs(model):
        name = str(second.activation.name)
        if name not in channels:
            continue
        outputs = first.weight_array().shape[first.channel_axis]
        largest = np.asarray(channels[name]).reshape(outputs, -1)  # a flattened tensor has several columns per channel
        seen = largest.max(axis=1).astype(np.float64)
        seen[seen == 0] = ranges[name] or 1.0  # a channel that was silent on the images seen may not be on others
        wanted = np.minimum(np.sqrt(ranges[name] / seen), bound / seen)
        factor = np.floor(np.clip(wanted, 1, _MOST) * _PER_UNIT) / _PER_UNIT
        told |= dict.fromkeys(_path(first, second), b64encode(factor.astype("<f2").tobytes()).decode())
        _scale(first.node, 1, factor, first.channel_axis, taken)
        if len(first.node.inputs) > 2 and first.node.inputs[2] is not None:
            _scale(first.node, 2, factor, -1, taken)
        if _is_depthwise(second):
            _scale(second.node, 1, 1 / np.repeat(factor, second.weight_array().shape[0] // outputs), 0, taken)
        else:
            _scale(second.node, 1, 1 / np.repeat(factor, largest.shape[1]), 1 - second.channel_axis, taken)
    common.RemoveUnusedNodesPass()(model)
    model.metadata_props[METADATA_KEY] = json.dumps(told)
    return model


def scale_factors(model: ir.Model) -> dict[str, Floats]:
    """By how much ``equalize`` enlarged each channel (or group of columns) of each tensor that it changed."""
    told: dict[str, str] = json.loads(model.metadata_props.get(METADATA_KEY, "{}"))
    return {name: np.frombuffer(b64decode(text), "<f2").astype(np.float64) for name, text in told.items()}


def _path(first: WeightedNode, second: WeightedNode) -> list[str]:
    """Names of the tensors from the output of ``first`` to the input of ``second``."""
    value, names = second.activation, []
    while (producer := value.producer()) is not None and producer is not first.node:
        names.append(str(value.name))
        assert producer.inputs[0] is not None
        value = producer.inputs[0]
    return [*names, str(value.name)]


def _pairs(model: ir.Model) -> list[_Pair]:
    """Layers that follow each other with only homogeneous operators and ReLU6 between, used by nothing else."""
    by_output = {node.node.outputs[0]: node for node in weighted_nodes(model) if node.node.op_type != "MatMul"}
    found = []
    for second in weighted_nodes(model):
        value: ir.Value | None = second.activation
        bound, flat = math.inf, False
        while value is not None and len(value.consumers()) == 1 and not value.is_graph_output():
            producer = value.producer()
            if value in by_output:
                first = by_output[value]
                if _reads_channels(second, flat or first.node.op_type == "Gemm") and _bias_is_constant(first.node):
                    found.append((first, second, bound))
                break
            limit = _upper_bound(producer) if producer is not None else None
            bound = min(bound, limit or math.inf)
            passes = producer is not None and (_is_homogeneous(producer) or limit is not None)
            flat = flat or (producer is not None and producer.op_type == "Flatten")
            value = producer.inputs[0] if producer is not None and passes else None
    return found


def _is_homogeneous(node: ir.Node) -> bool:
    """f(c·x) = c·f(x) for positive c, and channels stay on axis 1."""
    return node.op_type in _HOMOGENEOUS and (node.op_type != "Flatten" or node.attributes.get_int("axis", 1) == 1)


def _reads_channels(second: WeightedNode, flat: bool) -> bool:
    """The layer sums over axis 1 of what it reads, or has filters for each index of it; ``flat``: that is a matrix."""
    node = second.node
    if node.op_type == "Conv":
        return second.groups == 1 or _is_depthwise(second)
    return flat and not node.attributes.get_int("transA", 0)


def _is_depthwise(weighted: WeightedNode) -> bool:
    """Each group reads one channel; its filter's own scale takes up any factor."""
    return weighted.groups > 1 and weighted.weight_array().shape[1] == 1


def _upper_bound(node: ir.Node) -> float | None:
    """The bound b of a Clip to [0, b], as ReLU6 has it; None for any other node."""
    if node.op_type != "Clip" or len(node.inputs) < 3:
        return None
    bounds = [value.const_value.numpy() for value in node.inputs[1:3] if value is not None and value.const_value]
    return float(bounds[1]) if len(bounds) == 2 and float(bounds[0]) == 0 < float(bounds[1]) else None


def _bias_is_constant(node: ir.Node) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return bias is None or bias.const_value is not None


def _scale(node: ir.Node, index: int, factor: Floats, axis: int, taken: set[str]) -> None:
    """Multiply a constant input along one axis, in an initializer of the node's own."""
    value = node.inputs[index]
    tensor = value.const_value if value is not None else None
    assert tensor is not None  # _pairs has seen to it
    assert isinstance(node.graph, ir.Graph)
    array = np.atleast_1d(tensor.numpy())  # the bias of a Gemm may be a scalar
    shape = [1] * array.ndim
    shape[axis] = -1
    along = factor.reshape(shape)
    product = np.empty(np.broadcast_shapes(array.shape, along.shape), array.dtype)
    np.multiply(array, along, out=product, casting="same_kind")  # a large weight has no copy in float64
    scaled = new_constant(node.graph, f"{node.name}.{index}.equalized", product, taken)
    node.replace_input_with(index, scaled)
