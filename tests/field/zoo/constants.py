"""How weights are stored, and what is in them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.field.zoo.base import FLOAT, around, built, ints, normal, stem, tail
from tests.helpers.foreign_graphs import Foreign, features, head, network_weights, node


def constant_nodes() -> Foreign:
    """Weights in Constant nodes, as tensors and as lists of numbers."""
    made = built([*features("image"), *head()])
    graph = made.model.graph
    for index, tensor in enumerate(graph.initializer):
        array = numpy_helper.to_array(tensor)
        value = {"value_floats": array.tolist()} if array.ndim == 1 else {"value": tensor}
        graph.node.insert(index, node("Constant", [], [tensor.name], f"constant_{index}", **value))
    del graph.initializer[:]
    return made


def moved_weights() -> Foreign:
    """Behind Transpose, Reshape, Unsqueeze, Squeeze, a Cast from FP16 and one from float64."""
    w1, w2 = network_weights()["w1"], network_weights()["w2"]
    return built(
        [
            node("Transpose", ["w1_hwio"], ["w1_t"], "t1", perm=[3, 2, 0, 1]),
            node("Conv", ["image", "w1_t", "b1"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Relu", ["c1"], ["r1"], "r1"),
            node("Cast", ["w2_half"], ["w2_flat"], "cast", to=FLOAT),
            node("Reshape", ["w2_flat", "oihw"], ["w2_r"], "reshape"),
            node("Cast", ["b2_double"], ["b2_f"], "cast2", to=FLOAT),
            node("Conv", ["r1", "w2_r", "b2_f"], ["c2"], "c2", pads=[1, 1, 1, 1]),
            node("Relu", ["c2"], ["r2"], "r2"),
            node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
            *head(),
        ],
        w1_hwio=np.ascontiguousarray(w1.transpose(2, 3, 1, 0)),
        w2_half=w2.astype(np.float16).reshape(16, -1),
        oihw=ints(16, 16, 3, 3),
        b2_double=network_weights()["b2"].astype(np.float64),
    )


def large_turned_weight() -> Foreign:
    """A matrix of over 1 MiB behind a Transpose, as PyTorch writes a Linear."""
    return built(
        [
            *features("image")[:4],
            node("Flatten", ["r2"], ["flat"], "flatten"),
            node("Transpose", ["wide"], ["turned"], "turn", perm=[1, 0]),
            node("MatMul", ["flat", "turned"], ["long"], "long"),
            node("Relu", ["long"], ["positive"], "positive"),
            node("Cast", ["narrow"], ["single"], "cast", to=FLOAT),
            node("MatMul", ["positive", "single"], ["scores"], "short"),
        ],
        wide=normal(1100, 256, scale=0.1),
        narrow=normal(1100, 4, scale=0.1).astype(np.float16),
    )


def bfloat16_weights() -> Foreign:
    """Stored in BF16, cast where they are used."""
    bf16 = {name: network_weights()[name].astype(ml_dtypes.bfloat16) for name in ("w1", "w2", "kernel")}
    casts = [node("Cast", [f"{name}_b"], [name], f"cast_{name}", to=FLOAT) for name in bf16]
    made = built([*casts, *features("image"), *head()], named={f"{name}_b": array for name, array in bf16.items()})
    kept = [one for one in made.model.graph.initializer if one.name not in bf16]
    made.model.graph.ClearField("initializer")
    made.model.graph.initializer.extend(kept)
    return made


def bfloat16_throughout() -> Foreign:
    """PyTorch's model.bfloat16(): ONNX Runtime has no such Conv for the CPU."""
    weights = {name: array.astype(ml_dtypes.bfloat16) for name, array in network_weights().items() if name != "axes"}
    return built(
        [
            node("Cast", ["image"], ["low"], "in", to=TensorProto.BFLOAT16),
            *features("low"),
            *head("wide_scores"),
            node("Cast", ["wide_scores"], ["scores"], "out", to=FLOAT),
        ],
        opset=22,
        ir_version=10,
        named=weights,
    )


def integer_weights() -> Foreign:
    """INT8 weights per channel behind DequantizeLinear, activations in float."""
    w2 = network_weights()["w2"]
    scale = (np.abs(w2).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    levels = np.rint(w2 / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
    return built(
        [
            *features("image")[:2],
            node("DequantizeLinear", ["levels", "step", "zeros"], ["w2_f"], "dq", axis=0),
            *[node("Conv", ["r1", "w2_f", "b2"], ["c2"], "c2", pads=[1, 1, 1, 1]), *features("image")[3:]],
            *head(),
        ],
        levels=levels,
        step=scale,
        zeros=np.zeros(16, np.int8),
    )


def int4_weights() -> Foreign:
    """INT4 in blocks of 8 behind DequantizeLinear of opset 21."""
    kernel = network_weights()["kernel"]
    scale = (np.abs(kernel.reshape(2, 8, 4)).max(axis=1) / 7).astype(np.float32)
    levels = np.rint(kernel / np.repeat(scale, 8, axis=0)).astype(ml_dtypes.int4)
    return built(
        [
            *features("image"),
            node("Flatten", ["pooled"], ["flat"], "flatten"),
            node("DequantizeLinear", ["levels", "step"], ["kernel_f"], "dq", axis=0, block_size=8),
            node("MatMul", ["flat", "kernel_f"], ["scores"], "fc"),
        ],
        opset=21,
        ir_version=10,
        levels=levels,
        step=scale,
    )


def sparse_initializer() -> Foreign:
    """The last matrix as a sparse one."""
    made = built([*features("image"), *head()])
    graph = made.model.graph
    (tensor,) = [one for one in graph.initializer if one.name == "kernel"]
    array = numpy_helper.to_array(tensor).copy()
    array[np.abs(array) < 1] = 0
    places = np.flatnonzero(array)
    values = numpy_helper.from_array(array.reshape(-1)[places], "kernel")
    indices = numpy_helper.from_array(places.astype(np.int64), "kernel_places")
    graph.initializer.remove(tensor)
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, list(array.shape)))
    return made


def sparse_constant() -> Foreign:
    """A Constant with a sparse value."""
    made = sparse_initializer()
    graph = made.model.graph
    graph.node.insert(0, node("Constant", [], ["kernel"], "sparse", sparse_value=graph.sparse_initializer[0]))
    del graph.sparse_initializer[:]
    return made


def typed_lists() -> Foreign:
    """Weights in float_data and int64_data, not in raw bytes."""
    made = built(
        [*features("image"), node("Reshape", ["pooled", "rows"], ["flat"], "rows"), *head()[1:]], rows=ints(-1, 16)
    )
    for tensor in made.model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.reshape(-1).tolist()))
    return made


def dead_channels() -> Foreign:
    """Channels whose weights and bias are zero, and a tensor that is zero for each image."""
    w1, b1 = network_weights()["w1"], network_weights()["b1"]
    w1[3:7], b1[3:7] = 0, 0
    return around(
        [
            node("Mul", ["r1", "none"], ["zero"], "zero"),
            node("Conv", ["zero", "w2", "b2"], ["cz"], "cz", pads=[1, 1, 1, 1]),
            node("Add", ["cz", "r1"], ["body"], "add"),
        ],
        w1=w1,
        b1=b1,
        none=np.array(0, np.float32),
    )


def constant_scores() -> Foreign:
    """The last layer has weights of zero: the answer is its bias."""
    return built([*features("image"), *head()], kernel=np.zeros((16, 4), np.float32))


def zero_scores() -> Foreign:
    """A head as it is before fine-tuning: no weights, no bias."""
    return built([*features("image"), *head()], kernel=np.zeros((16, 4), np.float32), bias=np.zeros(4, np.float32))


def scores_without_image() -> Foreign:
    """The scores are a constant of the file, and no image reaches them."""
    return built(
        [
            *features("image"),
            *head("fc"),
            node("Shape", ["fc"], ["shape"], "shape"),
            node("Expand", ["bias", "shape"], ["scores"], "expand"),
        ]
    )


def outlier() -> Foreign:
    """One weight of 1e30 in a channel that a ReLU kills, and one 300 times larger than the rest of its channel."""
    w1, b1, w2 = network_weights()["w1"], network_weights()["b1"], network_weights()["w2"]
    w2[4, 4, 1, 1] = 30
    return built([*features("image"), *head()], w1=w1, b1=b1, w2=w2)


def huge_weight() -> Foreign:
    """One weight of 1e30: nothing else counts."""
    w2 = network_weights()["w2"]
    w2[0, 0, 1, 1] = 1e30
    return built([*features("image"), *head()], w2=w2)


def infinite_bias() -> Foreign:
    """-inf as a mask in the last bias: that class is never chosen."""
    return built([*features("image"), *head()], bias=np.array([0.5, -np.inf, 1, -1], np.float32))


def unlike_channels() -> Foreign:
    """Channels that differ by 1e6, as in a MobileNet without cross-layer equalization."""
    w1, b1, w2 = network_weights()["w1"], network_weights()["b1"], network_weights()["w2"]
    factor = np.geomspace(1e-3, 1e3, 16).astype(np.float32)
    return built(
        [*features("image"), *head()],
        w1=w1 * factor.reshape(-1, 1, 1, 1),
        b1=b1 * factor,
        w2=w2 / factor.reshape(1, -1, 1, 1),
    )


def faint_activations() -> Foreign:
    """Activations of 1e-9 in front of a ReLU6, which ONNX Runtime takes for one that Q/DQ makes needless."""
    weights = network_weights()
    return built(
        [
            node("Conv", ["image", "w1", "small"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Clip", ["c1", "nought", "six"], ["r1"], "r1"),
            node("Conv", ["r1", "w2"], ["c2"], "c2", pads=[1, 1, 1, 1]),
            node("Clip", ["c2", "nought", "six"], ["r2"], "r2"),
            node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
            *head(),
        ],
        w1=weights["w1"] * np.float32(1e-8),
        small=weights["b1"] * np.float32(1e-8),
        nought=np.array(0, np.float32),
        six=np.array(6, np.float32),
        kernel=weights["kernel"] * np.float32(1e8),
    )


def external_data() -> Foreign:
    """Weights in a file beside it: the test saves it so."""
    made = built([*stem("r1"), *tail("r1")])
    made.model.graph.name = "outside"
    return made


MAKERS = (
    *(constant_nodes, moved_weights, large_turned_weight, bfloat16_weights, bfloat16_throughout, integer_weights),
    *(int4_weights, sparse_initializer, sparse_constant, typed_lists, dead_channels, constant_scores, zero_scores),
    *(scores_without_image, outlier, huge_weight, infinite_bias, unlike_channels, faint_activations, external_data),
)
