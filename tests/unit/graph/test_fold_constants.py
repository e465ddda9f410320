"""Folding does not compute what it would not keep."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.graph.fold_constants import fold_constants
from alexdeploy.graph.infer import infer_shapes
from alexdeploy.graph.model import op_counts
from tests.helpers.graphs import make_model

WEIGHTS = {
    "row": np.ones((1, 4000), np.float32),
    "column": np.ones((4000, 1), np.float32),
    "size": np.array([4000, 4000]),
    "one": np.ones((1, 1), np.float32),
}
NODES = {
    "Mul": helper.make_node("Mul", ["row", "column"], ["large"], "large"),
    "ConstantOfShape": helper.make_node("ConstantOfShape", ["size"], ["large"], "large"),
    "Expand": helper.make_node("Expand", ["one", "size"], ["large"], "large"),
}


@pytest.mark.parametrize("operator", NODES)
def test_a_result_that_would_enlarge_the_file_is_not_computed(operator: str) -> None:
    """64 MB of small constants."""
    nodes = [
        NODES[operator],
        helper.make_node("ReduceSum", ["large"], ["sum"], "sum"),
        helper.make_node("Add", ["input", "sum"], ["logits"], "add"),
    ]
    model = ir.from_proto(make_model(nodes, WEIGHTS))
    infer_shapes(model)
    tracemalloc.start()
    try:
        folded = fold_constants(model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert op_counts(folded)[operator] == 1
    assert peak < 16 << 20
