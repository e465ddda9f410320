from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.graph.lower_lrn import lower_lrn
from alexdeploy.graph.model import op_counts
from tests.helpers.graphs import images, make_model, run


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
