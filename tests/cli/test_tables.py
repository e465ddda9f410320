"""The tables of the commands in terminals of every usual width: no figure cut, no header or name lost."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest

from alexdeploy.cli import analyze, compare, inspect, lint
from alexdeploy.cli.output import print_columns
from alexdeploy.columns import Column
from alexdeploy.compare import Divergence, LayerError
from alexdeploy.graph.lint import Finding
from alexdeploy.quantize.search import Score, Sensitivity
from alexdeploy.specs import Precision
from tests.cli.conftest import Run

WIDTHS = (80, 100, 120, 200)
SHORT = [f"conv{number}" for number in range(1, 12)]
LONG = [f"/blocks.{number}/0/conv_dw_expansion/Conv" for number in range(11)]
KERNELS = [f"__myl_MulAddPowDivMulMinMaxRounCastReplConcTran_myl0_{number}" for number in range(11)]
Capture = pytest.CaptureFixture[str]


def show_compare(names: list[str]) -> None:
    errors = [1.23e-2 * number for number in range(1, len(names) + 1)]
    rows = [
        LayerError(name, "GlobalAveragePool", error, 4.56e3, 12.3, error, name)
        for name, error in zip(names, errors, strict=True)
    ]
    compare.show_divergence(Divergence("a.onnx", "b.onnx", Precision.INT8, 0.1, 64, names[8], rows))


def show_inspect(names: list[str]) -> None:
    layer = {
        "type": "GlobalAveragePool",
        "precision": "FLOAT",
        "output_shape": [1280, 112, 112],
        "kernel": [11, 11],
        "stride": [4, 4],
        "padding": [2, 2, 2, 2],
        "groups": 32,
        "receptive_field": [851, 851],
        "parameters": 102_764_544,
        "connections": 1_849_688_064,
        "macs": 1_849_688_064,
        "memory_bytes": 411_058_176,
    }
    inspect.show("models/vgg.onnx", {"kind": "onnx", "layers": [{"name": name, **layer} for name in names]})


def show_analyze(names: list[str]) -> None:
    analyze.show([Sensitivity(name, Score(123.4, 0.9875, 1.25), 0.125) for name in names], 256)


def show_engine(names: list[str]) -> None:
    rows = [{"name": name, "type": "correlation", "precision": "INT8"} for name in names]
    inspect.show("models/int8.engine", {"kind": "engine", "layers": rows})


def shown_at(width: int, show: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> str:
    """What ``show`` prints; no line of it is longer than ``width`` and none is cut."""
    monkeypatch.setenv("COLUMNS", str(width))
    show()
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out
    return out


def whole(out: str, column: int = 0) -> list[str]:
    """The cells of a column from top to bottom, those on several lines put together."""
    cells: list[str] = []
    for line in out.splitlines():
        if line.startswith("│"):
            row = [cell.strip() for cell in line.strip("│").split("│")]
            if any(row[:column] + row[column + 1 :]) or not cells:
                cells.append(row[column])
            else:
                cells[-1] += row[column]
    return cells


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("names", [SHORT, LONG, KERNELS], ids=["short", "long", "kernels"])
@pytest.mark.parametrize(
    ("show", "headers", "figures"),
    [
        (show_compare, ["layer", "type", "relative error"], ["1.23e-02", "1.35e-01"]),
        (show_inspect, ["name", "type", "precision", "output"], ["1280×112×112"]),
        (
            show_analyze,
            ["layer", "SQNR dB", "agreement", "top-1 drop", "MACs"],
            ["123.4", "98.75%", "+1.25", "12.5%"],
        ),
        (show_engine, ["name", "type", "precision"], ["INT8"]),
    ],
    ids=["compare", "inspect", "analyze", "inspect engine"],
)
def test_names_headers_and_figures_are_whole(
    show: Callable[[list[str]], None],
    headers: list[str],
    figures: list[str],
    names: list[str],
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    out = shown_at(width, lambda: show(names), monkeypatch, capsys)
    assert whole(out) == names
    for word in (*headers, *figures):
        assert re.search(rf"(?<!\S){re.escape(word)}(?!\S)", out), word


def test_a_wide_terminal_shows_all_and_a_narrow_one_says_what_it_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    headers = ("kernel", "sees", "parameters", "connections", "MACs", "bytes")
    monkeypatch.setenv("COLUMNS", "80")
    show_inspect(SHORT)
    narrow = capsys.readouterr()
    missing = {header for header in headers if f" {header} " not in narrow.out}
    said = " ".join(narrow.err.split())
    assert {"sees", "connections"} <= missing
    assert {name for name in headers if name in said.partition(": ")[2]} == missing
    monkeypatch.setenv("COLUMNS", "200")
    show_inspect(SHORT)
    wide = capsys.readouterr()
    assert all(f" {header} " in wide.out for header in headers)
    assert wide.err == ""


def test_compare_shows_the_error_that_counts_where_it_decides(capsys: Capture) -> None:
    rows = [
        LayerError("conv1", "Conv", 0.3, 1.0, 10.5, 0.024, "clip1"),
        LayerError("clip1", "Clip", 0.024, 1.0, 32.4, 0.024, "clip1"),
    ]
    divergence = Divergence("a.onnx", "b.onnx", Precision.INT8, 0.15, 64, None, rows)
    compare.show_divergence(divergence)
    assert re.search(r"conv1 .* 3\.00e-01 │ +2\.40e-02 ", capsys.readouterr().out)
    compare.show_divergence(dataclasses.replace(divergence, layers=rows[1:]))
    assert "after activation" not in capsys.readouterr().out


def test_in_a_file_the_table_is_whole(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_columns([Column("name", ["x" * 300], text=True, folds=True), Column("n", ["1,234"], rank=1)])
    assert f"│ {'x' * 300} │ 1,234 │" in capsys.readouterr().out


@pytest.mark.parametrize("width", WIDTHS)
def test_doctor_gives_its_advice_in_words(width: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from alexdeploy.doctor import Finding as Found

    advice = "no CUDA device (libcuda.so.1 not found); engines can be built with tensorrt-rtx but not run here"
    found = [Found("tensorrt-rtx (build)", "ok", "right"), Found("cuda device", "missing", advice)]
    monkeypatch.setattr("alexdeploy.doctor.examine", lambda **_: found)
    monkeypatch.setenv("COLUMNS", str(width))
    out = run("doctor").out
    assert max(map(len, out.splitlines())) <= width
    words = " ".join(" ".join(line.split("│")[3:]) for line in out.splitlines() if line.startswith("│"))
    assert advice in " ".join(words.split()), "no word is broken"
    assert all(f" {header} " in out for header in ("backend", "status", "detail"))


@pytest.mark.parametrize("width", WIDTHS)
def test_lint_names_nodes_of_one_fault_together(width: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    found, fix = "quantizes to uint8; TensorRT reads int8 and saturates at half the range", "quantize to symmetric int8"
    findings = [Finding(name, "unsigned", found, fix, "error") for name in SHORT[:7]]
    findings.insert(
        1, Finding("lrn1", "qdq-before-lrn", "has Q/DQ before it", "put the Q/DQ behind the LRN", "warning")
    )
    out = shown_at(width, lambda: lint.show(findings), monkeypatch, capsys)
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        "error: conv1, conv2, conv3 and 4 more (unsigned)",
        "warning: lrn1 (qdq-before-lrn)",
    ]
    assert " ".join(out.split()).count(f"found: {found} fix: {fix}") == 1
