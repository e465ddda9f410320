"""Ranges leave as TensorRT's calibration cache and come in as one; the percentile is settable and recorded."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import click
import onnx
import pytest
from onnx import numpy_helper

from alexdeploy import files
from alexdeploy.cli import cli
from alexdeploy.quantize.methods import PERCENTILE
from alexdeploy.quantize.tensorrt_cache import PROVES_NOTHING
from tests.cli.conftest import Run
from tests.cli.test_wrong_input import assert_refused


@pytest.fixture(scope="session")
def cache(ranges: Path, shelf: Path) -> Path:
    """The entropy ranges of the shared model, written without alexdeploy, and a tensor that the model does not have."""
    tensors = json.loads(ranges.read_text())["tensors"]
    lines = [f"{name}: {struct.pack('!f', values['entropy'] / 127).hex()}" for name, values in tensors.items()]
    path = shelf / "calibration.cache"
    path.write_text("\n".join(["TRT-8601-EntropyCalibration2", "(Unnamed Layer* 3) [Shuffle]: out: 3c010a14", *lines]))
    return path


def scales(path: Path) -> dict[str, float]:
    """The scale per quantized activation."""
    model = onnx.load(path)
    values = {init.name: numpy_helper.to_array(init) for init in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return {node.input[0]: float(values[node.input[1]]) for node in nodes}


def test_calibrate_writes_a_cache_of_the_entropy_ranges(run: Run, model: Path, ranges: Path, out: Path) -> None:
    path = out / "calibration.cache"
    options = ["--data", "digits", "--samples", 32, "--cache", path, "-o", out / "ranges.json"]
    result = run("calibrate", model, *options, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["cache"] == str(path)
    assert (out / "ranges.json").read_bytes() == ranges.read_bytes()
    first, *lines = path.read_text().splitlines()
    assert first == "TRT-101600-EntropyCalibration2"
    written = {name: struct.unpack("!f", bytes.fromhex(scale))[0] for name, scale in (x.split(": ") for x in lines)}
    tensors = json.loads(ranges.read_text())["tensors"]
    assert written == pytest.approx({name: values["entropy"] / 127 for name, values in tensors.items()}, rel=1e-7)
    sidecar = files.read_sidecar(path, "ranges")
    assert [parent.sha256 for parent in sidecar.parents] == [files.sha256_file(model)]
    assert f"{path}: the ranges by entropy, for TensorRT\n" in run("calibrate", model, *options).out


def test_quantize_takes_a_cache_and_says_what_it_cannot_prove(
    run: Run, model: Path, ranges: Path, cache: Path, out: Path
) -> None:
    taken = run("quantize", model, "--ranges", cache, "-o", out / "from-cache.onnx", "--json")
    assert taken.code == 0, taken.err
    assert taken.err == f"{PROVES_NOTHING}\n"
    assert json.loads(taken.out)["method"] == "calibration-cache"
    known = run("quantize", model, "--ranges", ranges, "--method", "entropy", "-o", out / "known.onnx")
    assert (known.code, known.err) == (0, "")
    assert scales(out / "from-cache.onnx") == scales(out / "known.onnx")
    sidecar = files.read_sidecar(out / "from-cache.onnx", "onnx")
    assert sidecar.options["method"] == "calibration-cache"
    assert [parent.name for parent in sidecar.parents] == [model.name, cache.name]


def test_build_engine_takes_a_cache_and_records_it(
    run: Run, model: Path, cache: Path, tensorrt_rtx: str, out: Path
) -> None:
    path = out / "x.engine"
    options = ["--int8", "--ranges", cache, "--strict", "--builder", tensorrt_rtx, "-o", path, "--json"]
    result = run("build-engine", model, *options)
    assert result.code == 0, result.err
    assert result.err == f"{PROVES_NOTHING}\n"
    assert json.loads(result.out)["precisions"] == {"INT8": 8, "HALF": 0, "FLOAT": 0}
    recorded = files.read_sidecar(path, "engine").options
    assert recorded["method"] == "calibration-cache"
    assert recorded["ranges"] == {
        "cache": cache.name,
        "sha256": files.sha256_file(cache),
        "calibrator": "TRT-8601-EntropyCalibration2",
    }


@pytest.mark.parametrize("verb", ["quantize", "build-engine --int8"])
@pytest.mark.parametrize("method", ["mse", "entropy"])
def test_a_method_beside_a_cache_is_refused(
    verb: str, method: str, run: Run, model: Path, cache: Path, out: Path
) -> None:
    result = run(*verb.split(), model, "--ranges", cache, "--method", method, "-o", out / "x")
    assert_refused(result, 2, "leave --method out", out)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("conv1: 3c010a14", "lacks tensor 'input'"),
        ("input: 7fc00000", "line 2: the scale 7fc00000 of 'input' is negative, infinite or not a number"),
        ("input=3c010a14", "line 2: found 'input=3c010a14', expected 'tensor: ' and 8 hex digits"),
    ],
)
@pytest.mark.parametrize("verb", ["quantize", "build-engine --int8"])
def test_a_cache_that_does_not_serve_is_refused(
    verb: str, line: str, complaint: str, run: Run, model: Path, out: Path, tmp_path: Path, tensorrt_rtx: str
) -> None:
    path = tmp_path / "bad.cache"
    path.write_text(f"TRT-8601-EntropyCalibration2\n{line}\n")
    builder = ["--builder", tensorrt_rtx] if verb.startswith("build") else []
    assert_refused(run(*verb.split(), model, "--ranges", path, *builder, "-o", out / "x"), 3, complaint, out)


@pytest.mark.parametrize(
    "name",
    ["ranges.json", "ranges", "ranges.json.json", "ranges.json.moments.safetensors", "missing/calibration.cache"],
)
def test_a_cache_that_cannot_lie_beside_the_ranges_is_refused_first(
    name: str, run: Run, model: Path, out: Path
) -> None:
    result = run("calibrate", model, "--data", "digits", "--cache", out / name, "-o", out / "ranges.json")
    said = "does not exist" if name.startswith("missing") else "would overwrite each other"
    assert_refused(result, 2, said, out)


def test_the_percentile_is_settable_and_recorded(run: Run, model: Path, ranges: Path, out: Path) -> None:
    path = out / "low.json"
    options = ["--data", "digits", "--samples", 32, "--percentile", 90, "-o", path, "--json"]
    result = run("calibrate", model, *options)
    assert result.code == 0, result.err
    low, usual = json.loads(path.read_text()), json.loads(ranges.read_text())
    assert (json.loads(result.out)["percentile"], low["percentile"], usual["percentile"]) == (90, 90, 99.99)
    assert files.read_sidecar(path).options["percentile"] == 90
    for name, values in low["tensors"].items():
        assert values["percentile"] < usual["tensors"][name]["percentile"]
        assert {**values, "percentile": 0} == {**usual["tensors"][name], "percentile": 0}
    before = path.read_bytes()
    assert run("calibrate", model, *options).code == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", ["50", "100.01", "-1", "nan", "most"])
def test_a_percentile_out_of_bounds_is_refused(value: str, run: Run, model: Path, out: Path) -> None:
    result = run("calibrate", model, "--data", "digits", "--percentile", value, "-o", out / "x.json")
    assert_refused(result, 2, "percentile", out)


@pytest.mark.parametrize("value", ["50", "101", "null", "NaN"])
def test_a_range_file_with_an_impossible_percentile_is_refused(
    value: str, run: Run, model: Path, ranges: Path, out: Path, tmp_path: Path
) -> None:
    path = tmp_path / "odd.json"
    path.write_text(ranges.read_text().replace('"percentile": 99.99,', f'"percentile": {value},', 1))
    result = run("quantize", model, "--ranges", path, "-o", out / "x.onnx")
    assert_refused(result, 3, "not a range file", out)


def test_the_default_percentile_is_that_of_the_method() -> None:
    command = cli.get_command(click.Context(cli), "calibrate")
    assert command is not None
    assert next(option for option in command.params if option.name == "percentile").default == PERCENTILE
