"""Folders of images: class folders with their splits, and images that are not sorted into classes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from alexdeploy.data.dataset import ImageDataset, split_by_name
from alexdeploy.data.decode import open_image
from alexdeploy.data.folders import image_files, is_image, subfolders
from alexdeploy.errors import InputError, InputWarning, few
from alexdeploy.files import printable
from alexdeploy.specs import Split

_SPLIT_OF: Mapping[str, Split] = {  # names that others use
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_UNSORTED = ""  # stands for the class of images that are not sorted into classes
_Files = dict[str, list[str]]
"""Class folder → its images as paths relative to the data set, nested ones too, sorted."""


def is_unsorted(folder: Path) -> bool:
    """True where images lie in the folder itself, beside one subfolder of images at most: they are in no classes."""
    return _has_loose_images(folder) and not _split_folders(folder)


def has_test(folder: Path) -> bool:
    """True if there is a folder of images to test on."""
    return "test" in _split_folders(folder)


def splits_beside_train(folder: Path) -> list[str]:
    """Names of folders of images to judge on, where a folder of training images is beside them."""
    split_of = {name: _SPLIT_OF.get(name.casefold()) for name in subfolders(folder)}
    return [name for name, split in split_of.items() if split in ("val", "test") and "train" in split_of.values()]


def load_unsorted(folder: Path, *, skip_bad: bool) -> ImageDataset:
    """All images below a folder, without labels."""
    return _dataset(printable(folder), folder, _by_class(folder), skip_bad)


def load_class_folders(folder: Path, split: Split, *, skip_bad: bool) -> ImageDataset:
    """One split of class folders, or of the class folders below ``train``, ``val`` and ``test``.

    Without a folder ``val``, a fifth of each class is held out by name.

    Raises:
        InputError: no images, an empty class folder, no such split, or a class that the training images lack.
    """
    splits = _split_folders(folder)
    name = f"{printable(folder)}/{split}"
    if not splits:
        files = _by_class(folder)
        if split == "all":
            return _dataset(name, folder, files, skip_bad)
        if split == "test":
            raise InputError(f"{printable(folder)}: has no folder 'test'; make one, or use `split` val or all")
        return _divided(name, folder, files, split, skip_bad)
    if split == "all":
        return _dataset(name, folder, _merged(splits), skip_bad, part=" and ".join(_names(splits)))
    if split in ("train", "val") and "train" in splits and "val" not in splits:
        files = _by_class(splits["train"])
        if _UNSORTED not in files:
            return _divided(name, splits["train"], files, split, skip_bad)
    if split not in splits:
        raise InputError(
            f"{printable(folder)}: has no folder for '{split}', only {few(_names(splits))}; "
            f"use `split` {' or '.join([*splits, 'all'])}"
        )
    files = _like_train(folder, splits, split)
    return _dataset(name, splits[split], files, skip_bad, part=f"the folder {printable(splits[split].name)}")


def _split_folders(folder: Path) -> dict[Split, Path]:
    """The folders of the splits; none where folders of such names are classes, with images beside other classes."""
    names = subfolders(folder)
    found: dict[Split, Path] = {}
    others = []
    for name in names:
        split = _SPLIT_OF.get(name.casefold())
        if split is None:
            others.append(name)
        elif split in found:
            raise InputError(f"{printable(folder)}: '{found[split].name}' and '{name}' are both for {split}; keep one")
        else:
            found[split] = folder / name
    if others and not any(subfolders(path) for path in found.values()):
        return {}
    if found:
        left_out = [name for name in others if image_files(folder / name)] + _images_in(folder)
        if left_out:
            beside = " and ".join(_names(found))
            _warn(f"{printable(folder)}: images beside {beside} are left out: {few(map(printable, left_out))}")
    order: tuple[Split, ...] = ("train", "val", "test")
    return {split: found[split] for split in order if split in found}


def _names(splits: Mapping[Split, Path]) -> list[str]:
    return [printable(path.name) for path in splits.values()]


def _images_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if is_image(path.name) and path.is_file())


def _has_loose_images(root: Path) -> bool:
    """True if images lie in the folder itself, and not only beside class folders as a stray one would."""
    return bool(_images_in(root)) and sum(bool(image_files(root / name)) for name in subfolders(root)) < 2


def _by_class(root: Path) -> _Files:
    """The images of each class folder of ``root``; all of them as one where they are not sorted into classes."""
    if _has_loose_images(root):
        return {_UNSORTED: [path.relative_to(root).as_posix() for path in image_files(root)]}
    files = {
        name: [path.relative_to(root).as_posix() for path in image_files(root / name)] for name in subfolders(root)
    }
    if not files:
        raise InputError(f"{printable(root)}: no class folders and no images; expected one subfolder per class")
    for name, inside in files.items():
        if not inside:
            raise InputError(f"{printable(root / name)}: the class folder holds no images; fill it or remove it")
    if stray := _images_in(root):
        _warn(f"{printable(root)}: images beside the class folders are left out: {few(map(printable, stray))}")
    return files


def _merged(splits: Mapping[Split, Path]) -> _Files:
    """The images of all split folders, by class."""
    merged: _Files = {}
    for root in splits.values():
        for label, inside in _by_class(root).items():
            merged.setdefault(label, []).extend(f"{root.name}/{path}" for path in inside)
    if _UNSORTED in merged:
        return {_UNSORTED: [path for inside in merged.values() for path in inside]}
    return dict(sorted(merged.items()))


def _like_train(folder: Path, splits: Mapping[Split, Path], split: Split) -> _Files:
    """The images of a split folder by the classes of the training images, where there are such."""
    files = _by_class(splits[split])
    train = splits.get("train")
    if split == "train" or train is None or _UNSORTED in files or _has_loose_images(train):
        return files
    known = subfolders(train)
    here, there = printable(splits[split].name), printable(train.name)
    unknown = [printable(name) for name in files if name not in known]
    if unknown:
        raise InputError(
            f"{printable(folder)}: '{here}' has classes {few(unknown)}, '{there}' has {few(map(printable, known))}; "
            "name the same classes alike"
        )
    lacking = [printable(name) for name in known if name not in files]
    if lacking and split == "val":
        _warn(f"{printable(folder)}: '{here}' holds no images of {few(lacking)}, which '{there}' does")
    return {name: files.get(name, []) for name in known}


def _divided(name: str, root: Path, files: _Files, split: Split, skip_bad: bool) -> ImageDataset:
    """The held-out fifth of each class, or the others."""
    alone = [printable(label) for label, inside in files.items() if len(inside) == 1]
    if split == "val":
        if len(alone) == len(files):
            raise InputError(
                f"{printable(root)}: no class has a second image to hold out; add images, or use `split` all"
            )
        if alone:
            _warn(f"{printable(root)}: one image only of {few(alone)}; it is for training and none is held out")
    chosen: _Files = {}
    for label, inside in files.items():
        held_out = split_by_name([path.removeprefix(f"{label}/") for path in inside])
        chosen[label] = [path for path, out in zip(inside, held_out, strict=True) if out == (split == "val")]
    part = "the held-out fifth of each class" if split == "val" else "four fifths of each class"
    return _dataset(name, root, chosen, skip_bad, part=part, total=sum(map(len, files.values())))


def _dataset(
    name: str, root: Path, files: _Files, skip_bad: bool, *, part: str = "", total: int | None = None
) -> ImageDataset:
    alike = [label for label, count in Counter(map(printable, files)).items() if count > 1]
    if alike:
        raise InputError(f"{printable(root)}: two class folders would be called '{alike[0]}'; rename one")
    samples = [path for inside in files.values() for path in inside]
    unsorted = _UNSORTED in files
    numbers = [-1] if unsorted else range(len(files))
    return ImageDataset(
        name=name,
        classes=() if unsorted else tuple(map(printable, files)),
        samples=samples,
        labels=np.repeat(np.asarray(numbers, np.int64), [len(inside) for inside in files.values()]),
        read=lambda i: open_image(root / samples[i], found=True),
        skip_bad=skip_bad,
        total=total,
        part=part,
        unlabelled=f"{name} has images that are in no class folder" if unsorted else "",
    )


def _warn(text: str) -> None:
    warnings.warn(text, InputWarning, stacklevel=2)
