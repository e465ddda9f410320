"""``alexdeploy lint`` on our own models and on what ONNX Runtime's quantizer writes, judged again by TensorRT-RTX."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import quantization

from alexdeploy import files
from tests.cli.conftest import Run
from tests.helpers.graphs import Array, conv_lrn_gemm, images

SYMMETRIC = {"QuantizeBias": False, "ActivationSymmetric": True, "WeightSymmetric": True}
INT8 = {"activation_type": quantization.QuantType.QInt8, "weight_type": quantization.QuantType.QInt8}
FRIENDLY = {"extra_options": SYMMETRIC, "per_channel": True} | INT8
# as TensorRT likes it best: Q/DQ at the inputs of Conv and Gemm, nothing behind them
INPUTS_ONLY: dict[str, Any] = FRIENDLY | {
    "op_types_to_quantize": ["Conv", "Gemm"],
    "extra_options": SYMMETRIC | {"OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"]},
}


class Batches(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._batches: Iterator[dict[str, Array]] = iter([{"input": images(8, seed=seed)} for seed in range(3)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def by_onnxruntime(folder: Path, **options: Any) -> Path:
    source, target = folder / "float.onnx", folder / "theirs.onnx"
    onnx.save(conv_lrn_gemm(), source)
    quantization.quantize_static(source, target, Batches(), **options)
    return target


def findings_of(run: Run, model: Path, code: int, warning: str = "") -> dict[str, Any]:
    """The one JSON object on stdout, whose counts must be right; ``{rule: nodes}`` added as ``rules``."""
    result = run("lint", model, "--json")
    assert (result.code, result.err) == (code, warning)
    report: dict[str, Any] = json.loads(result.out)
    assert report.keys() == {"model", "findings", "errors", "warnings"}
    assert report["model"] == str(model)
    severities = [finding["severity"] for finding in report["findings"]]
    assert (severities.count("error"), severities.count("warning")) == (report["errors"], report["warnings"])
    assert len(severities) == report["errors"] + report["warnings"]
    rules: dict[str, list[str]] = {}
    for finding in report["findings"]:
        assert finding.keys() == {"node", "rule", "found", "fix", "severity"}
        rules.setdefault(finding["rule"], []).append(finding["node"])
    return report | {"rules": rules}


def test_our_own_models_have_no_finding(run: Run, model: Path, int8: Path, out: Path) -> None:
    for path in (model, int8):
        assert findings_of(run, path, 0)["findings"] == []
        result = run("lint", path)
        assert (result.code, result.out, result.err) == (0, f"{path}: 0 errors, 0 warnings\n", "")
    assert list(out.iterdir()) == []


def test_an_error_exits_5_and_the_table_names_node_rule_and_fix(run: Run, out: Path) -> None:
    path = out / "even.onnx"
    onnx.save(conv_lrn_gemm(lrn_size=4), path)
    report = findings_of(run, path, 5)
    (finding,) = report["findings"]
    assert (finding["node"], finding["rule"], finding["severity"]) == ("lrn1", "lrn-window", "error")
    result = run("lint", path)
    assert (result.code, result.err) == (5, "")
    shown = " ".join(result.out.replace("│", " ").split())
    assert all(word in shown for word in ("error", "lrn1", "lrn-window", "even window", "fine-tune"))
    assert result.out.endswith(f"{path}: 1 errors, 0 warnings\n")


def test_a_graph_for_another_runtime_exits_5(run: Run, model: Path, ranges: Path, out: Path) -> None:
    assert run("quantize", model, "--ranges", ranges, "--for", "onnxruntime", "-o", out / "cpu.onnx").code == 0
    assert "level-type" in findings_of(run, out / "cpu.onnx", 5)["rules"]


def test_brackets_in_a_name_are_shown_as_they_are(run: Run, out: Path) -> None:
    proto = conv_lrn_gemm(lrn_size=4)
    proto.graph.node[2].name = "[red]lrn[/]"
    onnx.save(proto, out / "x.onnx")
    assert "[red]lrn[/]" in run("lint", out / "x.onnx").out


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [("missing.onnx", 3, "no such file"), ("", 2, "MODEL"), ("missing.onnx --wrong", 2, "No such option")],
)
def test_a_mistake_is_one_line(line: str, code: int, said: str, run: Run) -> None:
    result = run("lint", *line.split(), "--json")
    assert result.code == code
    assert said in result.err
    assert json.loads(result.out)["exit_code"] == code


@pytest.mark.filterwarnings("ignore")
def test_onnxruntimes_defaults_are_not_for_tensorrt(run: Run, out: Path, tensorrt_rtx: str) -> None:
    theirs = by_onnxruntime(out)
    rules = findings_of(run, theirs, 5)["rules"]
    assert rules.keys() == {"zero-point", "level-type", "qdq-before-lrn"}
    assert len(rules["level-type"]) == 2, "the int32 bias of Conv and Gemm"
    refused = run("build-engine", theirs, "--builder", tensorrt_rtx, "-o", out / "x.engine")
    assert refused.code == 3
    assert "see alexdeploy lint" in refused.err
    assert not (out / "x.engine").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "rules"),
    [(FRIENDLY, {"qdq-before-relu": ["relu1"], "qdq-before-lrn": ["lrn1"]}), (INPUTS_ONLY, {})],
    ids=["symmetric", "inputs only"],
)
def test_onnxruntimes_symmetric_int8_is(
    options: dict[str, Any], rules: dict[str, list[str]], run: Run, out: Path, tensorrt_rtx: str
) -> None:
    theirs = by_onnxruntime(out, **options)
    assert findings_of(run, theirs, 0)["rules"] == rules
    built = run("build-engine", theirs, "--builder", tensorrt_rtx, "--strict", "-o", out / "x.engine", "--json")
    assert built.code == 0, built.err
    assert json.loads(built.out)["precisions"] == {"INT8": 2, "HALF": 0, "FLOAT": 0}
    assert files.read_sidecar(out / "x.engine").details["layer_precisions"] == {"conv1": "INT8", "fc2": "INT8"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["QOperator", "dynamic"])
def test_models_of_integer_operators_are_refused(how: str, run: Run, out: Path) -> None:
    theirs = out / "theirs.onnx"
    if how == "dynamic":
        onnx.save(conv_lrn_gemm(), out / "float.onnx")
        quantization.quantize_dynamic(out / "float.onnx", theirs)
    else:
        theirs = by_onnxruntime(out, quant_format=quantization.QuantFormat.QOperator)
    assert findings_of(run, theirs, 5)["rules"]["integer-operator"]


def test_a_mix_of_types_is_told_though_shapes_cannot_be_inferred(run: Run, out: Path) -> None:
    proto = conv_lrn_gemm()
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "b1")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.ones(8, np.float16), "b1"))
    onnx.save(proto, out / "mixed.onnx")
    warning = (
        f"warning: {out}/mixed.onnx: shapes cannot be inferred: "
        "(op_type:Conv, node name: conv1): B has inconsistent type tensor(float16)\n"
    )
    assert findings_of(run, out / "mixed.onnx", 5, warning)["rules"] == {"mixed-types": ["conv1"]}
