"""``alexdeploy export FOREIGN.onnx``: a model that others exported, with a contract given to it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from alexdeploy.graph.model import contract_of, load_onnx
from alexdeploy.recipe import load_recipe
from alexdeploy.zoo.registry import build_network
from tests.cli.conftest import Run
from tests.helpers.foreign_graphs import caffe, further_inputs, several_outputs


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``alexnet-mnist``, exported by PyTorch alone."""
    path = tmp_path_factory.mktemp("foreign") / "foreign.onnx"
    torch.manual_seed(0)
    module = build_network(load_recipe("alexnet-mnist").network, 10).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(2, 1, 28, 28),)
        torch.onnx.export(module, example, str(path), dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    return path


def test_a_foreign_model_is_adopted_and_used(run: Run, foreign: Path, pictures: Path, out: Path) -> None:
    model = out / "model.onnx"
    refused = run("calibrate", foreign, "--data", "digits", "-o", out / "x.json")
    assert refused.code == 3
    assert "adopt the file with the --contract of its network (alexdeploy adopt)" in refused.err
    done = run("export", foreign, "--contract", "alexnet-mnist", "--data", "digits", "-o", model, "--json")
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert answer.keys() == {"model", "ops", "fused_lrn", "interface", "parity"}
    assert len(answer["fused_lrn"]) == answer["ops"]["LRN"] == 2
    assert answer["parity"]["random_inputs"] <= answer["parity"]["tolerance"] == 1e-5
    assert contract_of(load_onnx(model), "model").labels == tuple("0123456789")
    assert run("calibrate", model, "--data", "digits", "--samples", 8, "-o", out / "ranges.json").code == 0
    assert run("predict", model, pictures).code == 0


def test_without_a_data_set_there_are_no_labels(run: Run, foreign: Path, out: Path) -> None:
    done = run("export", foreign, "--contract", "alexnet-mnist", "-o", out / "model.onnx")
    assert done.code == 0, done.err
    assert "2 LRN" in done.out
    assert "LRN put back: " in done.out
    assert "parity with foreign.onnx" in done.out
    assert contract_of(load_onnx(out / "model.onnx"), "model").labels == ()


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        ("", 2, "a foreign .onnx file needs --contract"),
        ("--contract alexnet-mnits", 2, "did you mean 'alexnet-mnist'?"),
        ("--contract alexnet-mnist --network alexnet", 2, "are for PyTorch weights"),
        ("--contract alexnet-mnist --classes 10", 2, "are for PyTorch weights"),
        ("--contract {out}/absent.toml", 3, "absent.toml: no such recipe file"),
        ("--contract alexnet", 3, "expects (batch, 3, 227, 227)"),
        ("--contract alexnet-mnist --data {data}/two-classes", 3, "has 10 outputs but 2 labels"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    options: str, code: int, complaint: str, run: Run, foreign: Path, data: Path, out: Path
) -> None:
    refused = run("export", foreign, *options.format(out=out, data=data).split(), "-o", out / "model.onnx")
    assert refused.code == code
    assert complaint in refused.err
    assert len(refused.err.splitlines()) == 1
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "complaint"), [(["{checkpoint}"], "leave --contract out"), ([], "name a CHECKPOINT")]
)
def test_a_contract_is_refused_for_what_has_its_own(
    source: list[str], complaint: str, run: Run, checkpoint: Path, out: Path
) -> None:
    arguments = [part.format(checkpoint=checkpoint) for part in source]
    refused = run("export", *arguments, "--contract", "alexnet", "-o", out / "model.onnx")
    assert refused.code == 2
    assert complaint in refused.err
    assert list(out.iterdir()) == []


def test_a_broken_file_is_named(run: Run, out: Path) -> None:
    (out / "garbage.onnx").write_bytes(b"\x00\xff not ONNX")
    refused = run("export", out / "garbage.onnx", "--contract", "alexnet", "-o", out / "model.onnx")
    assert refused.code == 3
    assert "not an ONNX file" in refused.err
    assert not (out / "model.onnx").exists()


CONTRACT = '[preprocess]\ncolor = "rgb"\ncrop = 8\nresize = 8\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n'


def test_what_a_graph_leaves_open_is_named_on_the_command_line(run: Run, out: Path) -> None:
    (out / "mine.toml").write_text(CONTRACT)
    onnx.save(further_inputs().model, out / "inputs.onnx")
    onnx.save(several_outputs().model, out / "outputs.onnx")
    np.save(out / "t.npy", np.full((1, 4), 2.5, np.float32))
    contract, model = ("--contract", out / "mine.toml"), out / "model.onnx"
    for value in ("2.5", str(out / "t.npy")):
        chosen = ("--constant", "training=false", "--constant", f"temperature={value}")
        done = run("adopt", out / "inputs.onnx", *contract, *chosen, "-o", model, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["interface"]["constants"] == ["training", "temperature"]
    done = run("export", out / "outputs.onnx", *contract, "--logits", "scores", "-o", model)
    assert "logits: scores; outputs taken out: r2, winner, strongest; parity with outputs.onnx" in done.out
    onnx.save(caffe().model, out / "softmax.onnx")
    done = run("adopt", out / "softmax.onnx", *contract, "-o", model)
    assert "Softmax taken out at the end, since predict applies it; parity" in done.out


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        ("", 2, "no value for input training (bool, shape ()), temperature"),
        ("--constant training=maybe", 2, "--constant training=maybe: expected a number, true, false or a .npy file"),
        ("--constant training", 2, "--constant training: expected INPUT=VALUE"),
        ("--constant training=0 --constant training=1", 2, "expected INPUT=VALUE, each input once"),
        ("--constant training={out}/no.npy", 3, "no.npy: no such file"),
        ("--constant training={out}/mine.toml.npy", 3, "not an array that NumPy wrote"),
        ("--logits prob", 2, "unknown output 'prob'; valid: scores"),
    ],
)
def test_a_wrong_constant_is_one_line(options: str, code: int, complaint: str, run: Run, out: Path) -> None:
    for name in ("mine.toml", "mine.toml.npy"):
        (out / name).write_text(CONTRACT)
    onnx.save(further_inputs().model, out / "inputs.onnx")
    arguments = options.format(out=out).split()
    refused = run("adopt", out / "inputs.onnx", "--contract", out / "mine.toml", *arguments, "-o", out / "model.onnx")
    assert (refused.code, len(refused.err.splitlines())) == (code, 1)
    assert complaint in refused.err
    assert not (out / "model.onnx").exists()


def test_the_settings_of_a_foreign_graph_are_refused_elsewhere(run: Run, checkpoint: Path, out: Path) -> None:
    refused = run("export", checkpoint, "--logits", "scores", "-o", out / "model.onnx")
    assert (refused.code, "are for a foreign .onnx file" in refused.err) == (2, True)
