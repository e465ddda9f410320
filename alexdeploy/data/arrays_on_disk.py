"""Arrays on disk as data sets: ``.npy`` and ``.npz`` with images, or with inputs that are preprocessed already."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexdeploy.arrays import Labels
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import InputError, few, words_of
from alexdeploy.files import check_input, printable

SUFFIXES = (".npy", ".npz")
_LABELS = "labels"
_Arrays = dict[str, npt.NDArray[Any]]


def load_arrays(path: Path) -> ImageDataset:
    """A data set of the first axis of an array.

    ``uint8`` (N, H, W) or (N, H, W, channels) are images; floats are network inputs as they are. ``.npz`` holds one
    such array under any name, and may hold ``labels``, integers (N,) that count the model's outputs from 0.

    Raises:
        InputError: not such a file, or arrays of another kind. Pickled objects are never loaded.
    """
    check_input(path)
    name = printable(path)
    found = _read(path, name)
    labels = found.pop(_LABELS, None) if path.suffix.lower() == ".npz" else None
    array = _the_images(found, name)
    if array.ndim < 2 or not (array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)):
        raise InputError(
            f"{name}: holds {array.dtype} {array.shape}; expected uint8 images (N, H, W, 3) or float inputs (N, …)"
        )
    if not len(array):
        raise InputError(f"{name}: holds no images, its shape is {array.shape}")
    classes, truth = _classes(labels, len(array), name)
    return ImageDataset(
        name=name,
        classes=classes,
        samples=[f"{path.stem}-{i}" for i in range(len(array))],
        labels=truth,
        read=lambda i: np.ascontiguousarray(array[i]),
        are_indices=True,
        unlabelled="" if classes else f"{name} has no array '{_LABELS}'",
    )


def _read(path: Path, name: str) -> _Arrays:
    """Array name → array; a ``.npy`` is mapped into memory, and its array has no name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a header that Python 2 wrote
            if path.suffix.lower() == ".npy":
                return {"": np.lib.format.open_memmap(path, mode="r")}
            with np.load(path, allow_pickle=False) as file:
                if not isinstance(file, np.lib.npyio.NpzFile):
                    raise ValueError("it is a .npy file")
                found = {key: file[key] for key in file.files}
    except Exception as error:  # NumPy parses the header as Python, and zip files have errors of their own
        pickled = "pickle" in str(error)
        cause = "it holds pickled objects, which are never loaded, or is damaged" if pickled else words_of(error)
        raise InputError(f"{name}: NumPy cannot read it ({cause}); write it with numpy.save or savez") from error
    odd = [key for key, array in found.items() if not isinstance(array, np.ndarray)]
    if odd:  # a file that is no .npy is given as bytes
        raise InputError(f"{name}: holds '{odd[0]}', which is no array; write it with numpy.savez")
    return found


def _the_images(found: _Arrays, name: str) -> npt.NDArray[Any]:
    """The only array, or else the only one with four axes."""
    if len(found) > 1:
        shapes = [f"{key} {array.shape}" for key, array in found.items()]
        found = {key: array for key, array in found.items() if array.ndim == 4}
        if len(found) != 1:
            raise InputError(f"{name}: holds {few(shapes)}; expected one array of images, and '{_LABELS}' at most")
    if not found:
        raise InputError(f"{name}: holds no array of images")
    return next(iter(found.values()))


def _classes(labels: npt.NDArray[Any] | None, count: int, name: str) -> tuple[tuple[str, ...], Labels]:
    """The numbers that occur, as class names, and the labels in terms of these."""
    if labels is None:
        return (), np.full(count, -1, np.int64)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{name}: '{_LABELS}' are {labels.dtype} {labels.shape}; expected integers ({count},)")
    if labels.min() < 0:
        raise InputError(f"{name}: '{_LABELS}' has {labels.min()}; expected the model's outputs, counted from 0")
    values, places = np.unique(labels, return_inverse=True)
    return tuple(map(str, values.tolist())), places.astype(np.int64)
