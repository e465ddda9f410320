"""Files that other tools quantized."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType

from tests.field.zoo.base import built
from tests.helpers.foreign_graphs import Foreign, features, head, network_weights, node
from tests.helpers.graphs import Array


class _Noise(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self._left = [random.standard_normal((1, 3, 8, 8)).astype(np.float32) for _ in range(4)]

    def get_next(self) -> dict[str, Array] | None:
        return {"image": self._left.pop()} if self._left else None


def _by_onnxruntime(**options: Any) -> Foreign:
    made = built([*features("image"), *head()])
    with tempfile.TemporaryDirectory() as folder:
        theirs, quantized = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(made.model, theirs)
        quantization.quantize_static(theirs, quantized, _Noise(), **options)
        return made._replace(model=onnx.load(quantized))


def ort_qdq() -> Foreign:
    """Onnxruntime's quantize_static as it is called most: uint8 activations with zero points."""
    return _by_onnxruntime(quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8)


def ort_symmetric_qdq() -> Foreign:
    """As its documentation says for TensorRT."""
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "AddQDQPairToWeight": False}
    return _by_onnxruntime(
        quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8, per_channel=True, extra_options=symmetric
    )


def ort_int16_qdq() -> Foreign:
    """uint16 activations, which its QNN recipe writes."""
    return _by_onnxruntime(quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt16)


def qoperator() -> Foreign:
    """QLinearConv, QGemm and QLinearGlobalAveragePool."""
    return _by_onnxruntime(quant_format=QuantFormat.QOperator)


def _pair(
    source: str, name: str, scale: Array, zero: Array, axis: int | None = None
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    more: dict[str, Any] = {} if axis is None else {"axis": axis}
    nodes = [
        node("QuantizeLinear", [source, f"{name}_s", f"{name}_z"], [f"{name}_q"], f"{name}_Q", **more),
        node("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], [f"{name}_dq"], f"{name}_DQ", **more),
    ]
    return nodes, {f"{name}_s": scale, f"{name}_z": zero}


def _quantized_inside(kind: type[np.integer[Any]], zero: int, layers: Sequence[str] = ("w1", "w2")) -> Foreign:
    """Float weights behind Q and DQ, per channel; activations of ``kind`` around ``zero``."""
    nodes, weights = _pair("image", "x", np.array(0.04, np.float32), np.array(0, np.int8))
    for name in layers:
        scale = (np.abs(network_weights()[name]).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        more, known = _pair(name, name, scale, np.zeros(16, np.int8), axis=0)
        nodes, weights = nodes + more, weights | known
    more, known = _pair("r1", "y", np.array(0.06, np.float32), np.array(zero, kind))
    return built(
        [
            *nodes,
            node("Conv", ["x_dq", "w1_dq", "b1"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Relu", ["c1"], ["r1"], "r1"),
            *more,
            node("Conv", ["y_dq", "w2_dq", "b2"], ["c2"], "c2", pads=[1, 1, 1, 1]),
            *features("image")[3:],
            *head(),
        ],
        named=weights | known,
    )


def modelopt() -> Foreign:
    """NVIDIA's ModelOpt: Q and DQ on float weights, symmetric int8."""
    return _quantized_inside(np.int8, 0)


def nncf() -> Foreign:
    """NNCF: weights as modelopt's, activations uint8 from 0 behind a ReLU."""
    return _quantized_inside(np.uint8, 0)


def nncf_asymmetric() -> Foreign:
    """And with a zero point."""
    return _quantized_inside(np.uint8, 7)


MAKERS = (ort_qdq, ort_symmetric_qdq, ort_int16_qdq, qoperator, modelopt, nncf, nncf_asymmetric)
