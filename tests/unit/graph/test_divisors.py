"""Which nodes have to be FP32 so that nothing is divided by 0; tests/field has the answers on a black image."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.graph.divisors import guarded_divisions
from alexdeploy.graph.fp16 import to_bf16, to_fp16
from tests.helpers.graphs import Array, images, make_model, run


def normalized(least: float, exponent: float = -0.5) -> ir.Model:
    """The features by a power of (their mean square + ``least``)."""
    nodes = [
        helper.make_node("Relu", ["input"], ["features"], "relu"),
        helper.make_node("Mul", ["features", "features"], ["squares"], "squares"),
        helper.make_node("ReduceMean", ["squares", "axes"], ["mean"], "mean", keepdims=1),
        helper.make_node("Add", ["mean", "least"], ["sum"], "add"),
        helper.make_node("Pow", ["sum", "exponent"], ["power"], "pow"),
        helper.make_node("Mul", ["power", "gain"], ["gained"], "gain"),
        helper.make_node("Mul", ["features", "gained"], ["quotient"], "product"),
        helper.make_node("Neg", ["quotient"], ["logits"], "neg"),
    ]
    values = {"least": least, "exponent": exponent, "gain": 3.0}
    weights: dict[str, Array] = {name: np.array(value, np.float32) for name, value in values.items()}
    return ir.from_proto(make_model(nodes, weights | {"axes": np.ones(1, np.int64)}))


def found(model: ir.Model, half: ir.DataType = ir.DataType.FLOAT16) -> list[str]:
    guarded = guarded_divisions(model, half)
    return [str(node.name) for node in model.graph if node in guarded]


def test_all_from_the_squares_to_the_product_is_found_and_what_is_around_it_is_not() -> None:
    assert found(normalized(1e-12)) == ["squares", "mean", "add", "pow", "gain", "product"]


@pytest.mark.parametrize(("least", "exponent"), [(1e-4, -0.5), (1e-6, -0.5), (1e-12, 0.5), (0.0, -0.5)])
def test_a_constant_that_is_held_and_a_power_that_does_not_divide_need_nothing(least: float, exponent: float) -> None:
    assert found(normalized(least, exponent)) == []


def test_bfloat16_holds_it() -> None:
    assert found(normalized(1e-12), ir.DataType.BFLOAT16) == []
    kinds = {node.name: node.outputs[0].dtype for node in to_bf16(normalized(1e-12)).graph}
    assert kinds["product"] == ir.DataType.BFLOAT16


def test_what_was_measured_says_nothing_of_the_least_value() -> None:
    model = normalized(1e-12)
    half = to_fp16(model, largest=dict.fromkeys(("sum", "power", "gained", "quotient"), 2.0))
    black = -np.abs(images(2))
    np.testing.assert_array_equal(run(half, black)[0], run(model, black)[0])


@pytest.mark.parametrize("move", ["Expand", "Unsqueeze", "Concat", "Tile", "Slice", "Max"])
def test_what_overflows_is_wide_behind_what_moves_it(move: str) -> None:
    more = {
        "Expand": ["shape"],
        "Unsqueeze": ["first"],
        "Concat": [],
        "Tile": ["shape"],
        "Slice": ["first", "last"],
        "Max": ["small"],
    }
    nodes = [
        helper.make_node("Mul", ["input", "big"], ["large"], "mul"),
        helper.make_node(move, ["large", *more[move]], ["moved"], "move", axis=0 if move == "Concat" else None),
        helper.make_node("Mul", ["moved", "small"], ["logits"], "back"),
    ]
    weights: dict[str, Array] = {
        "big": np.array(1e6, np.float32),
        "small": np.array(1e-4, np.float32),
        "shape": np.ones(4, np.int64),
        "first": np.zeros(1, np.int64),
        "last": np.full(1, 9, np.int64),
    }
    model: onnx.ModelProto = make_model(nodes, weights, rank=5 if move == "Unsqueeze" else 4)
    half = to_fp16(ir.from_proto(model))
    assert {node.name: node.outputs[0].dtype for node in half.graph}["back"] == ir.DataType.FLOAT
    np.testing.assert_allclose(run(half, images(2))[0], run(model, images(2))[0], rtol=1e-3)
