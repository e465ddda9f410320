"""The examples run as their first lines show, in order: the first one trains the model that the others use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from alexdeploy.machine import why_no_cuda

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PIXELS, TRUTH = (getattr(load_digits(), name) for name in ("images", "target"))
Floats = npt.NDArray[np.float32]


def run_example(name: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it with this Python and its command line, and benches as short as they can be."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    program = "bash" if name.endswith(".sh") else sys.executable
    return subprocess.run(
        [program, str(EXAMPLES / name), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "BENCH_SECONDS": "0.01"},
        check=False,
    )


def digit(index: int) -> Image.Image:
    return Image.fromarray((PIXELS[index] * (255 / 16)).round().astype(np.uint8))


def logits(model: Path, pictures: list[Image.Image]) -> Floats:
    """What bare ONNX Runtime computes, with lenet's preprocessing written out; no sum saturates, on any CPU."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    resized = [np.asarray(picture.resize((28, 28), Image.Resampling.BILINEAR), np.float32) for picture in pictures]
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    batch = (np.stack(resized)[:, None] / 255 - np.float32(0.1307)) / np.float32(0.3081)
    (result,) = session.run(None, {session.get_inputs()[0].name: batch})
    found: Floats = result
    return found


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first example wrote about a folder of pictures, digits as PNG files by class."""
    folder = tmp_path_factory.mktemp("examples")
    for index, label in enumerate(TRUTH[:1200]):
        target = folder / "photos" / str(label) / f"{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        digit(index).save(target)
    result = run_example("01_own_photographs.sh", "photos", "out", "lenet", "4", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "out"


def test_own_photographs(out: Path) -> None:
    pictures, truth = [digit(index) for index in range(1200, 1797)], TRUTH[1200:]
    exact, int8 = logits(out / "model.onnx", pictures), logits(out / "int8.onnx", pictures)
    assert (exact.argmax(1) == truth).mean() > 0.8
    assert (exact.argmax(1) == int8.argmax(1)).mean() > 0.95
    assert (exact != int8).any()
    page = (out / "report.html").read_text()
    assert "model.onnx" in page
    assert "int8.onnx" in page


def test_own_photographs_a_second_time_goes_on_with_the_training(tmp_path: Path) -> None:
    stub = tmp_path / "bin/alexdeploy"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\necho "$@" >> said; if [ "$1" = train ]; then touch out/lenet.last.pt; fi\n')
    stub.chmod(0o755)
    command = ["bash", str(EXAMPLES / "01_own_photographs.sh"), "photos", "out", "lenet", "4"]
    for _ in range(2):
        subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": f"{stub.parent}:{os.environ['PATH']}"}, check=True
        )
    trained = [line for line in (tmp_path / "said").read_text().splitlines() if line.startswith("train ")]
    first = "train lenet --data photos --epochs 4 --out out"
    assert trained == [first, f"{first} --resume"]


def test_foreign_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.LocalResponseNorm(5, 1e-2), nn.MaxPool2d(2), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(16 * 13 * 13, 10)).eval()
    image = torch.zeros(2, 1, 28, 28)
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(net, (image,), tmp_path / "foreign.onnx", dynamic_shapes=dynamic, dynamo=True, verbose=False)
    result = run_example("02_foreign_onnx.py", "foreign.onnx", "alexnet-mnist", "digits", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "LRN put together again: none" not in result.stdout
    assert [count_lrn(tmp_path / name) for name in ("foreign.onnx", "adopted.onnx")] == [0, 1]
    assert "first layer beyond 0.15: none" in result.stdout
    pictures = [digit(index) for index in range(64)]
    exact, int8 = logits(tmp_path / "foreign.onnx", pictures), logits(tmp_path / "int8.onnx", pictures)
    assert 0 < np.linalg.norm(int8 - exact) / np.linalg.norm(exact) < 0.05


def count_lrn(model: Path) -> int:
    return sum(node.op_type == "LRN" for node in onnx.load(model).graph.node)


def test_accuracy_budget(out: Path, tmp_path: Path) -> None:
    # entropy clips the plain background of digits far too much, so conv1 has to stay in float
    result = run_example(
        "03_accuracy_budget.py", out / "model.onnx", out / "ranges.json", "digits", "0.97", "entropy", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    first, *_, last = result.stdout.splitlines()
    assert first.endswith("in float: none")
    assert "in float: conv1" in last
    pictures = [digit(index) for index in range(1797)]
    exact, int8 = logits(out / "model.onnx", pictures), logits(tmp_path / "int8.onnx", pictures)
    assert (exact.argmax(1) == int8.argmax(1)).mean() > 0.96


def test_a_budget_that_cannot_be_met(out: Path, tmp_path: Path) -> None:
    result = run_example(
        "03_accuracy_budget.py", out / "model.onnx", out / "ranges.json", "digits", "1.01", cwd=tmp_path
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: even with conv")
    assert len(result.stderr.splitlines()) == 1


def test_zero_copy_torch(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from alexdeploy import build_engine
    from alexdeploy.engine.options import BuilderOptions, BuildSettings

    build_engine(out / "model.onnx", tmp_path / "model.engine", settings=BuildSettings(options=BuilderOptions(level=0)))
    result = run_example("05_zero_copy_torch.py", "model.engine", cwd=tmp_path)
    if why_no_cuda() is None:
        assert result.returncode == 0, result.stderr
        assert "frame 7:" in result.stdout
    else:
        assert result.returncode == 4
        assert str(why_no_cuda()) in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_zero_copy_torch_takes_engines_only(out: Path, tmp_path: Path) -> None:
    result = run_example("05_zero_copy_torch.py", out / "model.onnx", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.endswith("model.onnx runs on onnxruntime-cpu; expected an engine of TensorRT\n")


def test_ci_gate(out: Path, tmp_path: Path) -> None:
    model, baseline = tmp_path / "model.onnx", tmp_path / "baseline.json"
    model.write_bytes((out / "model.onnx").read_bytes())

    def gate() -> subprocess.CompletedProcess[str]:
        return run_example("06_ci_gate.sh", "baseline.json", "digits", "model.onnx", cwd=tmp_path)

    def shift(factor: float) -> None:
        """Make the baseline's calls so many times as long; a hundred is beyond any noise."""
        report = json.loads(baseline.read_text())
        for row in report["rows"]:
            row["samples_ms"] = {
                key: [[factor * call for call in calls] for calls in rounds]
                for key, rounds in row["samples_ms"].items()
            }
        baseline.write_text(json.dumps(report))

    first = gate()
    assert (first.returncode, first.stdout) == (0, "wrote baseline.json\n"), first.stderr
    shift(100)
    passed = gate()
    assert passed.returncode == 0, passed.stderr
    assert passed.stdout == "no row is worse than in baseline.json\n"
    assert (tmp_path / "bench.html").is_file()
    shift(1e-4)
    slower = gate()
    assert slower.returncode == 5, slower.stderr
    assert all(
        change["ratio"]["verdict"] == "slower"
        for change in json.loads((tmp_path / "bench.json").read_text())["changes"]
    )
    shift(1e4)
    spoil(model)
    assert gate().returncode == 5
    changes = json.loads((tmp_path / "bench.json").read_text())["changes"]
    assert all(change["ratio"]["verdict"] == "faster" and change["p_less_accurate"] < 0.01 for change in changes)


def spoil(model: Path) -> None:
    """The same graph with the last layer's weights set to zero, so that every answer is the same class."""
    loaded = onnx.load(model)
    last = loaded.graph.node[-1].input[1]
    (weights,) = (entry for entry in loaded.graph.initializer if entry.name == last)
    weights.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(weights)), last))
    onnx.save(loaded, model)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("0[1-46]*")), ids=lambda path: path.name)  # 05 loads torch first
def test_without_arguments_an_example_prints_its_usage(path: Path, tmp_path: Path) -> None:
    result = run_example(path.name, cwd=tmp_path)
    assert result.returncode == 1
    assert f"{path.name}" in result.stderr


def test_the_table_names_every_example() -> None:
    named = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        if path.name[0] != "." and path.suffix in {".py", ".sh", ".ipynb"}:
            assert f"]({path.name})" in named
