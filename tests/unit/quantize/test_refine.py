from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.graph.taps import with_outputs
from alexdeploy.graph.weighted import quantized_nodes
from alexdeploy.metrics import sqnr_db
from alexdeploy.quantize.moments import Moments, MomentsObserver
from alexdeploy.quantize.refine import Refined, refine
from alexdeploy.specs import Dialect
from tests.helpers.graphs import Array, make_model, run

TENSORS = ["input", "clip1", "clip2", "flat"]


def network() -> ir.Model:
    """Convolution, ReLU6, depthwise, ReLU6, 1 × 1 without bias, pooling, Gemm."""
    random = np.random.default_rng(7)
    shapes = {"w1": (24, 3, 3, 3), "w2": (24, 1, 3, 3), "w3": (16, 24, 1, 1), "w4": (10, 256)}
    weights: dict[str, Array] = {n: (random.standard_normal(s) / 3).astype(np.float32) for n, s in shapes.items()}
    weights |= {name: random.standard_normal(24).astype(np.float32) for name in ("b1", "b2")}
    weights |= {"b4": np.zeros(10, np.float32), "low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["conv1"], "conv1", pads=[1] * 4),
        helper.make_node("Clip", ["conv1", "low", "high"], ["clip1"], "clip1"),
        helper.make_node("Conv", ["clip1", "w2", "b2"], ["conv2"], "conv2", group=24, pads=[1] * 4),
        helper.make_node("Clip", ["conv2", "low", "high"], ["clip2"], "clip2"),
        helper.make_node("Conv", ["clip2", "w3"], ["conv3"], "conv3"),
        helper.make_node("MaxPool", ["conv3"], ["pool3"], "pool3", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pool3"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "w4", "b4"], ["logits"], "fc4", transB=1),
    ]
    return ir.from_proto(make_model(nodes, weights, rank=2))


def images(count: int, seed: int) -> Array:
    random = np.random.default_rng(seed)
    smooth = np.cumsum(np.cumsum(random.standard_normal((count, 3, 8, 8)), axis=2), axis=3)
    return (smooth / 4).astype(np.float32)


def tapped(model: ir.Model, batch: Array) -> dict[str, Array]:
    inner = TENSORS[1:]
    return {"input": batch, **dict(zip(inner, run(with_outputs(model, inner), batch), strict=True))}


@pytest.fixture(scope="module")
def calibrated() -> tuple[dict[str, TensorRange], Moments]:
    model, batch = network(), images(256, 1)
    observer, found = MomentsObserver(model, 256), tapped(model, batch)
    observer.add(observer.columns(found, 0, len(batch)))
    ranges = {name: TensorRange(float(np.abs(a).max()), bool(a.min() >= 0)) for name, a in found.items()}
    return ranges, observer.result()


def written(ranges: dict[str, TensorRange], refined: Refined, dialect: Dialect = "tensorrt") -> ir.Model:
    return insert_qdq(refined.model, ranges, weights=refined.weights, dialect=dialect)


@pytest.mark.parametrize("dialect", ["tensorrt", "openvino", "onnxruntime"])
def test_images_that_were_not_seen_come_closer_to_the_float_model(
    calibrated: tuple[dict[str, TensorRange], Moments], dialect: Dialect
) -> None:
    (ranges, moments), model, batch = calibrated, network(), images(300, 2)
    ranges = ranges | {"conv3": ranges["flat"]}
    expected = run(model, batch)[0]
    nearest = sqnr_db(run(insert_qdq(model, ranges, dialect=dialect), batch)[0], expected)
    refined = sqnr_db(run(written(ranges, refine(model, ranges, moments, 256), dialect), batch)[0], expected)
    assert refined > nearest + 1.5


def test_the_mean_of_every_output_stays(calibrated: tuple[dict[str, TensorRange], Moments]) -> None:
    """The last layer, on exact inputs: its rounded weights with the corrected bias against the float ones."""
    (ranges, moments), model = calibrated, network()
    refined = refine(model, ranges, moments, 256)
    flat = tapped(refined.model, images(256, 1))["flat"].astype(np.float64)
    weight = refined.weights["fc4"]
    assert weight.bias is not None
    found = refined.model.graph.node("fc4").inputs
    constants: list[Array] = [value.const_value.numpy() for value in found[1:]]  # type: ignore[union-attr]
    weights, bias = (array.astype(np.float64) for array in constants)
    rounded = weight.levels.astype(np.float64) * weight.scales[:, None]
    shift = (flat @ rounded.T + weight.bias - flat @ weights.T - bias).mean(axis=0)
    uncorrected = (flat @ rounded.T - flat @ weights.T).mean(axis=0)
    assert np.abs(shift).max() < 1e-4
    assert np.abs(uncorrected).max() > 10 * np.abs(shift).max()


def test_the_operators_stay_and_a_convolution_without_bias_gets_one(
    calibrated: tuple[dict[str, TensorRange], Moments],
) -> None:
    (ranges, moments), model = calibrated, network()
    refined = written(ranges, refine(model, ranges, moments, 256))
    plain = insert_qdq(model, ranges)
    assert [node.op_type for node in refined.graph] == [node.op_type for node in plain.graph]
    assert len(quantized_nodes(refined)) == 4
    assert refined.graph.node("conv3").inputs[2].name == "conv3.bias.corrected"  # type: ignore[union-attr]


def test_a_layer_without_moments_is_told(calibrated: tuple[dict[str, TensorRange], Moments]) -> None:
    (ranges, _), model = calibrated, network()
    import safetensors.numpy

    refined = refine(model, ranges, Moments(data=safetensors.numpy.save({})), 256)
    assert refined.nearest == ("conv1", "conv2", "conv3", "fc4")
    assert refined.weights == {}


def test_channels_are_evened_out_by_many_images_only() -> None:
    """Two layers; each of the channels between them is seldom large, so 16 images do not show how large."""
    random = np.random.default_rng(6)
    sizes = {"w1": (48, 32), "b1": (32,), "w2": (32, 10)}
    weights: dict[str, Array] = {name: random.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    weights["b1"] -= 8
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["fc1"], "fc1"),
        helper.make_node("Relu", ["fc1"], ["relu1"], "relu1"),
        helper.make_node("Gemm", ["relu1", "w2"], ["logits"], "fc2"),
    ]
    model = ir.from_proto(make_model(nodes, weights, rank=2, shape=("batch", 3, 4, 4)))

    def gain(count: int) -> float:
        batch, test = (random.standard_normal((n, 3, 4, 4)).astype(np.float32) for n in (count, 256))
        relu = run(with_outputs(model, ["relu1"]), batch)[0]
        seen = {"flat": batch.reshape(count, -1), "relu1": relu}
        observer = MomentsObserver(model, count)
        observer.add(observer.columns(seen, 0, count))
        ranges = {name: TensorRange(float(np.abs(array).max())) for name, array in seen.items()}
        found = written(ranges, refine(model, ranges, observer.result(), count))
        expected = run(model, test)[0]
        return sqnr_db(run(found, test)[0], expected) - sqnr_db(run(insert_qdq(model, ranges), test)[0], expected)

    assert gain(16) > -1
    assert gain(1024) > 0


def one_gemm(operator: str, bias: Array | None, *, inputs: int = 96, outputs: int = 4, **attributes: Any) -> ir.Model:
    """Flatten, then Gemm or MatMul, and behind a MatMul an Add."""
    matrix = np.random.default_rng(3).standard_normal((inputs, outputs)).astype(np.float32)
    weights: dict[str, Array] = {"w": matrix} if bias is None else {"w": matrix, "b": bias.astype(np.float32)}
    nodes = [helper.make_node("Flatten", ["input"], ["flat"], "flat")]
    nodes += [helper.make_node(operator, ["flat", *weights], ["logits"], "product", **attributes)]
    return ir.from_proto(make_model(nodes, weights, rank=2, shape=(outputs, 1, 1, inputs)))


def gathered(model: ir.Model, batch: Array) -> tuple[dict[str, TensorRange], Moments]:
    observer = MomentsObserver(model, len(batch))
    observer.add(observer.columns({"flat": batch.reshape(len(batch), -1)}, 0, len(batch)))
    return {"flat": TensorRange(float(np.abs(batch).max()))}, observer.result()


def correlated(count: int, seed: int, *, mean: float, inputs: int = 96) -> Array:
    directions = np.random.default_rng(8).standard_normal((inputs, inputs)) / 10
    centre = mean * (0.2 + np.abs(np.random.default_rng(9).standard_normal(inputs)))
    samples = centre + 0.3 * np.random.default_rng(seed).standard_normal((count, inputs)) @ directions
    return samples.astype(np.float32).reshape(count, 1, 1, inputs)


def decibels(model: ir.Model, reference: ir.Model, batches: Array) -> float:
    outputs = [[run(one, batch)[0] for batch in batches] for one in (model, reference)]
    return sqnr_db(*(np.concatenate(found) for found in outputs))


@pytest.mark.parametrize(
    ("operator", "attributes"), [("MatMul", {}), ("Gemm", {"alpha": 0.5}), ("Gemm", {"beta": 2.0})]
)
def test_a_layer_whose_bias_cannot_take_up_the_mean_keeps_it_by_its_weights(
    operator: str, attributes: dict[str, Any]
) -> None:
    """Its inputs have a large mean, which the covariance alone does not show."""
    model = one_gemm(operator, None, inputs=192, outputs=10, **attributes)
    ranges, moments = gathered(model, correlated(1024, 1, mean=3.0, inputs=192))
    test = correlated(60, 2, mean=3.0, inputs=192).reshape(6, 10, 1, 1, 192)
    nearest = decibels(insert_qdq(model, ranges), model, test)
    assert decibels(written(ranges, refine(model, ranges, moments, 256)), model, test) > nearest + 2


@pytest.mark.parametrize("dialect", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 4), (1, 1), (4, 1), (4, 4)])
def test_a_bias_of_any_shape_is_added_where_it_was(shape: tuple[int, ...], dialect: Dialect) -> None:
    """As many rows as channels, so that a bias per row looks like one per channel."""
    model = one_gemm("Gemm", 40 + 40 * np.asarray(np.random.default_rng(4).standard_normal(shape)))
    ranges, moments = gathered(model, correlated(1024, 1, mean=0.0))
    test = correlated(32, 2, mean=0.0).reshape(8, 4, 1, 1, 96)
    assert decibels(written(ranges, refine(model, ranges, moments, 256), dialect), model, test) > 45


def test_moments_that_overflowed_round_to_the_nearest_by_name() -> None:
    model, batch = one_gemm("Gemm", None), correlated(64, 1, mean=1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        ranges, moments = gathered(model, batch * np.float32(1e25))
    refined = refine(model, ranges, moments, 256)
    assert (refined.nearest, refined.weights) == (("product",), {})


def test_memory_does_not_grow_with_the_rows_of_a_layer_but_for_its_integers() -> None:
    model = one_gemm("Gemm", None, inputs=256, outputs=16384)
    ranges, moments = gathered(model, correlated(64, 1, mean=0.0, inputs=256))
    tracemalloc.start()
    refine(model, ranges, moments, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / (256 * 16384) < 8  # bytes per weight; float64 has 8
