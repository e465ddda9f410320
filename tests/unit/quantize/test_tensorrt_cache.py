from __future__ import annotations

import math
import struct
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from alexdeploy import files
from alexdeploy.errors import InputError, UsageError
from alexdeploy.graph.model import load_onnx
from alexdeploy.graph.qdq import INT8_MAX, TensorRange, insert_qdq
from alexdeploy.quantize import tensorrt_cache
from alexdeploy.quantize.methods import METHODS
from alexdeploy.quantize.rangefile import RangeFile, save_ranges
from tests.helpers.graphs import conv_lrn_gemm

FIRST = "TRT-8601-EntropyCalibration2\n"


def _ranges(tensors: dict[str, float]) -> RangeFile:
    """Every method has the same range, apart from minmax, which has twice that."""
    return RangeFile(
        model_sha256="a" * 64,
        contract="c" * 64,
        dataset={"name": "train", "fingerprint": "d" * 64},
        samples=1,
        tensors={
            name: {**dict.fromkeys(METHODS, amax), "minmax": 2 * amax, "min": 0.0, "samples": 1}
            for name, amax in tensors.items()
        },
    )


def _read(*lines: str) -> dict[str, float]:
    return tensorrt_cache.read_cache(FIRST + "\n".join(lines) + "\n", "calib.cache")


def test_the_published_example_is_a_scale_of_amax_over_127() -> None:
    """3c010a14: sign 0, exponent 120 - 127, mantissa 0x010a14; TensorRT's samples give it as 0.0078759."""
    by_hand = 2.0 ** (0b01111000 - 127) * (1 + 0x010A14 / 2**23)
    assert by_hand == pytest.approx(0.0078759, abs=1e-7)
    assert _read("data: 3c010a14") == {"data": 127 * by_hand}
    assert 127 * by_hand == pytest.approx(2048.5 / 2048, rel=1e-6)
    assert tensorrt_cache.write_cache(_ranges({"data": 127 * by_hand}), "mse").splitlines()[1] == "data: 3c010a14"


def test_a_cache_is_written_as_tensorrt_writes_it() -> None:
    text = tensorrt_cache.write_cache(
        _ranges({"relu1": 127.0, "(Unnamed Layer* 3) [Constant]_output": 254.0}), "entropy"
    )
    assert text == ("TRT-101600-EntropyCalibration2\n(Unnamed Layer* 3) [Constant]_output: 40000000\nrelu1: 3f800000\n")


@pytest.mark.parametrize(
    ("method", "first", "scale"),
    [
        ("minmax", "TRT-8601-MinMaxCalibration", "40000000"),
        ("entropy", "TRT-8601-EntropyCalibration2", "3f800000"),
        ("percentile", "TRT-8601-EntropyCalibration2", "3f800000"),
        ("mse", "TRT-8601-EntropyCalibration2", "3f800000"),
    ],
)
def test_the_first_line_names_version_and_calibrator(method: str, first: str, scale: str) -> None:
    assert tensorrt_cache.write_cache(_ranges({"a": 127.0}), method, version=8601) == f"{first}\na: {scale}\n"


def test_an_unknown_method_is_not_written() -> None:
    with pytest.raises(UsageError, match="unknown method 'entropie'; did you mean 'entropy'"):
        tensorrt_cache.write_cache(_ranges({"a": 1.0}), "entropie")


def _floats() -> list[float]:
    random = np.random.default_rng(0)
    wide = np.exp(random.uniform(-81, 88, 2000))  # wherever the scale is a normal float32
    near_one = random.uniform(0.5, 2, 2000)
    edges = [2.0**-119, 1e-30, 127 * 2.0**-126, 1.0, 65504.0, 3.4e38]
    return [*wide.tolist(), *near_one.tolist(), *edges]


def test_what_is_written_is_read_back_to_the_bit_of_the_scale() -> None:
    wanted = {f"t{number}": value for number, value in enumerate(_floats())}
    text = tensorrt_cache.write_cache(_ranges(wanted), "mse")
    back = tensorrt_cache.read_cache(text, "calib.cache")
    assert back.keys() == wanted.keys()
    for name, amax in wanted.items():
        assert np.float32(back[name] / INT8_MAX) == np.float32(amax / INT8_MAX)
        assert back[name] == pytest.approx(amax, rel=2.0**-24)
    assert tensorrt_cache.write_cache(_ranges(back), "mse") == text
    assert {len(line.rpartition(": ")[2]) for line in text.splitlines()[1:]} == {8}


@pytest.mark.parametrize("digits", ["00000000", "00000001", "007fffff", "00800000", "0d123456", "7f7fffff", "3F8000AB"])
def test_any_scale_that_is_a_number_is_read_exactly(digits: str) -> None:
    (scale,) = struct.unpack("!f", bytes.fromhex(digits))
    assert _read(f"a: {digits}") == {"a": scale * 127}
    assert math.isfinite(scale * 127)


def test_leading_zeros_are_kept() -> None:
    amax = 127 * 2.0**-120
    text = tensorrt_cache.write_cache(_ranges({"a": amax}), "mse")
    assert text.endswith("\na: 03800000\n")
    assert tensorrt_cache.read_cache(text, "calib.cache") == {"a": amax}


def test_a_tensor_of_zeros_gets_the_scale_that_quantize_gives_it() -> None:
    assert tensorrt_cache.write_cache(_ranges({"a": 0.0}), "mse").endswith("\na: 3f800000\n")


@pytest.mark.parametrize(
    "name", ["a: b", "(Unnamed Layer* 9) [Matrix Multiply]_output", "x: 3f800000", " a", "/conv1/Conv:0", "größe", "a:"]
)
def test_names_may_hold_anything_but_a_line_break(name: str) -> None:
    text = tensorrt_cache.write_cache(_ranges({name: 127.0, "z": 254.0}), "mse")
    assert tensorrt_cache.read_cache(text, "calib.cache") == {name: 127.0, "z": 254.0}


@pytest.mark.parametrize("name", ["a\nb", "a\r"])
def test_a_name_with_a_line_break_is_not_written(name: str) -> None:
    with pytest.raises(InputError, match=r"has a line break in its name.*rename it"):
        tensorrt_cache.write_cache(_ranges({name: 1.0}), "mse")


@pytest.mark.parametrize("first", ["TRT-7103-MinMaxCalibration", "TRT-8XXX-EntropyCalibration2", "TRT-8.6.1-Legacy"])
def test_every_calibrator_and_version_is_read(first: str) -> None:
    assert tensorrt_cache.read_cache(f"{first}\na: 3f800000", "calib.cache") == {"a": 127.0}


def test_line_ends_of_windows_and_blank_lines_are_passed_over() -> None:
    text = (FIRST + "a: 3f800000\n\nb: 40000000 \n\n").replace("\n", "\r\n")
    assert tensorrt_cache.read_cache(text, "calib.cache") == {"a": 127.0, "b": 254.0}


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["a: 3c010a14", "b 3c010a14"], r"line 3: found 'b 3c010a14', expected 'tensor: ' and 8 hex digits"),
        (["a:3c010a14"], "line 2: found 'a:3c010a14'"),
        (["a: 3c010a1"], "line 2: .*8 hex digits with leading zeros"),
        (["a: 3c010a145"], "line 2: "),
        (["a: 0x3c010a14"], "line 2: "),
        (["a: 3c010a1g"], "line 2: "),
        (["a: 0.00787"], "line 2: "),
        ([": 3c010a14"], "line 2: "),
        (["a: "], "line 2: "),
        (["a: 3c010a14", "", "b: 7f800000"], "line 4: the scale 7f800000 of 'b' is negative, infinite or not a number"),
        (["a: 7fc00000"], "line 2: the scale 7fc00000"),
        (["a: ff800000"], "line 2: the scale ff800000"),
        (["a: bc010a14"], "line 2: the scale bc010a14"),
        (["a: 80000000"], "line 2: the scale 80000000"),
        (["a: 3c010a14", "b: 3c010a14", "a: 3c010a15"], "line 4: tensor 'a' comes a second time; keep"),
        ([], "holds no tensors; copy the whole file"),
    ],
)
def test_a_broken_line_is_named_with_the_fix(lines: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=rf"^calib\.cache: .*{complaint}"):
        _read(*lines)


@pytest.mark.parametrize("first", ["", "a: 3c010a14", "TRT-8601", "TRT-8601-", " TRT-8601-EntropyCalibration2", "{}"])
def test_a_text_without_the_first_line_is_no_cache(first: str) -> None:
    with pytest.raises(InputError, match=r"^calib\.cache: line 1: .*expected TRT-<version>-<calibrator>"):
        tensorrt_cache.read_cache(f"{first}\na: 3c010a14\n", "calib.cache")


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    save_ranges(tmp_path / "ranges.json", _ranges({"a": 1.0}), (), {})
    tensorrt_cache.save_cache(tmp_path / "odd.json", _ranges({"a": 127.0}), (), {})
    assert tensorrt_cache.load(tmp_path / "ranges.json") == _ranges({"a": 1.0})
    read = tensorrt_cache.load(tmp_path / "odd.json")
    assert isinstance(read, tensorrt_cache.CalibrationCache)
    assert read.of(tensorrt_cache.METHOD) == {"a": TensorRange(127.0)}
    assert read.origin == {
        "cache": "odd.json",
        "sha256": files.sha256_file(tmp_path / "odd.json"),
        "calibrator": "TRT-101600-EntropyCalibration2",
    }
    assert not tensorrt_cache.is_cache(tmp_path / "missing")
    assert not tensorrt_cache.is_cache(tmp_path)


def test_a_saved_cache_holds_the_entropy_ranges_and_has_a_sidecar(tmp_path: Path) -> None:
    ranges = msgspec.structs.replace(
        _ranges({}), tensors={"a": {"minmax": 1.0, "entropy": 127.0, "percentile": 2.0, "mse": 3.0, "min": 0.0}}
    )
    model = files.Parent("model.onnx", "a" * 64)
    tensorrt_cache.save_cache(tmp_path / "c.cache", ranges, (model,), {"samples": 1})
    assert (tmp_path / "c.cache").read_text() == "TRT-101600-EntropyCalibration2\na: 3f800000\n"
    sidecar = files.read_sidecar(tmp_path / "c.cache")
    assert (sidecar.kind, sidecar.parents, sidecar.options) == ("ranges", (model,), {"samples": 1})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("TRT-", "line 1: found 'TRT-', expected TRT-<version>-<calibrator>"),
        (FIRST + "a: 1", "line 2: found 'a: 1'"),
        (FIRST.encode() + b"\xff: 3c010a14", "not the text of a calibration cache"),
        ("", "the file is empty"),
        ("trt-8601-EntropyCalibration2\n", "not a range file"),
    ],
)
def test_a_file_that_is_no_cache_is_refused_by_name(tmp_path: Path, content: str | bytes, complaint: str) -> None:
    with pytest.raises(InputError, match=rf"calib\.cache: .*{complaint}"):
        tensorrt_cache.load(_write(tmp_path / "calib.cache", content))


def test_a_cache_leaves_no_choice_of_a_method(tmp_path: Path) -> None:
    path = _write(tmp_path / "calib.cache", FIRST + "a: 3f800000\n")
    with pytest.raises(UsageError, match="one range per tensor; leave `method` out"):
        tensorrt_cache.load(path).of("mse")


def test_a_cache_must_name_every_tensor_to_be_quantized_and_may_name_others(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(conv_lrn_gemm(), path)
    model = load_onnx(path)
    other = "(Unnamed Layer* 3) [Constant]_output: 3f800000"
    whole = _write(tmp_path / "whole.cache", FIRST + f"input: 3c010a14\nflatten1: 3f800000\n{other}\n")
    tensorrt_cache.load(whole).check_fits(model, path)
    part = _write(tmp_path / "part.cache", FIRST + f"input: 3c010a14\n{other}\n")
    with pytest.raises(InputError, match=r"part\.cache: lacks tensor 'flatten1' of .*\(1 of 2 missing\)"):
        tensorrt_cache.load(part).check_fits(model, path)


def test_through_a_cache_the_graph_is_the_same_as_from_the_ranges(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(conv_lrn_gemm(), path)
    model = load_onnx(path)
    amax = {"input": TensorRange(2.6400001), "flatten1": TensorRange(0.7123456789)}
    ranges = _ranges({name: seen.amax for name, seen in amax.items()})
    read = tensorrt_cache.load(_write(tmp_path / "calib.cache", tensorrt_cache.write_cache(ranges, "mse")))
    direct, through = insert_qdq(model, amax), insert_qdq(model, read.of(tensorrt_cache.METHOD))
    for name, value in direct.graph.initializers.items():
        assert value.const_value is not None
        other = through.graph.initializers[name].const_value
        assert other is not None
        np.testing.assert_array_equal(value.const_value.numpy(), other.numpy())
