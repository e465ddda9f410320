"""What the chain concludes from its benchmark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from alexdeploy.bench.results import BenchReport, Row
from alexdeploy.pipeline import PipelineReport

Runtime = Literal["onnxruntime-cpu", "openvino", "tensorrt-rtx"]


def row(artifact: str, runtime: Runtime, precision: str, ms: float, batch: int = 8) -> Row:
    """A row whose calls all took ``ms``."""
    return Row(
        artifact=artifact,
        runtime=runtime,
        precision=precision,
        batch=batch,
        size_bytes=1,
        status="ok",
        images_per_s=1000 * batch / ms,
        agreement=0.75,
        samples_ms={"host": [[ms] * 3] * 20},
    )


def report(*rows: Row) -> PipelineReport:
    environment = {"cpu": "", "cores": 1, "cpu_flags": [], "load": 0.0, "gpu": None}
    bench = BenchReport(environment, "digits/val", "", [], 359, 1.0, None, list(rows), [])
    return PipelineReport([], bench, {"onnx-int8": Path("int8.onnx")})


ROWS = (
    row("float.onnx", "onnxruntime-cpu", "fp32", 9.0),
    row("float.onnx", "openvino", "fp32", 6.0),
    row("int8.onnx", "onnxruntime-cpu", "int8", 1.0),
    row("own.onnx", "onnxruntime-cpu", "int8", 4.0),
    row("ov.onnx", "openvino", "int8", 3.0),
    row("ov.onnx", "openvino", "int8", 0.5, batch=1),
)


def test_the_gain_is_that_of_the_fastest_int8_row_over_fp32_on_the_same_runtime() -> None:
    best, other = report(*ROWS).gains
    assert (best.runtime, best.batch, best.agreement) == ("openvino", 8, 0.75)
    assert best.ratio.value == pytest.approx(6.0 / 3.0)
    assert other.runtime == "onnxruntime-cpu"


def test_tensorrts_graph_is_left_out_of_the_comparison_but_not_of_the_report() -> None:
    made = report(*ROWS)
    assert [row.artifact for row in made.comparison.rows if row.precision == "int8"] == [
        "own.onnx",
        "ov.onnx",
        "ov.onnx",
    ]
    assert made.tensorrt_graph is made.bench.rows[2]


def test_without_fp32_on_the_same_runtime_there_is_no_gain() -> None:
    assert report(*ROWS[2:5]).gains == []
    skipped = replace(ROWS[0], runtime="tensorrt-rtx", status="skipped", images_per_s=None, samples_ms={})
    assert report(skipped, row("int8.engine", "tensorrt-rtx", "int8", 1.0)).gains == []
