"""Weights that others trained: safetensors, PyTorch's ``.pth``, and the ``bvlc_alexnet.npy`` that TensorFlow texts use.

Nothing in a file is executed: ``.pth`` is read with ``weights_only``, ``.npy`` by an unpickler that knows arrays only.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from alexdeploy import files
from alexdeploy.errors import InputError, few
from alexdeploy.pickled import load_arrays
from alexdeploy.zoo.convnet import ConvNet, layer_paths

_PICKLED = frozenset({".pth", ".pt", ".bin"})


def read_weights(path: Path, network: ConvNet) -> dict[str, Tensor]:
    """A state dict in float32 under the names of ``network``.

    Shapes are not compared; ``load_weights`` and ``start_from`` do that.

    Raises:
        InputError: missing, empty, damaged, or a file that holds something else than weights.
    """
    files.check_input(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _from_caffe(_read_npy(path), network)
    weights = _read_pickled(path) if suffix in _PICKLED else _read_safetensors(path)[0]
    return {name: w.float() if w.is_floating_point() else w for name, w in weights.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for the other kinds.

    Raises:
        InputError: missing, empty or damaged.
    """
    files.check_input(path)
    return {} if path.suffix.lower() in (".npy", *_PICKLED) else _read_safetensors(path)[1]


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict that must fit.

    Raises:
        InputError: it does not; ``what`` and the layers at fault are in the message.
    """
    problems = _problems(model, weights)
    if problems:
        raise InputError(f"cannot load {what}: {few(problems, separator='; ')}")
    model.load_state_dict(weights)


def start_from(model: ConvNet, path: Path, network: str) -> list[str]:
    """Initialise ``model`` for fine-tuning from a checkpoint or a foreign file of the same network.

    Args:
        model: freshly initialised; on return it holds the file's weights.
        path: any file that ``read_weights`` takes, for any number of classes.
        network: the name of the network, for messages.

    Returns:
        The parameters that kept their fresh values because the file is for another number of classes: weight and bias
        of the last layer, or nothing.

    Raises:
        InputError: the file is unusable, or another layer than the last does not fit (named layer by layer).
    """
    weights = read_weights(path, model)
    fresh = model.state_dict()
    head = list(layer_paths(model).values())[-1]
    names = [f"{head}.weight", f"{head}.bias"]
    replaced = [name for name in names if name in weights and weights[name].shape[1:] == fresh[name].shape[1:]]
    if len(replaced) != 2 or all(weights[name].shape == fresh[name].shape for name in names):
        replaced = []
    load_weights(model, {**weights, **{name: fresh[name] for name in replaced}}, f"{path} into '{network}'")
    return replaced


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return weights, dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file: {error}") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """A state dict, also inside a training checkpoint (``state_dict``, ``model``) or of a DataParallel model."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds Python objects besides weights, or is no PyTorch file; "
            "save model.state_dict() and nothing else"
        ) from error
    except Exception as error:  # torch.load raises what its zip reader and its unpickler raise
        raise InputError(f"{path}: not PyTorch weights: {' '.join(str(error).split())[:200]}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path}: expected a state dict (layer name → tensor); save model.state_dict()")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _read_npy(path: Path) -> dict[str, list[np.ndarray[Any, Any]]]:
    """The dict in a file that ``np.save`` wrote, by Python 2 or 3: layer → [weights, biases]."""
    try:
        with path.open("rb") as file:
            content = _unpickled(file)
    except Exception as error:  # what a damaged pickle raises has no common base
        raise InputError(
            f"{path}: not a NumPy file of layers ({error}); expected the form of bvlc_alexnet.npy"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(part, np.ndarray) for part in pair)
        for pair in content.values()
    ):
        raise InputError(f"{path}: expected a dict of layer → [weights, biases], as in bvlc_alexnet.npy")
    return {name.decode() if isinstance(name, bytes) else str(name): list(pair) for name, pair in content.items()}


def _unpickled(file: BinaryIO) -> Any:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if shape != () or dtype.kind != "O":
        raise ValueError(f"an array of shape {shape} and type {dtype}")
    return load_arrays(file).item()


def _from_caffe(layers: dict[str, list[np.ndarray[Any, Any]]], network: ConvNet) -> dict[str, Tensor]:
    """TensorFlow's layouts → PyTorch's: HWIO → OIHW, (in, out) → (out, in), and the first matrix from HWC to CHW rows.

    A grouped convolution has the input channels of one group; its outputs are in the order of the groups, in both.
    """
    paths = layer_paths(network)
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
        weights[f"{path}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))
        weights[f"{path}.bias"] = torch.from_numpy(bias.reshape(-1).copy())
    return weights


def _problems(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """The mismatches, in the order of the layers."""
    expected = model.state_dict()
    problems = []
    for name, tensor in expected.items():
        if name not in weights:
            problems.append(f"{name} is missing")
        elif weights[name].shape != tensor.shape:
            problems.append(f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}")
    return problems + [f"{name} is not part of the network" for name in weights if name not in expected]
