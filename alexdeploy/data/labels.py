"""``class_indices.json``: class names beside a model, as the tutorials of Keras and PyTorch write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alexdeploy import files
from alexdeploy.errors import InputError


def read_class_indices(path: Path) -> tuple[str, ...]:
    """Class names in output order, from ``{"0": "daisy", …}`` (PyTorch) or ``{"daisy": 0, …}`` (Keras).

    Raises:
        InputError: not such a file, or its indices are not 0, 1, 2 … each once.
    """
    files.check_input(path)
    try:
        content: Any = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        by_name = {name: index for name, index in content.items() if isinstance(index, int)}
        names = {index: name for name, index in by_name.items()} if by_name else content
        pairs = {int(index): str(name) for index, name in names.items()}
    except ValueError as error:
        raise InputError(f'{path}: not a class_indices.json ({error}); expected {{"0": "daisy", …}}') from error
    if len(pairs) != len(content) or sorted(pairs) != list(range(len(pairs))):
        raise InputError(f"{path}: its {len(content)} classes are not numbered 0 to {len(content) - 1}, each once")
    return tuple(pairs[index] for index in range(len(pairs)))


def write_class_indices(path: Path, labels: tuple[str, ...]) -> None:
    """Write ``{"0": "daisy", …}`` atomically."""
    text = json.dumps({str(index): name for index, name in enumerate(labels)}, indent=4, ensure_ascii=False)
    files.write_bytes(path, text.encode())
