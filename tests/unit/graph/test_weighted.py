"""Layers with weights: which have groups, and which type the graph asks for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.graph.fp16 import to_bf16, to_fp16
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.graph.weighted import grouped_hint, grouped_layers, half_type, quantized_type
from tests.helpers.graphs import make_model


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
