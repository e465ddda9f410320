"""The state of a run, taken over by the run that goes on, or refused in a line before a step is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alexdeploy.errors import InputError, UsageError
from alexdeploy.train.state import State, load_state, save_state

IDENTITY: dict[str, Any] = {"network": "lenet", "rotate": 0.0}


def run(inputs: int = 3) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(inputs)
    model = torch.nn.Linear(inputs, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, inputs)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_a_run_takes_over_what_another_left(tmp_path: Path) -> None:
    model, optimizer = run()
    save_state(tmp_path / "last.pt", State(step=7), IDENTITY, model.state_dict(), optimizer.state_dict())
    other, later = run()
    torch.nn.init.zeros_(other.get_parameter("weight"))
    assert load_state(tmp_path / "last.pt", IDENTITY, other, later).step == 7
    assert torch.equal(other.get_parameter("weight"), model.get_parameter("weight"))


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_what_is_of_another_network_is_no_traceback(part: str, tmp_path: Path) -> None:
    model, optimizer = run()
    wide = run(5)
    kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    kept[part] = {"model": wide[0].state_dict(), "optimizer": wide[1].state_dict()}[part]
    save_state(tmp_path / "last.pt", State(), IDENTITY, kept["model"], kept["optimizer"])
    with pytest.raises(InputError, match=r"last\.pt: not the state of a training run .*; name another"):
        load_state(tmp_path / "last.pt", IDENTITY, model, optimizer)


def test_a_run_with_other_settings_is_named_and_so_are_its_best_weights_if_there_are_any(tmp_path: Path) -> None:
    model, optimizer = run()
    save_state(tmp_path / "net.last.pt", State(), IDENTITY, model.state_dict(), optimizer.state_dict())
    for end in ("another folder for a new run$", rf"run; the best weights of this one stay in {tmp_path}/net\.safet"):
        with pytest.raises(UsageError, match=f"network was lenet, now vgg16.*{end}") as refused:
            load_state(tmp_path / "net.last.pt", {**IDENTITY, "network": "vgg16"}, model, optimizer)
        assert "`" not in str(refused.value), "neither `train` nor `run` takes all that the other does"
        (tmp_path / "net.safetensors").touch()
