from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from alexdeploy.errors import InputError
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.lint import lint
from alexdeploy.graph.qdq import (
    TensorRange,
    calibration_tensors,
    insert_qdq,
    quantize_weight,
    symmetric_scale,
)
from alexdeploy.graph.taps import with_outputs
from alexdeploy.graph.weighted import quantized_nodes, quantized_type, weighted_nodes
from alexdeploy.specs import Dialect
from tests.helpers.graphs import Array, conv_lrn_gemm, images, make_model, run

BIG = ("batch", 3, 40, 40)
AMAX = {"input": TensorRange(4.0), "flatten1": TensorRange(2.0)}


def fake_quantize(x: Array, scale: Array | float, low: int = -128) -> Array:
    """Quantize and dequantize by the definition of ONNX QuantizeLinear: round half to even, saturate."""
    return np.clip(np.rint(x / scale), low, 127) * scale


def test_scale_maps_amax_to_127() -> None:
    assert symmetric_scale(12.7) == np.float32(0.1)
    assert symmetric_scale(0.0) == 1.0, "any positive scale is exact for zeros, and TensorRT refuses 0"
    assert np.all(symmetric_scale(np.array([1e-45, 1e-38])) > 0)


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_quantized_per_output_channel(axis: int) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    levels, scales = quantize_weight(weight, axis)
    for channel in range(weight.shape[axis]):
        row = np.take(weight, channel, axis=axis)
        assert scales[channel] == np.float32(np.abs(row).max() / 127)
        expected = np.clip(np.rint(row / scales[channel]), -127, 127)
        np.testing.assert_array_equal(np.take(levels, channel, axis=axis), expected)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_the_quantized_graph_computes_the_literal_formula(trans_b: int) -> None:
    original = conv_lrn_gemm(trans_b=trans_b)
    weights = {w.name: np.frombuffer(w.raw_data, np.float32).reshape(w.dims) for w in original.graph.initializer}
    channel_axis = 0 if trans_b else 1
    w2 = weights["w2"]
    scale2 = np.abs(w2).max(axis=1 - channel_axis, keepdims=True) / 127
    scale1 = np.abs(weights["w1"]).max(axis=(1, 2, 3), keepdims=True) / 127
    faked = {"w1": fake_quantize(weights["w1"], scale1), "w2": fake_quantize(w2, scale2)}
    for tensor in original.graph.initializer:
        if tensor.name in faked:
            tensor.raw_data = faked[tensor.name].astype(np.float32).tobytes()
    batch = images()
    inner = with_outputs(ir.from_proto(original), ["flatten1"])
    (flat,) = run(inner, fake_quantize(batch, 4.0 / 127).astype(np.float32))
    matrix = faked["w2"].T if trans_b else faked["w2"]
    expected = fake_quantize(flat, 2.0 / 127) @ matrix + weights["b2"]

    quantized = insert_qdq(ir.from_proto(conv_lrn_gemm(trans_b=trans_b)), AMAX)
    (actual,) = run(quantized, batch)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_tensorrt_dialect() -> None:
    model = insert_qdq(ir.from_proto(conv_lrn_gemm()), AMAX)
    assert [node.name for node in quantized_nodes(model)] == ["conv1", "fc2"]
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = node.inputs[2]
            assert zero is not None
            assert zero.const_value is not None
            assert zero.const_value.dtype == ir.DataType.INT8, "TensorRT reads an absent or uint8 zero point as int8"
            assert not zero.const_value.numpy().any()
    lrn = next(node for node in model.graph if node.op_type == "LRN")
    source, user = lrn.inputs[0], lrn.outputs[0].consumers()[0]
    assert source is not None
    producer = source.producer()
    assert producer is not None
    assert (producer.op_type, user.op_type) == ("Relu", "MaxPool"), "nothing on LRN"
    bias = next(node for node in model.graph if node.name == "conv1").inputs[2]
    assert bias is not None
    assert bias.dtype == ir.DataType.FLOAT, "TensorRT refuses a quantized bias"


def _kernels(model: ir.Model, path: Path) -> set[str]:
    """Operators after ONNX Runtime's own fusion for the CPU."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(path).graph.node}


def test_the_onnxruntime_dialect_runs_in_integer_kernels_and_the_tensorrt_one_does_not(tmp_path: Path) -> None:
    model = ir.from_proto(conv_lrn_gemm())
    ranges = {"input": TensorRange(4.0), "relu1": TensorRange(5.0, True), "flatten1": TensorRange(2.0, True)}
    assert set(calibration_tensors(model)) == ranges.keys()
    integer = _kernels(insert_qdq(model, ranges, dialect="onnxruntime"), tmp_path / "ort.onnx")
    assert {"QLinearConv", "QGemm"} <= integer
    assert not integer & {"Conv", "FusedConv", "Gemm", "FusedGemm"}
    assert "QLinearConv" not in _kernels(insert_qdq(model, ranges), tmp_path / "trt.onnx")


@pytest.mark.parametrize("dialect", ["tensorrt", "onnxruntime", "openvino"])
def test_every_dialect_is_close_to_the_float_model(dialect: Dialect) -> None:
    model, batch = ir.from_proto(conv_lrn_gemm()), images(32)
    relu, flat = run(with_outputs(model, ["relu1", "flatten1"]), batch)
    ranges = {
        "input": TensorRange(float(np.abs(batch).max())),
        "relu1": TensorRange(float(relu.max()), True),
        "flatten1": TensorRange(float(flat.max()), True),
    }
    (expected,) = run(model, batch)
    (actual,) = run(insert_qdq(model, ranges, dialect=dialect), batch)
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 0.02


def test_openvino_gets_twice_the_resolution_where_nothing_is_negative() -> None:
    ranges = {"input": TensorRange(4.0), "flatten1": TensorRange(2.0, True)}
    model = insert_qdq(ir.from_proto(conv_lrn_gemm()), ranges, dialect="openvino")
    found = {}
    for name in ("input", "flatten1"):
        scale = model.graph.initializers[f"{name}.scale"].const_value
        zero = model.graph.initializers[f"{name}.zero_point"].const_value
        assert scale is not None
        assert zero is not None
        found[name] = (round(float(scale.numpy()), 6), zero.dtype)
    assert found["input"] == (round(4 / 127, 6), ir.DataType.INT8)
    assert found["flatten1"] == (round(2 / 255, 6), ir.DataType.UINT8)


def test_a_layer_kept_in_float_is_untouched_and_the_rest_is_quantized() -> None:
    model = insert_qdq(ir.from_proto(conv_lrn_gemm()), AMAX, keep_float=["conv1"])
    assert [node.name for node in quantized_nodes(model)] == ["fc2"]
    assert "w1" in model.graph.initializers


def test_a_tensor_with_two_users_is_quantized_once() -> None:
    weight = images(1, (4, 3, 1, 1))[0]
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], "a"),
        helper.make_node("Conv", ["input", "w"], ["b"], "b"),
        helper.make_node("Add", ["a", "b"], ["logits"], "add"),
    ]
    model = insert_qdq(ir.from_proto(make_model(nodes, {"w": weight})), {"input": TensorRange(3.0)})
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == 1
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)


def test_the_input_model_is_untouched_and_a_second_call_gives_the_same() -> None:
    model = ir.from_proto(conv_lrn_gemm())
    before = ir.to_proto(model).SerializeToString()
    first = ir.to_proto(insert_qdq(model, AMAX)).SerializeToString()
    assert ir.to_proto(model).SerializeToString() == before
    assert ir.to_proto(insert_qdq(model, AMAX)).SerializeToString() == first


def test_refusals_name_what_is_missing() -> None:
    model = ir.from_proto(conv_lrn_gemm())
    with pytest.raises(InputError, match="flatten1"):
        insert_qdq(model, {"input": TensorRange(1.0)})
    with pytest.raises(InputError, match="already"):
        insert_qdq(insert_qdq(model, AMAX), AMAX)
    relu = make_model([helper.make_node("Relu", ["input"], ["logits"], "relu")], {})
    with pytest.raises(InputError, match="nothing to quantize"):
        insert_qdq(ir.from_proto(relu), {})


def test_weights_that_are_computed_are_left_alone() -> None:
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], "flat"),
        helper.make_node("Transpose", ["flat"], ["turned"], "turn"),
        helper.make_node("MatMul", ["flat", "turned"], ["logits"], "square"),
    ]
    assert weighted_nodes(ir.from_proto(make_model(nodes, {}, rank=2))) == []


def test_nodes_without_a_name_are_quantized_like_others() -> None:
    unnamed = conv_lrn_gemm()
    for node in unnamed.graph.node:
        node.name = ""
    quantized = insert_qdq(ir.from_proto(unnamed), AMAX)
    assert len({node.name for node in quantized_nodes(quantized)}) == 2
    named = insert_qdq(ir.from_proto(conv_lrn_gemm()), AMAX)
    np.testing.assert_array_equal(run(quantized, images())[0], run(named, images())[0])


def test_an_fp16_graph_is_refused() -> None:
    half = to_fp16(ir.from_proto(conv_lrn_gemm()))
    with pytest.raises(InputError, match="holds FP16 weights; quantize the FP32 model"):
        insert_qdq(half, AMAX)


def test_a_gemm_bias_of_one_row_is_quantized_as_a_vector_is() -> None:
    original, row = conv_lrn_gemm(), conv_lrn_gemm()
    bias = next(tensor for tensor in row.graph.initializer if tensor.name == "b2")
    bias.dims[:] = [1, *bias.dims]
    ranges = {**AMAX, "relu1": TensorRange(3.0)}
    answers = [run(insert_qdq(ir.from_proto(p), ranges, dialect="onnxruntime"), images())[0] for p in (original, row)]
    np.testing.assert_array_equal(answers[1], answers[0])


def e4m3_values() -> Array:
    """All values of E4M3 by its definition: sign, 4 bits of exponent (bias 7), 3 of mantissa; 448 is the largest."""
    positive = [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    positive += [(1 + mantissa / 8) * 2.0 ** (exponent - 7) for exponent in range(1, 16) for mantissa in range(8)]
    finite = positive[:-1]  # the last code is NaN
    return np.asarray([*finite, *(-value for value in finite)])


@pytest.mark.parametrize("axis", [0, 1])
def test_fp8_weights_are_the_nearest_values_of_e4m3(axis: int) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
    levels, scales = quantize_weight(weight, axis, fp8=True)
    values = e4m3_values()
    for channel in range(weight.shape[axis]):
        row = np.take(weight, channel, axis=axis)
        assert scales[channel] == np.float32(np.abs(row).max() / 448)
        exact = row / scales[channel]
        nearest = np.abs(exact[:, None] - values).min(axis=1)
        actual = np.take(levels, channel, axis=axis).astype(np.float32)
        np.testing.assert_allclose(np.abs(actual - exact), nearest, atol=1e-6)
        assert np.abs(actual).max() == 448


def test_fp8_is_written_where_int8_is_and_raises_the_opset() -> None:
    original = conv_lrn_gemm()
    original.opset_import[0].version = 13
    model = insert_qdq(ir.from_proto(original), AMAX, fp8=True)
    assert model.opset_imports[""] >= 19
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [quantized_type(node) for node in quantized_nodes(model)] == ["FP8", "FP8"]
    int8 = insert_qdq(ir.from_proto(original), AMAX)
    assert [node.name for node in model.graph] == [node.name for node in int8.graph]
    scale = model.graph.initializers["input.scale"].const_value
    assert scale is not None
    assert scale.numpy() == np.float32(4.0 / 448)
    (expected,), (actual,) = run(original, images()), run(model, images())
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 0.12


@pytest.mark.parametrize(("window", "fp8"), [((5, 5), True), ((4, 8), True), ((6, 6), False), ((1, 33), False)])
def test_fp8_convolutions_have_at_most_32_places(window: tuple[int, int], fp8: bool) -> None:
    weight = np.ones((4, 3, *window), np.float32)
    proto = make_model([helper.make_node("Conv", ["input", "w"], ["logits"], "layer")], {"w": weight}, shape=BIG)
    model = insert_qdq(ir.from_proto(proto), {"input": TensorRange(1.0)}, fp8=True)
    assert [finding.rule for finding in lint(model)] == ([] if fp8 else ["fp8-window"])
    assert lint(insert_qdq(ir.from_proto(proto), {"input": TensorRange(1.0)})) == []


def test_a_bias_that_int32_does_not_hold_enlarges_the_scale_of_its_channel_alone() -> None:
    proto = conv_lrn_gemm()
    model, plain = ir.from_proto(proto), ir.from_proto(proto)
    for name, factor in (("w1", 1e-10), ("w2", 1e-12)):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[2] *= np.float32(factor)  # what is left of the channel is its bias
        value.const_value = ir.tensor(array, name=name)
    ranges = AMAX | {"flatten1": TensorRange(4.0), "input": TensorRange(4.0)}
    int8, usual = (insert_qdq(one, ranges, dialect="onnxruntime") for one in (model, plain))
    for layer in ("conv1", "fc2"):
        scales, expected = (
            one.graph.initializers[f"{layer}.weight.scale"].const_value.numpy()  # type: ignore[union-attr]
            for one in (int8, usual)
        )
        others = np.arange(len(scales)) != 2
        np.testing.assert_array_equal(scales[others], expected[others])
        assert scales[2] < expected[2]
    # ONNX's own reference implementation, which multiplies what is dequantized
    evaluator = ReferenceEvaluator(ir.to_proto(int8))
    batch = images()
    found, exact = evaluator.run(None, {"input": batch})[0], run(model, batch)[0]  # type: ignore[index]
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)
    np.testing.assert_allclose(run(int8, batch)[0], found, atol=0.05 * np.abs(exact).max())


def test_names_of_the_graph_are_not_taken_again() -> None:
    proto = conv_lrn_gemm()
    taken = ["input.scale", "conv1.weight.scale", "fc2.weight.q", "flatten1.dq", "input.zero_point"]
    for old, new in zip(("w1", "b1", "w2", "b2", "conv1"), taken, strict=True):
        for node in proto.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]
        for value in proto.graph.initializer:
            value.name = new if value.name == old else value.name
    original, batch = ir.from_proto(proto), images()
    expected = run(insert_qdq(ir.from_proto(conv_lrn_gemm()), AMAX), batch)[0]
    np.testing.assert_array_equal(run(insert_qdq(original, AMAX), batch)[0], expected)
