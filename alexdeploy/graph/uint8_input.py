"""Preprocessing in the graph: it takes pixels, and what the contract does behind resizing and cropping are its nodes.

Cast → Transpose → Sub → Mul: TensorRT takes uint8 into a Cast and into nothing else, and ONNX Runtime subtracts and
multiplies per channel nine times as fast where the channels come first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexdeploy.contract import Contract
from alexdeploy.errors import InputError
from alexdeploy.graph.infer import infer_shapes
from alexdeploy.graph.names import new_constant, taken_names, unique
from alexdeploy.graph.weighted import is_weighted

_REVERSED = (2, 1, 0)  # RGB ↔ BGR

_Step = tuple[str, npt.NDArray[np.generic] | None, dict[str, int | Sequence[int]]]


def with_uint8_input(model: ir.Model, contract: Contract) -> tuple[ir.Model, Contract]:
    """The same network on pixels: scale, mean, std, colour order and layout are nodes of the graph.

    Args:
        model: its first input takes float32 images as ``contract`` says; not changed. The metadata stay as they are.
        contract: preprocessing that the graph is to do itself.

    Returns:
        The model with that input uint8 (batch, H, W, C), RGB or gray, and ``contract.of_pixels``.

    Raises:
        InputError: an input of another type.
    """
    model = model.clone()
    image = next(value for value in model.graph.inputs if not value.is_initializer())
    if image.dtype != ir.DataType.FLOAT or image.shape is None:
        raise InputError(
            f"input '{image.name}' is {image.dtype}; only a float32 input can become uint8, so take the FP32 model"
        )
    mean, factor = np.multiply(contract.mean, contract.scale), 1 / np.multiply(contract.std, contract.scale)
    users = list(image.uses())
    per_channel: tuple[int, ...] = (-1,)
    axis = 3
    steps: list[_Step] = [("Cast", None, {"to": int(ir.DataType.FLOAT)})]
    if contract.layout == "nchw":
        batch, channels, height, width = image.shape
        image.shape = ir.Shape([batch, height, width, channels])
        steps.append(("Transpose", None, {"perm": [0, 3, 1, 2]}))
        per_channel, axis = (-1, 1, 1), 1
    if contract.color == "bgr" and len(users) == 1 and _reverse_weights(users[0].node):
        mean, factor = mean[::-1], factor[::-1]
    elif contract.color == "bgr":
        steps.append(("Gather", np.array(_REVERSED), {"axis": axis}))
    for operator, constant, neutral in (("Sub", mean, 0), ("Mul", factor, 1)):
        array = constant.astype(np.float32).reshape(per_channel)
        if np.any(array != neutral):
            steps.append((operator, array, {}))
    image.type = ir.TensorType(ir.DataType.UINT8)
    result = _prepend(model, image, steps)
    for node, index in users:
        node.replace_input_with(index, result)
    infer_shapes(model)
    return model, contract.of_pixels


def _prepend(model: ir.Model, image: ir.Value, steps: Sequence[_Step]) -> ir.Value:
    """Put nodes named as ``cast_input`` before all others, each on what the one before it made; returns the last's."""
    graph, taken, value = model.graph, taken_names(model), image
    nodes: list[ir.Node] = []
    for operator, constant, attributes in steps:
        name = unique(f"{operator.lower()}_{image.name}", taken)
        inputs = [value]
        if constant is not None:
            inputs.append(new_constant(graph, f"{name}.constant", constant, taken))
        nodes.append(ir.node(operator, inputs, attributes, name=name))
        value = nodes[-1].outputs[0]
        value.name = name
    graph.insert_before(graph[0], nodes)
    return value


def _reverse_weights(node: ir.Node) -> bool:
    """Have a Conv take RGB in place of BGR; False where it is grouped or the weights are not constants of its own."""
    weight = node.inputs[1] if is_weighted(node) and node.op_type == "Conv" else None
    if weight is None or not weight.is_initializer() or weight.const_value is None or len(weight.uses()) > 1:
        return False
    if node.attributes.get_int("group", 1) > 1:
        return False
    array = np.ascontiguousarray(weight.const_value.numpy()[:, _REVERSED])
    weight.const_value = ir.tensor(array, name=weight.name)
    return True
