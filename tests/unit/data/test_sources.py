from __future__ import annotations

import gzip
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import InputError
from tests.helpers.shared_data import SHARED_DATA, needs_shared_data

Array = npt.NDArray[np.uint8]


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
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: not a gzipped IDX file.*download it again"):
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


def _fill(folder: Path, *names: str, gray: int = 0) -> None:
    """Write an image for every name, in that order."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), gray).save(folder / name, "PNG")


def _photos(*classes: str, count: int = 10) -> list[str]:
    return [f"{name}/{name}-{i}.png" for name in classes for i in range(count)]


@pytest.mark.parametrize("below", ["", "train"])
def test_without_a_val_folder_each_class_is_split_four_to_one(tmp_path: Path, below: str) -> None:
    _fill(tmp_path / below, *_photos("dog", "cat", count=20))
    train, val = _both(tmp_path)
    assert train.classes == val.classes == ("cat", "dog")
    assert sorted([*train.samples, *val.samples]) == sorted(_photos("dog", "cat", count=20))
    assert (np.bincount(train.labels).tolist(), np.bincount(val.labels).tolist()) == ([16, 16], [4, 4])


def test_with_a_val_folder_its_images_are_the_held_out_ones(tmp_path: Path) -> None:
    _fill(tmp_path, "train/dog/1.png", "train/cat/2.png", "train/cat/3.png", "val/dog/4.png", "val/cat/5.png")
    train, val = _both(tmp_path)
    assert (list(train.samples), train.labels.tolist()) == (["cat/2.png", "cat/3.png", "dog/1.png"], [0, 0, 1])
    assert (list(val.samples), val.labels.tolist()) == (["cat/5.png", "dog/4.png"], [0, 1])


def test_the_split_depends_on_the_names_alone(tmp_path: Path) -> None:
    names = _photos("cat", "dog")
    _fill(tmp_path / "a", *names)
    _fill(tmp_path / "b", *reversed(names), *_photos("ant"), gray=255)
    first = load_dataset(str(tmp_path / "a"), "val")
    second = load_dataset(str(tmp_path / "b"), "val")
    assert list(first.samples) == [name for name in second.samples if not name.startswith("ant")]


def test_every_image_is_read_from_the_file_that_it_is_named_by(tmp_path: Path) -> None:
    for gray, name in enumerate(["train/a/1.png", "train/b/2.png", "val/a/1.png", "val/b/3.png"]):
        _fill(tmp_path, name, gray=gray)
    train, val = _both(tmp_path)
    assert [image.getpixel((0, 0)) for part in (train, val) for _, image in part.images()] == [0, 1, 2, 3]


def test_files_that_are_no_images_are_passed_over_and_capital_suffixes_are_not(tmp_path: Path) -> None:
    _fill(tmp_path, "train/a/1.PNG", "train/b/2.JPeG", "val/a/1.png", "val/b/1.png")
    (tmp_path / "train" / "a" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "README.txt").write_text("two classes")
    assert list(load_dataset(str(tmp_path), "train").samples) == ["a/1.PNG", "b/2.JPeG"]


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "train/.ipynb_checkpoints"])
def test_a_hidden_folder_is_no_class(tmp_path: Path, hidden: str) -> None:
    _fill(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png")
    (tmp_path / hidden).mkdir()
    assert load_dataset(str(tmp_path), "train").classes == ("a", "b")


@pytest.fixture
def folder_with_a_corrupt_image(tmp_path: Path) -> str:
    _fill(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png")
    (tmp_path / "train" / "b" / "notes.jpg").write_text("not an image at all")
    return str(tmp_path)


def test_a_text_file_that_is_called_jpg_is_named(folder_with_a_corrupt_image: str) -> None:
    with pytest.raises(InputError, match=r"cannot read image 'b/notes\.jpg'.*`skip_bad_images`"):
        list(load_dataset(folder_with_a_corrupt_image, "train").images())


def test_skipped_images_are_counted_by_name(folder_with_a_corrupt_image: str) -> None:
    dataset = load_dataset(folder_with_a_corrupt_image, "train", skip_bad=True)
    assert [index for index, _ in dataset.images()] == [0, 1]
    assert dataset.skipped == ["b/notes.jpg"]


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "ppm", "tif", "gif"])
def test_a_truncated_image_of_any_format_is_named(tmp_path: Path, suffix: str) -> None:
    _fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/3.png", "val/b/4.png")
    path = tmp_path / "train" / "a" / f"2.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=f"cannot read image 'a/2.{suffix}'"):
        list(load_dataset(str(tmp_path), "train").images())


@pytest.mark.parametrize(
    ("files", "folders", "complaint"),
    [
        (_photos("a", "b"), ["c"], r"c: the class folder holds no images"),
        (_photos("a"), [], "only one class, 'a'"),
        ([], [], "no class folders and no images"),
        (["1.png", "2.png"], [], "images without class folders"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"], [], r"different classes \(b, c\)"),
        (["val/a/1.png", "val/b/1.png"], [], "has 'val' but no 'train' folder"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(
    tmp_path: Path, files: list[str], folders: list[str], complaint: str
) -> None:
    _fill(tmp_path, *files)
    for name in folders:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=complaint):
        load_dataset(str(tmp_path), "train")


def test_a_missing_folder_is_refused_with_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"no data set '.*absent'; expected digits, mnist, fashion-mnist, cifar10 or an existing folder",
    ):
        load_dataset(str(tmp_path / "absent"), "train")


def test_a_file_is_no_data_set(tmp_path: Path) -> None:
    _fill(tmp_path, "photo.png")
    with pytest.raises(InputError, match=r"photo\.png: is a file"):
        load_dataset(str(tmp_path / "photo.png"), "train")


@needs_shared_data
def test_the_flowers_are_split_four_to_one_class_by_class() -> None:
    train, val = _both(SHARED_DATA / "flowers")
    assert train.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    counts = np.bincount(train.labels) + np.bincount(val.labels)
    assert counts.tolist() == [506, 718, 512, 559, 639]
    np.testing.assert_allclose(np.bincount(val.labels) / counts, 0.2, atol=0.001)
