"""The graph of pixels against the float graph on images that were preprocessed here, in double precision."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.contract import Contract
from alexdeploy.errors import InputError
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.infer import infer_shapes
from alexdeploy.graph.memory import predict_memory
from alexdeploy.graph.model import image_input, model_bytes
from alexdeploy.graph.qdq import calibration_tensors
from alexdeploy.graph.uint8_input import with_uint8_input
from alexdeploy.specs import TensorSpec
from tests.helpers.graphs import Array, conv_lrn_gemm, make_model, run

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
RGB = Contract(color="rgb", crop=8, **IMAGENET)
BGR = Contract(color="bgr", crop=8, **IMAGENET)
MEAN_PIXEL = Contract(color="bgr", crop=8, mean=(104.0, 117.0, 123.0), std=(1.0,) * 3, scale=1)
CENTRED = Contract(color="rgb", crop=8, mean=(0.0,) * 3, std=(1.0,) * 3)
GRAY = Contract(color="gray", crop=8, mean=(0.1307,), std=(0.3081,))
NHWC = msgspec.structs.replace(BGR, layout="nhwc")


def conv(channels: int = 3, group: int = 1, readers: int = 1) -> onnx.ModelProto:
    """One Conv on the image, or two of them that share their weights."""
    weight = np.random.default_rng(0).standard_normal((6, channels // group, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["input", "w"], [f"c{i}"], f"c{i}", group=group) for i in range(readers)]
    nodes.append(helper.make_node("Sum", [node.output[0] for node in nodes], ["logits"], "sum"))
    return make_model(nodes, {"w": weight}, shape=("batch", channels, 8, 8))


def conv_behind_transpose() -> onnx.ModelProto:
    """As tf2onnx writes it."""
    weight = np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["input"], ["turned"], "turn", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["turned", "w"], ["logits"], "layer"),
    ]
    return make_model(nodes, {"w": weight}, shape=("batch", 8, 8, 3))


def preprocessed(pixels: Array, contract: Contract) -> Array:
    values = pixels[..., ::-1] if contract.color == "bgr" else pixels
    values = (values.astype(np.float64) / contract.scale - contract.mean) / contract.std
    return (values.transpose(0, 3, 1, 2) if contract.layout == "nchw" else values).astype(np.float32)


@pytest.mark.parametrize(
    ("original", "contract", "nodes"),
    [
        pytest.param(conv(), RGB, "Cast Transpose Sub Mul", id="rgb"),
        pytest.param(conv(), BGR, "Cast Transpose Sub Mul", id="bgr-in-the-weights"),
        pytest.param(conv(), MEAN_PIXEL, "Cast Transpose Sub", id="mean-pixel"),
        pytest.param(conv(), CENTRED, "Cast Transpose Mul", id="no-mean"),
        pytest.param(conv(readers=2), BGR, "Cast Transpose Gather Sub Mul", id="bgr-shared-weights"),
        pytest.param(conv(group=3), BGR, "Cast Transpose Gather Sub Mul", id="bgr-grouped"),
        pytest.param(conv(channels=1), GRAY, "Cast Transpose Sub Mul", id="gray"),
        pytest.param(conv_behind_transpose(), NHWC, "Cast Gather Sub Mul", id="nhwc"),
    ],
)
def test_the_graph_does_what_the_contract_says(original: onnx.ModelProto, contract: Contract, nodes: str) -> None:
    model = ir.from_proto(original)
    before = model_bytes(model)
    changed, stored = with_uint8_input(model, contract)
    assert [node.op_type for node in changed.graph][: len(nodes.split())] == nodes.split()
    assert len(changed.graph) == len(model.graph) + len(nodes.split())
    assert image_input(changed, "x") == TensorSpec("input", ("batch", 8, 8, contract.channels), "uint8")
    assert stored.input_shape == (8, 8, contract.channels)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 8, 8, contract.channels), dtype=np.uint8)
    for batch in (pixels[:1], pixels):
        (expected,) = run(original, preprocessed(batch, contract))
        np.testing.assert_allclose(run(changed, batch)[0], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert model_bytes(model) == before


def test_its_contract_says_what_is_left_to_do() -> None:
    contract = Contract(
        color="bgr", resize=(8, 9), letterbox=114, exif_orientation=True, scale=1, labels=("a", "b"), **IMAGENET
    )
    _, stored = with_uint8_input(ir.from_proto(conv()), contract)
    assert stored == Contract(
        color="rgb",
        resize=(8, 9),
        letterbox=114,
        exif_orientation=True,
        labels=("a", "b"),
        layout="nhwc",
        input_type="uint8",
    )


def test_names_are_readable_and_those_that_are_taken_stay() -> None:
    original = conv_lrn_gemm()
    original.graph.node[1].name = original.graph.node[1].output[0] = original.graph.node[2].input[0] = "cast_input"
    model, _ = with_uint8_input(ir.from_proto(original), RGB)
    names = [node.name for node in model.graph]
    assert names[:6] == ["cast_input_2", "transpose_input", "sub_input", "mul_input", "conv1", "cast_input"]
    assert [node.outputs[0].name for node in model.graph][:4] == names[:4]
    assert calibration_tensors(model)[0] == "mul_input"


def test_half_precision_holds_pixels_and_their_mean() -> None:
    model, _ = with_uint8_input(ir.from_proto(conv_lrn_gemm()), RGB)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    (expected,), (actual,) = run(model, pixels), run(to_fp16(model), pixels)
    np.testing.assert_allclose(actual, expected, rtol=5e-3, atol=5e-3 * np.abs(expected).max())


def test_an_image_takes_a_quarter_of_the_bytes() -> None:
    original = ir.from_proto(conv_lrn_gemm())
    infer_shapes(original)
    model, _ = with_uint8_input(original, RGB)
    logits = 4 * 4
    assert predict_memory(original, 1).io_bytes - logits == 4 * (predict_memory(model, 1).io_bytes - logits)


def test_an_input_that_is_not_float32_is_refused() -> None:
    once, stored = with_uint8_input(ir.from_proto(conv()), RGB)
    with pytest.raises(InputError, match=r"input 'input' is UINT8; only a float32 input"):
        with_uint8_input(once, stored)
