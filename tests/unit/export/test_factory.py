"""Networks that the user's own code makes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alexdeploy.errors import InputError, UnavailableError, UsageError
from alexdeploy.export.factory import build_module

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.layer = nn.Linear(6, num_classes, dtype=torch.float64)

class Holder:
    ready = Net(5)

def fails():
    raise ValueError("the file\\nis gone")

def stops():
    raise SystemExit(3)

def options(**given):
    return Net(**given)

def number():
    return 3

constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, in which modules of a user's own lie."""
    (tmp_path / "own_net.py").write_text(SOURCE)
    (tmp_path / "own_needs.py").write_text("import not_on_this_machine")
    (tmp_path / "own_typo.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("own_net", "own_needs", "own_typo"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("reference", "classes", "outputs"),
    [("own_net:Net", None, 4), ("own_net:Net", 9, 9), ("own_net:options", 9, 9), ("own_net:Holder.ready", None, 5)],
)
@pytest.mark.usefixtures("module")
def test_a_factory_gives_a_network_in_float32_and_evaluation_mode(
    reference: str, classes: int | None, outputs: int
) -> None:
    before = list(sys.path)
    made = build_module(reference, classes=classes)
    assert made.state_dict()["layer.weight"].shape == (outputs, 6)
    assert (made.state_dict()["layer.weight"].dtype, made.training) == (torch.float32, False)
    assert sys.path == before


def test_weights_are_loaded_as_into_networks_of_the_zoo(module: Path) -> None:
    weights = {"layer.weight": torch.rand(4, 6), "layer.bias": torch.rand(4)}
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in weights.items()}}, module / "last.ckpt")
    made = build_module("own_net:Net", module / "last.ckpt")
    assert torch.equal(made.state_dict()["layer.weight"], weights["layer.weight"])
    with pytest.raises(InputError, match=r"into own_net:Net: layer.weight has shape \(4, 6\), expected \(5, 6\)"):
        build_module("own_net:Net", module / "last.ckpt", classes=5)


@pytest.mark.usefixtures("module")
def test_fresh_weights_come_from_the_seed() -> None:
    first, same, other = (build_module("own_net:Net", seed=seed).state_dict()["layer.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("reference", "error", "complaint"),
    [
        ("own_nte:Net", InputError, "no module 'own_nte' in "),
        ("own_net.layers:Net", InputError, "own_net.layers"),
        ("own_net:Nte", InputError, "own_net: unknown function or class 'Nte'; did you mean 'Net'"),
        ("own_net:fails", InputError, "own_net:fails failed: ValueError: the file is gone"),
        ("own_net:stops", InputError, "own_net:stops failed: SystemExit: 3"),
        ("own_net:number", InputError, "own_net:number returns 3; expected a torch.nn.Module"),
        ("own_net:constant", InputError, "own_net:constant is 3; expected a function or class"),
        ("own_needs:Net", UnavailableError, "own_needs needs 'not_on_this_machine', which is not installed"),
        ("own_typo:f", InputError, "importing own_typo failed: SyntaxError"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_goes_wrong_in_the_user_s_code_is_one_line(reference: str, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error) as raised:
        build_module(reference)
    assert complaint in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.usefixtures("module")
def test_a_number_of_classes_for_a_factory_that_takes_none_is_refused() -> None:
    with pytest.raises(UsageError, match="own_net:number has no parameter num_classes or classes"):
        build_module("own_net:number", classes=5)
