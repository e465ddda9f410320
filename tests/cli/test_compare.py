"""``alexdeploy compare`` shows every layer, says in words which one is wrong, and exits with 5 when one is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

MARK = "<-- first beyond the band"
LAYER_KEYS = {"layer", "type", "relative_l2", "max_abs", "sqnr_db", "judged_l2", "judged_at"}
KEYS = {"a", "b", "precision", "band", "images", "first", "layers"}


@pytest.fixture(scope="session")
def wrong(model: Path, ranges: Path, shelf: Path) -> Path:
    """INT8 whose range of conv3's input is a hundredth of what it should be."""
    from alexdeploy.graph.model import load_onnx, save_onnx
    from alexdeploy.graph.qdq import insert_qdq
    from alexdeploy.quantize.rangefile import load_ranges

    seen = load_ranges(ranges).of("minmax")
    seen["pool2"] = dataclasses.replace(seen["pool2"], amax=seen["pool2"].amax / 100)
    save_onnx(insert_qdq(load_onnx(model), seen), shelf / "wrong.onnx")
    return shelf / "wrong.onnx"


def test_a_healthy_model_ends_well_and_the_last_line_says_so(run: Run, model: Path, int8: Path) -> None:
    result = run("compare", model, int8, "--data", "digits", "--samples", 8)
    assert result.code == 0
    assert "int8.onnx against net.onnx: 8 images" in result.out
    assert all(f"│ {layer} " in result.out for layer in ("conv1", "relu1", "lrn1", "pool5", "fc8"))
    assert MARK not in result.out
    taken, line = result.err.splitlines()
    assert taken == "digits/val: 8 of 1797 images (the held-out fifth, 8 spread over it)"
    assert line.startswith("every layer is within the 0.15 that is normal for int8; the largest error is 0.")


def test_a_wrong_range_is_marked_and_named_and_exits_with_5(run: Run, model: Path, wrong: Path) -> None:
    result = run("compare", model, wrong, "--data", "digits", "--samples", 8)
    assert result.code == 5
    (marked,) = [line for line in result.out.splitlines() if MARK in line]
    assert "│ conv3 " in marked
    line = result.err.splitlines()[-1]
    assert line.startswith("error: wrong.onnx leaves net.onnx at layer conv3: its relative error 0.")
    assert line.endswith("is beyond the 0.15 that is normal for int8; look at its input range, or its weights")


def test_json_is_one_object_whatever_the_verdict(run: Run, model: Path, int8: Path, wrong: Path) -> None:
    for path, code, first in ((int8, 0, None), (wrong, 5, "conv3")):
        result = run("compare", model, path, "--data", "digits", "--samples", 8, "--json")
        assert result.code == code
        shown = json.loads(result.out)
        assert shown.keys() == KEYS
        assert (shown["a"], shown["b"], shown["first"]) == (str(model), str(path), first)
        assert (shown["precision"], shown["band"], shown["images"]) == ("int8", 0.15, 8)
        assert len(shown["layers"]) == 20
        assert all(row.keys() == LAYER_KEYS for row in shown["layers"])
        errors = {row["layer"]: row["relative_l2"] for row in shown["layers"]}
        assert errors["pool2"] < 0.15
        assert (errors["conv3"] > 0.15) == (first is not None)


def test_a_checkpoint_and_its_export_are_the_same(run: Run, checkpoint: Path, model: Path) -> None:
    result = run("compare", checkpoint, model, "--data", "digits", "--samples", 8)
    assert result.code == 0
    assert "normal for fp32" in result.err


def test_an_engine_has_no_inner_tensors(run: Run, model: Path, engine: Path) -> None:
    result = run("compare", model, engine, "--data", "digits", "--samples", 1)
    assert result.code == 2
    assert "compare the ONNX file it was built from" in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{model}", "--data", "digits"], 2, "Missing argument 'B'"),
        (["{model}", "{model}"], 2, "--data"),
        (["{model}", "{model}", "--data", "digits", "--samples", "0"], 2, "--samples"),
        (["{model}", "nothing.onnx", "--data", "digits"], 3, "nothing.onnx: no such file"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], code: int, message: str, run: Run, model: Path) -> None:
    result = run("compare", *(argument.format(model=model) for argument in arguments), "--json")
    assert result.code == code
    assert message in result.err
    assert json.loads(result.out)["exit_code"] == code
