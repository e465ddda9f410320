"""The sources of data sets: scikit-learn's digits, the files of MNIST, Fashion-MNIST and CIFAR-10, image folders.

They are read with NumPy rather than torchvision so that a build server can calibrate without installing torch.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from alexdeploy.data.dataset import ImageDataset, split_by_name
from alexdeploy.errors import InputError, few
from alexdeploy.pickled import load_arrays
from alexdeploy.specs import Split

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
NAMED = ("digits", "mnist", "fashion-mnist", "cifar10")
_DIGITS = tuple("0123456789")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_dataset(source: str, split: Split, *, data_root: Path | None = None, skip_bad: bool = False) -> ImageDataset:
    """One split of ``digits``, ``mnist``, ``fashion-mnist``, ``cifar10`` or a folder.

    Args:
        source: the DATASET of the command line.
        split: ``train`` to learn or calibrate from, ``val`` to judge on.
        data_root: where ``mnist/*.gz``, ``fashion-mnist/*.gz`` and ``cifar-10-batches-py/`` lie, or the folders that
            torchvision makes; default: the environment variable ALEXDEPLOY_DATA, else ``data``.
        skip_bad: see ``ImageDataset``.

    Raises:
        InputError: no such data set, or one that cannot be used (no images, one class, an empty class folder).

    Example:
        >>> from alexdeploy import load_dataset
        >>> digits = load_dataset("digits", "val")
        >>> digits.classes[digits.labels[0]], digits.image(0).size
        ('0', (8, 8))
    """
    if source == "digits":
        return _digits(split)
    root = data_root or Path(os.environ.get("ALEXDEPLOY_DATA", "data"))
    if source == "mnist":
        return _idx_pair(source, split, [root / "mnist", root / "MNIST" / "raw"], _DIGITS)
    if source == "fashion-mnist":
        return _idx_pair(source, split, [root / "fashion-mnist", root / "FashionMNIST" / "raw"], _FASHION)
    if source == "cifar10":
        return _cifar10(split, root / "cifar-10-batches-py")
    folder = Path(source)
    if folder.is_dir():
        return _folder(folder, split, skip_bad)
    if folder.exists():
        raise InputError(f"{source}: is a file; expected a folder of class folders, or one of: {', '.join(NAMED)}")
    raise InputError(f"no data set '{source}'; expected {', '.join(NAMED)} or an existing folder of class folders")


def _digits(split: Split) -> ImageDataset:
    """scikit-learn's 1,797 digits: 8×8 pixels of 0…16, stretched to 0…255; split 80/20 by name."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    names = [f"digits-{i:04d}" for i in range(len(digits.target))]
    chosen = np.flatnonzero(np.asarray(split_by_name(names)) == (split == "val"))
    pixels = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return ImageDataset(
        name=f"digits/{split}",
        classes=_DIGITS,
        samples=[names[i] for i in chosen],
        labels=digits.target[chosen].astype(np.int64),
        read=lambda i: Image.fromarray(pixels[i]),
    )


def _idx_pair(name: str, split: Split, folders: list[Path], classes: tuple[str, ...]) -> ImageDataset:
    """The official 60,000/10,000 split in IDX files; the first folder that exists counts."""
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    prefix = {"train": "train", "val": "t10k"}[split]
    pixels = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", name, dims=3)
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", name, dims=1).astype(np.int64)
    return _in_memory(name, split, classes, pixels, labels, str(folder))


def _in_memory(
    name: str,
    split: Split,
    classes: tuple[str, ...],
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    origin: str,
) -> ImageDataset:
    if len(pixels) != len(labels):
        raise InputError(f"{origin}: {len(pixels)} images but {len(labels)} labels; download the files again")
    if labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
        raise InputError(f"{origin}: has a label outside 0…{len(classes) - 1}; download the files again")
    return ImageDataset(
        name=f"{name}/{split}",
        classes=classes,
        samples=[f"{split}-{i}" for i in range(len(labels))],
        labels=labels,
        read=lambda i: Image.fromarray(pixels[i]),
    )


def _read_idx(path: Path, name: str, dims: int) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped or as torchvision unpacks it (format: yann.lecun.com/exdb/mnist)."""
    unpacked = path.with_suffix("")
    if not path.is_file() and not unpacked.is_file():
        raise InputError(
            f"{path}: no such file; put the IDX files of {name} there, or name their root with `data_root`"
        )
    try:
        data = gzip.decompress(path.read_bytes()) if path.is_file() else unpacked.read_bytes()
        shape = np.frombuffer(data, dtype=">i4", count=dims, offset=4)
        if data[:4] != bytes([0, 0, 8, dims]):
            raise ValueError(f"header {data[:4].hex()}")
        return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * dims).reshape(tuple(shape))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: not a gzipped IDX file of bytes ({error}); download it again") from error


def _cifar10(split: Split, folder: Path) -> ImageDataset:
    """The official 50,000/10,000 split in the Python version's batches of 32×32 RGB images."""
    pixels: list[npt.NDArray[np.uint8]] = []
    labels: list[int] = []
    for name in [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]:
        path = folder / name
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; unpack cifar-10-python.tar.gz in {folder.parent}, or name the folder that "
                f"holds {folder.name} with `data_root`"
            )
        try:
            with path.open("rb") as file:
                batch = load_arrays(file)
            pixels.append(np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels += [int(label) for label in batch["labels"]]
        except Exception as error:  # what a damaged pickle raises has no common base
            raise InputError(f"{path}: not a batch of CIFAR-10 ({error}); download it again") from error
    stacked = np.ascontiguousarray(np.concatenate(pixels))
    return _in_memory("cifar10", split, _CIFAR10, stacked, np.asarray(labels, dtype=np.int64), str(folder))


def _folder(folder: Path, split: Split, skip_bad: bool) -> ImageDataset:
    """Class folders below ``folder``, or below its ``train``/``val``; without ``val`` each class is split 80/20."""
    has_train, has_val = (folder / "train").is_dir(), (folder / "val").is_dir()
    if has_val and not has_train:
        raise InputError(f"{folder}: has 'val' but no 'train' folder; expected both, or only class folders")
    root = folder / split if has_val else folder / "train" if has_train else folder
    classes = _class_folders(root)
    if not classes:
        loose = any(p.suffix.lower() in IMAGE_SUFFIXES for p in root.iterdir())
        found = "images without class folders" if loose else "no class folders and no images"
        raise InputError(f"{root}: {found}; expected one subfolder of images per class")
    if has_val:
        _check_same_classes(folder)
    samples: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(p.name for p in (root / name).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise InputError(f"{root / name}: the class folder holds no images; fill it or remove it")
        if not has_val:
            held_out = split_by_name(files)
            files = [f for f, is_val in zip(files, held_out, strict=True) if is_val == (split == "val")]
        samples += [f"{name}/{f}" for f in files]
        labels += [label] * len(files)
    if len(classes) < 2:
        raise InputError(f"{root}: only one class, '{classes[0]}'; a classifier needs at least two class folders")
    return ImageDataset(
        name=f"{folder}/{split}",
        classes=classes,
        samples=samples,
        labels=np.asarray(labels, dtype=np.int64),
        read=lambda i: Image.open(root / samples[i]),
        skip_bad=skip_bad,
    )


def _class_folders(root: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _check_same_classes(folder: Path) -> None:
    train, val = _class_folders(folder / "train"), _class_folders(folder / "val")
    if train != val:
        odd = sorted(set(train) ^ set(val))
        raise InputError(f"{folder}: 'train' and 'val' hold different classes ({few(odd)})")
