"""Targets that are arrays: NumPy's files, IDX, CIFAR-10's batches, moments, golden answers."""

from __future__ import annotations

import gzip
import io
import pickle
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors.numpy

from alexdeploy import files
from alexdeploy.cli.adopt import _constant
from alexdeploy.contract import Contract
from alexdeploy.data.sources import load_dataset
from alexdeploy.quantize.moments import Moments
from alexdeploy.triton.golden import FILE, About, Golden, read_golden, write_golden
from tests.fuzz.mutate import (
    any_bytes,
    json_value,
    pickle_part,
    text_line,
    within_gzip,
    within_safetensors,
    within_zip,
)
from tests.fuzz.target import Target

_CONTRACT = Contract(color="rgb", crop=4, mean=(0.5,) * 3, std=(0.5,) * 3)
_GRAY = Contract(color="gray", resize=(4, 4), mean=(0.5,), std=(0.5,))
_CIFAR = "cifar-10-batches-py"


def _npy(array: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz(compressed: bool, **arrays: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def _npy_files() -> Sequence[bytes]:
    shapes = (2, 4, 4, 3), (2, 4, 4), (2, 3, 4, 4)
    return [_npy(np.arange(np.prod(shape)).reshape(shape).astype(kind)) for shape in shapes for kind in ("u1", "f4")]


def _npz_files() -> Sequence[bytes]:
    images, labels = np.zeros((3, 4, 4, 3), np.uint8), np.array([0, 2, 1])
    return [_npz(compressed, images=images, labels=labels) for compressed in (False, True)]


def _check_dataset(path: Path) -> None:
    dataset = load_dataset(str(path), "all")
    for index in {0, len(dataset) - 1}:
        dataset.network_input(index, _CONTRACT)


def _idx(array: npt.NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def _mnist_beside(folder: Path) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(_idx(np.array([1, 0], np.uint8)))


def _check_idx(path: Path) -> None:
    name = "t10k-images-idx3-ubyte" + path.suffix
    path.replace(path.parent / "MNIST" / "raw" / name)
    try:
        dataset = load_dataset("mnist", "val", data_root=path.parent)
        dataset.network_input(0, _GRAY)
    finally:
        (path.parent / "MNIST" / "raw" / name).unlink()


def _idx_files() -> Sequence[bytes]:
    return [_idx(np.arange(32, dtype=np.uint8).reshape(2, 4, 4))]


def _cifar_files() -> Sequence[bytes]:
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [3, 9]}
    return [pickle.dumps(batch, protocol) for protocol in (3, 4)]


def _cifar_beside(folder: Path) -> None:
    (folder / _CIFAR).mkdir()


def _check_cifar(path: Path) -> None:
    batch = path.replace(path.parent / _CIFAR / "test_batch")
    try:
        load_dataset("cifar10", "val", data_root=path.parent).network_input(0, _CONTRACT)
    finally:
        batch.unlink()


def _moments_files() -> Sequence[bytes]:
    arrays = {"conv1.mean": np.zeros((1, 9)), "conv1.covariance.0": np.eye(9)[None], "x.channels": np.ones(3)}
    return [safetensors.numpy.save({name: array.astype(np.float32) for name, array in arrays.items()})]


def _check_moments(path: Path) -> None:
    moments = Moments(path=path, digest=sha256(path.read_bytes()).hexdigest())
    assert len(moments.channels) >= 0
    moments.layer("conv1")


_ABOUT = About(
    name="ants",
    version=2,
    contract=_CONTRACT.to_json(),
    labels=("bee",),
    runtime="onnxruntime-cpu",
    precision="fp32",
    image=True,
    artifact_sha256="0" * 64,
)


def _golden_files() -> Sequence[bytes]:
    inputs, logits = np.zeros((1, 3, 4, 4), np.float32), np.zeros((1, 4), np.float32)
    golden = Golden(_ABOUT, (b"one",), inputs, logits, np.ones(1, np.float32))
    with tempfile.TemporaryDirectory() as folder:
        write_golden(Path(folder), golden, files.Parent("net.onnx", "0" * 64))
        return [Path(folder, FILE).read_bytes()]


def _check_golden(path: Path) -> None:
    """With a sidecar that belongs to it, as whoever changes the file would write it."""
    files.write_artifact(path, path.read_bytes(), "golden", details=msgspec.to_builtins(_ABOUT))
    try:
        read_golden(path.parent)
    finally:
        files.sidecar_path(path).unlink()


TARGETS = (
    Target("npy", _npy_files, _check_dataset, "images.npy", (text_line,), (b"'|O'", b"(-1,)", b"True", b"'<f8'")),
    Target("constant", _npy_files, lambda path: _constant(f"x={path}", str(path)), "x.npy", (text_line,), (b"'|O'",)),
    Target("npz", _npz_files, _check_dataset, "images.npz", (within_zip(any_bytes), within_zip(text_line))),
    Target(
        "idx_gz",
        lambda: [gzip.compress(data) for data in _idx_files()],
        _check_idx,
        "images.gz",
        (within_gzip(any_bytes),),
        beside=_mnist_beside,
    ),
    Target("idx", _idx_files, _check_idx, "images", beside=_mnist_beside),
    Target("cifar10", _cifar_files, _check_cifar, "batch", (pickle_part,), beside=_cifar_beside),
    Target("moments", _moments_files, _check_moments, "m.safetensors", (within_safetensors(json_value),)),
    Target("golden", _golden_files, _check_golden, FILE, (within_safetensors(json_value),)),
)
