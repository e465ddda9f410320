from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import PIL
import pytest

from alexdeploy import files
from alexdeploy.errors import GateError, InputError, UsageError
from alexdeploy.graph.qdq import TensorRange
from alexdeploy.quantize.moments import Moments
from alexdeploy.quantize.rangefile import RangeFile, load_ranges, save_ranges

RANGES = RangeFile(
    model_sha256=hashlib.sha256(b"model").hexdigest(),
    contract="c" * 64,
    dataset={"name": "digits/train", "fingerprint": "d" * 64},
    samples=32,
    tensors={
        "relu1": {"minmax": 6.5, "entropy": 4.25, "percentile": 5.1, "mse": 4.9, "min": 0.0, "samples": 32},
        "image": {"minmax": 2.64, "entropy": 2.5, "percentile": 2.6, "mse": 2.61, "min": -2.1, "samples": 32},
    },
)


def _write(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_a_range_file_survives_the_round_trip(tmp_path: Path) -> None:
    save_ranges(tmp_path / "ranges.json", RANGES, (), {})
    assert load_ranges(tmp_path / "ranges.json") == RANGES


def test_the_same_ranges_give_the_same_bytes(tmp_path: Path) -> None:
    reordered = msgspec.structs.replace(RANGES, tensors=dict(reversed(RANGES.tensors.items())))
    for name, ranges in [("a.json", RANGES), ("b.json", reordered)]:
        save_ranges(tmp_path / name, ranges, (), {})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_saved_range_file_has_a_sidecar_with_its_origin(tmp_path: Path) -> None:
    model = files.Parent("model.onnx", RANGES.model_sha256)
    save_ranges(tmp_path / "ranges.json", RANGES, (model,), {"samples": 32})
    sidecar = files.read_sidecar(tmp_path / "ranges.json")
    assert (sidecar.kind, sidecar.parents, sidecar.options) == ("ranges", (model,), {"samples": 32})
    assert sidecar.libraries == {"pillow": PIL.__version__}, "whose decoders gave the pixels"


def test_ranges_and_moments_are_written_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (msgspec.structs.replace(RANGES, moments=Moments(data=data)) for data in (b"first", b"second"))
    save_ranges(tmp_path / "ranges.json", first)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before["ranges.json.moments.safetensors"] == b"first"

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_artifact", full)
        with pytest.raises(OSError, match="No space left"):
            save_ranges(tmp_path / "ranges.json", second)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save_ranges(tmp_path / "ranges.json", RANGES)
    assert not (tmp_path / "ranges.json.moments.safetensors").exists()


def test_a_range_file_needs_no_sidecar_to_be_read(tmp_path: Path) -> None:
    assert load_ranges(_write(tmp_path / "ranges.json", msgspec.to_builtins(RANGES))) == RANGES


def test_amax_is_by_tensor_for_one_method() -> None:
    assert RANGES.of("entropy") == {"relu1": TensorRange(4.25, nonnegative=True), "image": TensorRange(2.5)}


@pytest.mark.parametrize("method", ["entropie", "samples"])
def test_an_unknown_method_is_refused_with_the_valid_ones(method: str) -> None:
    with pytest.raises(UsageError, match=f"unknown method '{method}'.*valid: entropy, minmax, mse, percentile"):
        RANGES.of(method)


@pytest.mark.parametrize("seen", [31, 33, 0])
def test_a_receipt_that_does_not_add_up_is_refused(tmp_path: Path, seen: int) -> None:
    content = msgspec.to_builtins(RANGES)
    content["tensors"]["image"]["samples"] = seen
    with pytest.raises(GateError, match=f"tensor 'image' saw {seen} of 32 samples"):
        load_ranges(_write(tmp_path / "ranges.json", content))


def test_ranges_of_the_model_are_accepted_and_those_of_another_refused(tmp_path: Path) -> None:
    RANGES.check_model(_write(tmp_path / "model.onnx", b"model"))
    with pytest.raises(GateError, match="calibrated on another model"):
        RANGES.check_model(_write(tmp_path / "model.onnx", b"another"))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "empty"),
        (b"not json", "not a range file"),
        (b'{"model_sha256": "\xff"}', "not a range file"),
        ([], "not a range file"),
        ({}, "not a range file"),
        ({**msgspec.to_builtins(RANGES), "extra": 1}, "not a range file.*extra"),
        ({**msgspec.to_builtins(RANGES), "schema": 2}, "schema 2, expected 1"),
        (
            {**msgspec.to_builtins(RANGES), "tensors": {"relu1": {"samples": 32, "mse": 1}}},
            "'relu1' lacks entropy, min",
        ),
    ],
)
def test_a_file_that_is_no_range_file_is_refused(tmp_path: Path, content: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=rf"ranges\.json: .*{complaint}"):
        load_ranges(_write(tmp_path / "ranges.json", content))


def test_two_range_files_of_one_stem_keep_their_moments_apart(tmp_path: Path) -> None:
    written = {name: Moments(data=name.encode()) for name in ("x.json", "x.ranges")}
    for name, moments in written.items():
        save_ranges(tmp_path / name, msgspec.structs.replace(RANGES, moments=moments))
    for name in written:
        found = load_ranges(tmp_path / name).moments
        assert found is not None
        assert found.data == name.encode()
