"""The folder of a run: one at a time, and no files of another run are replaced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from alexdeploy import files, locks
from alexdeploy.data.labels import read_class_indices, write_class_indices
from alexdeploy.errors import InputError, UsageError, few


def state_path(path: Path) -> Path:
    """``NAME.safetensors`` → ``NAME.last.pt``."""
    return path.with_suffix(".last.pt")


def log_path(path: Path) -> Path:
    """``NAME.safetensors`` → ``NAME.jsonl``."""
    return path.with_suffix(".jsonl")


def curves_path(path: Path) -> Path:
    """``NAME.safetensors`` → ``NAME.png``."""
    return path.with_suffix(".png")


def classes_path(path: Path) -> Path:
    """The class names beside ``NAME.safetensors``, in the form of the tutorials."""
    return path.with_name("class_indices.json")


@contextlib.contextmanager
def folder_of_run(path: Path, classes: tuple[str, ...], *, resume: bool) -> Iterator[None]:
    """Hold the folder of the checkpoint ``path`` for a run on ``classes``; of several processes the first one does.

    Raises:
        UsageError: another run writes there at this moment; or, without ``resume``, an earlier run left files that this
            one would replace; or the class names beside them are others.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0":
        yield
        return
    with locks.claimed(path.parent):
        if not resume:
            _check_nothing_is_replaced(path)
        _check_class_names(classes_path(path), classes)
        yield


def _check_nothing_is_replaced(path: Path) -> None:
    written = (path, files.sidecar_path(path), state_path(path), log_path(path), curves_path(path))
    found = [each.name for each in written if each.exists()]
    if not found:
        return
    fix = "name another folder, or move them away"
    if state_path(path).exists():
        fix = "go on with that run (`resume`, with the settings it had), or name another folder for other settings"
    raise UsageError(f"{path.parent}: holds {few(found)} of an earlier run, which a new one would replace; {fix}")


def _check_class_names(path: Path, classes: tuple[str, ...]) -> None:
    if not path.exists() or not classes:
        return
    try:
        found = read_class_indices(path)
    except InputError as error:
        raise UsageError(f"{error}; this run would replace it, so name another folder") from error
    if found != classes:
        raise UsageError(
            f"{path}: names other classes ({few(found)}) than these images ({few(classes)}), so it belongs to another "
            "run; name another folder, or move it away"
        )


def write_class_names(path: Path, classes: tuple[str, ...]) -> None:
    """The class names beside the checkpoint ``path``, unless they are there, in any form."""
    if not classes_path(path).exists():
        write_class_indices(classes_path(path), classes)
