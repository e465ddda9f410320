"""bfloat16 and FP8 on a CPU against PyTorch in float64, rounded by its own bfloat16, and against onnx.reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from alexdeploy.graph.emulate import for_cpu
from alexdeploy.graph.fp16 import to_bf16
from alexdeploy.graph.model import model_bytes
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.graph.taps import with_outputs
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from tests.helpers.graphs import Array, conv_lrn_gemm, images, make_model, run

ULP = 2.0**-7  # of bfloat16, relative: two sums in another order may round to neighbours


def in_torch(batch: Array) -> Array:
    """``conv_lrn_gemm()`` in float64 between roundings to bfloat16; LRN in FP32."""
    weights = {
        one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in conv_lrn_gemm().graph.initializer
    }

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.bfloat16).double()

    w = {name: rounded(value) for name, value in weights.items()}
    x = rounded(torch.nn.functional.conv2d(rounded(torch.from_numpy(batch)), w["w1"], w["b1"], padding=1)).relu()
    x = rounded(torch.nn.functional.local_response_norm(x, 5, 1e-2, 0.75, 2.0))
    x = torch.nn.functional.max_pool2d(x, 2).flatten(1)
    return rounded(torch.nn.functional.linear(x, w["w2"], w["b2"])).float().numpy()


def test_bfloat16_is_rounded_where_a_kernel_rounds_it() -> None:
    model, batch = to_bf16(ir.from_proto(conv_lrn_gemm())), images(16)
    (actual,) = run(for_cpu(model), batch)
    expected = in_torch(batch)
    np.testing.assert_allclose(actual, expected, rtol=ULP, atol=ULP)
    assert np.mean(actual == expected) > 0.8, "nearly all to the bit"
    (exact,) = run(conv_lrn_gemm(), batch)
    assert not np.allclose(actual, exact, rtol=1e-4, atol=1e-4), "it is not FP32"


def test_inner_tensors_keep_their_names_and_hold_bfloat16_values() -> None:
    model = for_cpu(with_outputs(to_bf16(ir.from_proto(conv_lrn_gemm())), ["conv1", "relu1", "pool1"]))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    with OnnxRuntimeRunner(model_bytes(model)) as runner:
        found = runner.run(images())
    assert list(found) == ["conv1", "relu1", "pool1"]
    for array in found.values():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array.astype(ml_dtypes.bfloat16).astype(np.float32), array)


def two_convs(activation: str = "Relu") -> onnx.ModelProto:
    random = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["conv1"], "conv1"),
        helper.make_node("Relu", ["conv1"], ["relu1"], "relu1"),
        helper.make_node("Conv", ["relu1", "w2"], ["logits"], "conv2"),
    ]
    weights = {"w1": random.standard_normal((8, 3, 3, 3)), "w2": random.standard_normal((4, 8, 3, 3))}
    if activation == "Clip":
        nodes[1] = helper.make_node("Clip", ["conv1", "zero"], ["relu1"], "relu1")
        weights["zero"] = np.zeros(())
    return make_model(nodes, {name: array.astype(np.float32) for name, array in weights.items()})


def by_onnx(model: ir.Model, batch: Array) -> Array:
    (found,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"input": batch})
    return np.asarray(found)


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_fp8_gives_what_onnx_itself_computes(activation: str) -> None:
    ranges = {"input": TensorRange(4.0), "relu1": TensorRange(15.0)}
    model, batch = insert_qdq(ir.from_proto(two_convs(activation)), ranges, fp8=True), images()
    expected = by_onnx(model, batch)
    with OnnxRuntimeRunner(model_bytes(for_cpu(model))) as runner:  # with all of its optimizers
        np.testing.assert_allclose(runner.run(batch)["logits"], expected, rtol=1e-4, atol=1e-3)


def test_fp8_within_bfloat16_gives_what_onnx_itself_computes() -> None:
    ranges = {"input": TensorRange(4.0), "relu1": TensorRange(15.0)}
    model = for_cpu(to_bf16(insert_qdq(ir.from_proto(two_convs()), ranges, fp8=True)))
    batch = images()
    expected = by_onnx(model, batch)
    with OnnxRuntimeRunner(model_bytes(model)) as runner:
        actual = runner.run(batch)["logits"]
    assert np.linalg.norm(actual - expected) <= ULP * np.linalg.norm(expected)
    assert np.mean(actual == expected) > 0.8


def test_other_models_are_left_alone() -> None:
    model = insert_qdq(ir.from_proto(two_convs()), {"input": TensorRange(4.0), "relu1": TensorRange(15.0)})
    assert for_cpu(model) is model


@pytest.mark.parametrize("bounds", [["zero", "six"], ["zero"], ["", "six"]])
def test_a_clip_before_a_scale_below_1e_9_is_not_lost_to_onnxruntime(bounds: list[str]) -> None:
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"], "c1"),
        helper.make_node("Clip", ["c1", *bounds], ["r1"], "r1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "c2"),
        helper.make_node("Flatten", ["c2"], ["logits"], "flatten"),
    ]
    random = np.random.default_rng(0)
    weights = {
        "w1": (random.standard_normal((8, 3, 3, 3)) * 1e-10).astype(np.float32),
        "w2": (random.standard_normal((4, 8, 3, 3)) * 1e9).astype(np.float32),
        "zero": np.zeros((), np.float32),
        "six": np.full((), 6e-10, np.float32),
    }
    model = insert_qdq(
        ir.from_proto(make_model(nodes, weights, rank=2)), {"input": TensorRange(4.0), "r1": TensorRange(25e-10)}
    )
    evaluator = ReferenceEvaluator(onnx.load_from_string(model_bytes(model)))
    expected = np.asarray(evaluator.run(None, {"input": images()})[0])  # type: ignore[index]
    with OnnxRuntimeRunner(model_bytes(for_cpu(model))) as runner:
        found = runner.infer(images())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert "r1" in {value.name for node in for_cpu(model).graph for value in node.outputs}, "names stay"
