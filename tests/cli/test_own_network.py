"""``export`` of a network that the user's own code makes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alexdeploy import files
from tests.cli.conftest import Run

OWN_NETWORK = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes=10, p=0.0):
        super().__init__(nn.Flatten(), nn.Linear(784, classes))
        self.p = p

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), self.p)

class Pair(Net):
    def forward(self, x):
        return super().forward(x), x

def random():
    return Net(p=0.5)
"""


@pytest.fixture
def own(out: Path) -> Iterator[Path]:
    """A folder with ``own_network.py``, and ``own.toml``, its preprocessing."""
    (out / "own_network.py").write_text(OWN_NETWORK)
    (out / "own.toml").write_text('[preprocess]\ncolor = "gray"\ncrop = 28\nmean = [0.25]\nstd = [0.5]\n')
    yield out
    sys.modules.pop("own_network", None)


def test_a_network_of_the_user_s_own_becomes_a_model_with_its_contract_and_labels(
    run: Run, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from alexdeploy.graph.model import contract_of, load_onnx

    monkeypatch.chdir(own)
    torch.save({"net": {"module.1.weight": torch.rand(3, 784), "module.1.bias": torch.rand(3)}}, "last.ckpt")
    Path("names.json").write_text('{"0": "ant", "1": "bee", "2": "cow"}')
    line = ["export", "own_network:Net", "--contract", "own.toml", "-o", "own.onnx"]
    done = run(*line, "--weights", "last.ckpt", "--classes", 3, "--labels", "names.json", "--json")
    assert json.loads(done.out)["ops"] == {"Flatten": 1, "Gemm": 1}
    assert done.err == "this runs the code of own_network:Net\n"
    contract = contract_of(load_onnx(Path("own.onnx")), "own")
    assert (contract.mean, contract.labels) == ((0.25,), ("ant", "bee", "cow"))
    assert [parent.name for parent in files.read_sidecar(Path("own.onnx"), "onnx").parents] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("line", "code", "complaint"),
    [
        ("own_network:random --contract own.toml", 3, "(dropout without training=self.training?)"),
        ("own_network:Pair --contract own.toml", 3, "returns a tuple for 2 images"),
        ("own_network:Net --contract alexnet-half", 3, "fails on float32 (2, 3, 224, 224), the contract's input"),
        ("own_network:Net", 2, "own_network:Net needs --contract"),
        ("own_network:Net --contract own.toml --network lenet", 2, "--network is for the built-in networks"),
        ("own_network:Net --contract own.toml --fully-convolutional", 2, "is for the built-in networks"),
        ("own_network:Net --contract own.toml --labels two.json", 3, "2 class names for 10 outputs"),
        ("--network lenet --classes 10 --weights two.json", 2, "--weights is for a network of your own"),
    ],
)
def test_a_network_of_the_user_s_own_that_cannot_be_exported_is_refused(
    line: str, code: int, complaint: str, run: Run, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own)
    Path("two.json").write_text('{"0": "ant", "1": "bee"}')
    refused = run("export", *line.split(), "-o", "x.onnx")
    assert refused.code == code
    assert complaint in refused.err.splitlines()[-1]
    assert not Path("x.onnx").exists()
