"""Weights that others trained, under the names of the network that they are for."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alexdeploy.errors import InputError, InputWarning, few
from alexdeploy.recipe import NetworkSettings
from alexdeploy.zoo.convnet import ConvNet, layer_paths
from alexdeploy.zoo.registry import NETWORKS, build_network
from alexdeploy.zoo.weight_files import WeightFile, read_weight_file

_WRAPPERS = ("module", "_orig_mod")  # of DataParallel and torch.compile, around the network or a part of it
_NEAR = 0.5  # share of the weights' shapes: of vgg16's, resnet18 has 0.38 and vgg11 0.62
_COUNTER = "num_batches_tracked"  # of batch normalisation: inference does not need it, and old files lack it


def named_for(file: WeightFile, model: nn.Module, origin: str) -> dict[str, Tensor]:
    """The weights of a file under the names of ``model``, as far as they are for it. ``load_weights`` checks shapes.

    Names may have parts in front that all of them share (``model.``), and ``module.`` and ``_orig_mod.`` anywhere.
    Where they are others altogether, the tensors of an ordered file are taken in order, if every shape fits and no two
    layers could be mistaken for each other; an ``InputWarning`` that begins with ``origin`` says so.
    """
    if file.layers:
        return _from_caffe(file.layers, model)
    expected = model.state_dict()
    names = _by_name(file.tensors, expected)
    beside = _beside(file.tensors, names, expected)
    if beside:
        warnings.warn(f"{origin}: left out what is beside the network: {few(beside)}", InputWarning, stacklevel=2)
        file = replace(file, tensors={name: file.tensors[name] for name in names})
    if file.ordered and not names.keys() >= file.tensors.keys():
        in_order = _by_order(file.tensors, expected, head_of(model))
        if in_order and names.items() <= in_order.items():
            layers = {_owner(old): _owner(new) for old, new in in_order.items()}
            warnings.warn(
                f"{origin}: its names differ; loaded by order and shape: "
                f"{few(f'{old} → {new}' for old, new in layers.items())}. A state dict does not say what is between "
                "the layers (ReLU, pooling, LRN): compare some answers with the original's",
                InputWarning,
                stacklevel=2,
            )
            names = in_order
    weights = {names.get(name, name): tensor for name, tensor in file.tensors.items()}
    counters = {name: torch.tensor(0) for name in expected if name.endswith(_COUNTER)}
    return {**counters, **weights}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict that must fit.

    Raises:
        InputError: it does not; ``what``, the layers at fault and the networks that it does fit are in the message.
    """
    expected = model.state_dict()
    problems = [_problem(name, weights.get(name), tensor) for name, tensor in expected.items()]
    faults = [few(found, separator="; ")] if (found := [problem for problem in problems if problem]) else []
    foreign = [name for name in weights if name not in expected]
    if foreign:
        faults.append(f"not part of the network: {few(foreign)}")
    if faults:
        named = not _has_shapes(expected, _shapes(weights))
        own = not isinstance(model, ConvNet)
        hint = (
            suggestion(weights, expected, own=own)
            if named
            else "; the names alone differ, shapes fit"
            if foreign
            else ""
        )
        hint = _layout_hint(expected, weights) or hint
        raise InputError(f"cannot load {what}: {'; '.join(faults)}{hint}")
    model.load_state_dict(weights)


def _layout_hint(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Where every wrong shape is that of TensorFlow's layout: kernels (h, w, in, out), matrices (in, out)."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}
    wrong = [name for name, tensor in expected.items() if name in weights and weights[name].shape != tensor.shape]
    turned = {name: weights[name].permute(axes[weights[name].ndim]) for name in wrong if weights[name].ndim in axes}
    fits = all(tensor.shape[1:] == expected[name].shape[1:] for name, tensor in turned.items())
    if not turned or not fits or len(turned) < len(wrong) - 1:  # the last bias may be for other classes
        return ""
    return (
        "; they are in TensorFlow's layout: save them as bvlc_alexnet.npy is, np.save of {layer: [weights, biases]}, "
        "or transpose them"
    )


def _problem(name: str, found: Tensor | None, expected: Tensor) -> str | None:
    if found is None:
        return f"{name} is missing"
    if found.shape != expected.shape:
        return f"{name} has shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    if expected.is_floating_point() and not found.is_floating_point():
        return f"{name} has type {str(found.dtype).removeprefix('torch.')}, expected floating point"
    return None


def suggestion(weights: Mapping[str, Tensor], asked: Mapping[str, Tensor] | None = None, *, own: bool = False) -> str:
    """The end of a message: the networks of the zoo that have these shapes, for any number of classes, or the nearest.

    Nothing where none is nearer than the network with the state ``asked``, if that is near or the user's ``own``.
    """
    found = _shapes(weights)
    asked_share = _nearness(asked, found)[0] if asked is not None else 0.0
    names, nearest, best = [], "", max(asked_share, _NEAR)
    for name in NETWORKS:
        state = _state_of(name)
        if _has_shapes(state, found):
            names.append(name)
        share, same, total = _nearness(state, found)
        if share > best or share == best > asked_share:
            text = f"{same} of whose {total} weights before the last layer fit one in the file"
            nearest, best = f"; nearest: {name}, {text}", share
    if names:
        return f"; its shapes are those of {' and '.join(names)}"
    if nearest or own or asked_share >= _NEAR:
        return nearest
    return "; no network of the zoo is near it; a network of your own is exported as MODULE:FACTORY"


def _nearness(state: Mapping[str, Tensor], found: Counter[tuple[int, ...]]) -> tuple[float, int, int]:
    """(share of all weights, number, of how many) that are in both; the last layer is for any number of classes.

    Biases and norms are vectors, of which most networks have some of the same length.
    """
    expected = _matrices(Counter([*_shapes(state).elements()][:-2]))
    found = _matrices(found)
    same = (found & expected).total()
    return same / max((found | expected).total(), 1), same, expected.total()


def _matrices(shapes: Counter[tuple[int, ...]]) -> Counter[tuple[int, ...]]:
    return Counter({shape: number for shape, number in shapes.items() if len(shape) >= 2})


def check_finite(weights: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that have become no numbers.

    Raises:
        InputError: NaN or infinity; ``what`` and the first tensor are in the message.
    """
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise InputError(
                f"cannot load {what}: {name} holds {bad} values that are NaN or infinite (of {tensor.numel()}); take a "
                "checkpoint from before they arose"
            )


@cache
def _state_of(network: str) -> Mapping[str, Tensor]:
    """For two classes, without values."""
    with torch.device("meta"):
        return build_network(NetworkSettings(network), 2).state_dict()


def _shapes(weights: Mapping[str, Tensor]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tensor.shape) for name, tensor in weights.items() if not name.endswith(_COUNTER))


def _has_shapes(state: Mapping[str, Tensor], found: Counter[tuple[int, ...]]) -> bool:
    """Whether these are the shapes of the network, weight and bias of its last layer for any number of classes."""
    shapes = list(_shapes(state).elements())
    last = [tuple(tensor.shape) for tensor in state.values()][-2:]
    head = sorted((found - (Counter(shapes) - Counter(last))).elements(), key=len)
    return found.total() == len(shapes) and len(head) == 2 and head[1] == (*head[0], *last[0][1:])


def head_of(model: nn.Module) -> str:
    """The path of the last layer with weights; empty where no layer is a convolution or fully connected."""
    return next(reversed(layer_paths(model).values()), "")


def has_names(file: WeightFile, model: nn.Module) -> bool:
    """Whether the file is for ``model`` by its names and, but for the number of classes, by its shapes."""
    expected = model.state_dict()
    names = _by_name(file.tensors, expected)
    head = head_of(model)
    return set(names.values()) == expected.keys() and all(
        _fits(file.tensors[old], expected[new], is_head=_owner(new) == head) for old, new in names.items()
    )


def start_from(model: ConvNet, path: Path, network: str) -> list[str]:
    """Initialise ``model`` for fine-tuning from a checkpoint or a foreign file of the same network.

    Args:
        model: freshly initialised; on return it holds the file's weights.
        path: any file that ``read_weight_file`` takes, for any number of classes.
        network: the name of the network, for messages.

    Returns:
        The parameters that kept their fresh values because the file is for another number of classes: weight and bias
        of the last layer, or nothing.

    Raises:
        InputError: the file is unusable, or another layer than the last does not fit (named layer by layer).
    """
    weights = named_for(read_weight_file(path), model, str(path))
    check_finite(weights, f"{path} into '{network}'")
    fresh = model.state_dict()
    head = head_of(model)
    names = [f"{head}.weight", f"{head}.bias"]
    replaced = [name for name in names if name in weights and weights[name].shape[1:] == fresh[name].shape[1:]]
    if len(replaced) != 2 or all(weights[name].shape == fresh[name].shape for name in names):
        replaced = []
    load_weights(model, {**weights, **{name: fresh[name] for name in replaced}}, f"{path} into '{network}'")
    return replaced


def _from_caffe(layers: Mapping[str, list[np.ndarray[Any, Any]]], model: nn.Module) -> dict[str, Tensor]:
    """TensorFlow's layouts → PyTorch's: HWIO → OIHW, (in, out) → (out, in), and the first matrix from HWC to CHW rows.

    A grouped convolution has the input channels of one group; its outputs are in the order of the groups, in both.
    """
    paths = layer_paths(model)
    weights: dict[str, Tensor] = {}
    channels = 0
    for name in sorted(layers, key=lambda layer: list(paths).index(layer) if layer in paths else -1):
        weight, bias = (np.asarray(part, dtype=np.float32) for part in layers[name])
        if weight.ndim == 4:
            channels = weight.shape[3]
            weight = weight.transpose(3, 2, 0, 1)
        elif weight.ndim == 2:
            inputs, outputs = weight.shape
            side = math.isqrt(inputs // channels) if channels else 0
            if channels and side * side * channels == inputs:
                weight = weight.reshape(side, side, channels, outputs).transpose(3, 2, 0, 1).reshape(outputs, inputs)
            else:
                weight = weight.T
            channels = 0
        path = paths.get(name, name)
        weights[f"{path}.weight"] = torch.from_numpy(np.require(weight, requirements=["C", "W"]))
        weights[f"{path}.bias"] = torch.from_numpy(bias.reshape(-1).copy())
    return weights


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _fits(found: Tensor, expected: Tensor, *, is_head: bool) -> bool:
    """The last layer may be for another number of classes."""
    if is_head:
        return found.ndim == expected.ndim and found.shape[1:] == expected.shape[1:]
    return found.shape == expected.shape


def _by_name(found: Iterable[str], expected: Iterable[str]) -> dict[str, str]:
    """Name in the file → name in the network, for those that differ by what is around the network alone."""
    names = {bare: name for name, bare in _bare(expected).items()}
    file = _bare(found)
    direct = {name: names[bare] for name, bare in file.items() if bare in names}
    needed = {bare for bare in names if not bare.endswith(_COUNTER)}
    if {file[name] for name in direct} >= needed or not needed:
        return direct
    one = min(needed)
    inside = []
    for start in [bare[: -len(one)] for bare in file.values() if bare.endswith(f".{one}")]:
        below = {name: bare[len(start) :] for name, bare in file.items() if bare.startswith(start)}
        if needed <= set(below.values()) <= names.keys():
            inside.append({name: names[bare] for name, bare in below.items()})
    return inside[0] if len(inside) == 1 else direct


def _beside(found: Iterable[str], names: Mapping[str, str], expected: Iterable[str]) -> list[str]:
    """What a file holds beside the whole network, which is below one name: the weights of a loss, a metric's counts."""
    others = [name for name in found if name not in names]
    tops = {_top(name) for name in names}
    is_apart = len(tops) == 1 and not tops & {_top(name) for name in (*others, *expected)}
    needed = {name for name in expected if not name.endswith(_COUNTER)}
    return others if is_apart and needed <= set(names.values()) else []


def _top(name: str) -> str:
    return next((part for part in name.split(".") if part not in _WRAPPERS), name)


def _bare(names: Iterable[str]) -> dict[str, str]:
    """Each name without wrappers and without the parts that all of them begin with; as it is, if two would be one."""
    parts = {name: [part for part in name.split(".") if part not in _WRAPPERS] for name in names}
    while all(len(part) > 2 for part in parts.values()) and len({part[0] for part in parts.values()}) == 1:
        parts = {name: part[1:] for name, part in parts.items()}
    bare = {name: ".".join(part) for name, part in parts.items()}
    return bare if len(set(bare.values())) == len(bare) else {name: name for name in bare}


def _by_order(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: str) -> dict[str, str] | None:
    """Name in the file → name in the network, one after the other; None where order and shapes leave a doubt."""
    if not any(name.endswith(_COUNTER) for name in found):
        expected = {name: tensor for name, tensor in expected.items() if not name.endswith(_COUNTER)}
    if len(found) != len(expected):
        return None
    names = dict(zip(found, expected, strict=True))
    layers: dict[str, str] = {}
    shapes: dict[str, list[torch.Size]] = {}
    for old, new in names.items():
        same_kind = old.rpartition(".")[2] == new.rpartition(".")[2]
        if not same_kind or not _fits(found[old], expected[new], is_head=_owner(new) == head):
            return None
        if layers.setdefault(_owner(old), _owner(new)) != _owner(new) or _renumbered(_owner(old), _owner(new)):
            return None
        shapes.setdefault(_owner(old), []).append(found[old].shape)
    alike: dict[tuple[torch.Size, ...], list[str]] = {}
    for layer, own in shapes.items():
        alike.setdefault(tuple(own), []).append(layer)
    settled = all(sorted(same, key=_natural) == same for same in alike.values())
    return names if settled and len(set(layers.values())) == len(layers) else None


def _renumbered(found: str, expected: str) -> bool:
    """``features.3`` for ``features.4``: a sequence with other layers in between is another network."""
    (before, old), (same, new) = found.rpartition(".")[::2], expected.rpartition(".")[::2]
    return before == same and old != new and old.isdigit() and new.isdigit()


def _natural(name: str) -> list[tuple[int, str]]:
    """Key that puts ``conv2`` before ``conv10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
