"""Images from anywhere: every form of DATASET, the split, and the line that says how many images were taken."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper
from PIL import Image

from alexdeploy.cli.options import DataChoice, data_options
from alexdeploy.cli.output import note_data
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import UsageError
from alexdeploy.quantize.calibrate import calibrate
from tests.cli.conftest import Run
from tests.helpers.graphs import make_model


@pytest.fixture(scope="session")
def forms(pictures: Path, shelf: Path) -> Path:
    """The ten pictures of ``pictures/train`` in every form: as files, in lists, in arrays."""
    folder = shelf / "forms"
    files = sorted((pictures / "train").rglob("*.png"))
    (folder / "unsorted").mkdir(parents=True)
    for number, file in enumerate(files):
        shutil.copy(file, folder / "unsorted" / f"{number}.png")
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    np.save(folder / "pixels.npy", pixels)
    np.savez(folder / "pixels.npz", x=pixels, labels=np.arange(10))
    (folder / "named.csv").write_text("path,label\n" + "".join(f"unsorted/{i}.png,{i}\n" for i in range(10)))
    (folder / "paths.txt").write_text("".join(f"unsorted/{i}.png\n" for i in range(10)))
    shutil.copy(files[0], folder / "one.png")
    return folder


@pytest.fixture(scope="session")
def tensors(model: Path, pictures: Path) -> dict[str, dict[str, float]]:
    """The ranges from ``pictures/train``."""
    return calibrate(model, load_dataset(str(pictures), "train"), samples=10).tensors


@pytest.mark.parametrize("form", ["unsorted", "pixels.npy", "pixels.npz", "named.csv", "paths.txt"])
def test_ranges_are_the_same_from_every_form_of_the_same_images(
    form: str, run: Run, model: Path, forms: Path, tensors: dict[str, dict[str, float]], out: Path
) -> None:
    result = run("calibrate", model, "--data", forms / form, "-o", out / "ranges.json", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["tensors"] == tensors
    assert result.err.splitlines()[0] == f"{forms / form}: 10 images"
    assert json.loads((out / "ranges.json").read_text())["dataset"]["name"] == f"forms/{form}"


def test_network_inputs_and_one_image_calibrate_too(run: Run, model: Path, forms: Path, out: Path) -> None:
    np.save(out / "inputs.npy", np.random.default_rng(0).standard_normal((4, 1, 28, 28)).astype(np.float32))
    for data, count in ((out / "inputs.npy", 4), (forms / "one.png", 1)):
        result = run("calibrate", model, "--data", data, "-o", out / "ranges.json")
        assert (result.code, f"saw all {count} images" in result.out) == (0, True), result.err


def test_calibration_and_comparison_need_no_class_of_the_model(
    run: Run, model: Path, int8: Path, data: Path, out: Path
) -> None:
    calibrated = run("calibrate", model, "--data", data / "one-class", "-o", out / "ranges.json")
    assert calibrated.code == 0, calibrated.err
    compared = run("compare", model, int8, "--data", data / "other-labels", "--samples", 4)
    assert (compared.code, compared.out.count("conv1")) == (0, 1), compared.err


@pytest.mark.parametrize(
    ("split", "line"),
    [
        ([], "4 of 20 images (the held-out fifth of each class); --split all takes every one"),
        (["--split", "train"], "16 of 20 images (four fifths of each class); --split all takes every one"),
        (["--split", "all"], "20 images"),
        (["--samples", "2"], "2 of 20 images (the held-out fifth of each class, 2 spread over it)"),
    ],
)
def test_how_many_images_are_taken_is_said(split: list[str], line: str, tmp_path: Path) -> None:
    for name in "01":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (4, 4)).save(tmp_path / "photos" / name / f"{number}.png")

    @click.command()
    @data_options(required=True)
    @click.option("--samples", type=int)
    def command(data: DataChoice, samples: int | None) -> None:
        note_data(data.open("val"), samples)

    result = CliRunner().invoke(command, ["--data", str(tmp_path / "photos"), *split])
    taken = split[1] if "--split" in split else "val"
    assert result.stderr == f"{tmp_path / 'photos'}/{taken}: {line}\n"


def test_analyze_and_build_engine_say_it_too(run: Run, model: Path, ranges: Path, out: Path, tensorrt_rtx: str) -> None:
    analyzed = run("analyze", model, "--ranges", ranges, "--data", "digits", "--samples", 8, "--split", "all")
    assert analyzed.err.startswith("digits/all: 8 of 1797 images (spread over it)\n")
    planned = run(
        *("build-engine", model, "--int8", "--data", "digits", "--samples", 8, "--dry-run"),
        *("--builder", tensorrt_rtx, "-o", out / "x.engine"),
    )
    assert planned.err.startswith("digits/train: 8 of 1797 images (four fifths, 8 spread over it)\n"), planned.err


def test_analyze_names_convolutions_with_groups(run: Run, out: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["mixed"], "conv1"),
        helper.make_node("Conv", ["mixed", "w2"], ["conv2"], "conv2", group=2),
        helper.make_node("GlobalAveragePool", ["conv2"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], "flatten"),
    ]
    random = np.random.default_rng(0)
    weights = {"w1": random.standard_normal((4, 3, 1, 1)), "w2": random.standard_normal((10, 2, 3, 3))}
    model = make_model(nodes, {name: weight.astype(np.float32) for name, weight in weights.items()}, rank=2)
    contract = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.5,) * 3, labels=tuple("0123456789"))
    helper.set_model_props(model, {METADATA_KEY: contract.to_json()})
    (out / "net.onnx").write_bytes(model.SerializeToString())
    common = ["--data", "digits", "--samples", 8]
    assert run("calibrate", out / "net.onnx", *common, "-o", out / "ranges.json").code == 0
    analyzed = run("analyze", out / "net.onnx", "--ranges", out / "ranges.json", *common)
    assert "groups (conv2)" in analyzed.err, analyzed.err
    assert "measure also with --keep-float conv2" in analyzed.err


def test_names_that_are_no_text_are_calibrated_on_and_written_down(
    run: Run, model: Path, pictures: Path, out: Path
) -> None:
    folder = out / os.fsdecode(b"\xc0\xf6")
    shutil.copytree(pictures / "train", folder)
    (folder / "3" / "digit-0.png").rename(folder / "3" / os.fsdecode(b"\xbb\xa8.png"))
    (folder / "4" / os.fsdecode(b"\xbb.png")).write_text("no image")
    line = ["--data", os.fsdecode(os.fsencode(folder)), "--split", "all", "--skip-bad-images"]
    result = run("calibrate", model, *line, "-o", out / "ranges.json")
    assert result.code == 0, result.err
    assert r"\xc0\xf6/all: 11 images" in result.err
    assert r"1 unreadable images left out of" in result.err
    assert result.err.count(r"4/\xbb.png") == 1
    assert json.loads((out / "ranges.json").read_text())["dataset"]["name"] == r"\xc0\xf6/all"


@pytest.mark.parametrize(("precision", "moments"), [("--int8", True), ("--fp8", False), ("--fp16", False)])
def test_build_engine_gathers_moments_for_int8_alone(
    precision: str, moments: bool, run: Run, model: Path, tensorrt_rtx: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def watched(*_: Any, moments: bool = True, **__: Any) -> Any:
        asked.append(moments)
        raise UsageError("seen")

    monkeypatch.setattr("alexdeploy.quantize.calibrate.calibrate", watched)
    run("build-engine", model, precision, "--data", "digits", "--builder", tensorrt_rtx, "-o", out / "x.engine")
    assert asked == [moments]


def test_quantize_names_what_stays_in_float(run: Run, model: Path, ranges: Path, out: Path) -> None:
    kept = run("quantize", model, "--ranges", ranges, "--keep-float", "conv1,fc8", "-o", out / "kept.onnx")
    assert "6 of 8 layers in INT8 (float: conv1, fc8), ranges by mse" in kept.out
    assert "in float, for --keep-float and other tools: conv1,fc8\n" in kept.err
