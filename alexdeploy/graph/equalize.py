"""Cross-layer equalization: one range per tensor serves all its channels better when they are of similar size.

Between two weighted layers with nothing but ReLU, max pooling and flattening in between, each channel may be scaled by
any positive factor in the first layer and back in the second (M. Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", ICCV 2019). Here a channel that reaches up to ``a`` of a range ``T`` is enlarged by
sqrt(T/a), rounded to a power of two: nothing is clipped that was not, ``T`` stays, and the float function is the same
to the last bit. The metadata of the model tell the exponents, so that ``scale_factors`` can undo them in a comparison.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from alexdeploy.graph.weighted import WeightedNode, weighted_nodes

_HOMOGENEOUS = frozenset({"Relu", "MaxPool", "Flatten", "Identity", "Dropout"})  # f(c·x) = c·f(x), channel by channel
_MOST = 3  # as an exponent of two; a channel that was silent on the images seen may not be on others
METADATA_KEY = "alexdeploy.equalized"

Floats = npt.NDArray[np.floating]


def equalizable(model: ir.Model) -> list[str]:
    """Names of the tensors whose channels can be scaled: inputs of a weighted node that only another one makes."""
    return [str(second.activation.name) for _, second in _pairs(model)]


def equalize(model: ir.Model, channels: Mapping[str, Floats], ranges: Mapping[str, float]) -> ir.Model:
    """The same function with channels of similar size.

    Args:
        model: float graph; not changed.
        channels: largest |x| of each index of axis 1, for each of ``equalizable(model)``.
        ranges: the magnitude up to which each of those tensors is to be represented.
    """
    model = model.clone()
    told: dict[str, str] = {}
    for first, second in _pairs(model):
        name = str(second.activation.name)
        outputs = first.weight_array().shape[first.channel_axis]
        largest = np.asarray(channels[name]).reshape(outputs, -1)  # a flattened tensor has several columns per channel
        with np.errstate(divide="ignore", invalid="ignore"):
            headroom = np.log2(ranges[name] / largest.max(axis=1))
        exponents = np.nan_to_num(np.clip(np.rint(headroom / 2), 0, _MOST)).astype(int)
        factor = 2.0**exponents
        told |= dict.fromkeys(_path(first, second), "".join(map(str, exponents)))
        _scale(first.node, 1, factor, first.channel_axis)
        if len(first.node.inputs) > 2 and first.node.inputs[2] is not None:
            _scale(first.node, 2, factor, -1)
        _scale(second.node, 1, 1 / np.repeat(factor, largest.shape[1]), 1 - second.channel_axis)
    common.RemoveUnusedNodesPass()(model)
    model.metadata_props[METADATA_KEY] = json.dumps(told)
    return model


def scale_factors(model: ir.Model) -> dict[str, Floats]:
    """By how much ``equalize`` enlarged each channel (or group of columns) of each tensor that it changed."""
    told: dict[str, str] = json.loads(model.metadata_props.get(METADATA_KEY, "{}"))
    return {name: 2.0 ** np.array([int(digit) for digit in digits]) for name, digits in told.items()}


def _path(first: WeightedNode, second: WeightedNode) -> list[str]:
    """Names of the tensors from the output of ``first`` to the input of ``second``."""
    value, names = second.activation, []
    while (producer := value.producer()) is not None and producer is not first.node:
        names.append(str(value.name))
        assert producer.inputs[0] is not None
        value = producer.inputs[0]
    return [*names, str(value.name)]


def _pairs(model: ir.Model) -> list[tuple[WeightedNode, WeightedNode]]:
    """Layers that follow each other with only ``_HOMOGENEOUS`` operators between, used by nothing else."""
    by_output = {node.node.outputs[0]: node for node in weighted_nodes(model) if node.node.op_type != "MatMul"}
    found = []
    for second in weighted_nodes(model):
        group = second.node.attributes.get("group")
        value: ir.Value | None = second.activation
        while value is not None and len(value.consumers()) == 1 and not value.is_graph_output():
            producer = value.producer()
            if value in by_output:
                if (group is None or group.as_int() == 1) and _bias_is_constant(by_output[value].node):
                    found.append((by_output[value], second))
                break
            value = producer.inputs[0] if producer is not None and producer.op_type in _HOMOGENEOUS else None
    return found


def _bias_is_constant(node: ir.Node) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return bias is None or bias.const_value is not None


def _scale(node: ir.Node, index: int, factor: Floats, axis: int) -> None:
    """Multiply a constant input along one axis, in an initializer of the node's own."""
    value = node.inputs[index]
    tensor = value.const_value if value is not None else None
    assert tensor is not None  # _pairs has seen to it
    assert node.graph is not None
    array = tensor.numpy()
    shape = [1] * array.ndim
    shape[axis] = -1
    name = f"{node.name}.{index}.equalized"
    scaled = ir.val(name, const_value=ir.tensor((array * factor.reshape(shape)).astype(array.dtype), name=name))
    while name in node.graph.initializers:  # scaled once as the first of a pair and once as the second
        name += "'"
    scaled.name = name
    node.graph.register_initializer(scaled)
    node.replace_input_with(index, scaled)
