from __future__ import annotations

import gzip
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import InputError
from alexdeploy.specs import Split
from tests.helpers.shared_data import SHARED_DATA, needs_shared_data

Array = npt.NDArray[np.uint8]
SPLITS: tuple[Split, ...] = get_args(Split)


def _both(source: str | Path) -> tuple[ImageDataset, ImageDataset]:
    return load_dataset(str(source), "train"), load_dataset(str(source), "val")


def test_the_digits_are_split_into_disjoint_parts_that_hold_them_all() -> None:
    train, val = _both("digits")
    assert sorted([*train.samples, *val.samples]) == [f"digits-{i:04d}" for i in range(1797)]
    assert 0.19 < len(val) / 1797 < 0.21


def test_the_digits_are_split_the_same_way_every_time() -> None:
    assert [part.fingerprint for part in _both("digits")] == [part.fingerprint for part in _both("digits")]


def test_the_digits_keep_their_labels_and_are_stretched_to_255() -> None:
    origin = load_digits()
    for part in _both("digits"):
        numbers = [int(name.removeprefix("digits-")) for name in part.samples]
        assert part.labels.tolist() == origin.target[numbers].tolist()
        for index in (0, len(part) - 1):
            pixels = np.asarray(part.image(index)).astype(float) * 16 / 255
            np.testing.assert_allclose(pixels, origin.images[numbers[index]], atol=0.04)


def _write_idx(path: Path, array: Array) -> None:
    path.parent.mkdir(exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def pixels(tmp_path: Path) -> dict[str, Array]:
    """Four training and two test images in ``tmp_path/mnist``; the labels count down from 9."""
    arrays = {}
    for prefix, split, count in [("train", "train", 4), ("t10k", "val", 2)]:
        arrays[split] = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        _write_idx(tmp_path / "mnist" / f"{prefix}-images-idx3-ubyte.gz", arrays[split])
        _write_idx(tmp_path / "mnist" / f"{prefix}-labels-idx1-ubyte.gz", 9 - np.arange(count, dtype=np.uint8))
    return arrays


@pytest.mark.parametrize("split", ["train", "val"])
def test_mnist_keeps_its_official_split(tmp_path: Path, pixels: dict[str, Array], split: str) -> None:
    dataset = load_dataset("mnist", "train" if split == "train" else "val", data_root=tmp_path)
    np.testing.assert_array_equal([np.asarray(image) for _, image in dataset.images()], pixels[split])
    assert dataset.labels.tolist() == [9, 8, 7, 6][: len(pixels[split])]
    assert dataset.classes == tuple("0123456789")


@pytest.mark.usefixtures("pixels")
def test_mnist_is_looked_for_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXDEPLOY_DATA", str(tmp_path))
    assert len(load_dataset("mnist", "train")) == 4


def test_absent_mnist_files_are_named_with_the_option_that_finds_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: no such file.*`data_root`"):
        load_dataset("mnist", "train", data_root=tmp_path)


@pytest.mark.usefixtures("pixels")
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"<html>404</html>", id="not-gzip"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[: len(data) // 2], id="truncated"),
        pytest.param(lambda data: data[:10] + b"\xff" * 40 + data[50:], id="corrupt-stream"),
        pytest.param(lambda data: data[:-8] + b"\0" * 8, id="wrong-checksum"),
        pytest.param(lambda data: gzip.compress(b"\0\0"), id="short-header"),
        pytest.param(lambda data: gzip.compress(gzip.decompress(data)[:-1]), id="one-byte-short"),
        pytest.param(lambda data: gzip.compress(b"\0\0\x0d" + gzip.decompress(data)[3:]), id="floats"),
    ],
)
def test_a_damaged_mnist_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: not an IDX file of images.*download it again"):
        load_dataset("mnist", "train", data_root=tmp_path)


@pytest.mark.usefixtures("pixels")
def test_mnist_with_labels_for_other_images_is_refused(tmp_path: Path) -> None:
    _write_idx(tmp_path / "mnist" / "train-labels-idx1-ubyte.gz", np.zeros(3, dtype=np.uint8))
    with pytest.raises(InputError, match="4 images but 3 labels"):
        load_dataset("mnist", "train", data_root=tmp_path)


def test_fashion_mnist_has_the_files_of_mnist_and_its_own_names(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    _write_idx(tmp_path / "fashion-mnist" / "t10k-images-idx3-ubyte.gz", pixels)
    _write_idx(tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz", np.array([9, 0, 7], np.uint8))
    dataset = load_dataset("fashion-mnist", "val", data_root=tmp_path)
    np.testing.assert_array_equal([np.asarray(image) for _, image in dataset.images()], pixels)
    assert [dataset.classes[label] for label in dataset.labels] == ["Ankle boot", "T-shirt/top", "Sneaker"]
    assert dataset.name == "fashion-mnist/val"


@pytest.mark.parametrize(("source", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
def test_files_are_found_where_torchvision_unpacks_them(tmp_path: Path, source: str, folder: str) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    raw = tmp_path / folder
    raw.mkdir(parents=True)
    for prefix, count in (("train", 5), ("t10k", 2)):
        for kind, array in (
            ("images-idx3", np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)),
            ("labels-idx1", np.arange(count, dtype=np.uint8)),
        ):
            _write_idx(raw / "packed", array)
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(gzip.decompress((raw / "packed").read_bytes()))
    theirs = (datasets.MNIST if source == "mnist" else datasets.FashionMNIST)(tmp_path, train=True)
    ours = load_dataset(source, "train", data_root=tmp_path)
    assert [(np.asarray(image).tolist(), int(ours.labels[i])) for i, image in ours.images()] == [
        (np.asarray(image).tolist(), label) for image, label in theirs
    ]


@pytest.fixture
def cifar(tmp_path: Path) -> Array:
    """Two images in each of the six batches; (12, 3072) bytes, the last two are the test images."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch = {"data": pixels[2 * i : 2 * i + 2], "labels": [i, 9 - i], "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=4))
    return pixels


def test_cifar10_keeps_its_official_split_and_its_colours(tmp_path: Path, cifar: Array) -> None:
    train, val = (load_dataset("cifar10", split, data_root=tmp_path) for split in ("train", "val"))
    assert (len(train), len(val)) == (10, 2)
    assert train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert [val.classes[label] for label in val.labels] == ["dog", "deer"]
    for i, image in val.images():
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1).reshape(-1), cifar[10 + i])


def test_cifar10_batches_are_read_as_torchvision_reads_them(
    tmp_path: Path, cifar: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": ["x"]}))
    theirs = datasets.CIFAR10(tmp_path, train=True)
    ours = load_dataset("cifar10", "train", data_root=tmp_path)
    assert len(theirs) == len(ours) == len(cifar) - 2
    for i, image in ours.images():
        np.testing.assert_array_equal(np.asarray(image), np.asarray(theirs[i][0]))
        assert ours.labels[i] == theirs[i][1]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [(b"<html>404</html>", "not a batch of CIFAR-10"), (pickle.dumps(os.getcwd), r"wants to run posix\.getcwd")],
)
@pytest.mark.usefixtures("cifar")
def test_a_cifar10_batch_that_is_something_else_is_named_and_not_run(
    tmp_path: Path, data: bytes, complaint: str
) -> None:
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(data)
    with pytest.raises(InputError, match=f"data_batch_3: .*{complaint}"):
        load_dataset("cifar10", "train", data_root=tmp_path)


@pytest.mark.parametrize(
    ("source", "fix"),
    [("fashion-mnist", "put the IDX files of fashion-mnist there"), ("cifar10", "unpack cifar-10-python.tar.gz")],
)
def test_absent_files_are_named_with_where_to_put_them(tmp_path: Path, source: str, fix: str) -> None:
    with pytest.raises(InputError, match=f"no such file; {fix}.*`data_root`"):
        load_dataset(source, "val", data_root=tmp_path)


@pytest.mark.usefixtures("pixels")
def test_a_label_without_a_class_is_refused(tmp_path: Path) -> None:
    _write_idx(tmp_path / "mnist" / "train-labels-idx1-ubyte.gz", np.array([1, 2, 3, 10], np.uint8))
    with pytest.raises(InputError, match="label outside 0…9"):
        load_dataset("mnist", "train", data_root=tmp_path)


@needs_shared_data
def test_the_real_mnist_has_its_published_class_counts() -> None:
    train = load_dataset("mnist", "train", data_root=SHARED_DATA)
    val = load_dataset("mnist", "val", data_root=SHARED_DATA)
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(val.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]


@pytest.mark.usefixtures("pixels")
def test_test_images_have_two_names_and_all_are_both_parts(tmp_path: Path, pixels: dict[str, Array]) -> None:
    judged, tested, every = (load_dataset("mnist", split, data_root=tmp_path) for split in ("val", "test", "all"))
    assert judged.fingerprint == tested.fingerprint
    np.testing.assert_array_equal(
        [np.asarray(image) for _, image in every.images()], np.concatenate([pixels["train"], pixels["val"]])
    )
    assert every.labels.tolist() == [9, 8, 7, 6, 9, 8]
    assert (judged.taken, every.taken) == ("2 images (the official test images)", "6 images")


def test_digits_has_all_and_no_test() -> None:
    assert load_dataset("digits", "all").labels.tolist() == load_digits().target.tolist()
    assert load_dataset("digits", "val").taken == "359 of 1797 images (the held-out fifth)"
    with pytest.raises(InputError, match="digits: has no test images; use `split` val or all"):
        load_dataset("digits", "test")


@pytest.mark.parametrize("name", ["absent", "model.onnx"])
def test_what_is_no_data_set_is_refused_with_all_that_would_do(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    forms = r"expected digits, mnist, fashion-mnist, cifar10, class folders, a folder of images, a list of images "
    with pytest.raises(InputError, match=rf"{name}.*; {forms}\(\.txt.*\), an array \(\.npy, \.npz\) or an image"):
        load_dataset(str(tmp_path / name), "train")


def test_one_image_is_a_data_set_and_has_no_splits(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("L", (4, 4), 7).save(path)
    for split in SPLITS:
        dataset = load_dataset(str(path), split)
        assert [(i, image.getpixel((0, 0))) for i, image in dataset.images()] == [(0, 7)]
        assert (dataset.name, dataset.taken, dataset.is_labelled) == (str(path), "1 image", False)
    assert len(load_dataset(str(path), "all", split_required=True)) == 1
    with pytest.raises(InputError, match=r"photo\.png: is not split into train, val and test; leave `split` out"):
        load_dataset(str(path), "val", split_required=True)


@needs_shared_data
def test_the_flowers_are_split_four_to_one_class_by_class() -> None:
    train, val = _both(SHARED_DATA / "flowers")
    assert train.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    counts = np.bincount(train.labels) + np.bincount(val.labels)
    assert counts.tolist() == [506, 718, 512, 559, 639]
    np.testing.assert_allclose(np.bincount(val.labels) / counts, 0.2, atol=0.001)


IMAGES, LABELS = (bytes([0, 0, 8, dims]) for dims in (3, 1))
SIZES = b"".join(size.to_bytes(4, "big") for size in (2, 3, 3))
PIXELS = IMAGES + SIZES + bytes(18)
TRUTH = LABELS + SIZES[:4] + bytes([7, 1])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", [".gz", ""])
def test_idx_files_are_known_by_their_bytes(tmp_path: Path, ending: str, packed: bool) -> None:
    (tmp_path / "mnist").mkdir()
    for name, data in (("images-idx3", PIXELS), ("labels-idx1", TRUTH)):
        path = tmp_path / "mnist" / f"t10k-{name}-ubyte{ending}"
        path.write_bytes(gzip.compress(data) if packed else data)
    found = load_dataset("mnist", "val", data_root=tmp_path)
    assert (found.labels.tolist(), found.image(1).size) == ([7, 1], (3, 3))


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (TRUTH, "images-idx3-ubyte: not an IDX file of images (it holds labels)"),
        (PIXELS[:-1], "not an IDX file of images"),
        (gzip.compress(PIXELS, mtime=0)[:-9], "not an IDX file of images"),
        (b"<html>", "it holds something else, which begins with 3c68746d"),
        (IMAGES + bytes(4) + SIZES[4:], "it is empty, its shape is (0, 3, 3)"),
        (IMAGES + b"\xff" * 4 + SIZES[4:] + bytes(18), "not an IDX file of images"),
    ],
)
def test_an_idx_file_that_is_swapped_cut_off_or_no_such_file_is_named(
    tmp_path: Path, images: bytes, complaint: str
) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(TRUTH)
    with pytest.raises(InputError, match=re.escape(complaint)):
        load_dataset("mnist", "val", data_root=tmp_path)
