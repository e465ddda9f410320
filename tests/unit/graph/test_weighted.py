"""Layers with weights: which have groups, and which type the graph asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.contract import Contract
from alexdeploy.export.from_onnx import adopt_onnx
from alexdeploy.graph.fp16 import to_bf16, to_fp16
from alexdeploy.graph.model import load_onnx
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.graph.weighted import (
    grouped_hint,
    grouped_layers,
    half_type,
    layers_left,
    quantized_nodes,
    quantized_type,
    weighted_nodes,
)
from alexdeploy.specs import Precision
from tests.helpers.graphs import Array, make_model, run


def three_convolutions() -> ir.Model:
    """Without groups, with two, and depthwise."""
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["plain"], "plain"),
        helper.make_node("Conv", ["plain", "w2"], ["grouped"], "grouped", group=2),
        helper.make_node("Conv", ["grouped", "w3"], ["logits"], "depthwise", group=8),
    ]
    shapes = {"w1": (8, 3, 1, 1), "w2": (8, 4, 1, 1), "w3": (8, 1, 1, 1)}
    weights = {name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    return ir.from_proto(make_model(nodes, weights))


def quantized() -> ir.Model:
    return insert_qdq(three_convolutions(), {name: TensorRange(1.0) for name in ("input", "plain", "grouped")})


@pytest.mark.parametrize("write", [three_convolutions, quantized, lambda: to_fp16(quantized())])
def test_groups_are_those_that_are_not_depthwise(write: object) -> None:
    assert callable(write)
    assert grouped_layers(write()) == ["grouped"]


def test_the_hint_names_the_layers_and_gives_no_figure() -> None:
    hint = grouped_hint(["conv2", "conv4", "conv5"])
    assert "`keep_float` conv2,conv4,conv5" in hint
    assert "measure" in hint
    assert not any(word in hint for word in ("%", "×", " times"))


def test_a_layer_of_16_bits_is_one_without_qdq() -> None:
    half, brain = to_fp16(three_convolutions()), to_bf16(three_convolutions())
    assert [half_type(node) for node in half.graph if node.op_type == "Conv"] == ["HALF"] * 3
    assert [half_type(node) for node in brain.graph if node.op_type == "Conv"] == ["BFLOAT16"] * 3
    int8 = [node for node in to_fp16(quantized()).graph if node.op_type == "Conv"]
    assert [(half_type(node), quantized_type(node)) for node in int8] == [(None, "INT8")] * 3
    assert {half_type(node) for node in three_convolutions().graph} == {None}


@pytest.mark.parametrize(
    ("shape", "weighted"), [((64, 4), ["plain", "product"]), ((64,), ["plain"]), ((1, 64, 4), ["plain"])]
)
def test_a_matmul_counts_where_its_constant_is_a_matrix(shape: tuple[int, ...], weighted: list[str]) -> None:
    """A vector or a stack of matrices has no axis of output channels, and stays float as it is."""
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["plain"], "plain"),
        helper.make_node("Flatten", ["plain"], ["flat"], "flat"),
        helper.make_node("MatMul", ["flat", "w2"], ["logits"], "product"),
    ]
    random = np.random.default_rng(3)
    sizes = {"w1": (1, 3, 1, 1), "w2": shape}
    weights = {name: random.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    model = ir.from_proto(make_model(nodes, weights, rank=len(shape)))
    assert [node.name for node in weighted_nodes(model)] == weighted
    ranges = {"input": TensorRange(4.0), "flat": TensorRange(16.0)}
    written = ir.from_proto(ir.to_proto(insert_qdq(model, ranges)))
    assert [str(node.name) for node in quantized_nodes(written)] == weighted
    batch = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = run(model, batch)[0]
    np.testing.assert_allclose(run(written, batch)[0], expected, atol=0.05 * np.abs(expected).max())


def test_weights_behind_a_transpose_are_left_with_what_to_do_and_that_helps(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], "flatten"),
        helper.make_node("Transpose", ["w"], ["turned"], "turn"),
        helper.make_node("MatMul", ["flat", "turned"], ["logits"], "fc"),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((4096, 192)).astype(np.float32)}
    onnx.save(make_model(nodes, weights, rank=2), tmp_path / "theirs.onnx")
    left = layers_left(load_onnx(tmp_path / "theirs.onnx"), Precision.INT8)
    assert left == {"fc": "its weights go through a Transpose; adopt the file, which computes that once"}
    contract = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    adopt_onnx(tmp_path / "theirs.onnx", contract, tmp_path / "ours.onnx")
    assert layers_left(load_onnx(tmp_path / "ours.onnx"), Precision.INT8) == {}


def test_a_layer_whose_weights_alone_have_qdq_is_left_float(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["levels", "step"], ["w"], "dq"),
        helper.make_node("Conv", ["input", "w"], ["map"], "conv"),
        helper.make_node("Flatten", ["map"], ["logits"], "flatten"),
    ]
    weights: dict[str, Array] = {"levels": np.ones((4, 3, 3, 3), np.int8), "step": np.array(0.1, np.float32)}
    onnx.save(make_model(nodes, weights, rank=2), tmp_path / "theirs.onnx")
    assert layers_left(load_onnx(tmp_path / "theirs.onnx"), Precision.INT8) == {"conv": "only its weights have Q/DQ"}


@pytest.mark.parametrize(("first", "left"), [("input", {}), ("w", {"product": "its weights are its first input"})])
def test_qdq_on_an_activation_that_is_the_second_input_is_not_taken_for_that_of_weights(
    first: str, left: dict[str, str]
) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "step", "zero"], ["levels"], "q"),
        helper.make_node("DequantizeLinear", ["levels", "step", "zero"], ["x"], "dq"),
        helper.make_node("MatMul", [first, "x"], ["logits"], "product"),
    ]
    weights: dict[str, Array] = {"step": np.array(0.1, np.float32), "zero": np.array(0, np.int8)}
    weights |= {"w": np.ones((8, 8), np.float32)} if first == "w" else {}
    assert layers_left(ir.from_proto(make_model(nodes, weights)), Precision.INT8) == left
