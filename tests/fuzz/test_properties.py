"""What is written comes back, and whatever is read is taken or refused in one line; the same examples every time."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from alexdeploy import files
from alexdeploy.contract import Contract
from alexdeploy.data.labels import read_class_indices, write_class_indices
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import one_line, visible
from alexdeploy.pickled import load_arrays
from alexdeploy.quantize.methods import METHODS
from alexdeploy.quantize.rangefile import RangeFile, load_ranges, save_ranges
from alexdeploy.quantize.tensorrt_cache import read_cache, write_cache
from tests.fuzz.target import FAULTS, judge
from tests.fuzz.targets import all_targets

settings.register_profile("suite", derandomize=True, max_examples=25, deadline=None, database=None)
SUITE = settings.get_profile("suite")

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), min_size=1, max_size=30)
LABELS = st.lists(NAMES.map(str.strip).filter(bool), min_size=1, max_size=8, unique=True)
AMAX = st.just(0.0) | st.floats(2.0**-100, 2.0**100, width=32)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
# these read a text and little else, so that many examples cost little
TEXTS: tuple[str, ...] = (
    "ranges",
    "cache",
    "class_indices",
    "label_list",
    "contract_toml",
    "contract_json",
    "list",
    "sidecar",
)
TEXTS += ("manifest", "shard", "bench", "pbtxt", "engine_cache")
ANY_BYTES = (*TEXTS, "idx", "idx_gz", "cifar10", "npy", "npz", "moments", "golden", "safetensors", "pth_zip", "jpeg")


@st.composite
def ranges(draw: st.DrawFn) -> RangeFile:
    samples = draw(st.integers(1, 10**6))
    tensors = {}
    for name in draw(LABELS):
        amax = {method: draw(AMAX) for method in METHODS}
        tensors[name] = amax | {"min": -draw(AMAX), "samples": float(samples)}
    return RangeFile(
        model_sha256="0" * 64,
        contract="1" * 64,
        dataset=draw(st.dictionaries(NAMES, NAMES, max_size=3)),
        samples=samples,
        tensors=tensors,
        largest=draw(st.dictionaries(NAMES, AMAX, max_size=3)),
        percentile=draw(st.floats(50, 100, exclude_min=True)),
    )


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    color: Any = draw(st.sampled_from(["rgb", "bgr", "gray"]))
    channels = 1 if color == "gray" else 3
    sides = st.integers(1, 2000)
    size = st.tuples(sides, sides)
    value = st.floats(1e-3, 1e3)
    return Contract(
        color=color,
        resize=draw(size | (st.none() | sides if (crop := draw(sides | size)) else size)),
        crop=crop,
        interpolation=draw(st.sampled_from(["nearest", "bilinear", "bicubic"])),
        resampling=draw(st.sampled_from(["pillow", "torchvision", "opencv"])),
        exif_orientation=draw(st.booleans()),
        scale=draw(value),
        mean=tuple(draw(value) for _ in range(channels)),
        std=tuple(draw(value) for _ in range(channels)),
        labels=tuple(draw(LABELS)),
    )


@SUITE
@given(ranges())
def test_ranges_come_back_as_they_were_written(found: RangeFile) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_ranges(Path(folder, "ranges.json"), found)
        assert load_ranges(Path(folder, "ranges.json")) == found


@SUITE
@given(ranges())
def test_a_cache_holds_the_scales_to_the_last_bit(found: RangeFile) -> None:
    amax = read_cache(write_cache(found, "entropy"), "it")
    assert amax.keys() == {name.rstrip() for name in found.tensors}
    for name, values in found.tensors.items():
        scale = struct.unpack("<f", struct.pack("<f", (values["entropy"] or 127.0) / 127))[0]  # of nothing it is 1
        assert amax[name.rstrip()] / 127 == scale


@SUITE
@given(contracts())
def test_a_contract_comes_back_as_it_was_written(contract: Contract) -> None:
    assert Contract.from_json(contract.to_json(), "it") == contract


@SUITE
@given(LABELS)
def test_class_names_come_back_as_they_were_written(labels: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "class_indices.json")
        write_class_indices(path, tuple(labels))
        assert read_class_indices(path) == tuple(labels)


@SUITE
@given(
    st.dictionaries(
        NAMES, JSON.filter(lambda value: value == msgspec.json.decode(msgspec.json.encode(value))), max_size=3
    ),
    st.binary(min_size=1),
)
def test_a_sidecar_comes_back_as_it_was_written(options: dict[str, Any], data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        written = files.write_artifact(path, data, "onnx", options=options)
        assert files.read_sidecar(path, "onnx") == written


@SUITE
@given(
    arrays.arrays(
        arrays.integer_dtypes() | arrays.unsigned_integer_dtypes() | arrays.floating_dtypes(),
        arrays.array_shapes(min_dims=0, max_dims=4, max_side=4, min_side=0),
    ),
    st.sampled_from([3, 4]),
    st.booleans(),
)
def test_an_array_in_a_pickle_comes_back_bit_for_bit(array: Any, protocol: int, turned: bool) -> None:
    given_array = np.array(array, order="F" if turned else "C")
    content = {"a": [given_array, (given_array, "x")], "b": 1.5}
    found = load_arrays(io.BytesIO(pickle.dumps(content, protocol)))
    for back in (found["a"][0], found["a"][1][0]):
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.tobytes() == array.tobytes()
    assert (found["a"][1][1], found["b"]) == ("x", 1.5)


@SUITE
@given(arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3)))
def test_images_in_an_array_come_back_as_they_were_saved(array: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "images.npy"), array)
        dataset = load_dataset(str(Path(folder, "images.npy")), "all")
        assert [np.array_equal(np.asarray(image), array[i]) for i, image in dataset.images()] == [True] * len(array)


@SUITE
@given(st.text())
def test_a_message_prints_on_one_line_and_says_again_what_it_said(text: str) -> None:
    shown = one_line(text)
    assert visible(shown) == shown
    assert len(shown.splitlines()) <= 1
    assert len(shown) <= 1000
    assert one_line(shown) == shown
    assert shown == text or visible(text) != text or max(map(len, text.split())) > 120


@pytest.mark.parametrize("name", TEXTS)
def test_any_json_is_read_or_refused_in_a_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(name, JSON.map(lambda value: json.dumps(value).encode()), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", TEXTS)
def test_any_value_in_a_valid_text_is_read_or_refused_in_a_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (seed, *_) = all_targets()[name].seeds()
    place = st.integers(0, len(seed))
    mixed = st.tuples(place, place, st.text(max_size=20))
    judged(name, mixed.map(lambda it: seed[: it[0]] + it[2].encode() + seed[it[1] :]), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ANY_BYTES)
def test_any_bytes_are_read_or_refused_in_a_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (seed, *_) = all_targets()[name].seeds()
    begun = st.binary(max_size=200).map(lambda data: seed[: len(data)] + data)
    judged(name, st.binary(max_size=200) | begun, tmp_path, monkeypatch)


def judged(name: str, data: st.SearchStrategy[bytes], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = all_targets()[name]
    monkeypatch.chdir(folder)
    if target.beside is not None:
        target.beside(folder)

    @SUITE
    @given(data)
    def judge_one(data: bytes) -> None:
        verdict = judge(target, data, folder)
        assert verdict.kind not in FAULTS, verdict.what

    judge_one()
