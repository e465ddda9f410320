"""Nodes whose results are random, or depend on the other images of the batch: a network exported while it trained."""

from __future__ import annotations

import onnx_ir as ir

from alexdeploy.errors import InputError

_EVALUATE = "export it in evaluation mode (PyTorch: model.eval())"
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
TRAINED = frozenset({"BatchNormalization", "Dropout"})  # operators that have a training mode


def training_mode(node: ir.Node) -> tuple[str, str] | None:
    """What is found of a Dropout or BatchNormalization in training mode, and the fix; None where it is not in that."""
    if node.op_type == "Dropout":
        ratio, training = (_constant(node, index) for index in (1, 2))
        if not training or ratio == 0:
            return None
        return "is in training mode, so that its answers are random", _EVALUATE
    outputs = sum(bool(value.name) for value in node.outputs)
    if node.op_type == "BatchNormalization" and (outputs > 1 or node.attributes.get_int("training_mode", 0) != 0):
        return "is in training mode, so that an answer depends on the other images of the batch", _EVALUATE
    return None


def check_deterministic(model: ir.Model, origin: str) -> None:
    """Refuse a graph that does not give one image the same answer each time.

    Raises:
        InputError: the first node that is to blame.
    """
    for node in model.graph.all_nodes():
        found = training_mode(node)
        if node.op_type in _RANDOM and not node.domain:
            found = "gives random numbers", f"export it without them, or {_EVALUATE.removeprefix('export it ')}"
        if found is not None:
            raise InputError(f"{origin}: node '{node.name}' ({node.op_type}) {found[0]}; {found[1]}")


def _constant(node: ir.Node, index: int) -> float | None:
    """The only number of a constant input."""
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = value.const_value if value is not None else None
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None
