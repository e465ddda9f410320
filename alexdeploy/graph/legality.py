"""What TensorRT will not take, said before its parser says it less clearly."""

from __future__ import annotations

import onnx_ir as ir

from alexdeploy.errors import InputError

LRN_MAX_SIZE = 15  # NvInfer.h, ILRNLayer::setWindowSize: odd, 1 to 15


def check_tensorrt(model: ir.Model, origin: str) -> None:
    """Refuse graphs outside TensorRT's limits.

    Raises:
        InputError: naming the node, the rule and the fix.
    """
    for node in model.graph:
        if node.op_type == "LRN":
            _check_lrn(node, origin)


def _check_lrn(node: ir.Node, origin: str) -> None:
    size = node.attributes["size"].as_int()
    beta = _float(node, "beta", 0.75)
    bias = _float(node, "bias", 1.0)
    where = f"{origin}: LRN node '{node.name}'"
    if size % 2 == 0:
        raise InputError(
            f"{where} has an even window ({size}); PyTorch and ONNX place even windows differently and TensorRT takes "
            f"only odd ones from 1 to {LRN_MAX_SIZE}; retrain or fine-tune with size {size - 1} or {size + 1}"
        )
    if size > LRN_MAX_SIZE:
        raise InputError(
            f"{where} has a window of {size}; TensorRT takes odd windows from 1 to {LRN_MAX_SIZE}; "
            "fine-tune with a smaller window, or run the ONNX file in ONNX Runtime"
        )
    if beta < 0.01 or bias < 1e-5:
        raise InputError(f"{where} has beta {beta:g} and bias {bias:g}; TensorRT takes beta >= 0.01 and bias >= 1e-5")


def _float(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()
