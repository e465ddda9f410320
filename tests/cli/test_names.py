"""Names that a terminal, a spreadsheet or a parser of JSON would take for something else."""

from __future__ import annotations

import csv
import json
import os
import sys
import unicodedata
from pathlib import Path

import onnx
import pytest
from onnx import helper
from PIL import Image

from alexdeploy.cli.output import print_columns, print_json, progress
from alexdeploy.cli.predictions import Judged
from alexdeploy.columns import Column
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.runners.artifact import OnnxArtifact
from alexdeploy.runners.predict import Prediction
from tests.cli.conftest import Run
from tests.helpers.graphs import conv_lrn_gemm

LABELS = ("=cmd|' /C calc'!A0", "\x1b[31mred\nrose", "-1", "@SUM(A1)\u202e")
FILES = (
    *(
        "=1+1.png",
        "+1.png",
        "-x.png",
        "@SUM(A1).png",
        "\x1b]0;title\x07.png",
        "a\nb.png",
        "tab\tx.png",
        "\u202egnp.png",
    ),
    *("\u202egnp.png", "a b.png", "花.png", "[red]x.png", "[x][bold].png", 'q"q.png', "<b>.png", "n" * 251 + ".png"),
)
BYTES = b"\xbb\xa8.png"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``net.onnx`` whose classes have such names, and a class folder and other files of such names below ``photos``."""
    root = tmp_path_factory.mktemp("names")
    model = conv_lrn_gemm()
    contract = Contract(color="rgb", resize=8, crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, labels=LABELS)
    helper.set_model_props(model, {METADATA_KEY: contract.to_json()})
    onnx.save(model, root / "net.onnx")
    for number, name in enumerate([*map(os.fsencode, FILES), BYTES]):
        folder = root / "photos" / (LABELS[1] if number % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:  # noqa: PTH118, PTH123 (any bytes)
            Image.new("RGB", (8, 8), (number, 40, 90)).save(file, "PNG")
    return root


def controls(text: str) -> list[str]:
    """Characters of a text that are no letters, marks, signs or blanks."""
    return [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def test_no_name_reaches_the_terminal_with_what_it_obeys(run: Run, odd: Path, out: Path) -> None:
    shown = run("predict", odd / "net.onnx", odd / "photos", "--top", 4)
    assert shown.code == 0
    assert len(shown.out.splitlines()) == len(FILES) + 1, "a line for each image"
    for text in (shown.out, shown.err):
        assert controls(text) == []
    assert r"\x1b[31mred\nrose (" in shown.out
    assert r"photos/\x1b]0;title\x07.png" in shown.out
    assert r"\xbb\xa8.png" in shown.out
    assert run("predict", odd / "net.onnx", odd / "photos", "--out", out / "record.txt").code == 0
    assert controls((out / "record.txt").read_text(encoding="utf-8")) == []
    for arguments in (["predict", odd / "net.onnx", "\x1b[31m.png"], ["\x1b[31m"], ["inspect", "a\nb.onnx", "--json"]):
        refused = run(*arguments)
        assert refused.code in (2, 3)
        assert len(refused.err.splitlines()) == 1
        assert controls(refused.err + refused.out) == []


def test_json_holds_whole_names_and_no_control_character(run: Run, odd: Path, out: Path) -> None:
    shown = run("predict", odd / "net.onnx", odd / "photos", "--json")
    assert controls(shown.out) == []
    found = json.loads(shown.out)["predictions"]
    names = {Path(row["image"]).name for row in found}
    assert names == {*FILES, r"\xbb\xa8.png"}
    assert {label["label"] for row in found for label in row["top"]} <= {*LABELS}
    assert run("predict", odd / "net.onnx", odd / "photos", "--out", out / "p.jsonl").code == 0
    lines = (out / "p.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == found


def test_a_name_in_other_bytes_is_put_into_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(
        {"model": Path(os.fsdecode(BYTES)), "all": (os.fsdecode(BYTES),), "x": 1.5, "y": float("nan"), "z": "\x9b"}
    )
    shown = capsys.readouterr().out
    assert controls(shown) == []
    assert json.loads(shown) == {"model": r"\xbb\xa8.png", "all": [r"\xbb\xa8.png"], "x": 1.5, "y": None, "z": "\x9b"}


def test_a_spreadsheet_finds_no_formula(run: Run, odd: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(odd / "photos")
    assert run("predict", odd / "net.onnx", ".", "--top", 4, "--out", out / "p.csv").code == 0
    with (out / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    cells = [cell for row in rows for cell in row]
    signs = {cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))}
    assert signs == {"-1", "-x.png"}, "what is no formula is left alone"
    assert "'" + LABELS[0] in cells
    assert {Path(row[0]) for row in rows if "xbb" not in row[0]} == {
        path for path in Path().rglob("*.png") if path.name.isascii() or path.name in FILES
    }, "the paths are those of the files"
    assert "./=1+1.png" in cells


@pytest.mark.parametrize(
    ("label", "is_formula"),
    [
        *(
            (text, True)
            for text in ("=1", "@x", "\tx", "\rx", "\nx", "＝1", "＋x", "－x", "＠x", "+A1", "-$B$7", "-1+AB12")
        ),
        *((text, True) for text in ("-SUM(1)", "+cmd|' /C calc'!A0", "-1=1", "-x!y", "+a\n(b)", "-2+C3")),
        *((text, False) for text in ("-", "-1.5", "+3e5", "-1e-7", "-cat", "+/- 3 mm", "-resnet50", "--", "+1.png")),
        *((text, False) for text in ("", "cat", "a=b", "1-A1", " =1", "'=1")),
    ],
)
def test_an_apostrophe_stands_before_formulas_alone(label: str, is_formula: bool, out: Path) -> None:
    row = Prediction("a.png", [(label, 0.5)], truth=label)
    artifact = OnnxArtifact(b"")
    artifact.contract = Contract(color="rgb", resize=8, crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    Judged(artifact, [], [], []).write(out / "p.csv", [row])
    with (out / "p.csv").open(encoding="utf-8", newline="") as file:
        assert [*csv.reader(file)][1] == ["a.png", "'" * is_formula + label, "0.500000", "'" * is_formula + label]


def test_words_of_a_bar_are_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("opening [x][/foo] \x1b]0;t\x07") as bar:
        bar("[red]b\u202e", 0.5)
    shown = capsys.readouterr().err
    assert r"opening [x][/foo] \x1b]0;t\x07" in shown
    assert r"[red]b\u202e" in shown


def test_a_table_has_a_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_columns([Column("layer", ["a\nb", "\x1b[31m", "[red]x"], text=True)], title="of \x07 x")
    shown = capsys.readouterr().out
    assert controls(shown) == []
    assert len(shown.splitlines()) == 1 + 3 + 3 + 1
    assert all(text in shown for text in (r"of \x07 x", r"a\nb", r"\x1b[31m", "[red]x"))


@pytest.mark.parametrize(
    "arguments",
    [
        "predict {model} {long}.png",
        "predict {long} {long}",
        "predict {model} {long}.csv",
        "predict {model} {model} --out {long}.csv",
        "train {long} --data digits",
        "inspect --network {long}",
        "calibrate {model} --data {long} -o x.json",
        "calibrate {model} --data digits -o {long}.json",
    ],
)
def test_a_name_longer_than_any_is_a_line(run: Run, odd: Path, arguments: str) -> None:
    result = run(*(word.format(model=odd / "net.onnx", long="n" * 300) for word in arguments.split()))
    assert result.code in (2, 3)
    assert (result.out, len(result.err.splitlines())) == ("", 1)
