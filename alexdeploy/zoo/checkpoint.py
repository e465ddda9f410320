"""Checkpoints: safetensors weights with recipe, contract, labels and metrics in the file's own metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from alexdeploy import artifacts
from alexdeploy.contract import Contract
from alexdeploy.errors import InputError, UsageError
from alexdeploy.recipe import Recipe, load_recipe
from alexdeploy.zoo.registry import build_network

_Decoded = TypeVar("_Decoded")
_RECIPE, _CONTRACT, _METRICS = "alexdeploy.recipe", "alexdeploy.contract", "alexdeploy.metrics"


@dataclass(frozen=True)
class Checkpoint:
    """A network in evaluation mode with everything needed to use it.

    ``classes`` is the width of its last layer; ``contract.labels`` may be empty for weights of foreign origin.
    """

    model: nn.Module
    recipe: Recipe
    contract: Contract
    classes: int
    metrics: dict[str, float] = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint, parents: tuple[artifacts.Parent, ...] = ()) -> None:
    """Write weights, metadata and sidecar atomically."""
    metadata = {
        _RECIPE: msgspec.json.encode(checkpoint.recipe).decode(),
        _CONTRACT: checkpoint.contract.to_json(),
        _METRICS: msgspec.json.encode(checkpoint.metrics).decode(),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.state_dict().items()}
    artifacts.write_bytes(path, safetensors.torch.save(weights, metadata))
    artifacts.write_sidecar(
        path,
        "checkpoint",
        parents=parents,
        options={"recipe": msgspec.to_builtins(checkpoint.recipe)},
        libraries=artifacts.library_versions("torch"),
        details={"metrics": checkpoint.metrics, "contract": checkpoint.contract.fingerprint},
    )


def load_checkpoint(path: Path, network: str | None = None) -> Checkpoint:
    """Read a checkpoint of ours, or the bare state dict of a network named by ``network``.

    A bare state dict takes the network's default contract; labels come from a ``classes`` entry (comma separated) in
    its metadata when there is one. Half-precision weights become float32.

    Raises:
        InputError: not safetensors, or weights that do not fit the network (named layer by layer).
        UsageError: a bare state dict without ``network``, or ``network`` contradicts the checkpoint.
    """
    weights, metadata = _read(path)
    if _RECIPE in metadata and _CONTRACT in metadata:
        recipe = _decode(metadata[_RECIPE], Recipe, f"{path}: the recipe")
        contract = Contract.from_json(metadata[_CONTRACT], str(path))
        metrics = _decode(metadata.get(_METRICS, "{}"), dict[str, float], f"{path}: the metrics")
        if network not in (None, recipe.network.name):
            raise UsageError(f"{path} holds '{recipe.network.name}', not '{network}'; leave --network out")
    elif network is None:
        raise UsageError(
            f"{path}: a bare state dict does not say which network it is; alexdeploy export takes it with --network"
        )
    else:
        recipe = load_recipe(network)
        labels = tuple(name for name in metadata.get("classes", "").split(",") if name)
        contract = msgspec.structs.replace(recipe.preprocess, labels=labels)
        metrics = {}
    classes = _classes(weights, path)
    if contract.labels and len(contract.labels) != classes:
        raise InputError(f"{path}: names {len(contract.labels)} labels but has {classes} outputs")
    model = build_network(recipe.network, classes)
    _load_weights(model, weights, f"{path} into '{recipe.network.name}'")
    return Checkpoint(model.eval(), recipe, contract, classes, metrics)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    artifacts.check_input(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file: {error}") from error
    return {name: w.float() if w.is_floating_point() else w for name, w in weights.items()}, metadata


def _decode(text: str, kind: type[_Decoded], what: str) -> _Decoded:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"{what} in its metadata cannot be read: {error}") from error


def _classes(weights: dict[str, Tensor], path: Path) -> int:
    """Rows of the last matrix in the state dict."""
    matrices = [tensor for name, tensor in sorted(weights.items(), key=_natural) if tensor.ndim == 2]
    if not matrices:
        raise InputError(f"{path}: holds no fully connected layer; expected the state dict of a classifier")
    return int(matrices[-1].shape[0])


def _natural(item: tuple[str, Tensor]) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in item[0].split(".")]


def _load_weights(model: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not part of the network" for name in weights.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected.keys() & weights.keys()
        if weights[name].shape != expected[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:4])
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise InputError(f"cannot load {what}: {shown}{more}")
    model.load_state_dict(weights)


def untrained(network: str, classes: int, seed: int) -> Checkpoint:
    """Fresh weights from ``seed`` with the default contract, for latency work.

    Raises:
        UsageError: unknown network, or fewer than two classes.
    """
    recipe = load_recipe(network)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_network(recipe.network, classes)
    return Checkpoint(model.eval(), recipe, recipe.preprocess, classes)
