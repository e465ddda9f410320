"""Every graph of the zoo through every verb; what is right is what ONNX Runtime says of the original file."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from alexdeploy.compare import compare_layers
from alexdeploy.contract import METADATA_KEY
from alexdeploy.engine.options import BuildSettings
from alexdeploy.engine.plan import build_engine, precision_verdict
from alexdeploy.errors import GateError, InputError, InputWarning
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.lint import lint
from alexdeploy.graph.model import load_onnx, model_bytes
from alexdeploy.graph.weighted import layers_left
from alexdeploy.quantize.apply import PrecisionSettings, with_precision
from alexdeploy.quantize.calibrate import calibrate
from alexdeploy.quantize.quantize import quantize_onnx
from alexdeploy.quantize.rangefile import save_ranges
from alexdeploy.runners.artifact import load
from alexdeploy.runners.classifier import Classifier
from alexdeploy.specs import Dialect, Precision, Profile
from tests.field.fields import Field, Pictures, adopt, by_onnx, draw_pictures, field_of, saved, scores
from tests.field.outcomes import DOUBTFUL, LEFT, NO_KERNELS, NOT_BY_ONNX, NOT_CALIBRATED, REFUSED, UNDERFLOW, USABLE
from tests.field.zoo import ZOO
from tests.field.zoo.divisions import BLACK, MAKERS

DIALECTS: tuple[Dialect, ...] = ("tensorrt", "onnxruntime", "openvino")
INT8_DB, HALF_DB, BF16_DB, SAME_DB = 25, 50, 30, 100
DIVISIONS = [maker.__name__ for maker in MAKERS]
Fields = Callable[[str], Field]

pytestmark = pytest.mark.filterwarnings(  # scores_without_image
    "ignore:.*answers the same whatever the image is:alexdeploy.errors.InputWarning"
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def fields(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Fields:
    """Each is made when it is first asked for; workers share the names."""
    made: dict[str, Field] = {}

    def get(name: str) -> Field:
        if name not in made:
            made[name] = field_of(ZOO[name](), tmp_path_factory.mktemp(name), pictures)
        return made[name]

    return get


@pytest.fixture(scope="module", params=USABLE)
def field(request: pytest.FixtureRequest, fields: Fields) -> Field:
    """One after the other, all its tests together."""
    return fields(request.param)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of the field."""
    return str(request.node.callspec.params["field"])


@pytest.fixture(scope="module")
def builder() -> BuildSettings:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    return BuildSettings(batches=Profile.parse("1:4:8"), builder="tensorrt-rtx", strict=True)


def test_adopted_it_answers_as_the_original_and_nothing_is_wrong_with_it(field: Field) -> None:
    assert field.db(field.model) > SAME_DB
    assert lint(load_onnx(field.model)) == []


@pytest.mark.parametrize(("dialect", "fp16"), [*((dialect, False) for dialect in DIALECTS), ("tensorrt", True)])
def test_quantized_it_answers_much_as_the_original(field: Field, name: str, dialect: Dialect, fp16: bool) -> None:
    if name in DOUBTFUL:
        with pytest.raises(GateError) if dialect == "onnxruntime" else pytest.warns(InputWarning, match=DOUBTFUL[name]):
            field.quantized(dialect, fp16=fp16)
        return
    int8 = field.quantized(dialect, fp16=fp16)
    assert field.db(int8) > INT8_DB
    if dialect == "tensorrt":
        assert [finding for finding in lint(load_onnx(int8)) if finding.rule != "channel-axis"] == []
        assert layers_left(load_onnx(int8), Precision.INT8) == LEFT.get(name, {})


def test_in_fp16_it_answers_as_the_original(field: Field, name: str) -> None:
    half = model_bytes(with_precision(field.model, field.ranges, settings=PrecisionSettings(fp16=True)).model)
    assert field.db(half) > HALF_DB
    if name not in NOT_BY_ONNX:
        assert field.db(by_onnx(half, field.batch)) > HALF_DB


def test_in_bf16_it_answers_as_the_original(field: Field) -> None:
    half = with_precision(field.model, settings=PrecisionSettings(bf16=True))
    assert field.db(model_bytes(half.model)) > BF16_DB


@pytest.mark.filterwarnings("ignore::alexdeploy.errors.InputWarning")  # of DOUBTFUL
def test_compared_the_last_layer_of_int8_is_as_far_off_as_the_answers(
    field: Field, name: str, pictures: Pictures
) -> None:
    found = compare_layers(field.model, field.quantized("tensorrt"), pictures.judge, samples=2)
    assert (found.images, found.precision) == (2, Precision.INT8)
    assert found.layers[-1].relative_l2 < 10 ** (-INT8_DB / 20) or name in DOUBTFUL


@pytest.mark.usefixtures("builder")
@pytest.mark.filterwarnings("ignore::alexdeploy.errors.InputWarning")
def test_built_in_int8_every_layer_is_or_is_named(field: Field, name: str, tmp_path: Path) -> None:
    record = build_engine(field.quantized("tensorrt"), tmp_path / "int8.engine", settings=field.builder)
    assert record.left == LEFT.get(name, {})
    assert record.float_layers == NO_KERNELS.get(name, ())
    assert all(layer in precision_verdict(record) for layer in (*record.left, *record.float_layers))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_adopted_is_refused_in_a_line_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    kind, words = REFUSED[name]
    foreign = ZOO[name]()
    theirs = saved(foreign, tmp_path)
    with warnings.catch_warnings(record=True) as told, pytest.raises(kind, match=words) as caught:
        adopt(foreign, theirs, tmp_path / "ours.onnx")
    assert {warning.category for warning in told} <= {InputWarning}
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.onnx"]


@pytest.mark.parametrize("name", NOT_CALIBRATED)
def test_what_is_quantized_already_is_right_and_not_quantized_again(
    name: str, pictures: Pictures, tmp_path: Path
) -> None:
    foreign, outcome = ZOO[name](), NOT_CALIBRATED[name]
    theirs, ours = saved(foreign, tmp_path), tmp_path / "ours.onnx"
    adopt(foreign, theirs, ours)
    batch = next(iter(pictures.judge.batches(foreign.contract, 8)))[0]
    found = Field(foreign, tmp_path, batch, scores(foreign, theirs, batch))
    assert found.db(ours) > HALF_DB
    assert {finding.rule for finding in lint(load_onnx(ours))} == outcome.rules
    with pytest.raises(InputError, match=outcome.why) as caught:
        calibrate(ours, pictures.learn, samples=4)
    assert "calibrate the float model it was made from" in str(caught.value).replace("FP32", "float")
    with nullcontext() if outcome.fp16 else pytest.raises(InputError, match=r"already.*convert the float model"):
        half = with_precision(ours, settings=PrecisionSettings(fp16=True))
        assert found.db(model_bytes(half.model)) > INT8_DB


@pytest.mark.parametrize("name", NOT_CALIBRATED)
def test_what_is_quantized_already_is_built_or_refused_in_a_line(
    name: str, builder: BuildSettings, tmp_path: Path
) -> None:
    foreign, ours = ZOO[name](), tmp_path / "ours.onnx"
    adopt(foreign, saved(foreign, tmp_path), ours)
    try:
        told = precision_verdict(build_engine(ours, tmp_path / "int8.engine", settings=replace(builder, strict=False)))
    except InputError as error:
        told = str(error)
    assert re.search(NOT_CALIBRATED[name].built, told)
    assert "\n" not in told


@pytest.mark.parametrize("name", UNDERFLOW[:-1])
def test_constants_tell_without_ranges_what_fp16_does_not_hold(name: str, fields: Fields) -> None:
    half = with_precision(fields(name).model, settings=PrecisionSettings(fp16=True))
    assert fields(name).db(by_onnx(model_bytes(half.model), fields(name).batch)) > HALF_DB


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("name", DIVISIONS)
def test_in_fp16_a_black_image_is_divided_by_no_zero(name: str, measured: bool, fields: Fields) -> None:
    """It leaves every feature at 0, and was not among the images that were measured."""
    field = fields(name)
    ranges = field.ranges if measured else None
    half = model_bytes(with_precision(field.model, ranges, settings=PrecisionSettings(fp16=True)).model)
    black = np.full_like(field.batch[:1], BLACK)
    expected = by_onnx(field.model.read_bytes(), black)
    np.testing.assert_allclose(by_onnx(half, black), expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", [name for name in DIVISIONS if name != "logarithm"])  # the least of which is cut off
def test_in_int8_and_fp16_a_black_image_is_divided_by_no_zero(name: str, fields: Fields) -> None:
    field = fields(name)
    black = np.full_like(field.batch[:1], BLACK)
    with load(field.quantized("tensorrt", fp16=True)) as runner:
        found = runner.infer(black)
    expected = by_onnx(field.model.read_bytes(), black)
    np.testing.assert_allclose(found, expected, atol=1e-2 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["vanishing", "overflowing"])
def test_what_fp16_loses_is_not_written_where_no_ranges_tell_of_it(name: str, fields: Fields) -> None:
    lost = by_onnx(model_bytes(to_fp16(load_onnx(fields(name).model))), fields(name).batch)
    assert not fields(name).db(lost) > INT8_DB, "or the test shows nothing"
    with pytest.raises(GateError, match=r"in fp16 answers otherwise than it does in float.*give `ranges`"):
        with_precision(fields(name).model, settings=PrecisionSettings(fp16=True))


@pytest.mark.parametrize("name", ["constant_of_shape", "captured", "normalized", "tiny_channels"])
def test_built_in_fp16_every_layer_is(name: str, fields: Fields, builder: BuildSettings, tmp_path: Path) -> None:
    graph = with_precision(fields(name).model, fields(name).ranges, settings=PrecisionSettings(fp16=True))
    record = build_engine(graph, tmp_path / "fp16.engine", settings=builder)
    assert (record.float_layers, record.left, record.precisions["FLOAT"]) == ((), {}, 0)


@pytest.mark.parametrize("name", ["constant_on_the_left", "computed_weight"])
def test_strict_refuses_a_layer_that_cannot_be_quantized(
    name: str, fields: Fields, builder: BuildSettings, tmp_path: Path
) -> None:
    ((layer, why),) = LEFT[name].items()
    graph = with_precision(fields(name).model, fields(name).ranges, settings=PrecisionSettings(int8=True))
    with pytest.raises(GateError, match=rf"left in float in the graph: {layer} .*nothing was written"):
        build_engine(graph, tmp_path / "int8.engine", settings=builder)
    record = build_engine(graph, tmp_path / "int8.engine", settings=replace(builder, strict=False))
    assert record.left == {layer: why}
    assert f"left in float in the graph: {layer} ({why})" in precision_verdict(record)


def test_what_fp16_does_not_hold_is_named_and_strict_refuses_it(
    fields: Fields, builder: BuildSettings, tmp_path: Path
) -> None:
    field = fields("vanishing")
    graph = with_precision(field.model, field.ranges, settings=PrecisionSettings(fp16=True))
    with pytest.raises(GateError, match=r"left in float in the graph: c1 \(FP16 does not hold"):
        build_engine(graph, tmp_path / "fp16.engine", settings=builder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("adopted", [True, False])
@pytest.mark.parametrize("name", ["ends_in_softmax", "ends_in_sigmoid", "tiny_channels"])
def test_probabilities_are_those_of_the_file(name: str, adopted: bool, pictures: Pictures, tmp_path: Path) -> None:
    foreign = ZOO[name]()
    if not adopted:  # with a contract in it, it needs no adoption
        helper.set_model_props(foreign.model, {METADATA_KEY: foreign.contract.to_json()})
    theirs = path = saved(foreign, tmp_path)
    if adopted:
        path = tmp_path / "ours.onnx"
        adopt(foreign, theirs, path)
    batch = next(iter(pictures.judge.batches(foreign.contract, 8)))[0]
    expected = scores(foreign, theirs, batch)
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
    adopt(foreign, theirs, ours)
    save_ranges(ranges, calibrate(ours, pictures.learn, samples=8))
    quantize_onnx(ours, ranges, int8)
    batch = next(iter(pictures.judge.batches(foreign.contract, 8)))[0]
    found = Field(foreign, tmp_path, batch, scores(foreign, theirs, batch))
    assert found.db(ours) > SAME_DB
    assert found.db(int8) > INT8_DB
