from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.graph.equalize import equalizable, equalize, scale_factors
from alexdeploy.graph.taps import with_outputs
from tests.helpers.graphs import Array, make_model, run

CHANNELS = np.array([8.0, 1.9, 0.01, 0.0], np.float32)  # of a range of 8


def network(*, group: int = 1, branch: bool = False) -> onnx.ModelProto:
    """conv1, ReLU, pooling, conv2, ReLU, flattened into fc3 (transB=1), fc4 (transB=0); a branch off relu1."""
    random = np.random.default_rng(5)
    shapes = {"w1": (4, 3, 3, 3), "w2": (4, 4 // group, 1, 1), "w3": (6, 64), "w4": (6, 2)}
    weights: dict[str, Array] = {name: random.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    weights |= {"b1": random.standard_normal(4).astype(np.float32), "b3": random.standard_normal(6).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["conv1"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["conv1"], ["relu1"], "relu1"),
        helper.make_node("MaxPool", ["relu1"], ["pool1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["pool1", "w2"], ["conv2"], "conv2", group=group),
        helper.make_node("Relu", ["conv2"], ["relu2"], "relu2"),
        helper.make_node("Flatten", ["relu2"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["fc3"], "fc3", transB=1),
        helper.make_node("Gemm", ["fc3", "w4"], ["last"], "fc4"),
        helper.make_node("ReduceMean", ["relu1"], ["mean"], "mean", keepdims=0),
        helper.make_node("Add", ["last", "mean"], ["logits"], "add"),
    ]
    if not branch:
        nodes[-2:] = [helper.make_node("Identity", ["last"], ["logits"], "identity")]
    return make_model(nodes, weights, rank=2)


@pytest.fixture
def equalized() -> ir.Model:
    channels = {"pool1": CHANNELS, "flat": np.repeat(CHANNELS[::-1], 16), "fc3": np.full(6, 2.0)}
    return equalize(ir.from_proto(network()), channels, dict.fromkeys(channels, 8.0))


def test_the_float_function_is_the_same_but_for_the_last_bits(equalized: ir.Model) -> None:
    batch = np.random.default_rng(1).standard_normal((3, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(equalized, batch)[0], run(ir.from_proto(network()), batch)[0], rtol=2e-5, atol=2e-5)


def test_behind_a_relu6_no_channel_that_stays_within_what_was_seen_is_clipped() -> None:
    """Convolution, ReLU6, depthwise with two filters per channel, ReLU6, 1 × 1; two channels reach 6, two do not."""
    random = np.random.default_rng(5)
    shapes = {"w1": (4, 3, 1, 1), "w2": (8, 1, 3, 3), "w3": (5, 8, 1, 1)}
    weights: dict[str, Array] = {name: random.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    weights["w1"] *= np.array([9, 4, 0.05, 0.3], np.float32).reshape(4, 1, 1, 1)
    weights |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["conv1"], "conv1"),
        helper.make_node("Clip", ["conv1", "low", "high"], ["clip1"], "clip1"),
        helper.make_node("Conv", ["clip1", "w2"], ["conv2"], "conv2", group=4, pads=[1] * 4),
        helper.make_node("Clip", ["conv2", "low", "high"], ["clip2"], "clip2"),
        helper.make_node("Conv", ["clip2", "w3"], ["logits"], "conv3"),
    ]
    model = ir.from_proto(make_model(nodes, weights, rank=4))
    assert equalizable(model) == ["clip1", "clip2"]
    batch = random.standard_normal((3, 3, 8, 8)).astype(np.float32)
    seen = dict(zip(("clip1", "clip2"), run(with_outputs(model, ["clip1", "clip2"]), batch), strict=True))
    channels = {name: array.max(axis=(0, 2, 3)) for name, array in seen.items()}
    equalized = equalize(model, channels, dict.fromkeys(channels, 6.0))
    factors = scale_factors(equalized)["clip1"]
    assert factors[:2].tolist() == [1.0, 1.0]
    assert (factors[2:] > 1).all()
    np.testing.assert_allclose(run(equalized, batch)[0], run(model, batch)[0], rtol=2e-5, atol=2e-5)


def test_each_channel_grows_by_the_root_of_its_headroom(equalized: ir.Model) -> None:
    names = ["conv1", "relu1", "pool1", "flat"]
    batch = np.random.default_rng(1).standard_normal((3, 3, 8, 8)).astype(np.float32)
    before, after = (run(with_outputs(m, names), batch) for m in (ir.from_proto(network()), equalized))
    factors = np.array([1.0, 525 / 256, 8.0, 1.0], np.float32)  # sqrt(8 / 1.9) is 525.3 / 256; 8 the most; silent
    for index in range(3):
        np.testing.assert_allclose(after[index], before[index] * factors.reshape(1, 4, 1, 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after[3], before[3] * np.repeat(factors[::-1], 16), rtol=1e-5, atol=1e-4)
    told = scale_factors(equalized)
    assert told.keys() == {"conv1", "relu1", "pool1", "conv2", "relu2", "flat", "fc3"}
    np.testing.assert_array_equal(told["pool1"], factors)
    np.testing.assert_array_equal(told["fc3"], np.full(6, 2.0))


def test_a_tensor_that_others_use_or_that_feeds_groups_is_left_alone() -> None:
    assert equalizable(ir.from_proto(network())) == ["pool1", "flat", "fc3"]
    assert equalizable(ir.from_proto(network(branch=True))) == ["flat", "fc3"]
    assert equalizable(ir.from_proto(network(group=2))) == ["flat", "fc3"]


CONV = [
    helper.make_node("Conv", ["input", "w1"], ["conv1"], "conv1", pads=[1] * 4),
    helper.make_node("Relu", ["conv1"], ["relu1"], "relu1"),
]


@pytest.mark.parametrize(
    ("nodes", "matrix"),
    [
        ([helper.make_node("MatMul", ["relu1", "w2"], ["logits"], "matmul")], (8, 5)),  # along the columns of the image
        (
            [
                helper.make_node("Flatten", ["relu1"], ["flat"], "flat"),
                helper.make_node("Gemm", ["flat", "w2"], ["logits"], "gemm", transA=1),  # along the batch
            ],
            (8, 5),
        ),
        (
            [
                helper.make_node("Flatten", ["relu1"], ["flat"], "flat", axis=2),  # channels become rows
                helper.make_node("MatMul", ["flat", "w2"], ["logits"], "matmul"),
            ],
            (64, 5),
        ),
    ],
)
def test_what_sums_along_another_axis_than_the_channels_is_left_alone(
    nodes: list[onnx.NodeProto], matrix: tuple[int, ...]
) -> None:
    random = np.random.default_rng(5)
    weights: dict[str, Array] = {"w1": random.standard_normal((8, 3, 3, 3)).astype(np.float32)}
    weights |= {"w2": random.standard_normal(matrix).astype(np.float32)}
    rank = 4 if nodes[0].op_type == "MatMul" else 2
    model = ir.from_proto(make_model([*CONV, *nodes], weights, rank=rank, shape=(8, 3, 8, 8)))
    assert equalizable(model) == []
    batch = random.standard_normal((8, 3, 8, 8)).astype(np.float32)
    channels = {str(model.graph[-1].inputs[0].name): np.geomspace(0.01, 8, 8)}  # type: ignore[union-attr]
    equalized = equalize(model, channels, dict.fromkeys(channels, 8.0))
    np.testing.assert_array_equal(run(equalized, batch)[0], run(model, batch)[0])


def test_a_matmul_of_flattened_channels_is_evened_out() -> None:
    random = np.random.default_rng(5)
    nodes = [
        *CONV,
        helper.make_node("Flatten", ["relu1"], ["flat"], "flat"),
        helper.make_node("MatMul", ["flat", "w2"], ["logits"], "matmul"),
    ]
    weights: dict[str, Array] = {"w1": random.standard_normal((8, 3, 3, 3)).astype(np.float32)}
    weights |= {"w2": random.standard_normal((512, 5)).astype(np.float32)}
    assert equalizable(ir.from_proto(make_model(nodes, weights, rank=2))) == ["flat"]


@pytest.mark.parametrize("shape", [(), (1,), (6,), (1, 6), (1, 1)])
def test_a_bias_of_any_shape_grows_with_its_channels(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(5)
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["fc1"], "fc1"),
        helper.make_node("Relu", ["fc1"], ["relu1"], "relu1"),
        helper.make_node("Gemm", ["relu1", "w2"], ["logits"], "fc2"),
    ]
    sizes = {"w1": (192, 6), "b1": shape, "w2": (6, 4)}
    weights: dict[str, Array] = {n: np.asarray(random.standard_normal(s), np.float32) for n, s in sizes.items()}
    model = ir.from_proto(make_model(nodes, weights, rank=2))
    batch = random.standard_normal((3, 3, 8, 8)).astype(np.float32)
    equalized = equalize(model, {"relu1": np.geomspace(0.1, 40, 6)}, {"relu1": 40.0})
    np.testing.assert_allclose(run(equalized, batch)[0], run(model, batch)[0], rtol=2e-5, atol=2e-4)
