"""Weights of foreign origin: what they compute here is what they computed where they were trained."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from alexdeploy.errors import InputError
from alexdeploy.zoo.checkpoint import load_checkpoint, save_checkpoint, untrained
from alexdeploy.zoo.convnet import ConvNet, layer_paths
from alexdeploy.zoo.weight_files import read_weight_file
from alexdeploy.zoo.weights import load_weights, named_for, start_from
from tests.helpers.slim import slim

Array = np.ndarray[Any, np.dtype[np.float32]]
Layers = dict[str, list[Array]]
SHAPES = {  # of bvlc_alexnet.npy
    "conv1": (11, 11, 3, 96),
    "conv2": (5, 5, 48, 256),
    "conv3": (3, 3, 256, 384),
    "conv4": (3, 3, 192, 384),
    "conv5": (3, 3, 192, 256),
    "fc6": (9216, 4096),
    "fc7": (4096, 4096),
    "fc8": (4096, 1000),
}


def bvlc(divisor: int) -> Layers:
    """Random weights in the layouts of ``bvlc_alexnet.npy``, with fewer channels."""
    random = np.random.default_rng(0)
    layers: Layers = {}
    for name, shape in SHAPES.items():
        *window, inputs, outputs = shape
        inputs = inputs if name == "conv1" else inputs // divisor
        outputs = outputs if name == "fc8" else outputs // divisor
        weight = random.standard_normal((*window, inputs, outputs), dtype=np.float32)
        bias = random.standard_normal(outputs, dtype=np.float32)
        layers[name] = [weight / np.float32(np.sqrt(inputs * np.prod(window))), bias]
    return layers


def save_npy(path: Path, layers: Any) -> Path:
    with path.open("wb") as file:
        np.save(file, layers, allow_pickle=True)
    return path


def as_tensorflow_computes(layers: Layers, images: Array) -> Array:
    """(N, 227, 227, 3) → logits: VALID conv1 and poolings, SAME others, groups by splitting, LRN by its formula."""

    def conv(x: Array, name: str, stride: int, pad: int, groups: int) -> Array:
        weight, bias = layers[name]
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        pieces = zip(np.split(x, groups, axis=3), np.split(weight, groups, axis=3), strict=True)
        outputs = [
            np.einsum("nhwcij,ijco->nhwo", sliding_window_view(part, w.shape[:2], (1, 2))[:, ::stride, ::stride], w)
            for part, w in pieces
        ]
        return np.maximum(np.concatenate(outputs, axis=3) + bias, 0)

    def lrn(x: Array) -> Array:  # tf.nn.local_response_normalization(x, 2, bias=1, alpha=2e-5, beta=0.75)
        squares = np.pad(x**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
        sums = sum(squares[..., i : i + x.shape[3]] for i in range(5))
        result: Array = x / (1 + 2e-5 * sums) ** 0.75
        return result

    def pool(x: Array) -> Array:
        result: Array = sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2].max(axis=(4, 5))
        return result

    x = pool(lrn(conv(images, "conv1", 4, 0, 1)))
    x = pool(lrn(conv(x, "conv2", 1, 2, 2)))
    x = conv(conv(conv(x, "conv3", 1, 1, 1), "conv4", 1, 1, 2), "conv5", 1, 1, 2)
    x = pool(x).reshape(len(images), -1)
    x = np.maximum(x @ layers["fc6"][0] + layers["fc6"][1], 0)
    x = np.maximum(x @ layers["fc7"][0] + layers["fc7"][1], 0)
    logits: Array = x @ layers["fc8"][0] + layers["fc8"][1]
    return logits


def test_bvlc_weights_compute_what_tensorflow_computes(tmp_path: Path) -> None:
    layers = bvlc(divisor=8)
    network = slim("alexnet-caffe", 1000)
    file = read_weight_file(save_npy(tmp_path / "bvlc_alexnet.npy", layers))
    load_weights(network, named_for(file, network, "bvlc"), "bvlc")
    images = 50 * np.random.default_rng(1).standard_normal((2, 227, 227, 3), dtype=np.float32)
    with torch.inference_mode():
        logits = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    expected = as_tensorflow_computes(layers, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_the_whole_bvlc_file_becomes_a_checkpoint_that_sees_bgr_pixels_of_0_to_255(tmp_path: Path) -> None:
    layers = {name: [np.zeros(s, np.float32), np.zeros(s[-1], np.float32)] for name, s in SHAPES.items()}
    layers["fc6"][0][(2 * 6 + 3) * 256 + 7, 11] = 5  # row 2, column 3, channel 7
    layers["conv2"][0][1, 4, 47, 255] = 3
    found = load_checkpoint(save_npy(tmp_path / "bvlc_alexnet.npy", layers), "alexnet-caffe")
    weights = found.model.state_dict()
    assert weights["classifier.0.weight"].nonzero().tolist() == [[11, (7 * 6 + 2) * 6 + 3]]
    assert weights["features.4.weight"].nonzero().tolist() == [[255, 47, 1, 4]]
    assert (found.classes, found.contract.color) == (1000, "bgr")
    assert found.contract.std == pytest.approx((1 / 255,) * 3)
    assert [255 * value for value in found.contract.mean] == pytest.approx([104.007, 116.669, 122.679], abs=1e-3)


PicklerInPython: Any = vars(pickle)["_Pickler"]


class _Python2(PicklerInPython):  # type: ignore[misc]
    """Writes strings and bytes as Python 2 wrote its strings."""

    def _save_string(self, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)

    dispatch = {**PicklerInPython.dispatch, str: _save_string, bytes: _save_string}


def test_a_file_that_python_2_wrote_is_read(tmp_path: Path) -> None:
    path = save_npy(tmp_path / "new.npy", {})
    header = path.read_bytes()[:128]
    with (tmp_path / "old.npy").open("wb") as file:
        file.write(header)
        box = np.empty((), dtype=object)
        box[()] = {"conv1": [np.arange(3 * 54, dtype=np.float32).reshape(3, 3, 1, 18)[..., :6], np.ones(6, np.float32)]}
        _Python2(file, protocol=2).dump(box)
    found = named_for(read_weight_file(tmp_path / "old.npy"), slim("lenet", 10, 1), "old")
    assert found["features.0.weight"][:, 0, 0, 1].tolist() == [18, 19, 20, 21, 22, 23]
    assert found["features.0.bias"].tolist() == [1] * 6


def test_torchvision_weights_give_torchvision_logits(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = models.alexnet(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "alexnet-owt.pth")
    found = load_checkpoint(tmp_path / "alexnet-owt.pth", "alexnet-torchvision")
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(found.model(images), theirs(images), rtol=0, atol=1e-6)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.pth", "model.npy"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    path, trace = tmp_path / name, tmp_path / "trace"
    content = {"conv1": Harmful(trace)}
    if name.endswith("npy"):
        save_npy(path, content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=rf"{name}: "):
        load_checkpoint(path, "lenet")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("a.pth", b"<!DOCTYPE html>", "begins with b'<!DOCTYPE"),
        ("a.pth", b"PK\x03\x04" * 50, "not PyTorch weights"),
        ("a.npy", b"<!DOCTYPE html>", "none of PyTorch or NumPy"),
        ("a.npy", b"\x93NUMPY\x01\x00", "not a NumPy file of layers"),
        ("a.pth", b"", "empty"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, data: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"a\.\w+: .*{complaint}"):
        load_checkpoint(tmp_path / name, "lenet")


def test_what_is_no_dict_of_layers_is_named(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(InputError, match=r"list\.pth: expected a state dict"):
        load_checkpoint(tmp_path / "list.pth", "lenet")
    save_npy(tmp_path / "flat.npy", {"conv1": [np.zeros(3)]})
    with pytest.raises(InputError, match=r"flat\.npy: expected a dict of layer"):
        load_checkpoint(tmp_path / "flat.npy", "lenet")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"array\.npy: not a NumPy file of layers.*shape \(3,\)"):
        load_checkpoint(tmp_path / "array.npy", "lenet")


def test_layers_of_another_network_are_named_with_their_shapes(tmp_path: Path) -> None:
    path = save_npy(tmp_path / "bvlc.npy", bvlc(divisor=8))
    network = slim("alexnet-caffe", 1000, divisor=4)
    with pytest.raises(InputError) as caught:
        start_from(network, path, "alexnet-caffe")
    assert "features.0.weight has shape (12, 3, 11, 11), expected (24, 3, 11, 11)" in str(caught.value)
    assert "and " in str(caught.value)
    save_npy(path, {"conv1": bvlc(divisor=8)["conv1"], "norm1": bvlc(divisor=8)["conv1"]})
    with pytest.raises(InputError, match=r"[^;] and \d+ more; not part of the network: norm1"):
        start_from(slim("lenet", 10, 1), path, "lenet")


@pytest.mark.parametrize("classes", [7, 10])
def test_fine_tuning_starts_from_a_checkpoint_and_replaces_the_head_of_another_class_count(
    tmp_path: Path, classes: int
) -> None:
    saved = untrained("lenet", 10, seed=1)
    save_checkpoint(tmp_path / "lenet.safetensors", saved)
    model = untrained("lenet", classes, seed=2).model
    assert isinstance(model, ConvNet)
    fresh = {name: weight.clone() for name, weight in model.state_dict().items()}
    replaced = start_from(model, tmp_path / "lenet.safetensors", "lenet")
    assert replaced == (["classifier.6.weight", "classifier.6.bias"] if classes == 7 else [])
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, (fresh if name in replaced else saved.model.state_dict())[name])


def test_a_head_of_another_width_is_not_replaced_silently(tmp_path: Path) -> None:
    weights = dict(untrained("lenet", 10, seed=1).model.state_dict())
    weights["classifier.6.weight"] = torch.zeros(7, 83)
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"classifier\.6\.weight has shape \(7, 83\), expected \(5, 84\)"):
        start_from(slim("lenet", 5, 1), tmp_path / "odd.pth", "lenet")


def test_layers_are_named_as_caffe_names_them() -> None:
    with torch.device("meta"):
        network = slim("alexnet", 10)
    assert list(layer_paths(network)) == list(SHAPES)
    assert all(isinstance(network.get_submodule(path), nn.Conv2d | nn.Linear) for path in layer_paths(network).values())
