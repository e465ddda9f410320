"""Classifiers as other tools write them, by hand with onnx.helper: 3 × 8 × 8 images, four classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.contract import Contract
from tests.helpers.graphs import Array

CONTRACT = Contract(color="rgb", resize=8, crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)
NHWC = Contract(color="rgb", resize=8, crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, layout="nhwc")
PIXELS = Contract(color="rgb", resize=8, crop=8, layout="nhwc", input_type="uint8")
HALF = Contract(color="rgb", resize=8, crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, input_type="float16")

Tensor = tuple[str, int, Sequence[Any]]
node = helper.make_node


class Foreign(NamedTuple):
    """``image`` and ``logits`` are the names of that input and output; ``probabilities``: the output is softmax."""

    model: onnx.ModelProto
    contract: Contract = CONTRACT
    image: str = "image"
    logits: str = "scores"
    constants: dict[str, Any] = {}
    probabilities: bool = False


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    opset: int = 17,
    ir_version: int = 8,
    weights: dict[str, Array] | None = None,
) -> onnx.ModelProto:
    weights = network_weights() if weights is None else weights
    used = {name for one in nodes for name in one.input}
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items() if name in used]
    listed = [helper.make_tensor_value_info(*tensor) for tensor in inputs]
    if ir_version < 4:
        listed += [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in initializers]
    ends = [helper.make_tensor_value_info(*tensor) for tensor in outputs]
    made = helper.make_graph(list(nodes), "theirs", listed, ends, initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def network_weights(dtype: type[np.generic] = np.float32) -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        "w1": (random.standard_normal((16, 3, 3, 3)) / 3).astype(dtype),
        "b1": random.standard_normal(16).astype(dtype),
        "w2": (random.standard_normal((16, 16, 3, 3)) / 8).astype(dtype),
        "b2": random.standard_normal(16).astype(dtype),
        "gamma": random.uniform(0.5, 1.5, 16).astype(dtype),
        "beta": random.standard_normal(16).astype(dtype),
        "moving_mean": random.standard_normal(16).astype(dtype),
        "moving_var": random.uniform(0.5, 1.5, 16).astype(dtype),
        "kernel": random.standard_normal((16, 4)).astype(dtype),
        "bias": random.standard_normal(4).astype(dtype),
        "to_one": np.array(1 / 255, dtype),
        "half": np.array(0.5, dtype),
        "axes": np.array([2, 3], np.int64),
    }


def features(source: str, pooled: str = "pooled") -> list[onnx.NodeProto]:
    """Two convolutions and a global pool: (n, 16, 1, 1), for images of any size."""
    return [
        node("Conv", [source, "w1", "b1"], ["c1"], "c1", auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[3, 3]),
        node("Relu", ["c1"], ["r1"], "r1"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "c2", pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"], "r2"),
        node("GlobalAveragePool", ["r2"], [pooled], "pool"),
    ]


def head(scores: str = "scores") -> list[onnx.NodeProto]:
    return [node("Flatten", ["pooled"], ["flat"], "flatten"), node("Gemm", ["flat", "kernel", "bias"], [scores], "fc")]


def keras() -> Foreign:
    """tf2onnx: channels last, Transpose first, SAME_UPPER, BatchNormalization, Softmax."""
    nodes = [
        node("Transpose", ["input_1:0"], ["nchw"], "model/conv/Conv2D__6", perm=[0, 3, 1, 2]),
        node("Conv", ["nchw", "w1"], ["conv"], "model/conv/Conv2D", auto_pad="SAME_UPPER", strides=[2, 2]),
        node("BatchNormalization", ["conv", "gamma", "beta", "moving_mean", "moving_var"], ["bn"], "model/bn"),
        node("Relu", ["bn"], ["relu"], "model/relu/Relu"),
        node("MaxPool", ["relu"], ["pool"], "model/pool", kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
        node("Conv", ["pool", "w2", "b2"], ["conv2"], "model/conv2/Conv2D", auto_pad="SAME_LOWER", strides=[2, 2]),
        node("Transpose", ["conv2"], ["nhwc"], "model/conv2/back", perm=[0, 2, 3, 1]),
        node("Transpose", ["nhwc"], ["again"], "model/gap/there", perm=[0, 3, 1, 2]),
        node("GlobalAveragePool", ["again"], ["mean"], "model/gap/Mean"),
        node("Squeeze", ["mean", "axes"], ["row"], "model/gap/Squeeze"),
        node("MatMul", ["row", "kernel"], ["product"], "model/dense/MatMul"),
        node("Add", ["product", "bias"], ["sum"], "model/dense/BiasAdd"),
        node("Softmax", ["sum"], ["dense"], "model/dense/Softmax"),
    ]
    inputs, outputs = [("input_1:0", 1, ["unk__1", 8, 8, 3])], [("dense", 1, ["unk__2", 4])]
    return Foreign(graph(nodes, inputs, outputs), NHWC, "input_1:0", "dense", probabilities=True)


def pixels() -> Foreign:
    """Arithmetic inside: uint8 pixels, channels last."""
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        node("Mul", ["float", "to_one"], ["unit"]),
        node("Sub", ["unit", "half"], ["centred"]),
        node("Transpose", ["centred"], ["nchw"], perm=[0, 3, 1, 2]),
        *features("nchw"),
        *head(),
    ]
    inputs, outputs = [("image", TensorProto.UINT8, ["n", 8, 8, 3])], [("scores", 1, ["n", 4])]
    return Foreign(graph(nodes, inputs, outputs), PIXELS)


def half_input() -> Foreign:
    """float16 images, float32 arithmetic, float16 scores."""
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        *features("float"),
        *head("wide"),
        node("Cast", ["wide"], ["scores"], to=TensorProto.FLOAT16),
    ]
    inputs, outputs = [("image", TensorProto.FLOAT16, ["n", 3, 8, 8])], [("scores", TensorProto.FLOAT16, ["n", 4])]
    return Foreign(graph(nodes, inputs, outputs), HALF)


def half_throughout() -> Foreign:
    nodes = [*features("image"), *head("wide"), node("Softmax", ["wide"], ["scores"])]
    inputs, outputs = [("image", TensorProto.FLOAT16, ["n", 3, 8, 8])], [("scores", TensorProto.FLOAT16, ["n", 4])]
    model = graph(nodes, inputs, outputs, weights=network_weights(np.float16))
    return Foreign(model, HALF, probabilities=True)


def several_outputs() -> Foreign:
    """Features, the winner, the scores, and a head of training with other classes."""
    nodes = [
        *features("image"),
        *head(),
        node("ArgMax", ["scores"], ["winner"], axis=1, keepdims=0),
        node("Flatten", ["r1"], ["wide"]),
        node("ReduceMax", ["wide"], ["strongest"], axes=[1], keepdims=0),
    ]
    outputs: list[Tensor] = [
        ("r2", 1, ["n", 16, 4, 4]),
        ("winner", TensorProto.INT64, ["n"]),
        ("scores", 1, ["n", 4]),
        ("strongest", 1, ["n"]),
    ]
    return Foreign(graph(nodes, [("image", 1, ["n", 3, 8, 8])], outputs))


def further_inputs() -> Foreign:
    """A switch for training, which chooses a branch and sets a Dropout, and a factor for each class."""
    branches = [
        helper.make_graph(
            [node(op, ["fc"], [f"chosen_{op}"])], op, [], [helper.make_tensor_value_info(f"chosen_{op}", 1, ["n", 4])]
        )
        for op in ("Neg", "Identity")
    ]
    nodes = [
        *features("image", "before"),
        node("Dropout", ["before", "half", "training"], ["pooled"], "drop"),
        *head("fc"),
        node("If", ["training"], ["chosen"], "if", then_branch=branches[0], else_branch=branches[1]),
        node("Div", ["chosen", "temperature"], ["scores"], "scale"),
    ]
    inputs: list[Tensor] = [
        ("training", TensorProto.BOOL, []),
        ("image", 1, ["n", 3, 8, 8]),
        ("temperature", 1, [1, 4]),
    ]
    model = graph(nodes, inputs, [("scores", 1, ["n", 4])])
    return Foreign(model, constants={"training": False, "temperature": 2.5})


def caffe() -> Foreign:
    """Opset 8 and IR 3: initializers among the inputs, LRN, Dropout, (n, 4, 1, 1) through a Softmax over axis 1."""
    weights = network_weights() | {"kernel": np.random.default_rng(1).standard_normal((4, 16, 1, 1)).astype(np.float32)}
    nodes = [
        node("Conv", ["data", "w1", "b1"], ["conv1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", ["conv1"], ["relu1"]),
        node("LRN", ["relu1"], ["norm1"], size=5, alpha=1e-2, beta=0.75, bias=1.0),
        node("MaxPool", ["norm1"], ["pool1"], kernel_shape=[3, 3], strides=[2, 2]),
        node("Dropout", ["pool1"], ["drop1", "mask1"], ratio=0.5),
        node("Conv", ["drop1", "kernel", "bias"], ["conv2"], kernel_shape=[1, 1]),
        node("GlobalAveragePool", ["conv2"], ["pool2"]),
        node("Softmax", ["pool2"], ["prob"]),
    ]
    inputs, outputs = [("data", 1, [2, 3, 8, 8])], [("prob", 1, [2, 4, 1, 1])]
    model = graph(nodes, inputs, outputs, opset=8, ir_version=3, weights=weights)
    return Foreign(model, image="data", logits="prob", probabilities=True)


def any_size() -> Foreign:
    """Height and width open, LogSoftmax."""
    nodes = [*features("image"), *head("fc"), node("LogSoftmax", ["fc"], ["scores"], axis=1)]
    return Foreign(graph(nodes, [("image", 1, ["n", 3, "h", "w"])], [("scores", 1, ["n", 4])]), probabilities=True)


ALL = {
    made.__name__: made
    for made in (keras, pixels, half_input, half_throughout, several_outputs, further_inputs, caffe, any_size)
}
