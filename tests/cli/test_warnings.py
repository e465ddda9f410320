"""A file that declares a wrong shape works in every command, and stderr has one line about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from tests.cli.conftest import Run


@pytest.fixture(scope="session")
def inconsistent(model: Path, shelf: Path) -> Path:
    proto = onnx.load(model)
    del proto.graph.value_info[:]
    proto.graph.value_info.append(helper.make_tensor_value_info("relu1", TensorProto.FLOAT, ["N", 5, 3, 3]))
    onnx.save(proto, shelf / "inconsistent.onnx")
    return shelf / "inconsistent.onnx"


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing reaches the root logger, which prints on stderr where no application has set it up."""
    yield
    assert caplog.records == []


def warned(err: str, path: Path) -> list[str]:
    """The other lines."""
    lines = err.splitlines()
    told = [line for line in lines if line.startswith("warning: ")]
    assert told == [told[0]]
    assert told[0].startswith(f"warning: {path}: 'relu1' is declared with shape [N,5,3,3], inferred is [")
    return [line for line in lines if line not in told]


@pytest.mark.parametrize(
    "arguments",
    [
        "lint {model}",
        "inspect {model}",
        "inspect {model} --json",
        "adopt {model} --contract alexnet-mnist -o {out}/x.onnx",
        "calibrate {model} --data digits --samples 8 -o {out}/x.json",
        "predict {model} {pictures}/val/0/digit-0.png",
    ],
)
def test_commands_that_read_a_graph(arguments: str, run: Run, inconsistent: Path, pictures: Path, out: Path) -> None:
    result = run(*(word.format(model=inconsistent, out=out, pictures=pictures) for word in arguments.split()))
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    rest = warned(result.err, inconsistent)
    assert not [line for line in rest if "onnx" in line and str(out) not in line]
    if "--json" in arguments:
        assert json.loads(result.out)["kind"] == "onnx"


def test_the_way_to_an_engine(run: Run, inconsistent: Path, out: Path, tensorrt_rtx: str) -> None:
    ranges, int8 = out / "ranges.json", out / "int8.onnx"
    for arguments in (
        ("calibrate", inconsistent, "--data", "digits", "--samples", 8, "-o", ranges),
        ("quantize", inconsistent, "--ranges", ranges, "-o", int8),
        ("build-engine", inconsistent, "--builder", tensorrt_rtx, "-o", out / "x.engine"),
        ("compare", inconsistent, int8, "--data", "digits", "--samples", 4),
    ):
        result = run(*arguments)
        assert result.code == 0, result.err
        warned(result.err, inconsistent)
    result = run("lint", int8)
    assert result.err == "", "what we write declares what is true"


def test_what_pillow_says_of_an_image_is_one_line_without_our_source(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    picture = Image.new("L", (28, 28), 99)
    picture.save(tmp_path / "photos" / "cut-exif.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0")
    picture.quantize(4).save(tmp_path / "photos" / "palette.png", transparency=bytes(range(4)))
    picture.save(tmp_path / "photos" / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 28 * 28 - 1)  # a warning from there on, and an error from twice that
    result = run("predict", model, tmp_path / "photos")
    assert result.code == 0
    lines = result.err.splitlines()
    assert [line for line in lines if "Corrupt EXIF" in line] == [lines[0]]
    assert lines[0].startswith("warning: Pillow, of an image: Corrupt EXIF data")
    assert not any(word in line for line in lines[1:] for word in ("warning", "Warning", ".py"))


def test_the_field_that_a_file_lacks_is_no_option(run: Run, out: Path) -> None:
    (out / "other.json").write_text('{"benchmarks": []}')
    result = run("report", out / "other.json")
    assert (result.code, result.out) == (3, "")
    assert result.err == (
        f"error: {out / 'other.json'}: expected the JSON of a bench (Object missing required field `environment`)\n"
    )
