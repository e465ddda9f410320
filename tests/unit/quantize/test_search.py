from __future__ import annotations

import dataclasses
import itertools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from PIL import Image

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import GateError, InputError, InputWarning, UsageError
from alexdeploy.graph.model import load_onnx, save_onnx
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.graph.weighted import quantized_nodes
from alexdeploy.quantize.apply import PrecisionSettings, QuantizedWriter
from alexdeploy.quantize.calibrate import calibrate
from alexdeploy.quantize.methods import METHODS
from alexdeploy.quantize.moments import moments_path
from alexdeploy.quantize.quantize import QuantizeSettings, quantize_onnx
from alexdeploy.quantize.rangefile import RangeFile, save_ranges
from alexdeploy.quantize.search import (
    Attempt,
    QuantizationScorer,
    Score,
    analyze,
    choose_method,
    meet_budget,
)
from alexdeploy.specs import Rounding
from tests.helpers.graphs import Array, make_model, run

CONTRACT = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)
LAYERS = ["conv1", "conv2", "conv3", "fc4"]


def chain(scaled: str | None = None) -> onnx.ModelProto:
    """Three convolutions and a Gemm; in front of ``scaled`` one channel is 200 times the others and is not used."""
    random = np.random.default_rng(3)
    nodes, weights, source = [], {}, "input"
    for number, (inputs, outputs) in enumerate([(3, 8), (8, 8), (8, 8)], start=1):
        name = f"conv{number}"
        kernel = random.standard_normal((outputs, inputs, 3, 3)) / np.sqrt(inputs * 9)
        weights[f"w{number}"] = kernel.astype(np.float32)
        nodes.append(helper.make_node("Conv", [source, f"w{number}"], [name], name, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [name], [f"relu{number}"], f"relu{number}"))
        source = f"relu{number}"
    nodes.append(helper.make_node("GlobalAveragePool", [source], ["pool"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pool"], ["flat"], "flat"))
    weights["w4"] = random.standard_normal((5, 8)).astype(np.float32)
    nodes.append(helper.make_node("Gemm", ["flat", "w4"], ["logits"], "fc4", transB=1))
    if scaled is not None:
        number = int(scaled[-1])
        weights[f"w{number - 1}"][0] = np.abs(weights[f"w{number - 1}"][0]) * 200
        weights[f"w{number}"][:, 0] = 0
    return make_model(nodes, weights, rank=2)


def pictures(count: int, seed: int, labels: Array | None = None) -> ImageDataset:
    random = np.random.default_rng(seed)
    colour, noise = random.uniform(0, 256, (count, 1, 1, 3)), random.normal(0, 40, (count, 8, 8, 3))
    pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
    return ImageDataset(
        name="noise/val",
        classes=tuple("abcde"),
        samples=[str(i) for i in range(count)],
        labels=np.zeros(count, np.int64) if labels is None else labels.astype(np.int64),
        read=lambda i: Image.fromarray(pixels[i]),
    )


def labelled(model: onnx.ModelProto, count: int = 200, seed: int = 5) -> ImageDataset:
    """Images whose labels are what the float model says, so that its top-1 is 100 %."""
    images = pictures(count, seed)
    (batch, _) = next(images.batches(CONTRACT, count))
    return pictures(count, seed, run(model, batch)[0].argmax(1))


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[onnx.ModelProto], tuple[Path, RangeFile]]:
    def store(proto: onnx.ModelProto) -> tuple[Path, RangeFile]:
        model = ir.from_proto(proto)
        model.metadata_props[METADATA_KEY] = CONTRACT.to_json()
        save_onnx(model, tmp_path / "model.onnx")
        seen = calibrate(tmp_path / "model.onnx", pictures(64, 9), samples=64)
        save_ranges(tmp_path / "ranges.json", seen, (), {})
        return tmp_path / "model.onnx", seen

    return store


Stored = Callable[[onnx.ModelProto], tuple[Path, RangeFile]]


def test_scores_are_those_of_the_quantized_graph(stored: Stored) -> None:
    proto = chain()
    _, seen = stored(proto)
    judge = QuantizationScorer(ir.from_proto(proto), CONTRACT, labelled(proto))
    assert judge.top1 == 1.0
    assert len(set(labelled(proto).labels.tolist())) >= 2, "the images differ enough for top-1 to mean something"
    (batch, labels) = next(labelled(proto).batches(CONTRACT, 200))
    expected, actual = run(proto, batch)[0], run(insert_qdq(ir.from_proto(proto), seen.of("minmax")), batch)[0]
    score = judge.score(seen.of("minmax"))
    noise = np.sum((actual - expected) ** 2, dtype=np.float64)
    assert score.sqnr_db == pytest.approx(10 * np.log10(np.sum(expected**2, dtype=np.float64) / noise), abs=0.2)
    assert score.drop == pytest.approx(100 * np.mean(actual.argmax(1) != labels), abs=1.0)
    assert judge.score(seen.of("minmax"), LAYERS).sqnr_db == float("inf"), "nothing is quantized"


@pytest.mark.parametrize("layer", ["conv2", "conv3"])
def test_the_layer_that_was_made_hard_to_quantize_is_ranked_first(layer: str, stored: Stored) -> None:
    proto = chain(layer)
    _, seen = stored(proto)
    found = analyze(QuantizationScorer(ir.from_proto(proto), CONTRACT, labelled(proto)), seen.of("minmax"))
    assert found[0].layer == layer
    assert {row.layer for row in found} == set(LAYERS)
    assert sum(row.macs_share for row in found) == pytest.approx(1.0)


@pytest.mark.parametrize("wrong", [100.0, 0.01])
def test_a_range_wrong_by_a_hundred_is_ranked_first(wrong: float, stored: Stored) -> None:
    proto = chain()
    _, seen = stored(proto)
    ranges = dict(seen.of("minmax"))
    ranges["relu1"] = TensorRange(ranges["relu1"].amax * wrong)
    assert analyze(QuantizationScorer(ir.from_proto(proto), CONTRACT, labelled(proto)), ranges)[0].layer == "conv2"


@pytest.mark.parametrize("layer", ["conv2", "conv3"])
def test_the_budget_is_met_with_the_fewest_float_layers_as_brute_force_finds_them(layer: str, stored: Stored) -> None:
    proto = chain(layer)
    _, seen = stored(proto)
    ranges = seen.of("minmax")
    judge = QuantizationScorer(ir.from_proto(proto), CONTRACT, labelled(proto))
    budget = judge.score(ranges, [layer]).drop + 0.5
    assert judge.score(ranges).drop > budget, "all layers in INT8 must not do, or the test shows nothing"
    result = meet_budget(judge, ranges, budget)
    enough = [single for single in LAYERS if judge.score(ranges, [single]).drop <= budget]
    assert enough
    (kept,) = result.chosen.kept_float
    assert kept == min(enough, key=lambda name: judge.macs_share[name])
    assert result.chosen.score.drop <= budget
    assert result.chosen.int8_macs == pytest.approx(1 - judge.macs_share[kept])
    assert len(result.attempts) == 1 + len(LAYERS), "the search is shown, each attempt once"


def test_nothing_is_kept_in_float_when_int8_is_good_enough(stored: Stored) -> None:
    proto = chain()
    _, seen = stored(proto)
    result = meet_budget(QuantizationScorer(ir.from_proto(proto), CONTRACT, labelled(proto)), seen.of("minmax"), 100.0)
    assert result.chosen.kept_float == ()
    assert len(result.attempts) == 1


def test_a_budget_that_cannot_be_met_is_a_gate_error_and_writes_nothing(stored: Stored, tmp_path: Path) -> None:
    proto = chain()
    model, seen = stored(proto)
    spoilt = {name: {**values, "minmax": values["minmax"] / 1000} for name, values in seen.tensors.items()}
    save_ranges(tmp_path / "bad.json", msgspec.structs.replace(seen, tensors=spoilt), (), {})
    settings = QuantizeSettings(method="minmax", max_drop=0.0)
    with pytest.raises(GateError, match=r"`max_drop` 0: with 3 of 4 layers in float"):
        quantize_onnx(
            model, tmp_path / "bad.json", tmp_path / "o.onnx", settings=settings, validation_images=labelled(proto)
        )
    assert not (tmp_path / "o.onnx").exists()


def writers(seen: RangeFile) -> dict[Rounding, QuantizedWriter]:
    roundings: tuple[Rounding, ...] = ("gptq", "nearest")
    return {rounding: QuantizedWriter(seen, PrecisionSettings(int8=True, rounding=rounding)) for rounding in roundings}


def test_auto_measures_every_method_with_each_rounding_and_takes_the_best(stored: Stored) -> None:
    proto = chain()
    _, seen = stored(proto)
    scorer = QuantizationScorer(ir.from_proto(proto), CONTRACT, labelled(proto))
    choice = choose_method(scorer, seen, writers(seen))
    assert set(choice.scores) == {f"{method}, {rounding}" for method in METHODS for rounding in ("gptq", "nearest")}
    chosen = scorer.score(seen.of(choice.method), write=writers(seen)[choice.rounding])
    assert chosen.sqnr_db == max(score.sqnr_db for score in choice.scores.values())
    assert choice.left_out == ()


def test_auto_ends_in_time_and_says_what_it_left_out(stored: Stored) -> None:
    proto = chain()
    _, seen = stored(proto)
    scorer = QuantizationScorer(ir.from_proto(proto), CONTRACT, labelled(proto))
    choice = choose_method(scorer, seen, writers(seen), seconds=0.0)
    assert (choice.method, choice.rounding, list(choice.scores)) == ("mse", "gptq", ["mse, gptq"])
    assert len(choice.left_out) == 7


def test_auto_needs_no_labels_and_a_budget_does(stored: Stored) -> None:
    proto = chain()
    _, seen = stored(proto)
    scorer = QuantizationScorer(ir.from_proto(proto), CONTRACT, pictures(200, 5, np.full(200, -1)))
    choice = choose_method(scorer, seen, writers(seen))
    with_labels = QuantizationScorer(ir.from_proto(proto), CONTRACT, labelled(proto))
    assert choice.method == choose_method(with_labels, seen, writers(seen)).method
    assert all(np.isnan(score.drop) for score in choice.scores.values())
    with pytest.raises(InputError, match="`max_drop` is measured in top-1, which takes images with labels"):
        meet_budget(scorer, seen.of("minmax"), 1.0)


def test_quantize_keeps_what_the_search_found_and_says_so_in_the_sidecar(stored: Stored, tmp_path: Path) -> None:
    from alexdeploy.files import read_sidecar

    proto = chain("conv2")
    model, seen = stored(proto)
    judge = QuantizationScorer(ir.from_proto(proto), CONTRACT, labelled(proto))
    settings = QuantizeSettings(
        method="minmax", rounding="nearest", max_drop=judge.score(seen.of("minmax"), ["conv2"]).drop + 0.5
    )
    output = tmp_path / "int8.onnx"
    result = quantize_onnx(
        model, tmp_path / "ranges.json", output, settings=settings, validation_images=labelled(proto)
    )
    kept = read_sidecar(output).details["kept_float"]
    assert len(kept) == 1
    assert {node.name for node in quantized_nodes(result.model)} == set(LAYERS) - set(kept)


@pytest.mark.parametrize("settings", [QuantizeSettings(method="auto"), QuantizeSettings(max_drop=1.0)])
def test_what_is_measured_needs_images(settings: QuantizeSettings, stored: Stored, tmp_path: Path) -> None:
    model, _ = stored(chain())
    with pytest.raises(UsageError, match="`data`"):
        quantize_onnx(model, tmp_path / "ranges.json", tmp_path / "o.onnx", settings=settings)


def test_the_hard_networks_of_these_tests_differ() -> None:
    for one, other in itertools.combinations([chain(), chain("conv2"), chain("conv3")], 2):
        assert one.SerializeToString() != other.SerializeToString()


def test_what_is_judged_is_what_is_written(stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alexdeploy.quantize import search

    proto = chain()
    model, _ = stored(proto)
    judged: list[ir.Model] = []
    logits = search.QuantizationScorer._logits

    def remember(judge: QuantizationScorer, graph: ir.Model) -> Any:
        judged.append(graph)
        return logits(judge, graph)

    monkeypatch.setattr(search.QuantizationScorer, "_logits", remember)
    settings = QuantizeSettings(method="minmax", dialect="onnxruntime", fp16=True, max_drop=100.0)
    written = quantize_onnx(
        model, tmp_path / "ranges.json", tmp_path / "o.onnx", settings=settings, validation_images=labelled(proto)
    )
    assert ir.to_proto(judged[-1]).SerializeToString() == ir.to_proto(written.model).SerializeToString()


def test_a_drop_of_just_the_budget_meets_it(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = chain()
    _, seen = stored(proto)
    judge = QuantizationScorer(ir.from_proto(proto), CONTRACT, labelled(proto))
    judge.top1 = 0.5
    monkeypatch.setattr("alexdeploy.quantize.search.topk_accuracy", lambda *_: 0.497)
    assert meet_budget(judge, seen.of("minmax"), 0.3).chosen.kept_float == ()


def test_an_attempt_names_few_layers_and_counts_many() -> None:
    score = Score(30.0, 0.99, 0.1)
    assert str(Attempt((), score, 1.0)).startswith("float: nothing · ")
    many = tuple(f"conv{number}" for number in range(1, 51))
    assert str(Attempt(many, score, 0.0)).startswith("float: conv1, conv2, conv3 and 47 more · drop +0.10 points")


@pytest.mark.parametrize("name", ["", "same"])
def test_layers_without_a_name_and_of_one_name_are_told_apart(name: str, stored: Stored, tmp_path: Path) -> None:
    proto = chain("conv2")
    for node in proto.graph.node:
        node.name = name
    path, seen = stored(proto)
    found = analyze(QuantizationScorer(load_onnx(path), CONTRACT, labelled(chain("conv2"))), seen.of("minmax"))
    named = analyze(
        QuantizationScorer(ir.from_proto(chain("conv2")), CONTRACT, labelled(chain("conv2"))), seen.of("minmax")
    )
    assert len({row.layer for row in found}) == 4
    assert "" not in {row.layer for row in found}
    assert [row.score for row in found] == [row.score for row in named]
    kept = quantize_onnx(
        path, tmp_path / "ranges.json", tmp_path / "o.onnx", settings=QuantizeSettings(keep_float=[found[0].layer])
    )
    assert {str(node.name) for node in quantized_nodes(kept.model)} == {row.layer for row in found[1:]}


def auto(model: Path, folder: Path, images: ImageDataset, samples: int = 20) -> str:
    return str(
        quantize_onnx(
            model,
            folder / "ranges.json",
            folder / "o.onnx",
            settings=QuantizeSettings(method="auto"),
            selection_images=images,
            selection_samples=samples,
        ).measured_on
    )


def test_auto_measures_on_images_that_were_not_calibrated_on(stored: Stored, tmp_path: Path) -> None:
    model, seen = stored(chain())
    images = pictures(100, 9)
    seen = calibrate(model, images, samples=64)
    save_ranges(tmp_path / "ranges.json", seen)
    read: list[int] = []
    watched = dataclasses.replace(images, read=lambda i: read.append(i) or images.read(i))  # type: ignore[func-returns-value]
    assert auto(model, tmp_path, watched).startswith("noise/val: 20 of 100 images")
    assert len(set(read)) == 20
    assert not set(read) & {round(i * 99 / 63) for i in range(64)}


def test_auto_says_where_all_images_were_calibrated_on(stored: Stored, tmp_path: Path) -> None:
    model, _ = stored(chain())
    with pytest.warns(InputWarning, match=r"noise/val has 0 images that were not calibrated on"):
        assert auto(model, tmp_path, pictures(64, 9)) == "noise/val: 20 of 64 images (spread over it)"


def test_auto_warns_once_of_moments_left_behind(stored: Stored, tmp_path: Path) -> None:
    model, _ = stored(chain())
    moments_path(tmp_path / "ranges.json").unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        auto(model, tmp_path, pictures(100, 7))
    assert len([one for one in caught if "is missing" in str(one.message)]) == 1


def test_the_minute_of_auto_begins_before_the_images_are_read(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = stored(chain())
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def slow(i: int) -> Image.Image:
        clock[0] += 10.0
        return images.read(i)  # type: ignore[return-value]

    images = pictures(100, 7)
    result = quantize_onnx(
        model,
        tmp_path / "ranges.json",
        tmp_path / "o.onnx",
        settings=QuantizeSettings(method="auto"),
        selection_images=dataclasses.replace(images, read=slow),
        selection_samples=20,
    )
    assert result.choice is not None
    assert list(result.choice.scores) == ["mse, gptq"]
