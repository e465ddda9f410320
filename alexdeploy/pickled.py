"""NumPy arrays in pickle files that come from elsewhere, restored without running anything else that is in them.

Not even NumPy's own code: given the state of a damaged array, or of one that somebody made up, it crashes the process.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

_TYPES = re.compile(r"[<>|=]?([biuf]\d{1,2}|O8?)")  # numbers, and objects, of which an array has only references


class _Type:
    """Stands for a ``numpy.dtype``: called with what it is (``f4``), and told its byte order afterwards."""

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not _TYPES.fullmatch(name):
            raise pickle.UnpicklingError("it holds an array of an unknown type")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("it holds an array of an unknown byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for a ``numpy.ndarray``: made empty, and told its content afterwards."""

    def __init__(self, *_: Any) -> None:
        self.array: npt.NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, kind, is_fortran, content = state[-4:]  # a version may stand before
        if not isinstance(kind, _Type) or not all(type(size) is int and size >= 0 for size in shape):
            raise pickle.UnpicklingError("it holds a damaged array")
        if kind.dtype == object:
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise pickle.UnpicklingError("it holds a damaged array of objects")
            array = _of_objects(content)
        else:
            array = np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, kind.dtype)
        self.array = array.reshape(shape, order="F" if is_fortran else "C")


def _of_objects(items: list[Any]) -> npt.NDArray[Any]:
    array = np.empty(len(items), object)
    for place, item in enumerate(items):  # a slice would be given the parts of a list
        array[place] = item
    return array


class _ArraysOnly(pickle._Unpickler):  # the one in C takes gigabytes where a file says that it has as many parts
    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy" and name in _STAND_INS:
            return _STAND_INS[name]
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _Array
        raise pickle.UnpicklingError(f"it wants to run {module}.{name}")


_STAND_INS: Mapping[str, type] = {"ndarray": _Array, "dtype": _Type}


def load_arrays(file: BinaryIO) -> Any:
    """Dicts, lists, tuples, strings, numbers and arrays, written by Python 2 or 3; strings of 2 become ``str``.

    Numbers in arrays are read-only.

    Raises:
        pickle.UnpicklingError: anything else is in the file; it is refused, not run.
        Exception: the file is damaged; what a damaged pickle raises has no common base.
    """
    return _restored(_ArraysOnly(file, encoding="latin1").load(), {})


def _restored(value: Any, done: dict[int, Any]) -> Any:
    """``value`` with arrays in place of what stands for them; each part once, however often it occurs."""
    if id(value) in done:
        return done[id(value)]
    found = value
    if isinstance(value, _Array):
        found = value.array
        if found.dtype == object:
            found = _of_objects([_restored(item, done) for item in found.flat]).reshape(found.shape)
    elif isinstance(value, dict):
        found = {key: _restored(item, done) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(_restored(item, done) for item in value)
    elif not isinstance(value, str | bytes | int | float | bool | type(None)):
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
    done[id(value)] = found
    return found
