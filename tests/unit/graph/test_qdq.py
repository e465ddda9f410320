from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.errors import InputError
from alexdeploy.graph.qdq import insert_qdq, quantize_weight, symmetric_scale
from alexdeploy.graph.taps import with_outputs
from alexdeploy.graph.weighted import quantized_nodes, weighted_nodes
from tests.helpers.graphs import Array, conv_lrn_gemm, images, make_model, run

AMAX = {"input": 4.0, "flatten1": 2.0}


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


def test_a_tensor_with_two_users_is_quantized_once() -> None:
    weight = images(1, (4, 3, 1, 1))[0]
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], "a"),
        helper.make_node("Conv", ["input", "w"], ["b"], "b"),
        helper.make_node("Add", ["a", "b"], ["logits"], "add"),
    ]
    model = insert_qdq(ir.from_proto(make_model(nodes, {"w": weight})), {"input": 3.0})
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
        insert_qdq(model, {"input": 1.0})
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
