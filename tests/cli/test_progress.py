"""Where stderr is a terminal every command that may take seconds shows what it is doing; elsewhere none does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from alexdeploy.cli.output import progress
from tests.cli.conftest import Run

BUILD: list[object] = ["build-engine", "{model}", "--int8", "--data", "digits", "--samples", 32, "-o", "x.engine"]
COMMANDS: dict[str, tuple[list[object], str]] = {
    "train": (["train", "lenet", "--data", "{pictures}", "--epochs", 1, "--out", "."], "loading PyTorch"),
    "export": (["export", "{checkpoint}", "-o", "x.onnx"], "loading PyTorch"),
    "adopt": (["adopt", "{model}", "--contract", "alexnet-mnist", "-o", "x.onnx"], "reading net.onnx"),
    "calibrate": (["calibrate", "{model}", "--data", "digits", "--samples", 32, "-o", "x.json"], "reading net.onnx"),
    "quantize": (["quantize", "{model}", "--ranges", "{ranges}", "-o", "x.onnx"], "quantizing net.onnx"),
    "build-engine": ([*BUILD, "--builder", "tensorrt-rtx"], "reading net.onnx"),
    "bench": (["bench", "{model}", "--data", "{pictures}", "--batch", 1, "--seconds", 0.01], "opening the artifacts"),
    "compare": (["compare", "{model}", "{int8}", "--data", "{pictures}"], "opening net.onnx and int8.onnx"),
    "analyze": (["analyze", "{model}", "--ranges", "{ranges}", "--data", "{pictures}"], "the float model's answers"),
    "predict": (["predict", "{model}", "{pictures}/val"], "opening net.onnx"),
    "inspect": (["inspect", "{checkpoint}"], "reading "),
    "lint": (["lint", "{model}"], "checking "),
    "doctor": (["doctor"], "trying every backend"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_sees_at_once_what_is_being_done(
    name: str, run: Run, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    arguments, words = COMMANDS[name]
    used = {key for key in ("checkpoint", "model", "int8", "ranges", "pictures") if f"{{{key}}}" in str(arguments)}
    files: dict[str, Path] = {key: request.getfixturevalue(key) for key in used}
    if name == "build-engine":
        request.getfixturevalue("tensorrt_rtx")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    result = run(*(str(argument).format(**files) for argument in arguments))
    assert result.code == 0, result.err
    assert words in result.err
    assert "━" in result.err, "the bar"


@pytest.mark.parametrize("columns", [80, 120])
def test_the_bar_leaves_room_for_the_words(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    words = "epoch 30/40  loss 0.123  1234 images/s"
    with progress("loading PyTorch") as bar:
        bar(words, 0.5)
    shown = capsys.readouterr().err
    assert "loading PyTorch" in shown
    assert words in shown


def test_a_file_gets_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("loading PyTorch") as bar:
        bar("epoch", 0.5)
    assert capsys.readouterr() == ("", "")


def test_export_and_adoption_name_their_stages(checkpoint: Path, model: Path, out: Path) -> None:
    from alexdeploy.export.from_onnx import adopt_onnx
    from alexdeploy.export.from_torch import export_onnx
    from alexdeploy.export.parity import noise
    from alexdeploy.zoo.checkpoint import load_checkpoint

    seen: list[tuple[str, float]] = []
    loaded = load_checkpoint(checkpoint)
    contract = loaded.contract
    images = noise(contract.input_shape)
    export_onnx(loaded.model, contract, out / "a.onnx", real_images=images, progress=lambda *step: seen.append(step))
    assert [what for what, _ in seen] == [
        "tracing the network",
        "comparing ONNX Runtime with PyTorch",
        "writing a.onnx",
    ]
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    seen.clear()
    adopt_onnx(model, contract, out / "b.onnx", progress=lambda *step: seen.append(step))
    assert [what for what, _ in seen][1:] == ["comparing it with the original", "writing b.onnx"]
