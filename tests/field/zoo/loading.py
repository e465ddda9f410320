"""Files that did not load, and those that ended in a traceback."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.field.zoo.base import FLOAT, built, normal
from tests.helpers.foreign_graphs import Foreign, features, head, network_weights, node


def stacked_matmul() -> Foreign:
    """microsoft/onnxruntime#25489: a MatMul whose constant has rank 3."""
    return built(
        [
            *features("image"),
            node("Reshape", ["pooled", "shape"], ["rows"], "rows"),
            node("MatMul", ["rows", "stack"], ["mm"], "mm"),
            node("Squeeze", ["mm", "one"], ["scores"], "squeeze"),
        ],
        shape=np.array([-1, 1, 16], np.int64),
        stack=normal(1, 16, 4),
        one=np.array([1], np.int64),
    )


def constant_of_shape() -> Foreign:
    """microsoft/onnxruntime#20570, #6501: a float made by ConstantOfShape."""
    half = helper.make_tensor("value", FLOAT, [1], [0.5])
    return built(
        [
            *features("image"),
            node("Shape", ["pooled"], ["shape"], "shape"),
            node("ConstantOfShape", ["shape"], ["halves"], "cos", value=half),
            node("Mul", ["pooled", "halves"], ["scaled"], "mul"),
            node("Flatten", ["scaled"], ["flat"], "flatten"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc"),
        ]
    )


def mask_of_shape() -> Foreign:
    """Swin of torchvision: Equal compares what ConstantOfShape made with a float."""
    zeros = helper.make_tensor("value", FLOAT, [1], [0.0])
    return built(
        [
            *features("image"),
            node("Shape", ["pooled"], ["shape"], "shape"),
            node("ConstantOfShape", ["shape"], ["nought"], "cos", value=zeros),
            node("Sub", ["pooled", "pooled"], ["zero"], "sub"),
            node("Equal", ["nought", "zero"], ["mask"], "equal"),
            node("Where", ["mask", "pooled", "nought"], ["masked"], "where"),
            node("Flatten", ["masked"], ["flat"], "flatten"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc"),
        ]
    )


def captured() -> Foreign:
    """NVIDIA/Model-Optimizer#1628: the branches of an If read a float of the graph around it."""

    def branch(name: str, operator: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(name, FLOAT, ["n", 4])
        two = helper.make_tensor("two_" + name, FLOAT, [], [2.0])
        inner = node(operator, ["fc", "two_" + name], [name], "in_" + name)
        return helper.make_graph([inner], name, [], [value], [two])

    return built(
        [
            *features("image"),
            *head("fc"),
            node("ReduceMax", ["fc"], ["largest"], "largest", keepdims=0),
            node("Greater", ["largest", "half"], ["high"], "greater"),
            node("If", ["high"], ["scores"], "if", then_branch=branch("a", "Mul"), else_branch=branch("b", "Add")),
        ]
    )


def float64_island() -> Foreign:
    """SonySemiconductorSolutions/mct-model-optimization#489."""
    return built(
        [
            *features("image"),
            node("Flatten", ["pooled"], ["flat"], "flatten"),
            node("Cast", ["flat"], ["double"], "double", to=TensorProto.DOUBLE),
            node("MatMul", ["double", "wide"], ["product"], "mm"),
            node("Cast", ["product"], ["scores"], "single", to=FLOAT),
        ],
        wide=normal(16, 4).astype(np.float64),
    )


def taken_activation_name() -> Foreign:
    """microsoft/onnxruntime#24705, #8811: ``bn1`` is an activation, and ``bn1.scale`` an initializer."""
    return built(
        [
            node("Conv", ["image", "w1", "b1"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("BatchNormalization", ["c1", "bn1.scale", "beta", "moving_mean", "moving_var"], ["bn1"], "bn1"),
            node("Relu", ["bn1"], ["bn1.q"], "r1"),
            node("Conv", ["bn1.q", "w2", "b2"], ["c2"], "c2", pads=[1, 1, 1, 1]),
            node("Add", ["c2", "bn1"], ["sum"], "add"),
            node("Conv", ["bn1", "w2", "b2"], ["c3"], "c3", pads=[1, 1, 1, 1]),
            node("Add", ["c3", "sum"], ["r2"], "add2"),
            node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
            *head(),
        ],
        named={"bn1.scale": network_weights()["gamma"]},
    )


def taken_weight_name() -> Foreign:
    """microsoft/onnxscript#2680, onnx/ir-py#246: names that ours would get, weights, values and FP16's."""
    return built(
        [
            node("Mul", ["image", "c1.weight.scale"], ["image.fp16"], "x"),
            *features("image.fp16"),
            node("Mul", ["pooled", "w1.fp16"], ["r1.dq"], "y"),
            node("Mul", ["r1.dq", "c2.bias.scale"], ["scaled"], "z"),
            node("Flatten", ["scaled"], ["flat"], "flatten"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores.fp16"], "fc"),
            node("Mul", ["scores.fp16", "half"], ["scores"], "end"),
        ],
        named={name: np.array(1.5, np.float32) for name in ("c1.weight.scale", "w1.fp16", "c2.bias.scale")},
    )


def vector_matmul() -> Foreign:
    """MatMul with a vector."""
    return built(
        [
            *features("image")[:4],
            node("Transpose", ["r2"], ["last"], "last", perm=[0, 2, 3, 1]),
            node("MatMul", ["last", "vector"], ["map"], "mm"),
            node("Flatten", ["map"], ["flat"], "flatten"),
            node("Gemm", ["flat", "dense", "bias"], ["scores"], "fc"),
        ],
        vector=normal(16),
        dense=normal(16, 4, seed=2),
    )


def reshape_attribute() -> Foreign:
    """onnx/onnx#2191, onnx/models#439: opset 3, where the shape of Reshape is an attribute."""
    return built(
        [
            *features("image"),
            node("Reshape", ["pooled"], ["flat"], "flatten", shape=[0, 16]),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc", broadcast=1),
        ],
        opset=3,
        ir_version=3,
    )


def dropout_mask() -> Foreign:
    """Caffe's zoo files: Dropout with its mask, which was a float and is a bool from opset 10 on."""
    return built(
        [
            *features("image"),
            node("Dropout", ["pooled"], ["dropped", "mask"], "drop", ratio=0.5),
            node("Flatten", ["dropped"], ["flat"], "flatten"),
            node("Gemm", ["flat", "kernel", "bias"], ["scores"], "fc"),
        ],
        opset=8,
        ir_version=3,
    )


MAKERS = (
    stacked_matmul,
    constant_of_shape,
    mask_of_shape,
    captured,
    float64_island,
    taken_activation_name,
    taken_weight_name,
    vector_matmul,
    reshape_attribute,
    dropout_mask,
)
