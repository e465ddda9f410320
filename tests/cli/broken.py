"""Small files that a command must refuse, written without alexdeploy."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def models(contract: str) -> dict[str, onnx.ModelProto]:
    """ONNX models by what is wrong with them; all but ``no-contract`` carry ``contract``."""
    mystery = helper.make_node("Mystery", ["input"], ["x"], "node_of_mystery")
    foreign = helper.make_node("Mystery", ["input"], ["x"], "node_of_mystery", domain="com.example")
    found = {
        "unknown-op": _model(mystery),
        "foreign-op": _model(foreign),
        "lrn4": _model(_lrn(4)),
        "lrn17": _model(_lrn(17)),
        "fixed-batch": _model(helper.make_node("Relu", ["input"], ["x"], "relu1"), batch=3),
        "uint8": _model(helper.make_node("Cast", ["input"], ["x"], "cast1", to=TensorProto.FLOAT), TensorProto.UINT8),
        "no-contract": _model(helper.make_node("Relu", ["input"], ["x"], "relu1")),
    }
    for name, model in found.items():
        if name != "no-contract":
            helper.set_model_props(model, {"alexdeploy.contract": contract})
    return found


def _lrn(size: int) -> onnx.NodeProto:
    return helper.make_node("LRN", ["input"], ["x"], "lrn_odd_one_out", size=size)


def _model(first: onnx.NodeProto, dtype: int = TensorProto.FLOAT, batch: str | int = "batch") -> onnx.ModelProto:
    """``first`` takes ``input`` and makes ``x``; a convolution and a matrix product to ten classes follow."""
    flat = 28 * 28
    graph = helper.make_graph(
        [
            first,
            helper.make_node("Conv", ["x", "filter"], ["y"], "conv1"),
            helper.make_node("Flatten", ["y"], ["z"], "flatten1"),
            helper.make_node("Gemm", ["z", "matrix"], ["logits"], "fc2"),
        ],
        "broken",
        [helper.make_tensor_value_info("input", dtype, [batch, 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        [
            numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "filter"),
            numpy_helper.from_array(np.ones((flat, 10), np.float32), "matrix"),
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def decompression_bomb() -> bytes:
    """A PNG of a few bytes that claims 60,000 × 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"")) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
