"""Checkpoints: safetensors weights with recipe, contract, labels and metrics in the file's own metadata."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import safetensors.torch
import torch

from alexdeploy import files
from alexdeploy.contract import Contract
from alexdeploy.errors import InputError, InputWarning, UsageError
from alexdeploy.recipe import Recipe, load_recipe
from alexdeploy.zoo.convnet import ConvNet
from alexdeploy.zoo.fake_quantize import layer_ranges, quantize_layers
from alexdeploy.zoo.registry import NETWORKS_WITH_LRN, build_network, check_images_fit
from alexdeploy.zoo.weight_files import WeightFile, read_weight_file
from alexdeploy.zoo.weights import check_finite, has_names, head_of, load_weights, named_for, suggestion

_Decoded = TypeVar("_Decoded")
_RECIPE, _CONTRACT, _METRICS = "alexdeploy.recipe", "alexdeploy.contract", "alexdeploy.metrics"
_RANGES = "alexdeploy.ranges"


@dataclass(frozen=True)
class Checkpoint:
    """A network in evaluation mode with everything needed to use it.

    ``classes`` is the width of its last layer; ``contract.labels`` may be empty for weights of foreign origin.
    A network that was tuned for INT8 rounds (``zoo.fake_quantize``), and its file holds the ranges.
    """

    model: ConvNet
    recipe: Recipe
    contract: Contract
    classes: int
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def is_tuned(self) -> bool:
        """Whether the network was tuned for INT8."""
        return bool(layer_ranges(self.model))


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
    ranges = layer_ranges(checkpoint.model)
    if ranges:
        metadata[_RANGES] = msgspec.json.encode(ranges).decode()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.state_dict().items()}
    files.write_artifact(
        path,
        safetensors.torch.save(weights, metadata),
        "checkpoint",
        parents=parents,
        options={"recipe": msgspec.to_builtins(checkpoint.recipe), "images": dict(images or {})},
        libraries=files.library_versions("torch", "pillow"),
        details={"metrics": checkpoint.metrics, "contract": checkpoint.contract.fingerprint},
    )


def load_checkpoint(path: Path, network: str | None = None, contract: Contract | None = None) -> Checkpoint:
    """Read a checkpoint of ours, or the bare weights of a network named by ``network``.

    Bare weights (see ``alexdeploy.zoo.weight_files``) take ``contract``, by default the network's; labels come from a
    ``classes`` entry (comma separated) in the metadata of a safetensors file when there is one.

    Raises:
        InputError: not a file of weights, or weights that do not fit the network (named layer by layer).
        UsageError: a bare state dict without ``network``, or ``network`` or ``contract`` for a file that has its own.
    """
    file = read_weight_file(path)
    metadata = file.metadata
    ranges: dict[str, float] = {}
    if _RECIPE in metadata and _CONTRACT in metadata:
        recipe = _decode(metadata[_RECIPE], Recipe, f"{path}: the recipe")
        if network not in (None, recipe.network.name):
            raise UsageError(f"{path} holds '{recipe.network.name}', not '{network}'; leave `network` out")
        if contract is not None:
            raise UsageError(f"{path} carries the preprocessing that it was trained with; leave `contract` out")
        contract = Contract.from_json(metadata[_CONTRACT], str(path))
        metrics = _decode(metadata.get(_METRICS, "{}"), dict[str, float], f"{path}: the metrics")
        ranges = _decode(metadata.get(_RANGES, "{}"), dict[str, float], f"{path}: the ranges")
    elif network is None:
        raise UsageError(
            f"{path}: a bare state dict does not say which network it is; name it with `network` when exporting, or "
            "export MODULE:FACTORY with these `weights` where the network is your own"
            f"{suggestion(file.tensors)}"
        )
    else:
        recipe = _recipe_for(load_recipe(network), contract, file, path)
        labels = tuple(name for name in metadata.get("classes", "").split(",") if name)
        contract = msgspec.structs.replace(recipe.preprocess, labels=labels or recipe.preprocess.labels)
        metrics = {}
    model = _loaded(recipe, file, path)
    if not (_RECIPE in metadata and _CONTRACT in metadata):
        check_images_fit(model, contract, recipe.network.name)
    if ranges:
        quantize_layers(model, ranges)
    classes = int(model.state_dict()[f"{head_of(model)}.weight"].shape[0])
    if contract.labels and len(contract.labels) != classes:
        raise InputError(f"{path}: names {len(contract.labels)} labels but has {classes} outputs")
    return Checkpoint(model.eval(), recipe, contract, classes, metrics)


def stored_recipe(path: Path) -> Recipe:
    """The recipe that a checkpoint of ours was trained with.

    Raises:
        InputError: not a file of weights.
        UsageError: bare weights, which have none, or weights tuned for INT8, which are no start for a training.
    """
    file = read_weight_file(path)
    if _RECIPE not in file.metadata:
        raise UsageError(
            f"{path}: a bare state dict has no recipe; name the network, and the file with `weights`"
            f"{suggestion(file.tensors)}"
        )
    if _RANGES in file.metadata:
        raise UsageError(f"{path}: was tuned for INT8; name the checkpoint that it was made from")
    return _decode(file.metadata[_RECIPE], Recipe, f"{path}: the recipe")


def _recipe_for(recipe: Recipe, contract: Contract | None, file: WeightFile, path: Path) -> Recipe:
    """The recipe with the preprocessing that was named, and without LRN where the layers are numbered without it."""
    if contract is not None:
        recipe = msgspec.structs.replace(recipe, preprocess=contract)
    settings = recipe.network
    if settings.name not in NETWORKS_WITH_LRN or settings.lrn is False:
        return recipe
    plain = msgspec.structs.replace(recipe, network=msgspec.structs.replace(settings, lrn=False))
    if not has_names(file, _shape_of(plain)):
        return recipe
    warnings.warn(
        f"{path}: its layers are numbered as those of '{settings.name}' without LRN, so it is loaded without (lrn = "
        "false in a recipe)",
        InputWarning,
        stacklevel=3,
    )
    return plain


def _shape_of(recipe: Recipe, classes: int = 2) -> ConvNet:
    """The network without values."""
    with torch.device("meta"):
        return build_network(recipe.network, classes)


def _loaded(recipe: Recipe, file: WeightFile, path: Path) -> ConvNet:
    """The network, as wide at its end as the weights are."""
    empty = _shape_of(recipe)
    weights = named_for(file, empty, str(path))
    check_finite(weights, f"{path} into '{recipe.network.name}'")
    head = weights.get(f"{head_of(empty)}.weight")
    shape = _shape_of(recipe, int(head.shape[0]) if head is not None and head.ndim else 2)
    model = shape.to_empty(device="cpu")  # fresh weights would take from the application's random numbers
    load_weights(model, weights, f"{path} into '{recipe.network.name}'")
    return model


def _decode(text: str, kind: type[_Decoded], what: str) -> _Decoded:
    try:
        return msgspec.json.decode(text, type=kind)
    except files.UNDECODABLE as error:
        raise InputError(f"{what} in its metadata cannot be read: {error}") from error


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
