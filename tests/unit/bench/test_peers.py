"""The judge and the bars of ``tests/bench/calibration_peers.py``, which nobody runs in a test."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.bench.peers_judge import int8_layers
from tests.bench.peers_table import Bar, alexnet_bars, bars, markdown


def _graph(path: Path, levels: Any) -> None:
    """A Gemm on a quantized input and a weight of ``levels``, then a MatMul in float."""
    constants = {
        "scale": np.float32(0.1),
        "zero": np.zeros((), levels),
        "levels": np.ones((2, 2), levels),
        "weight": np.ones((2, 2), np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["wq"]),
        helper.make_node("Transpose", ["wq"], ["turned"]),
        helper.make_node("Gemm", ["xq", "turned"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "weight"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)


@pytest.mark.parametrize(("levels", "expected"), [(np.int8, 1), (np.uint8, 1), (np.int16, 0)])
def test_layers_with_both_inputs_in_8_bits_are_counted(tmp_path: Path, levels: Any, expected: int) -> None:
    _graph(tmp_path / "m.onnx", levels)
    assert int8_layers(tmp_path / "m.onnx") == (expected, 2)


def _row(tool: str, method: str, seconds: float, agreement: float = 0.0, layers: int = 50) -> dict[str, Any]:
    scores = {"held out": {"agreement": agreement, "logit_error": 1 - agreement, "logit_error_max": 0.5}}
    return {
        "tool": tool,
        "method": method,
        "seconds": [seconds],
        "peak_mib": [100.0],
        "load": [0.0],
        "int8_layers": [layers, 50],
        "scores": scores if agreement else {},
        "problem": "",
    }


def _network() -> dict[str, Any]:
    return {
        "network": "lite0",
        "judged_on": {"held out": 32},
        "reading_seconds": [1.0],
        "commands": [_row("command", "quantize --method auto", 61.0)],
        "rows": [
            _row("alexdeploy", "mse", 2.0, 0.90),
            _row("alexdeploy", "mse+gptq", 4.0, 0.96),
            _row("alexdeploy", "auto", 9.0, 0.95),
            _row("onnxruntime", "entropy", 12.0, 0.91),
            _row("modelopt", "entropy", 16.0, 0.99, layers=49),
            {**_row("inc", "minmax", 1.0), "seconds": [], "problem": "of | this"},
        ],
        "growth_peak_mib": {"4096": [140.0], "128": [100.0]},
    }


def test_bars_by_hand() -> None:
    found = {bar.what: bar for bar in bars(_network())}

    def holds(what: str, measured: float, met: bool) -> None:
        assert found[what].measured == pytest.approx(measured)
        assert found[what].met is met

    holds("mse+gptq (best single): same top-1 as FP32", 96.0, True)
    holds("mse+gptq (best single): above the best peer with all layers in INT8", 5.0, True)
    holds("auto: above the best peer with all layers in INT8", 4.0, True)
    holds("auto behind the best single method", 1.0, False)
    holds("with rounding: faster than ONNX Runtime entropy", 3.0, True)
    holds("with rounding: faster than ModelOpt entropy", 4.0, False)
    holds("without rounding: faster than ModelOpt entropy", 8.0, True)
    assert found["with rounding: faster than NNCF default"].met is None
    holds("auto, the command alone", 61.0, False)
    holds("growth of the peak memory of calibrate, 128 to 4096 images", 40.0, False)


def test_a_number_that_is_missing_meets_nothing() -> None:
    assert Bar("x", None, 1.0, at_least=True).met is None
    empty = {**_network(), "rows": [], "commands": [], "growth_peak_mib": {}}
    assert not any(bar.met for bar in bars(empty))


def test_the_page_tells_why_a_peer_has_no_numbers() -> None:
    rounding = _row("command", "quantize --rounding gptq", 59.0)
    report = {
        "date": "2026-11-26",
        "settings": {"samples": 32, "repeats": 1},
        "environment": {"cpu": "a CPU", "cores": 2, "libraries": {"onnxruntime": "1"}},
        "memory_gib": 8,
        "commit": "abc",
        "peers": {"onnxruntime": {"nncf": "3"}},
        "missing": {"quark": "does not install"},
        "networks": [_network()],
        "alexnet": {"commands": [rounding]},
    }
    page = markdown(report)
    assert "| INC minmax | | failed: of / this |" in page
    assert "Environment `quark`: does not install." in page
    assert "| ModelOpt entropy | 49 of 50 | 16.00 (16.00 to 16.00) | 100 | 99.00% | 1.00% | 50.00% |" in page
    assert [bar.met for bar in alexnet_bars({"commands": [rounding]})] == [True, True]
