"""Every graph of the zoo through every verb; what is right is what ONNX Runtime says of the original file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

from alexdeploy.contract import METADATA_KEY
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.sources import load_dataset
from alexdeploy.engine.options import BuildSettings
from alexdeploy.engine.plan import build_engine, precision_verdict
from alexdeploy.errors import GateError, InputError
from alexdeploy.export.from_onnx import adopt_onnx
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.lint import lint
from alexdeploy.graph.model import load_onnx, model_bytes
from alexdeploy.graph.weighted import layers_left
from alexdeploy.quantize.apply import PrecisionSettings, with_precision
from alexdeploy.quantize.calibrate import calibrate
from alexdeploy.quantize.quantize import QuantizeSettings, quantize_onnx
from alexdeploy.quantize.rangefile import RangeFile, save_ranges
from alexdeploy.runners.artifact import load
from alexdeploy.runners.classifier import Classifier
from alexdeploy.specs import Dialect, Precision, Profile
from tests.field.zoo import ZOO
from tests.helpers.foreign_graphs import Foreign
from tests.helpers.graphs import Array

COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200), "white": (200, 200, 200)}
DIALECTS: tuple[Dialect, ...] = ("tensorrt", "onnxruntime", "openvino")
REFUSED = {  # and in which words
    "reshape_attribute": (InputError, "opset 3, 13 is needed.*nor does ONNX Runtime run what is older than 7"),
    "old_batch_normalization": (InputError, "opset 6, 13 is needed.*nor does ONNX Runtime"),
    "old_broadcast": (InputError, "opset 6, 13 is needed.*nor does ONNX Runtime"),
    "nan_weight": (InputError, "'w2', a constant of node 'c2', holds 9 values that are NaN"),
}
QUANTIZED_ALREADY = {"partly_quantized": "'dq' is DequantizeLinear", "dynamically_quantized": "'dynamic' is Dynamic"}
USABLE = [name for name in ZOO if name not in REFUSED | QUANTIZED_ALREADY]
LEFT = {  # layers that stay in float when the others are INT8
    "stacked_matmul": ("mm", "its weight is no matrix"),
    "vector_matmul": ("mm", "its weight is no matrix"),
    "float64_island": ("mm", "its weights are float64"),
    "constant_on_the_left": ("mix", "its weights are its first input"),
    "computed_weight": ("long", "its weights are computed at run time"),
}
UNDERFLOW = ("normalized", "small_factor", "small_variance", "vanishing")


class Field(NamedTuple):
    """A graph that was adopted and calibrated; ``expected`` are the scores of the original on ``batch``."""

    foreign: Foreign
    folder: Path
    ranges: RangeFile
    batch: Array
    expected: Array

    @property
    def model(self) -> Path:
        return self.folder / "ours.onnx"

    def distance(self, scores: Array) -> float:
        """From the original, relative."""
        if self.foreign.probabilities:
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        return float(np.linalg.norm(scores - self.expected) / np.linalg.norm(self.expected))


class Pictures(NamedTuple):
    learn: ImageDataset
    judge: ImageDataset


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Noise around a colour per class."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for index in range(10):
            coarse = np.clip(random.normal(colour, 50, (9, 9, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(coarse).resize((16, 16)).save(folder / name / f"{index}.png")
    return Pictures(load_dataset(str(folder), "train"), load_dataset(str(folder), "val"))


def scores(model: Path | bytes, batch: Array) -> Array:
    """By a plain session, its only output as rows."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: batch})
    rows: Array = found.reshape(len(batch), -1)
    return rows


def by_onnx(model: bytes, batch: Array) -> Array:
    """By ONNX's own reference implementation, which rounds to FP16 after each node; ONNX Runtime does not."""
    evaluator = ReferenceEvaluator(onnx.load_from_string(model))
    with np.errstate(all="ignore"):
        (found,) = evaluator.run(None, {evaluator.input_names[0]: batch})
    return np.asarray(found).reshape(len(batch), -1)


def saved(foreign: Foreign, folder: Path, *, contract: bool = False) -> Path:
    """The original file; with a contract in it, it needs no adoption."""
    if contract:
        helper.set_model_props(foreign.model, {METADATA_KEY: foreign.contract.to_json()})
    onnx.save(foreign.model, folder / "theirs.onnx")
    return folder / "theirs.onnx"


@pytest.fixture(scope="module")
def fields(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Field]:
    found = {}
    for name in USABLE:
        foreign, folder = ZOO[name](), tmp_path_factory.mktemp(name)
        theirs = saved(foreign, folder)
        adopt_onnx(theirs, foreign.contract, folder / "ours.onnx")
        ranges = calibrate(folder / "ours.onnx", pictures.learn, samples=16)
        save_ranges(folder / "ranges.json", ranges)
        batch = np.concatenate([images for images, _ in pictures.judge.batches(foreign.contract, 8)])
        found[name] = Field(foreign, folder, ranges, batch, scores(theirs, batch))
    return found


@pytest.mark.parametrize("name", USABLE)
def test_adopted_it_answers_as_the_original_and_nothing_is_wrong_with_it(name: str, fields: dict[str, Field]) -> None:
    field = fields[name]
    assert field.distance(scores(field.model, field.batch)) < 1e-5
    assert lint(load_onnx(field.model)) == []
    with load(field.model) as runner:
        assert field.distance(runner.infer(field.batch)) < 1e-5


@pytest.mark.parametrize(("dialect", "fp16"), [*((dialect, False) for dialect in DIALECTS), ("tensorrt", True)])
@pytest.mark.parametrize("name", USABLE)
def test_quantized_it_loads_and_answers_much_as_the_original(
    name: str, dialect: Dialect, fp16: bool, fields: dict[str, Field], tmp_path: Path
) -> None:
    field, int8 = fields[name], tmp_path / "int8.onnx"
    settings = QuantizeSettings(dialect=dialect, fp16=fp16)
    quantize_onnx(field.model, field.folder / "ranges.json", int8, settings=settings)
    assert field.distance(scores(int8, field.batch)) < 0.03
    if dialect == "tensorrt":
        assert [finding for finding in lint(load_onnx(int8)) if finding.rule != "channel-axis"] == []


@pytest.mark.parametrize("name", USABLE)
def test_in_fp16_it_loads_and_answers_as_the_original(name: str, fields: dict[str, Field]) -> None:
    field = fields[name]
    half = with_precision(field.model, field.ranges, settings=PrecisionSettings(fp16=True))
    assert field.distance(scores(model_bytes(half.model), field.batch)) < 0.003
    assert field.distance(by_onnx(model_bytes(half.model), field.batch)) < 0.003
    if name in UNDERFLOW[:-1]:  # constants tell it without ranges, activations do not
        half = with_precision(field.model, settings=PrecisionSettings(fp16=True))
        assert field.distance(by_onnx(model_bytes(half.model), field.batch)) < 0.003


@pytest.mark.parametrize("name", ["vanishing", "overflowing"])
def test_what_fp16_loses_is_not_written_where_no_ranges_tell_of_it(name: str, fields: dict[str, Field]) -> None:
    lost = fields[name].distance(by_onnx(model_bytes(to_fp16(load_onnx(fields[name].model))), fields[name].batch))
    assert not lost < 0.05, "or the test shows nothing"
    with pytest.raises(GateError, match=r"in fp16 answers otherwise than it does in float.*give `ranges`"):
        with_precision(fields[name].model, settings=PrecisionSettings(fp16=True))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_adopted_is_refused_in_a_line_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    kind, words = REFUSED[name]
    theirs = saved(ZOO[name](), tmp_path)
    with pytest.raises(kind, match=words) as caught:
        adopt_onnx(theirs, ZOO[name]().contract, tmp_path / "ours.onnx")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.onnx"]


@pytest.mark.parametrize("name", QUANTIZED_ALREADY)
def test_what_is_quantized_already_is_not_calibrated(name: str, pictures: Pictures, tmp_path: Path) -> None:
    foreign = ZOO[name]()
    theirs = saved(foreign, tmp_path)
    adopt_onnx(theirs, foreign.contract, tmp_path / "ours.onnx")
    with pytest.raises(InputError, match=f"is quantized already.*{QUANTIZED_ALREADY[name]}"):
        calibrate(tmp_path / "ours.onnx", pictures.learn, samples=4)


@pytest.fixture(scope="module")
def builder() -> BuildSettings:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    return BuildSettings(batches=Profile.parse("1:4:8"), builder="tensorrt-rtx", strict=True)


@pytest.mark.parametrize("name", ["taken_activation_name", "windows", "one_sided_lrn", "local_function"])
def test_built_in_int8_every_layer_is(
    name: str, fields: dict[str, Field], builder: BuildSettings, tmp_path: Path
) -> None:
    graph = with_precision(fields[name].model, fields[name].ranges, settings=PrecisionSettings(int8=True))
    record = build_engine(graph, tmp_path / "int8.engine", settings=builder)
    assert (record.float_layers, record.left, record.precisions["FLOAT"]) == ((), {}, 0)


@pytest.mark.parametrize("name", ["constant_of_shape", "captured", "normalized", "tiny_channels"])
def test_built_in_fp16_every_layer_is(
    name: str, fields: dict[str, Field], builder: BuildSettings, tmp_path: Path
) -> None:
    graph = with_precision(fields[name].model, fields[name].ranges, settings=PrecisionSettings(fp16=True))
    record = build_engine(graph, tmp_path / "fp16.engine", settings=builder)
    assert (record.float_layers, record.left, record.precisions["FLOAT"]) == ((), {}, 0)


@pytest.mark.parametrize("name", LEFT)
def test_a_layer_that_cannot_be_quantized_is_named_with_the_reason(name: str, fields: dict[str, Field]) -> None:
    graph = with_precision(fields[name].model, fields[name].ranges, settings=PrecisionSettings(int8=True))
    layer, why = LEFT[name]
    assert layers_left(graph.model, Precision.INT8) == {layer: why}
    assert layers_left(load_onnx(fields[name].model), Precision.FP32) == {}


@pytest.mark.parametrize("name", ["constant_on_the_left", "computed_weight"])
def test_strict_refuses_a_layer_that_cannot_be_quantized(
    name: str, fields: dict[str, Field], builder: BuildSettings, tmp_path: Path
) -> None:
    layer, why = LEFT[name]
    graph = with_precision(fields[name].model, fields[name].ranges, settings=PrecisionSettings(int8=True))
    with pytest.raises(GateError, match=rf"left in float in the graph: {layer} .*nothing was written"):
        build_engine(graph, tmp_path / "int8.engine", settings=builder)
    record = build_engine(graph, tmp_path / "int8.engine", settings=replace(builder, strict=False))
    assert record.left == {layer: why}
    assert f"left in float in the graph: {layer} ({why})" in precision_verdict(record)


def test_what_fp16_does_not_hold_is_named_and_strict_refuses_it(
    fields: dict[str, Field], builder: BuildSettings, tmp_path: Path
) -> None:
    field = fields["vanishing"]
    graph = with_precision(field.model, field.ranges, settings=PrecisionSettings(fp16=True))
    with pytest.raises(GateError, match=r"left in float in the graph: c1 \(FP16 does not hold"):
        build_engine(graph, tmp_path / "fp16.engine", settings=builder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("adopted", [True, False])
@pytest.mark.parametrize("name", ["ends_in_softmax", "ends_in_sigmoid", "tiny_channels"])
def test_probabilities_are_those_of_the_file(name: str, adopted: bool, pictures: Pictures, tmp_path: Path) -> None:
    foreign = ZOO[name]()
    path = saved(foreign, tmp_path, contract=not adopted)
    if adopted:
        path = tmp_path / "ours.onnx"
        adopt_onnx(saved(foreign, tmp_path), foreign.contract, path)
    batch = next(iter(pictures.judge.batches(foreign.contract, 8)))[0]
    expected = scores(tmp_path / "theirs.onnx", batch)
    if name == "tiny_channels":  # these are logits
        expected = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    with Classifier(path) as classifier:
        answers = classifier([pictures.judge.image(index) for index in range(len(batch))])
    assert [int(label) for label, _ in answers] == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose([share for _, share in answers], expected.max(axis=1), rtol=1e-5)


def test_a_file_whose_name_is_not_utf8_goes_all_the_way(pictures: Pictures, tmp_path: Path) -> None:
    name = os.fsdecode(b"mod\xe9l")
    theirs, ours, ranges, int8 = (tmp_path / f"{name}{end}" for end in (".pb", ".onnx", ".json", ".q.onnx"))
    foreign = ZOO["map_of_scores"]()
    theirs.write_bytes(foreign.model.SerializeToString())
    adopt_onnx(theirs, foreign.contract, ours)
    save_ranges(ranges, calibrate(ours, pictures.learn, samples=8))
    quantize_onnx(ours, ranges, int8)
    batch = next(iter(pictures.judge.batches(foreign.contract, 8)))[0]
    expected = scores(theirs.read_bytes(), batch)
    for path, most in ((ours, 1e-5), (int8, 0.03)):
        with load(path) as runner:
            assert np.linalg.norm(runner.infer(batch) - expected) < most * np.linalg.norm(expected)
