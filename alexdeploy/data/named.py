"""The data sets known by name: scikit-learn's digits, the files of MNIST, Fashion-MNIST and CIFAR-10.

They are read with NumPy rather than torchvision so that a build server can calibrate without installing torch.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from alexdeploy.arrays import Labels
from alexdeploy.data.dataset import ImageDataset, split_by_name
from alexdeploy.errors import InputError, is_lack, words_of
from alexdeploy.pickled import load_arrays
from alexdeploy.specs import Split

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10")
_GZIP = b"\x1f\x8b"
_HELD = {bytes([0, 0, 8, 1]): "labels", bytes([0, 0, 8, 3]): "images"}  # by the first bytes of an IDX file
_DIGITS = tuple("0123456789")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_named(name: str, split: Split, root: Path) -> ImageDataset:
    """One split of a data set of ``NAMES``; ``val`` and ``test`` are both the official test images, where there are.

    Args:
        name: one of ``NAMES``.
        split: see ``load_dataset``.
        root: the folder that holds the files of each.

    Raises:
        InputError: the files are missing or damaged, or digits is asked for ``test``.
    """
    if name == "digits":
        return _digits(split)
    if name == "mnist":
        return _idx_pair(name, split, [root / "mnist", root / "MNIST" / "raw"], _DIGITS)
    if name == "fashion-mnist":
        return _idx_pair(name, split, [root / "fashion-mnist", root / "FashionMNIST" / "raw"], _FASHION)
    return _cifar10(split, root / "cifar-10-batches-py")


def _digits(split: Split) -> ImageDataset:
    """scikit-learn's 1,797 digits: 8×8 pixels of 0…16, stretched to 0…255; split 80/20 by name."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    names = [f"digits-{i:04d}" for i in range(len(digits.target))]
    if split == "test":
        raise InputError("digits: has no test images; use `split` val or all")
    held_out = np.asarray(split_by_name(names))
    chosen = np.flatnonzero((split == "all") | (held_out == (split == "val")))
    pixels = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return ImageDataset(
        name=f"digits/{split}",
        classes=_DIGITS,
        samples=[names[i] for i in chosen],
        labels=digits.target[chosen].astype(np.int64),
        read=lambda i: Image.fromarray(pixels[i]),
        total=len(names),
        part={"val": "the held-out fifth", "train": "four fifths"}.get(split, ""),
    )


def _parts(split: Split) -> list[Split]:
    """The official parts that a split takes; ``val`` is the name of the test images."""
    return ["train", "val"] if split == "all" else ["train" if split == "train" else "val"]


def _idx_pair(name: str, split: Split, folders: list[Path], classes: tuple[str, ...]) -> ImageDataset:
    """The official 60,000/10,000 split in IDX files; the first folder that exists counts."""
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    pixels, labels = [], []
    for part in _parts(split):
        prefix = "train" if part == "train" else "t10k"
        pixels.append(_read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", name, dims=3))
        labels.append(_read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", name, dims=1).astype(np.int64))
    return _in_memory(name, split, classes, pixels, labels, str(folder))


def _in_memory(
    name: str,
    split: Split,
    classes: tuple[str, ...],
    pixels: list[npt.NDArray[np.uint8]],
    labels: list[Labels],
    origin: str,
) -> ImageDataset:
    """The images of each part of ``split``, in order."""
    for images, truth in zip(pixels, labels, strict=True):
        if len(images) != len(truth):
            raise InputError(f"{origin}: {len(images)} images but {len(truth)} labels; download the files again")
        if truth.size and not 0 <= truth.min() <= truth.max() < len(classes):
            raise InputError(f"{origin}: has a label outside 0…{len(classes) - 1}; download the files again")
    # one part is not copied: it may be all of the memory
    every = pixels[0] if len(pixels) == 1 else np.concatenate(pixels)
    official = {"train": "the official training images", "all": ""}
    return ImageDataset(
        name=f"{name}/{split}",
        classes=classes,
        samples=[f"{part}-{i}" for part, truth in zip(_parts(split), labels, strict=True) for i in range(len(truth))],
        labels=np.concatenate(labels),
        read=lambda i: Image.fromarray(every[i]),
        part=official.get(split, "the official test images"),
    )


def _read_idx(path: Path, name: str, dims: int) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped or as torchvision unpacks it (format: yann.lecun.com/exdb/mnist)."""
    unpacked = path.with_suffix("")
    if not path.is_file() and not unpacked.is_file():
        raise InputError(
            f"{path}: no such file; put the IDX files of {name} there, or name their root with `data_root`"
        )
    try:
        path = path if path.is_file() else unpacked
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP  # whatever it is called: browsers unpack files and keep their names
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(4 + 4 * dims)
            if head[:4] != bytes([0, 0, 8, dims]):
                held = _HELD.get(head[:4], f"something else, which begins with {head[:4].hex() or 'nothing'}")
                raise ValueError(f"it holds {held}")
            shape = [int(size) for size in np.frombuffer(head, dtype=">u4", count=dims, offset=4)]
            if min(shape) < 1:
                raise ValueError(f"it is empty, its shape is {tuple(shape)}")
            data = file.read(math.prod(shape) + 1)  # no more than it says: what is packed may be far larger
        return np.frombuffer(data, dtype=np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error) as error:
        if isinstance(error, OSError) and is_lack(error):
            raise
        kind = _HELD[bytes([0, 0, 8, dims])]
        raise InputError(f"{path}: not an IDX file of {kind} ({words_of(error)}); download it again") from error


def _cifar10(split: Split, folder: Path) -> ImageDataset:
    """The official 50,000/10,000 split in the Python version's batches of 32×32 RGB images."""
    pixels, labels = [], []
    for part in _parts(split):
        names = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
        batches = [_read_batch(folder / name) for name in names]
        pixels.append(np.concatenate([images for images, _ in batches]))
        labels.append(np.concatenate([truth for _, truth in batches]))
    return _in_memory("cifar10", split, _CIFAR10, pixels, labels, str(folder))


def _read_batch(path: Path) -> tuple[npt.NDArray[np.uint8], Labels]:
    """(N, 32, 32, 3) pixels and (N,) labels of one of the files of CIFAR-10."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; unpack cifar-10-python.tar.gz in {path.parent.parent}, or name the folder that "
            f"holds {path.parent.name} with `data_root`"
        )
    try:
        with path.open("rb") as file:
            batch = load_arrays(file)
        pixels = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(pixels), np.asarray([int(label) for label in batch["labels"]], np.int64)
    except Exception as error:  # what a damaged pickle raises has no common base
        raise InputError(f"{path}: not a batch of CIFAR-10 ({words_of(error)}); download it again") from error
