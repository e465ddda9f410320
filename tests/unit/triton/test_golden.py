"""Golden images reach every step of a contract, and golden answers come back as they were written."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from alexdeploy import files
from alexdeploy.errors import GateError
from alexdeploy.triton.golden import (
    FILE,
    About,
    Golden,
    draw_images,
    likeliest,
    network_inputs,
    read_golden,
    write_golden,
)
from tests.unit.triton.conftest import CONTRACT

ABOUT = About(
    name="ants",
    version=2,
    contract=CONTRACT.to_json(),
    labels=("bee", "ant"),
    runtime="onnxruntime-cpu",
    precision="fp32",
    image=True,
    artifact_sha256="0" * 64,
)


def opened() -> list[Image.Image]:
    return [Image.open(io.BytesIO(image)) for image in draw_images()]


def test_images_are_the_same_every_time_and_differ_from_each_other() -> None:
    assert draw_images() == draw_images()
    assert len({*draw_images()}) == len(draw_images())


def test_images_have_colour_texture_formats_and_shapes() -> None:
    images = opened()
    assert {image.format for image in images} == {"PNG", "JPEG"}
    assert {image.width > image.height for image in images} == {True, False}
    assert any(ImageOps.exif_transpose(image).size == image.size[::-1] for image in images)
    assert min(min(image.size) for image in images) < 224 < max(max(image.size) for image in images)
    for image in images:
        pixels = np.asarray(image.convert("RGB"), np.float32)
        assert np.abs(np.diff(pixels, axis=1)).mean() > 1  # a flat image looks alike after any crop
        assert np.abs(pixels - pixels[..., ::-1]).mean() > 10  # and grey in any channel order


def test_inputs_are_what_the_contract_makes_of_the_images() -> None:
    inputs = network_inputs(draw_images(), CONTRACT)
    for image, found in zip(opened(), inputs, strict=True):
        width, height = image.size
        size = (9, int(9 * height / width)) if width <= height else (int(9 * width / height), 9)
        resized = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        left, top = round((size[0] - 8) / 2), round((size[1] - 8) / 2)
        pixels = np.asarray(resized.crop((left, top, left + 8, top + 8)), np.float64) / 255
        np.testing.assert_allclose(found, ((pixels - 0.5) / 0.25).transpose(2, 0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("ends_in_softmax", [False, True])
def test_the_likeliest_class_and_its_share(ends_in_softmax: bool) -> None:
    scores = np.array([[0, 2, 1, 0], [0.5, 0.2, 0.2, 0.1]], np.float32)
    labels, shares = likeliest(scores, CONTRACT, ends_in_softmax=ends_in_softmax)
    expected = [2, 0.5] if ends_in_softmax else [np.e**2 / (2 + np.e + np.e**2), 0.318]
    assert labels == ("bee", "ant")
    assert shares == pytest.approx(expected, abs=1e-3)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"a graph")
    inputs = np.arange(12, dtype=np.uint8).reshape(2, 1, 2, 3)
    logits = np.ones((2, 4), np.float32)
    golden = Golden(ABOUT, (b"one", b"and two"), inputs, logits, np.array([0.5, 1], np.float32))
    write_golden(tmp_path, golden, files.parent(tmp_path / "net.onnx"))
    found = read_golden(tmp_path)
    assert (found.about, found.images) == (ABOUT, golden.images)
    for ours, theirs in ((found.inputs, inputs), (found.logits, logits), (found.probabilities, golden.probabilities)):
        assert ours is not None
        assert theirs is not None
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_answers_may_be_missing_and_are_not_changed(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"a graph")
    write_golden(
        tmp_path, Golden(ABOUT, (b"one",), np.zeros((1, 3, 8, 8), np.float32)), files.parent(tmp_path / "net.onnx")
    )
    assert (read_golden(tmp_path).logits, read_golden(tmp_path).probabilities) == (None, None)
    with (tmp_path / FILE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(GateError, match="changed since it was written"):
        read_golden(tmp_path)
