"""Images from anywhere: every form of DATASET, the split, and the line that says how many images were taken."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run


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


@pytest.mark.parametrize("form", ["unsorted", "pixels.npy", "pixels.npz", "named.csv", "paths.txt"])
def test_ranges_are_the_same_from_every_form_of_the_same_images(
    form: str, run: Run, model: Path, forms: Path, pictures: Path, out: Path
) -> None:
    tensors = []
    for data in (pictures, forms / form):
        result = run("calibrate", model, "--data", data, "-o", out / "ranges.json", "--json")
        assert result.code == 0, result.err
        tensors.append(json.loads(result.out)["tensors"])
    assert tensors[0] == tensors[1]
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
    for source in ("other-labels", "one-class", "unsorted"):
        calibrated = run("calibrate", model, "--data", data / source, "-o", out / "ranges.json")
        compared = run("compare", model, int8, "--data", data / source)
        assert calibrated.code == 0, calibrated.err
        assert compared.code in (0, 5), compared.err
        assert "layer" in compared.out


@pytest.mark.parametrize(
    ("split", "line"),
    [
        ([], "4 of 20 images (the held-out fifth of each class); --split all takes every one"),
        (["--split", "train"], "16 of 20 images (four fifths of each class); --split all takes every one"),
        (["--split", "all"], "20 images"),
        (["--samples", 2], "2 of 20 images (the held-out fifth of each class, 2 spread over it)"),
    ],
)
def test_how_many_images_are_taken_is_said(
    split: list[str], line: str, run: Run, model: Path, out: Path, pictures: Path
) -> None:
    for name in "01":
        (out / "photos" / name).mkdir(parents=True)
        for number in range(10):
            shutil.copy(pictures / "train" / name / "digit-0.png", out / "photos" / name / f"{number}.png")
    result = run("compare", model, model, "--data", out / "photos", *split)
    taken = "val" if not split or split[0] == "--samples" else split[1]
    assert result.err.splitlines()[0] == f"{out / 'photos'}/{taken}: {line}"


def test_auto_needs_no_labels(run: Run, model: Path, ranges: Path, data: Path, out: Path) -> None:
    result = run(
        "quantize", model, "--ranges", ranges, "--method", "auto", "--data", data / "unsorted", "-o", out / "x.onnx"
    )
    assert result.code == 0, result.err
    assert result.err.startswith(f"{data / 'unsorted'}: 4 images\n")
    assert "auto: " in result.err


def test_the_other_commands_say_how_many_too(run: Run, model: Path, ranges: Path, out: Path, tensorrt_rtx: str) -> None:
    analyzed = run("analyze", model, "--ranges", ranges, "--data", "digits", "--samples", 8, "--split", "all")
    assert analyzed.err.startswith("digits/all: 8 of 1797 images (spread over it)\n")
    planned = run(
        *("build-engine", model, "--int8", "--data", "digits", "--samples", 8, "--dry-run"),
        *("--builder", tensorrt_rtx, "-o", out / "x.engine"),
    )
    assert planned.err.startswith("digits/train: 8 of 1797 images (four fifths, 8 spread over it)\n"), planned.err


def test_names_that_are_no_text_are_calibrated_on_and_written_down(
    run: Run, model: Path, pictures: Path, out: Path
) -> None:
    folder = out / os.fsdecode(b"\xcd\xbc")
    shutil.copytree(pictures / "train", folder)
    (folder / "3" / "digit-0.png").rename(folder / "3" / os.fsdecode(b"\xbb\xa8.png"))
    (folder / "4" / os.fsdecode(b"\xbb.png")).write_text("no image")
    line = ["--data", os.fsdecode(os.fsencode(folder)), "--split", "all", "--skip-bad-images"]
    result = run("calibrate", model, *line, "-o", out / "ranges.json")
    assert result.code == 0, result.err
    assert r"\xcd\xbc/all: 11 images" in result.err
    assert r"1 unreadable images left out of" in result.err
    assert result.err.count(r"4/\xbb.png") == 1
    assert json.loads((out / "ranges.json").read_text())["dataset"]["name"] == r"\xcd\xbc/all"
