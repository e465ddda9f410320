"""Data sets by what the user names: a known set, a folder, a list, an array on disk or one image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from alexdeploy.data import arrays_on_disk, class_folders, lists, named
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.decode import open_image
from alexdeploy.data.folders import is_image
from alexdeploy.errors import InputError
from alexdeploy.files import exists, printable
from alexdeploy.specs import Split

_FORMS = (
    f"{', '.join(named.NAMES)}, class folders, a folder of images, a list of images ({', '.join(lists.SUFFIXES)}), "
    "an array (.npy, .npz) or an image"
)


def load_dataset(
    source: str, split: Split, *, data_root: Path | None = None, skip_bad: bool = False, split_required: bool = False
) -> ImageDataset:
    """One split of a data set.

    Args:
        source: the DATASET of the command line: ``digits``, ``mnist``, ``fashion-mnist`` or ``cifar10``; class
            folders, alone or below ``train``, ``val`` and ``test``; a folder of images, taken with all below it; a
            list of paths with or without labels; an array of images or of network inputs; one image.
        split: ``train`` to learn or calibrate from, ``val`` to judge on, ``test``, or ``all`` of them. A source that
            is not split, such as a folder of images or a list, is taken whole.
        data_root: where ``mnist/*.gz``, ``fashion-mnist/*.gz`` and ``cifar-10-batches-py/`` lie, or the folders that
            torchvision makes; default: the environment variable ALEXDEPLOY_DATA, else ``data``.
        skip_bad: see ``ImageDataset``.
        split_required: refuse to take a source whole that is not split.

    Raises:
        InputError: no such data set or split, or one that cannot be used (no images, an empty class folder).

    Example:
        >>> from alexdeploy import load_dataset
        >>> digits = load_dataset("digits", "val")
        >>> digits.classes[digits.labels[0]], digits.image(0).size
        ('0', (8, 8))
    """
    if source in named.NAMES:
        root = data_root or Path(os.environ.get("ALEXDEPLOY_DATA", "data"))
        return named.load_named(source, split, root)
    path = Path(source)
    if not exists(path):
        raise InputError(f"no data set '{printable(source)}'; expected {_FORMS}")
    if path.is_dir() and not class_folders.is_unsorted(path):
        return class_folders.load_class_folders(path, split, skip_bad=skip_bad)
    if split_required and split != "all":
        raise InputError(f"{printable(path)}: is not split into train, val and test; leave `split` out")
    if path.is_dir():
        return class_folders.load_unsorted(path, skip_bad=skip_bad)
    suffix = path.suffix.lower()
    if suffix in lists.SUFFIXES:
        return lists.load_list(path, skip_bad=skip_bad)
    if suffix in arrays_on_disk.SUFFIXES:
        return arrays_on_disk.load_arrays(path)
    if is_image(path.name):
        return _one_image(path)
    raise InputError(f"{printable(path)}: is a file of no known kind; expected {_FORMS}")


def _one_image(path: Path) -> ImageDataset:
    name = printable(path)
    return ImageDataset(
        name=name,
        classes=(),
        samples=[path.name],
        labels=np.full(1, -1, np.int64),
        read=lambda i: open_image(path),
        unlabelled=f"{name} is one image, without a label",
    )
