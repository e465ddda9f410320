"""Checkpoints: safetensors weights with recipe, contract, labels and metrics in the file's own metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import safetensors.torch
import torch
from torch import Tensor

from alexdeploy import files
from alexdeploy.contract import Contract
from alexdeploy.errors import InputError, UsageError
from alexdeploy.recipe import Recipe, load_recipe
from alexdeploy.zoo.convnet import ConvNet
from alexdeploy.zoo.registry import build_network
from alexdeploy.zoo.weights import load_weights, read_metadata, read_weights

_Decoded = TypeVar("_Decoded")
_RECIPE, _CONTRACT, _METRICS = "alexdeploy.recipe", "alexdeploy.contract", "alexdeploy.metrics"


@dataclass(frozen=True)
class Checkpoint:
    """A network in evaluation mode with everything needed to use it.

    ``classes`` is the width of its last layer; ``contract.labels`` may be empty for weights of foreign origin.
    """

    model: ConvNet
    recipe: Recipe
    contract: Contract
    classes: int
    metrics: dict[str, float] = field(default_factory=dict)


def save_checkpoint(
    path: Path,
    checkpoint: Checkpoint,
    parents: tuple[files.Parent, ...] = (),
    *,
    images: Mapping[str, str] | None = None,
) -> None:
    """Write weights, metadata and sidecar atomically; ``images`` are the fingerprints of the splits trained on."""
    metadata = {
        _RECIPE: msgspec.json.encode(checkpoint.recipe).decode(),
        _CONTRACT: checkpoint.contract.to_json(),
        _METRICS: msgspec.json.encode(checkpoint.metrics).decode(),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.state_dict().items()}
    files.write_artifact(
        path,
        safetensors.torch.save(weights, metadata),
        "checkpoint",
        parents=parents,
        options={"recipe": msgspec.to_builtins(checkpoint.recipe), "images": dict(images or {})},
        libraries=files.library_versions("torch"),
        details={"metrics": checkpoint.metrics, "contract": checkpoint.contract.fingerprint},
    )


def load_checkpoint(path: Path, network: str | None = None) -> Checkpoint:
    """Read a checkpoint of ours, or the bare weights of a network named by ``network``.

    Bare weights (see ``alexdeploy.zoo.weights``) take the network's default contract; labels come from a ``classes``
    entry (comma separated) in the metadata of a safetensors file when there is one. Half precision becomes float32.

    Raises:
        InputError: not a file of weights, or weights that do not fit the network (named layer by layer).
        UsageError: a bare state dict without ``network``, or ``network`` contradicts the checkpoint.
    """
    metadata = read_metadata(path)
    if _RECIPE in metadata and _CONTRACT in metadata:
        recipe = _decode(metadata[_RECIPE], Recipe, f"{path}: the recipe")
        contract = Contract.from_json(metadata[_CONTRACT], str(path))
        metrics = _decode(metadata.get(_METRICS, "{}"), dict[str, float], f"{path}: the metrics")
        if network not in (None, recipe.network.name):
            raise UsageError(f"{path} holds '{recipe.network.name}', not '{network}'; leave `network` out")
    elif network is None:
        raise UsageError(
            f"{path}: a bare state dict does not say which network it is; name it with `network` when exporting"
        )
    else:
        recipe = load_recipe(network)
        labels = tuple(name for name in metadata.get("classes", "").split(",") if name)
        contract = msgspec.structs.replace(recipe.preprocess, labels=labels)
        metrics = {}
    with torch.device("meta"):
        names = build_network(recipe.network, 2)
    weights = read_weights(path, names)
    classes = _classes(weights, path)
    if contract.labels and len(contract.labels) != classes:
        raise InputError(f"{path}: names {len(contract.labels)} labels but has {classes} outputs")
    model = build_network(recipe.network, classes)
    load_weights(model, weights, f"{path} into '{recipe.network.name}'")
    return Checkpoint(model.eval(), recipe, contract, classes, metrics)


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
