"""Targets that are weights: safetensors, PyTorch's files, TensorFlow's texts' ``.npy``, and the state of a training."""

from __future__ import annotations

import io
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from alexdeploy.contract import Contract
from alexdeploy.recipe import load_recipe
from alexdeploy.train.state import State, load_state, save_state
from alexdeploy.zoo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, stored_recipe, untrained
from alexdeploy.zoo.convnet import ConvNet, layer_paths
from alexdeploy.zoo.weights import start_from
from tests.fuzz.mutate import any_bytes, json_value, pickle_part, within_safetensors, within_zip
from tests.fuzz.target import Target
from tests.helpers.slim import slim

_CONTRACT = Contract(color="gray", resize=(28, 28), mean=(0.5,), std=(0.5,))
_IDENTITY = {"recipe": "lenet", "rotate": 0.0, "images": {"train": "0" * 64}}


@cache
def _tiny() -> ConvNet:
    return slim("lenet", 10, divisor=6)


def _saved(content: Any, **options: Any) -> bytes:
    torch.save(content, file := io.BytesIO(), **options)
    return file.getvalue()


def _checkpoints() -> Sequence[bytes]:
    fresh = untrained("lenet", 3, seed=0)
    contract = Contract(color="gray", resize=(28, 28), mean=(0.5,), std=(0.5,), labels=("a", "b", "玫瑰"))
    checkpoint = Checkpoint(fresh.model, load_recipe("lenet"), contract, 3, {"top1": 0.5})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.safetensors")
        save_checkpoint(path, checkpoint)
        return [path.read_bytes()]


def _bare_safetensors() -> Sequence[bytes]:
    return [
        safetensors.torch.save(dict(_tiny().state_dict()), {"classes": "a,b"}),
        safetensors.torch.save({"x": torch.zeros(2, 3)}),
    ]


def _contents() -> list[Any]:
    small = OrderedDict(_tiny().state_dict())
    lightning = {"state_dict": {f"model.{name}": tensor for name, tensor in small.items()}, "epoch": 3, "lr": [0.1]}
    return [small, lightning, {"model": small, "ema": small, "optimizer": {"state": {}}}, {"w": torch.zeros(2).half()}]


def _zips() -> Sequence[bytes]:
    return [_saved(content) for content in _contents()]


def _named_zips() -> Sequence[bytes]:
    return [_saved(untrained("lenet", 3, seed=0).model.state_dict()), *_zips()[:1]]


def _pickles() -> Sequence[bytes]:
    return [_saved(content, _use_new_zipfile_serialization=False) for content in _contents()]


def _layer_files() -> Sequence[bytes]:
    state, layers = _tiny().state_dict(), {}
    for name, path in layer_paths(_tiny()).items():
        weight, bias = (state[f"{path}.{part}"].numpy() for part in ("weight", "bias"))
        layers[name] = [weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T, bias]
    np.save(file := io.BytesIO(), np.array(layers, dtype=object), allow_pickle=True)
    return [file.getvalue()]


def _check_checkpoint(path: Path) -> None:
    load_checkpoint(path)
    stored_recipe(path)


def _check_bare(path: Path) -> None:
    start_from(_tiny(), path, "lenet")


def _check_named(path: Path) -> None:
    load_checkpoint(path, "lenet")


def _network() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def _states() -> Sequence[bytes]:
    model, optimizer = _network()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.last.pt")
        save_state(path, State(step=3), _IDENTITY, model.state_dict(), optimizer.state_dict())
        return [path.read_bytes()]


def _check_state(path: Path) -> None:
    model, optimizer = _network()
    load_state(path, _IDENTITY, model, optimizer)


_IN_ZIP = within_zip(pickle_part), within_zip(any_bytes)
_IN_HEADER = within_safetensors(json_value), within_safetensors(any_bytes)
TARGETS = (
    Target("checkpoint", _checkpoints, _check_checkpoint, "net.safetensors", _IN_HEADER),
    Target("safetensors", _bare_safetensors, _check_bare, "net.safetensors", _IN_HEADER),
    Target("pth_zip", _zips, _check_bare, "net.pth", _IN_ZIP),
    Target("pth_pickle", _pickles, _check_bare, "net.pt", (pickle_part,)),
    Target("pth_named", _named_zips, _check_named, "net.pth", _IN_ZIP),
    Target("layers_npy", _layer_files, _check_bare, "net.npy", (pickle_part,)),
    Target("train_state", _states, _check_state, "net.last.pt", _IN_ZIP),
)
