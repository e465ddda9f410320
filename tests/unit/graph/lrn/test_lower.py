from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.graph.lrn.lower import lower_lrn, lrn_alone
from alexdeploy.graph.model import op_counts
from tests.helpers.graphs import Array, images, make_model, run


@pytest.mark.parametrize("size", [1, 3, 5, 9, 15])
@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_the_lowered_form_computes_the_literal_formula(size: int, beta: float) -> None:
    """The ONNX specification: x / (bias + alpha/size · Σ x²)^beta over channels c-⌊(n-1)/2⌋ … c+⌈(n-1)/2⌉."""
    node = helper.make_node("LRN", ["input"], ["logits"], "lrn1", size=size, alpha=2.0, beta=beta, bias=1.5)
    model = ir.from_proto(make_model([node], {}, shape=("batch", 12, 4, 4)))
    x = images(2, (12, 4, 4)).astype(np.float64)
    expected = np.empty_like(x)
    for c in range(12):
        low, high = max(0, c - (size - 1) // 2), min(11, c + size // 2)
        expected[:, c] = x[:, c] / (1.5 + 2.0 / size * (x[:, low : high + 1] ** 2).sum(axis=1)) ** beta
    lowered = lower_lrn(model)
    assert "LRN" not in op_counts(lowered)
    np.testing.assert_allclose(run(lowered, x.astype(np.float32))[0], expected, rtol=1e-5)
    assert op_counts(model) == {"LRN": 1}, "the model that was given is untouched"


def test_an_lrn_whose_channels_are_unknown_stays() -> None:
    node = helper.make_node("LRN", ["input"], ["logits"], "lrn1", size=5)
    model = ir.from_proto(make_model([node], {}, shape=("batch", "channels", 4, 4)))
    assert op_counts(lower_lrn(model)) == {"LRN": 1}


@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_behind_a_quantized_tensor_it_computes_the_same_on_the_integers(beta: float) -> None:
    node = helper.make_node("LRN", ["x"], ["logits"], "lrn1", size=5, alpha=2.0, beta=beta, bias=1.5)
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        node,
    ]
    arrays: dict[str, Array] = {"scale": np.asarray(np.float32(0.03)), "zero": np.asarray(np.uint8(0))}
    proto = onnx.shape_inference.infer_shapes(make_model(nodes, arrays, shape=("batch", 12, 4, 6)))
    lowered = lower_lrn(ir.from_proto(proto))
    assert "DequantizeLinear" not in op_counts(lowered)
    x = np.abs(images(3, (12, 4, 6)))
    np.testing.assert_allclose(run(lowered, x)[0], run(proto, x)[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("zero", [0, 128])
def test_a_lone_lrn_keeps_its_attributes_and_its_quantized_input(zero: int) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("LRN", ["x"], ["logits"], "lrn1", size=3, alpha=2.0, beta=0.75, bias=1.5),
    ]
    arrays: dict[str, Array] = {"scale": np.asarray(np.float32(0.03)), "zero": np.asarray(np.uint8(zero))}
    proto = onnx.shape_inference.infer_shapes(make_model(nodes, arrays, shape=("batch", 12, 3, 3)))
    alone = lrn_alone(next(node for node in ir.from_proto(proto).graph if node.op_type == "LRN"))
    x = np.abs(images(3, (12, 3, 3)))
    if zero:
        assert op_counts(alone) == {"LRN": 1}
    else:
        np.testing.assert_allclose(run(alone, x)[0], run(proto, x)[0], rtol=1e-6)
