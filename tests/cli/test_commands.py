"""Every command does what its help says, and ``--json`` keeps the contract of outside tests."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import numpy as np
import pytest

from alexdeploy import files
from alexdeploy.cli import COMMANDS, cli
from alexdeploy.engine.record import read_engine
from alexdeploy.specs import Dialect, Profile
from tests.cli.conftest import Result, Run

OPS = {"Conv": 5, "Flatten": 1, "Gemm": 3, "LRN": 2, "MaxPool": 3, "Relu": 7}
WEIGHTED = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
PARAMETERS = 4_412_810  # of alexnet-mnist with ten classes, by hand
METHODS = {"minmax", "entropy", "percentile", "mse"}


def json_of(result: Result) -> dict[str, Any]:
    """The one object on stdout of a command that went well."""
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    value = json.loads(result.out)
    assert isinstance(value, dict)
    return value


def sidecar_of(path: Path, kind: str, *parents: Path) -> files.Sidecar:
    """The sidecar, which must match the file and name its parents."""
    sidecar = files.read_sidecar(path)
    assert sidecar.kind == kind
    assert [parent.sha256 for parent in sidecar.parents] == [files.sha256_file(parent) for parent in parents]
    return sidecar


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_has_an_example(command: str, option: str, run: Run) -> None:
    result = run(command, option)
    assert result.code == 0
    assert f"Example: alexdeploy {command}" in " ".join(result.out.split())
    assert result.err == ""


def test_the_group_lists_every_command_and_tells_its_version(run: Run) -> None:
    from alexdeploy._version import __version__

    listed = run("--help")
    assert listed.code == 0
    assert all(f"\n  {command} " in listed.out for command in COMMANDS)
    assert run("--version") == (0, f"alexdeploy, version {__version__}\n", "")


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    result = run()
    assert (result.code, result.out) == (2, "")
    assert "Commands:" in result.err


def test_choices_of_the_command_line_are_those_of_the_rooms() -> None:
    from alexdeploy.bench.run import DEFAULT_SECONDS
    from alexdeploy.quantize.methods import METHODS
    from alexdeploy.runners.runtimes import RUNTIMES
    from alexdeploy.specs import Dialect, Method, Runtime

    def option(command: str, name: str) -> Any:
        found = cli.get_command(click.Context(cli), command)
        assert found is not None
        return next(parameter for parameter in found.params if parameter.name == name)

    for command, methods in (("quantize", {*METHODS, "auto"}), ("build-engine", set(METHODS))):
        assert set(option(command, "method").type.choices) == methods
    assert tuple(option("quantize", "target").type.choices) == get_args(Dialect)
    assert tuple(option("bench", "runtimes").type.choices) == ("auto", *RUNTIMES)
    assert get_args(Runtime) == tuple(RUNTIMES)
    assert get_args(Method) == tuple(METHODS)
    assert option("bench", "seconds").default == DEFAULT_SECONDS


def test_train_writes_a_checkpoint_that_names_its_classes(run: Run, pictures: Path, out: Path) -> None:
    result = json_of(run("train", "alexnet-mnist", "--data", pictures, "--epochs", 1, "--out", out, "--json"))
    path = out / "alexnet-mnist.safetensors"
    assert result["checkpoint"] == str(path)
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1]
    assert 0 <= result["top1"] <= 1
    assert sidecar_of(path, "checkpoint").options["recipe"]["train"]["epochs"] == 1
    assert json_of(run("inspect", path, "--json"))["contract"]["labels"] == list("0123456789")
    assert json.loads((out / "class_indices.json").read_text()) == {str(i): str(i) for i in range(10)}


def test_exported_ops_keep_lrn_native_and_the_checkpoint_is_the_parent(checkpoint: Path, model: Path) -> None:
    import onnx

    sidecar = sidecar_of(model, "onnx", checkpoint)
    assert max(sidecar.details["parity"].values()) <= 1e-5
    proto = onnx.load(model)
    assert {op: sum(node.op_type == op for node in proto.graph.node) for op in OPS} == OPS
    assert len(proto.graph.node) == sum(OPS.values())


def test_weights_without_class_names_get_those_of_the_data(run: Run, out: Path) -> None:
    from alexdeploy.graph.model import contract_of, load_onnx

    line = ["export", "--network", "lenet", "--data", "digits", "-o", out / "m.onnx"]
    assert run(*line, "--classes", 10).err == "class names, in this order, from digits/val: 0, 1, 2 and 7 more\n"
    assert contract_of(load_onnx(out / "m.onnx"), "m").labels == tuple("0123456789")
    told = run(*line, "--classes", 3)
    assert "warning: digits/val has other classes than the network; its images serve the parity check only" in told.err
    assert contract_of(load_onnx(out / "m.onnx"), "m").labels == ()


def test_fresh_weights_of_one_seed_export_to_the_same_bytes(run: Run, out: Path) -> None:
    command = ["export", "--network", "alexnet-mnist", "--classes", 10, "--json"]
    results = [
        json_of(run(*command, "--seed", seed, "-o", out / f"{name}.onnx")) for name, seed in (("a", 0), ("b", 0))
    ]
    assert (out / "a.onnx").read_bytes() == (out / "b.onnx").read_bytes()
    assert results[0] == {**results[1], "model": str(out / "a.onnx")}
    assert results[0]["ops"] == OPS
    parity = results[0]["parity"]
    assert parity["batches"] == [1, 2, 5]
    assert 0 <= max(parity["random_inputs"], parity["real_inputs"]) <= parity["tolerance"] == 1e-5


def test_a_fully_convolutional_export_gives_the_same_logits_and_a_map_of_larger_images(
    run: Run, pictures: Path, out: Path
) -> None:
    import numpy as np
    import onnxruntime as ort

    path, model = out / "fully.onnx", out / "dense.onnx"
    network = ["export", "--network", "lenet", "--classes", 10, "--json"]
    json_of(run(*network, "-o", model))
    result = json_of(run(*network, "--fully-convolutional", "-o", path))
    assert result["ops"] == {"Conv": 5, "MaxPool": 2, "Relu": 4}
    assert max(result["parity"]["random_inputs"], result["parity"]["real_inputs"]) <= 1e-5
    full, dense = (ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for p in (path, model))
    images = np.random.default_rng(0).standard_normal((3, 1, 28, 28), dtype=np.float32)
    (logits,), (same,) = dense.run(None, {"input": images}), full.run(None, {"input": images})
    assert same.shape == (3, 10, 1, 1)
    np.testing.assert_allclose(same[..., 0, 0], logits, atol=1e-5)
    assert full.run(None, {"input": np.pad(images, ((0, 0), (0, 0), (0, 24), (8, 40)))})[0].shape == (3, 10, 7, 13)
    labels = [json_of(run("predict", p, pictures, "--json"))["predictions"] for p in (path, model)]
    assert [p["label"] for p in labels[0]] == [p["label"] for p in labels[1]]
    costs = [json_of(run("inspect", p, "--json")) for p in (path, model)]
    assert costs[0]["layers"][0]["macs"] == costs[1]["layers"][0]["macs"] > 0
    ranges = [out / "full.json", out / "dense.json"]
    for source, target in zip((path, model), ranges, strict=True):
        assert run("calibrate", source, "--data", pictures, "-o", target).code == 0
    same, wanted = (json.loads(target.read_text())["tensors"]["input"] for target in ranges)
    assert same == wanted, "at the size of the contract"


def test_a_model_of_pixels_goes_the_same_way_and_gives_the_same_answers(
    run: Run, checkpoint: Path, model: Path, ranges: Path, pictures: Path, out: Path
) -> None:
    from alexdeploy import Classifier, load

    served, seen = out / "served.onnx", out / "ranges.json"
    result = json_of(run("export", checkpoint, "--uint8-input", "--data", "digits", "-o", served, "--json"))
    assert result["ops"] == OPS | {"Cast": 1, "Mul": 1, "Sub": 1, "Transpose": 1}
    assert max(result["parity"]["random_inputs"], result["parity"]["real_inputs"]) <= 1e-5
    tables = [json_of(run("inspect", path, "--json")) for path in (served, model)]
    assert tables[0]["macs"] == tables[1]["macs"]
    assert tables[0]["parameters"] == tables[1]["parameters"] == PARAMETERS
    json_of(run("calibrate", served, "--data", "digits", "--samples", 32, "-o", seen, "--json"))
    pixels, floats = (json.loads(path.read_text())["tensors"] for path in (seen, ranges))
    assert pixels.keys() - floats.keys() == {"mul_input"}
    assert pixels["mul_input"]["minmax"] == pytest.approx(floats["input"]["minmax"], rel=1e-5)
    for dialect in get_args(Dialect):
        quantized = out / f"{dialect}.onnx"
        assert json_of(run("quantize", served, "--ranges", seen, "--for", dialect, "-o", quantized, "--json"))
        assert [row["precision"] for row in layers_of(run, quantized) if row["name"] in WEIGHTED] == ["INT8"] * 8
        with load(quantized) as runner:
            assert (runner.input.shape[1:], runner.input.dtype) == ((28, 28, 1), "uint8")
    images = sorted((pictures / "val").rglob("*.png"))
    with Classifier(served) as ours, Classifier(model) as theirs:
        (labels, shares), (expected, reference) = (zip(*classify(images), strict=True) for classify in (ours, theirs))
    assert labels == expected
    assert shares == pytest.approx(reference, rel=1e-4)


def layers_of(run: Run, path: Path) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = json_of(run("inspect", path, "--json"))["layers"]
    return layers


def test_foreign_weights_are_exported_with_the_network_named(run: Run, out: Path) -> None:
    import torch

    from alexdeploy.zoo.checkpoint import untrained

    torch.save(untrained("lenet", 10, seed=0).model.state_dict(), out / "lenet.pth")
    result = json_of(run("export", out / "lenet.pth", "--network", "lenet", "-o", out / "lenet.onnx", "--json"))
    assert result["ops"] == {"Conv": 2, "Flatten": 1, "Gemm": 3, "MaxPool": 2, "Relu": 4}
    wrong = run("export", out / "lenet.pth", "--network", "mnist-cnn", "-o", out / "x.onnx")
    assert (wrong.code, (out / "x.onnx").exists()) == (3, False)
    assert "features.0.weight has shape (6, 1, 3, 3), expected (16, 1, 3, 3)" in wrong.err


def test_calibrate_writes_every_method_and_a_receipt_per_tensor(run: Run, model: Path, ranges: Path, out: Path) -> None:
    path = out / "again.json"
    shown = json_of(run("calibrate", model, "--data", "digits", "--samples", 32, "-o", path, "--json"))
    written = json.loads(path.read_text())
    assert path.read_bytes() == ranges.read_bytes()
    assert (shown["ranges"], shown["samples"], shown["tensors"]) == (str(path), 32, written["tensors"])
    assert written["schema"] == 1
    assert written["model_sha256"] == files.sha256_file(model)
    assert written["samples"] == 32
    assert len(written["tensors"]) == len(WEIGHTED) + 2, "the inputs of all, and what the LRNs are fed"
    for values in written["tensors"].values():
        assert values.keys() == METHODS | {"samples", "min"}
        assert values["samples"] == 32
        assert all(0 < values[method] <= values["minmax"] for method in METHODS)
    sidecar_of(path, "ranges", model)


def test_calibrate_says_when_there_are_fewer_images_than_asked_for(
    run: Run, model: Path, pictures: Path, out: Path
) -> None:
    result = run("calibrate", model, "--data", pictures, "--samples", 99, "-o", out / "r.json", "--json")
    assert json_of(result)["samples"] == 10
    assert "99 samples asked for" in result.err


@pytest.mark.parametrize(
    ("options", "method", "precision"),
    [
        ([], "mse", "int8"),
        (["--method", "entropy"], "entropy", "int8"),
        (["--method", "percentile", "--fp16"], "percentile", "int8+fp16"),
        (["--fp8"], "mse", "fp8"),
        (["--fp8", "--bf16"], "mse", "fp8+bf16"),
    ],
)
def test_quantize_puts_every_layer_between_q_and_dq(
    options: list[str], method: str, precision: str, run: Run, model: Path, ranges: Path, out: Path
) -> None:
    path = out / "q.onnx"
    result = json_of(run("quantize", model, "--ranges", ranges, *options, "--for", "tensorrt", "-o", path, "--json"))
    assert (result["model"], result["method"], result["for"]) == (str(path), method, "tensorrt")
    assert result["precision"] == precision
    assert result["quantized"] == WEIGHTED
    assert (result["ops"]["QuantizeLinear"], result["ops"]["DequantizeLinear"]) == (8, 16)
    assert {op: result["ops"][op] for op in OPS} == OPS
    assert sidecar_of(path, "onnx", model, ranges).options["method"] == method


@pytest.mark.parametrize(
    ("options", "precisions"),
    [
        ("", {"INT8": 0, "HALF": 0, "FLOAT": 8}),
        ("--fp16", {"INT8": 0, "HALF": 8, "FLOAT": 0}),
        ("--int8 --ranges {ranges}", {"INT8": 8, "HALF": 0, "FLOAT": 0}),
        ("--int8 --fp16 --ranges {ranges}", {"INT8": 8, "HALF": 0, "FLOAT": 0}),
        ("--bf16", {"INT8": 0, "HALF": 0, "FLOAT": 0, "BFLOAT16": 8}),
        ("--int8 --bf16 --ranges {ranges}", {"INT8": 8, "HALF": 0, "FLOAT": 0}),
        ("--int8 --data {pictures} --samples 10", {"INT8": 8, "HALF": 0, "FLOAT": 0}),
    ],
)
def test_build_engine_computes_in_the_type_asked_for(
    options: str,
    precisions: dict[str, int],
    run: Run,
    model: Path,
    ranges: Path,
    pictures: Path,
    tensorrt_rtx: str,
    out: Path,
) -> None:
    path = out / "x.engine"
    words = options.format(ranges=ranges, pictures=pictures).split()
    common = ["--builder", tensorrt_rtx, "--batch", "1:2:4", "--strict", "-o", path, "--json"]
    result = json_of(run("build-engine", model, *words, *common))
    assert (result["engine"], result["builder"]) == (str(path), "tensorrt-rtx")
    assert result["precisions"] == precisions
    assert list(result["layer_precisions"]) == WEIGHTED
    assert result["float_layers"] == []
    assert result["size_bytes"] == path.stat().st_size > 0
    sidecar = sidecar_of(path, "engine", model, *([ranges] if "--ranges" in words else []))
    assert read_engine(path).record.batches == Profile.parse("1:2:4")
    assert sidecar.details["classes"] == 10


def test_build_engine_says_before_a_build_what_it_would_be(run: Run, int8: Path, tensorrt_rtx: str, out: Path) -> None:
    line = ["build-engine", int8, "--builder", tensorrt_rtx, "--batch", "1:2:4", "--dry-run", "-o", out / "x.engine"]
    told = run(*line)
    assert told.code == 0
    assert "would build" in told.out
    assert "8 of 8 layers in INT8" in told.out
    result = json_of(run(*line, "--json"))
    assert (result["dry_run"], result["precision"], result["int8_layers"]) == (True, "int8", WEIGHTED)
    assert result["memory"]["batch"] == 4
    assert result["memory"]["weights_bytes"] > 4_000_000
    assert list(out.iterdir()) == []


def test_an_input_that_is_dynamic_beyond_the_batch_is_built_for_the_sizes_named(
    run: Run, tensorrt_rtx: str, out: Path
) -> None:
    path = out / "fully.onnx"
    run("export", "--network", "lenet", "--classes", 10, "--fully-convolutional", "-o", path)
    line = ["build-engine", path, "--builder", tensorrt_rtx, "-o", out / "x.engine"]
    for extra, words in {
        ("--profile", "image=1x1x28x28"): "unknown input 'image'",
        ("--profile", "input=1x3x28x28"): "the input has shape (batch, 1, height, width)",
        ("--profile", "input=28x28"): "the input has shape (batch, 1, height, width)",
        ("--profile", "input=2x1x28x28:1x1x28x28:1x1x28x28"): "expected 1 <= min <= opt <= max, along every axis",
        ("--profile", "input=1x1xWxH"): "expected MIN:OPT:MAX",
        ("--profile", "1x1x28x28"): "expected INPUT=MIN:OPT:MAX",
        ("--profile", "input=1x1x28x28") * 2: "given twice",
    }.items():
        told = run(*line, *extra)
        assert (told.code, (out / "x.engine").exists()) == (2, False)
        assert words in told.err
    assert "input input: 1x1x28x28:8x1x28x28:64x1x28x28\n" in run(*line, "--dry-run").out, "those of the contract"
    sizes = "1x1x28x28:2x1x28x28:4x1x64x96"
    line += ["--profile", f"input={sizes}"]
    need = json_of(run(*line, "--dry-run", "--json"))["memory"]
    assert (need["batch"], need["io_bytes"]) == (4, 4 * 4 * (64 * 96 + 10 * 10 * 18))
    assert f"input input: {sizes}" in run(*line, "--dry-run").out
    json_of(run(*line, "--json"))
    details = files.read_sidecar(out / "x.engine", "engine").details
    assert msgspec.convert(details["shapes"], dict[str, Profile]) == {"input": Profile.parse(sizes)}


def test_a_graph_that_crashes_the_parser_never_reaches_it(run: Run, tensorrt_rtx: str, out: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in "xy")
    nodes = [helper.make_node("Relu", ["x"], []), helper.make_node("Relu", ["x"], ["y"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y])), str(out / "m.onnx"))
    told = run("build-engine", out / "m.onnx", "--builder", tensorrt_rtx, "-o", out / "m.engine")
    assert (told.code, "not a valid ONNX model" in told.err) == (3, True)


def test_every_input_of_a_foreign_model_can_be_given_its_shapes(run: Run, tensorrt_rtx: str, out: Path) -> None:
    import onnx

    nodes = onnx.parser.parse_graph("""
        two (float[n, 3, 8, 8] image, float[n, boxes] weight, float factor) => (float[n, m] sums) {
            two_axes = Constant <value_ints = [2, 3]> ()
            scaled = Mul (image, factor)
            means = ReduceMean <keepdims = 0> (scaled, two_axes)
            sums = Concat <axis = 1> (means, weight)
        }""")
    onnx.save(onnx.helper.make_model(nodes, opset_imports=[onnx.helper.make_opsetid("", 20)]), str(out / "two.onnx"))
    line = ["build-engine", out / "two.onnx", "--builder", tensorrt_rtx, "--batch", "1:2:4", "-o", out / "two.engine"]
    told = run(*line)
    assert (told.code, "input 'weight' has shape (n, boxes)" in told.err) == (2, True)
    json_of(run(*line, "--profile", "weight=1x1:2x5:4x9", "--json"))
    shapes = files.read_sidecar(out / "two.engine", "engine").details["shapes"]
    wanted = {"image": "1x3x8x8:2x3x8x8:4x3x8x8", "weight": "1x1:2x5:4x9"}
    assert msgspec.convert(shapes, dict[str, Profile]) == {name: Profile.parse(text) for name, text in wanted.items()}


def test_build_engine_warns_when_the_engine_will_not_fit_the_device(
    run: Run, model: Path, tensorrt_rtx: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alexdeploy.engine import plan

    line = ["build-engine", model, "--builder", tensorrt_rtx, "--dry-run", "-o", out / "x.engine"]
    assert "warning" not in run(*line).err
    monkeypatch.setattr(plan, "free_memory_bytes", lambda ordinal: 20 << 20)
    told = run(*line)
    assert "this device has 20 MiB free; lower the largest --batch" in told.err
    assert "free now: 20 MiB" in told.out


def test_ctrl_c_stops_a_build_and_leaves_nothing(
    run: Run, model: Path, tensorrt_rtx: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alexdeploy.cli import build_engine

    def interrupt(phase: str, share: float) -> None:
        if (phase, share) == ("Building engine", 0):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # the main thread sees it

    monkeypatch.setattr(build_engine, "progress", lambda what: contextlib.nullcontext(interrupt))
    told = run("build-engine", model, "--builder", tensorrt_rtx, "-o", out / "x.engine")
    assert (told.code, told.err.strip()) == (130, "error: interrupted")
    assert list(out.iterdir()) == []


def test_the_sidecar_holds_the_command_that_builds_the_engine_again(
    run: Run, model: Path, ranges: Path, tensorrt_rtx: str, out: Path
) -> None:
    path = out / "x.engine"
    line = ["build-engine", model, "--int8", "--ranges", ranges, "--builder", tensorrt_rtx, "-o", path]
    assert run(*line).code == 0
    sidecar = sidecar_of(path, "engine", model, ranges)
    path.unlink()
    assert run(*shlex.split(sidecar.details["rebuild"])[1:]).code == 0
    again = sidecar_of(path, "engine", model, ranges)
    assert again.options == sidecar.options
    assert again.details["layer_precisions"] == sidecar.details["layer_precisions"]


def test_build_engine_takes_a_quantized_model_as_it_is(int8: Path, engine: Path) -> None:
    sidecar = sidecar_of(engine, "engine", int8)
    assert sidecar.details["precisions"] == {"INT8": 8, "HALF": 0, "FLOAT": 0}
    assert sidecar.options["ranges"] is None


def test_bench_compares_what_runs_and_skips_what_does_not(
    run: Run, checkpoint: Path, model: Path, int8: Path, engine: Path, pictures: Path
) -> None:
    from alexdeploy.machine import why_no_cuda

    paths = [checkpoint, model, int8, engine]
    report = json_of(run("bench", *paths, "--data", pictures, "--batch", "1,2", "--seconds", 0.01, "--json"))
    assert {"cpu", "cores", "python", "libraries", "cuda"} <= report["environment"].keys()
    rows = report["rows"]
    expected = [(str(path), batch) for path in paths for batch in (1, 2)]
    assert [(row["artifact"], row["batch"]) for row in rows] == expected
    runtimes = ["pytorch", "onnxruntime-cpu", "onnxruntime-cpu", "tensorrt-rtx"]
    assert [row["runtime"] for row in rows[::2]] == runtimes
    assert [row["precision"] for row in rows[::2]] == ["fp32", "fp32", "int8", "int8"]
    assert [row["size_bytes"] for row in rows[::2]] == [path.stat().st_size for path in paths]
    for row in rows[:6]:
        assert (row["status"], row["reason"]) == ("ok", None)
        latency = row["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
        assert latency["mean"] > 0
        assert latency["ci95"][0] <= latency["p50"] <= latency["ci95"][1]
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / latency["p50"])
        assert 0 <= row["top1"] <= row["top5"] <= 1
        assert 0 <= row["agreement"] <= 1
        assert {"host", "end_to_end"} <= row["samples_ms"].keys() <= {"host", "device", "end_to_end"}
        for boundary, turns in row["samples_ms"].items():
            samples = [ms for turn in turns for ms in turn]
            figures = row["latency_ms" if boundary == "host" else f"{boundary}_ms"]
            assert [np.percentile(samples, q) for q in (50, 90, 99)] == [figures[f"p{q}"] for q in (50, 90, 99)]
            assert (np.mean(samples), len(samples)) == (pytest.approx(figures["mean"]), figures["calls"])
        assert "device" in row["samples_ms"] or row["device_ms"] == latency  # no copies on a CPU
        assert row["limit"]["ideal_ms"] == pytest.approx(row["limit"]["share"] * latency["p50"])
    assert rows[0]["ratio"] is None
    low, high = rows[2]["ratio"]["ci99"]
    assert low <= rows[2]["ratio"]["value"] <= high
    assert any("fc8" in layer for layer in rows[2]["layers_ms"])
    assert [sum(map(sum, judged["confusion"])) for judged in report["accuracy"]] == [10] * 3
    assert rows[0]["agreement"] == rows[2]["agreement"] == 1.0
    for row in rows[6:]:
        assert row["status"] == "skipped"
        assert "no CUDA device" in row["reason"] or why_no_cuda() is None
        figures = ("latency_ms", "images_per_s", "top1", "top5", "agreement")
        assert [row[figure] for figure in figures] == [None] * 5


def test_bench_judges_the_classes_that_the_model_has_and_says_why_it_cannot(run: Run, model: Path, data: Path) -> None:
    command = ["bench", model, "--batch", 1, "--seconds", 0.01, "--data"]
    part = json_of(run(*command, data / "two-classes", "--json"))
    assert part["rows"][0]["top1"] in (0, 0.5, 1)
    assert [
        name for name, recall in zip("0123456789", part["accuracy"][0]["recall"], strict=True) if recall is not None
    ] == ["0", "1"]
    other = run(*command, data / "other-labels")
    assert other.code == 0
    assert f"{data / 'other-labels'}/val: 10 of 20 images" in other.err
    assert "No accuracy: " in other.err
    assert "has class 'a', 'b', 'c'" in " ".join(other.err.split())
    assert "0.00%" not in other.out.replace("100.00%", "")


def test_bench_on_one_runtime_shows_a_table_and_notes_go_to_stderr(run: Run, model: Path, pictures: Path) -> None:
    result = run("bench", model, "--data", pictures, "--batch", 1, "--runtime", "onnxruntime-cpu", "--seconds", 0.01)
    assert result.code == 0
    assert "net.onnx" in result.out
    assert "100.00%" in result.out
    assert "Latency: median per batch" in result.err


def test_bench_chooses_the_fastest_that_meets_the_gate(run: Run, model: Path, int8: Path, pictures: Path) -> None:
    command = ["bench", model, int8, "--data", pictures, "--batch", 1, "--seconds", 0.01]
    report = json_of(run(*command, "--runtime", "auto", "--max-drop", 100, "--json"))
    (choice,) = report["choices"]
    rows = [row for row in report["rows"] if row["status"] == "ok"]
    fastest = max(rows, key=lambda row: row["images_per_s"])
    assert (choice["artifact"], choice["runtime"]) == (fastest["artifact"], fastest["runtime"])
    assert f"fastest of {len(rows)} that meet the gate" in choice["reason"]
    result = run(*command, "--runtime", "auto")
    assert "chosen for batch 1: " in result.err


def test_bench_writes_a_page_that_needs_nothing_else_and_markdown(
    run: Run, model: Path, engine: Path, pictures: Path, out: Path
) -> None:
    html, markdown = out / "report.html", out / "report.md"
    command = ["bench", model, engine, "--data", pictures, "--batch", 1, "--seconds", 0.01]
    assert run(*command, "--html", html, "--markdown", markdown).code == 0
    page = html.read_text()
    assert page.count("<svg") == 4  # accuracy against latency, distributions, layers, confusion
    assert not re.search(r"<script|<link(?! rel=\"icon\" href=\"data:,\")|src=|@import|url\(http", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    every = markdown.read_text().partition("## Every figure")[2]
    table = [line.split(" | ") for line in every.splitlines() if line.startswith("|")]
    assert {len(line) for line in (table[0], *table[2:])} == {16}
    assert "no CUDA device" in page


def test_bench_against_itself_is_no_regression_and_against_a_faster_past_is(
    run: Run, model: Path, pictures: Path, out: Path
) -> None:
    baseline = out / "old.json"
    command = ["bench", model, "--data", pictures, "--batch", 1, "--seconds", 0.01]
    old = json_of(run(*command, "--json"))

    def against(factor: float) -> Result:
        for row in old["rows"]:
            row["samples_ms"]["host"] = [[ms * factor for ms in turn] for turn in row["samples_ms"]["host"]]
        baseline.write_text(json.dumps(old))
        return run(*command, "--baseline", baseline)

    assert against(100.0).code == 0
    result = against(1e-6)
    assert result.code == 5
    assert "1 of 1 rows are worse" in result.err
    assert "REGRESSION: net.onnx on onnxruntime-cpu, batch 1" in result.err
    told = run(*command, "--baseline", baseline, "--json")
    assert told.code == 5
    assert json.loads(told.out)["changes"][0]["regression"], "one object, the report"
    refused = run("bench", model, "--data", pictures, "--batch", 4, "--seconds", 0.01, "--baseline", baseline)
    assert (refused.code, refused.out) == (3, "")
    assert "no row in common" in refused.err
    old["environment"]["cores"] += 1
    elsewhere = against(1.0)
    assert elsewhere.code == 3
    assert f"measured with cores {old['environment']['cores']}" in elsewhere.err


def test_bench_tells_files_of_one_name_apart(run: Run, model: Path, pictures: Path, out: Path) -> None:
    (out / "other").mkdir()
    other = out / "other" / model.name
    shutil.copy(model, other)
    html = out / "report.html"
    result = run("bench", model, other, "--data", pictures, "--batch", 1, "--seconds", 0.01, "--html", html)
    assert result.code == 0
    legend = html.read_text()
    assert f"other/{model.name} on onnxruntime-cpu" in legend
    assert f"{model.parent.name}/{model.name} on onnxruntime-cpu" in legend


def test_a_skipped_row_of_the_table_shows_no_figure(run: Run, model: Path, engine: Path, pictures: Path) -> None:
    result = run("bench", model, engine, "--data", pictures, "--batch", 1, "--seconds", 0.01)
    (row,) = [line for line in result.out.splitlines() if "tensorrt-rtx" in line]
    name, *cells = (cell.strip() for cell in row.strip("│┃| ").split("│"))
    assert name == engine.name or f"{name}  {engine.name}" in result.out.splitlines()
    assert cells[:2] == ["tensorrt-rtx", "int8"]
    assert "skipped" in cells
    assert not re.search(r"\d", "".join(cells[2:]).replace(f"{engine.stat().st_size / 1e6:.1f}", ""))
    assert "skipped on tensorrt-rtx: " in result.err


def test_bench_where_nothing_runs_tells_why_and_exits_with_4(run: Run, model: Path, pictures: Path) -> None:
    options = ["--data", pictures, "--batch", 1, "--seconds", 0.01, "--json"]
    result = run("bench", model, "--runtime", "onnxruntime-cuda", *options)
    (row,) = json.loads(result.out)["rows"]
    if row["status"] == "ok":
        pytest.skip("ONNX Runtime has a GPU here")
    assert result.code == 4
    assert f"error: nothing that was asked for runs here: {row['reason']}" in result.err


def test_predict_labels_files_and_folders_in_order(run: Run, model: Path, pictures: Path) -> None:
    first, folder = pictures / "val" / "7" / "digit-0.png", pictures / "train"
    result = json_of(run("predict", model, first, folder, "--json"))
    predictions = result["predictions"]
    assert result["artifact"] == str(model)
    assert [p["image"] for p in predictions] == [str(first), *map(str, sorted(folder.rglob("*.png")))]
    assert {p["label"] for p in predictions} <= set("0123456789")
    assert all(0.1 <= p["probability"] <= 1 for p in predictions)


def test_predict_writes_csv_and_agrees_between_checkpoint_and_model(
    run: Run, checkpoint: Path, model: Path, pictures: Path, out: Path
) -> None:
    tables = []
    for artifact in (checkpoint, model):
        path = out / f"{artifact.name}.csv"
        result = run("predict", artifact, pictures, "--out", path)
        assert result.code == 0
        assert result.out == f"{path}: 20 predictions\n"
        assert "of 20 images in their class folder are right" in result.err
        tables.append(list(csv.DictReader(path.read_text().splitlines())))
    assert [*tables[0][0]] == ["image", "label", "probability", "truth"]
    assert [row["label"] for row in tables[0]] == [row["label"] for row in tables[1]]


def test_predict_prints_a_line_per_image(run: Run, model: Path, pictures: Path) -> None:
    result = run("predict", model, pictures / "val")
    assert result.code == 0
    assert len(result.out.splitlines()) == 10
    assert result.out.startswith(f"{pictures / 'val' / '0' / 'digit-0.png'}: ")


def test_predict_writes_json_lines_and_the_accuracy_in_class_folders(
    run: Run, model: Path, pictures: Path, out: Path
) -> None:
    result = json_of(run("predict", model, pictures / "val", "--ten-crop", "--out", out / "p.jsonl", "--json"))
    lines = [json.loads(line) for line in (out / "p.jsonl").read_text().splitlines()]
    assert lines == result["predictions"]
    right = sum(Path(line["image"]).parent.name == line["label"] for line in lines)
    assert (result["accuracy"]["top1"], result["accuracy"]["images"]) == (right / 10, 10)
    alone = json_of(run("predict", model, pictures / "val" / "7" / "digit-0.png", "--json"))
    assert alone["accuracy"] is None


def test_predict_takes_class_names_for_a_model_without(run: Run, pictures: Path, out: Path) -> None:
    bare = out / "bare.onnx"
    json_of(run("export", "--network", "lenet", "--classes", 10, "-o", bare, "--json"))
    (out / "class_indices.json").write_text(json.dumps({f"class-{i}": i for i in range(10)}))
    (out / "nine.json").write_text(json.dumps({str(i): f"x{i}" for i in range(9)}))
    command = ["predict", bare, pictures / "val", "--json"]
    numbers = [p["label"] for p in json_of(run(*command))["predictions"]]
    names = [p["label"] for p in json_of(run(*command, "--labels", out / "class_indices.json"))["predictions"]]
    assert names == [f"class-{number}" for number in numbers]
    wrong = run(*command, "--labels", out / "nine.json")
    assert wrong.code == 3
    assert "has 10 outputs but 9 class names were given" in wrong.err


def test_predict_with_an_engine_says_why_it_cannot_run(run: Run, engine: Path, pictures: Path) -> None:
    result = run("predict", engine, pictures)
    assert (result.code, result.out) == (4, "")
    assert result.err.splitlines()[-1].startswith(f"error: {engine} cannot run here: tensorrt-rtx: ")


def test_inspect_counts_the_same_in_checkpoint_network_and_model(run: Run, checkpoint: Path, model: Path) -> None:
    network = ["--network", "alexnet-mnist", "--classes", 10]
    found = {
        "checkpoint": json_of(run("inspect", checkpoint, "--json")),
        "onnx": json_of(run("inspect", model, "--json")),
        "network": json_of(run("inspect", *network, "--json")),
    }
    for kind, result in found.items():
        assert result["kind"] == kind
        assert result["parameters"] == PARAMETERS
        assert result["macs"] == found["onnx"]["macs"] == sum(layer["macs"] for layer in result["layers"])
        assert {op: result["ops"][op] for op in ("Conv", "Gemm", "LRN", "MaxPool", "Relu")} == {
            op: count for op, count in OPS.items() if op != "Flatten"
        }
        assert all({"name", "type", "precision", "output_shape"} <= layer.keys() for layer in result["layers"])
    layers = found["onnx"]["layers"]
    assert [layer["name"] for layer in layers if layer["macs"]] == WEIGHTED
    assert layers[0]["output_shape"] == [64, 28, 28]
    assert layers[0]["macs"] == 64 * 9 * 28 * 28
    by_name = {layer["name"]: layer for layer in found["network"]["layers"]}
    same = ("kernel", "stride", "groups", "receptive_field", "output_shape", "parameters", "connections", "macs")
    for layer in layers:
        if layer["name"] in by_name:
            assert {key: layer.get(key) for key in same} == {key: by_name[layer["name"]].get(key) for key in same}
    assert [by_name["conv3"][key] for key in ("kernel", "stride", "padding")] == [[3, 3], [1, 1], [1, 1, 1, 1]]


def test_inspect_knows_the_published_size_of_alexnet(run: Run) -> None:
    result = json_of(run("inspect", "--network", "alexnet", "--json"))
    assert result["parameters"] == 60_965_224  # bvlc_alexnet, groups included
    assert result["macs"] == 724_406_816
    assert result["layers"][0]["output_shape"] == [96, 55, 55]


def test_inspect_shows_kernels_and_receptive_fields_to_people(run: Run) -> None:
    shown = run("inspect", "--network", "alexnet").out
    (row,) = [line for line in shown.splitlines() if " conv2 " in line]
    cells = "|".join(cell.strip() for cell in row.strip("│ ").split("│"))
    assert cells == "conv2|Conv|FLOAT|256×27×27|5×5 p2 g2|51×51|307,456|224,135,424|223,948,800|1,976,320"
    assert "parameters 60,965,224 · connections 725,066,088 · macs 724,406,816" in shown


def test_inspect_of_a_quantized_model_shows_int8_layers(run: Run, int8: Path) -> None:
    layers = json_of(run("inspect", int8, "--json"))["layers"]
    assert [layer["name"] for layer in layers if layer["precision"] == "INT8"] == WEIGHTED


def test_inspect_of_an_engine_lists_its_kernels(run: Run, engine: Path) -> None:
    result = json_of(run("inspect", engine, "--json"))
    assert (result["kind"], result["builder"], result["profile"]) == ("engine", "tensorrt-rtx", "1:8:64")
    assert result["precisions"] == {"INT8": 8, "HALF": 0, "FLOAT": 0}
    assert result["layer_precisions"] == dict.fromkeys(WEIGHTED, "INT8")
    assert result["size_bytes"] == engine.stat().st_size
    assert sum(result["ops"].values()) == len(result["layers"]) > 0
    assert all({"name", "type", "precision"} <= layer.keys() for layer in result["layers"])


@pytest.mark.parametrize("fixture", ["checkpoint", "model", "int8", "engine"])
def test_inspect_shows_a_table(fixture: str, run: Run, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    result = run("inspect", path)
    assert (result.code, result.err) == (0, "")
    assert path.name in result.out
    assert "precision" in result.out


def test_doctor_tries_every_backend_and_finds_none_broken(run: Run) -> None:
    findings = json_of(run("doctor", "--json"))["findings"]
    status = {finding["backend"]: finding["status"] for finding in findings}
    assert list(status) == [
        "pytorch",
        "onnxruntime-cpu",
        "openvino",
        "tensorrt-rtx (build)",
        "cuda device",
        "pytorch on cuda",
        "onnxruntime-cuda",
        "onnxruntime-tensorrt",
        "tensorrt (build)",
        "tensorrt (run)",
        "tensorrt-rtx (run)",
    ]
    assert (status["pytorch"], status["onnxruntime-cpu"]) == ("ok", "ok")
    assert set(status.values()) <= {"ok", "missing"}, findings
    assert all(finding["detail"] for finding in findings)


def test_doctor_exits_4_when_a_backend_is_broken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from alexdeploy.doctor import Finding

    finding = Finding("pytorch", "broken", "RuntimeError: no kernel [for] this")
    monkeypatch.setattr("alexdeploy.doctor.examine", lambda **_: [finding])
    result = run("doctor")
    assert result.code == 4
    assert "no kernel [for] this" in result.out


def test_a_reader_that_goes_away_is_no_trouble() -> None:
    command = [sys.executable, "-m", "alexdeploy", "inspect", "--network", "vgg16", "--json"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.close()
    assert writer.stderr is not None
    assert writer.stderr.read() == b""
    assert writer.wait() == 0
