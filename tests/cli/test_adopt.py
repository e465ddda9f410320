"""``alexdeploy export FOREIGN.onnx``: a model that others exported, with a contract given to it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from alexdeploy.graph.model import contract_of, load_onnx
from alexdeploy.recipe import load_recipe
from alexdeploy.zoo.registry import build_network
from tests.cli.conftest import Run


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
    assert answer.keys() == {"model", "ops", "fused_lrn", "parity"}
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
        ("", 2, "an .onnx file needs --contract"),
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
