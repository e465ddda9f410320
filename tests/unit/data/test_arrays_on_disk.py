from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alexdeploy.contract import Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.preprocess import preprocess
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import InputError

CONTRACT = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)
UINT8 = Contract(color="rgb", crop=8, input_type="uint8", layout="nhwc", resize=16)
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)


def _saved(folder: Path, array: np.ndarray[Any, Any] | None = None, **arrays: Any) -> ImageDataset:
    path = folder / ("x.npz" if arrays else "x.npy")
    if array is not None:
        np.save(path, array)
    else:
        np.savez(path, **arrays)
    return load_dataset(str(path), "train")


def _inputs(dataset: ImageDataset, contract: Contract) -> np.ndarray[Any, Any]:
    return np.stack([array for _, array in dataset.inputs(contract)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_are_network_inputs_in_the_precision_of_the_model(tmp_path: Path, dtype: type) -> None:
    array: np.ndarray[Any, Any] = RANDOM.standard_normal((4, 3, 8, 8)).astype(dtype)
    dataset = _saved(tmp_path, array)
    inputs = _inputs(dataset, CONTRACT)
    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(inputs, array.astype(np.float32))
    assert (dataset.taken, dataset.is_labelled) == ("4 images", False)
    assert dataset.unlabelled == f"{tmp_path / 'x.npy'} has no array 'labels'"


@pytest.mark.parametrize("shape", [(3, 12, 10, 3), (3, 12, 10), (3, 12, 10, 1)])
def test_bytes_are_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = PIXELS[..., 0].reshape(shape) if len(shape) == 3 or shape[3] == 1 else PIXELS
    dataset = _saved(tmp_path, pixels)
    expected = [preprocess(image, CONTRACT) for _, image in dataset.images()]
    np.testing.assert_array_equal(_inputs(dataset, CONTRACT), expected)
    shown = np.stack([np.asarray(image) for _, image in dataset.images()])
    np.testing.assert_array_equal(shown, pixels.reshape(3, 12, 10, -1).squeeze())


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 9, 12, 3)], ids=["the input's", "another"])
def test_bytes_are_images_whatever_the_model_takes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """So a graph of pixels and its float graph see the same: a resize and a crop may follow."""
    pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    expected = [preprocess(Image.fromarray(image), UINT8) for image in pixels]
    np.testing.assert_array_equal(_inputs(_saved(tmp_path, pixels), UINT8), expected)


def test_an_npz_has_one_array_of_images_and_labels_by_number(tmp_path: Path) -> None:
    dataset = _saved(tmp_path, pictures=PIXELS, labels=np.array([7, 0, 7], np.uint8))
    assert [int(dataset.classes[label]) for label in dataset.labels] == [7, 0, 7]
    assert dataset.matched(CONTRACT, 8, "m.onnx").labels.tolist() == [7, 0, 7]
    assert len(list(dataset.images())) == 3
    assert len(_saved(tmp_path, x=PIXELS, ids=np.arange(3))) == 3, "the only array with four axes"


def test_a_npy_is_mapped_and_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 8, 8), np.float32))
    dataset = load_dataset(str(tmp_path / "x.npy"), "val")
    with (tmp_path / "x.npy").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(5).tobytes())
    assert dataset.network_input(1, CONTRACT)[2, 7, 7] == 5


OBJECTS = np.array([object()], dtype=object)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"array": OBJECTS}, "cannot read it"),
        ({"x": OBJECTS}, "cannot read it"),
        ({"array": np.zeros((2, 3), np.int64)}, r"holds int64 \(2, 3\); expected uint8 images"),
        ({"array": np.zeros(3, np.float32)}, r"holds float32 \(3,\)"),
        ({"array": np.zeros((0, 3, 8, 8), np.float32)}, "holds no images"),
        ({"x": PIXELS, "y": PIXELS}, r"holds x \(3, 12, 10, 3\), y \(3, 12, 10, 3\); expected one array of images"),
        ({"labels": np.arange(3)}, "holds no array of images"),
        ({"x": PIXELS, "labels": np.arange(2)}, r"'labels' are int64 \(2,\); expected integers \(3,\)"),
        ({"x": PIXELS, "labels": np.ones(3)}, r"'labels' are float64 \(3,\)"),
        ({"x": PIXELS, "labels": np.array([0, -1, 0])}, "'labels' has -1"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, arrays: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        _saved(tmp_path, **arrays)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("keep", [6, 60, -2000])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, keep: int) -> None:
    _saved(tmp_path, PIXELS)
    _saved(tmp_path, x=PIXELS)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:keep] if keep > 0 else data[:keep] + bytes(7))
    with pytest.raises(InputError, match=f"{name}: NumPy cannot read it"):
        load_dataset(str(tmp_path / name), "val")


def test_bytes_that_are_no_pictures_are_refused_where_they_are_used(tmp_path: Path) -> None:
    dataset = _saved(tmp_path, np.zeros((2, 3, 9, 9), np.uint8))
    with pytest.raises(InputError, match=r"tensor 'x-0' is \(3, 9, 9\) uint8; the model takes \(3, 8, 8\) float32"):
        _inputs(dataset, CONTRACT)
