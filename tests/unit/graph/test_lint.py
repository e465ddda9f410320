from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.errors import InputError
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.lint import check_tensorrt, lint
from alexdeploy.graph.qdq import Dialect, TensorRange, insert_qdq
from tests.helpers.graphs import Array, conv_lrn_gemm, make_model

RANGES = {name: TensorRange(2.0, name != "input") for name in ("input", "relu1", "flatten1")}


def test_our_own_graphs_for_tensorrt_have_no_findings() -> None:
    model = ir.from_proto(conv_lrn_gemm())
    quantized = insert_qdq(model, RANGES)
    for graph in (model, quantized, to_fp16(model), to_fp16(quantized)):
        assert lint(graph) == []


@pytest.mark.parametrize("dialect", ["onnxruntime", "openvino"])
def test_the_other_dialects_are_not_for_tensorrt(dialect: Dialect) -> None:
    model = insert_qdq(ir.from_proto(conv_lrn_gemm()), RANGES, dialect=dialect)
    errors = [finding for finding in lint(model) if finding.severity == "error"]
    assert errors
    with pytest.raises(InputError, match="node '"):
        check_tensorrt(model, "model.onnx")


@pytest.mark.parametrize("size", [4, 17])
def test_an_lrn_window_outside_tensorrt_is_an_error_that_names_node_and_rule(size: int) -> None:
    (finding,) = lint(ir.from_proto(conv_lrn_gemm(lrn_size=size)))
    assert (finding.node, finding.severity) == ("lrn1", "error")
    assert str(size) in finding.found
    check_tensorrt(ir.from_proto(conv_lrn_gemm(lrn_size=15)), "model.onnx")


def qdq_conv(*, scale: float = 0.02, zero: int = 0, on_weight: bool = True) -> onnx.ModelProto:
    """Q/DQ on the activation, and on the weight when asked."""
    weight = np.ones((4, 3, 3, 3), np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"], "dequantize"),
    ]
    weights: dict[str, Array] = {"s": np.asarray(scale, np.float32), "z": np.asarray(zero, np.int8)}
    if on_weight:
        nodes.append(helper.make_node("DequantizeLinear", ["w.q", "w.s", "w.z"], ["w"], "weight", axis=0))
        weights |= {"w.q": weight, "w.s": np.full(4, 0.01, np.float32), "w.z": np.zeros(4, np.int8)}
    else:
        weights["w"] = weight.astype(np.float32)
    nodes.append(helper.make_node("Conv", ["dq", "w"], ["logits"], "conv1"))
    return make_model(nodes, weights)


@pytest.mark.parametrize(("changes", "node"), [({"zero": 3}, "quantize"), ({"scale": -1.0}, "quantize")])
def test_scales_and_zero_points_that_the_parser_refuses_are_errors(changes: dict[str, float], node: str) -> None:
    assert lint(ir.from_proto(qdq_conv())) == []
    errors = [finding for finding in lint(ir.from_proto(qdq_conv(**changes))) if finding.severity == "error"]  # type: ignore[arg-type]
    assert node in {finding.node for finding in errors}


def test_qdq_on_one_input_only_is_a_warning() -> None:
    findings = lint(ir.from_proto(qdq_conv(on_weight=False)))
    assert [(finding.node, finding.severity) for finding in findings] == [("conv1", "warning")]
