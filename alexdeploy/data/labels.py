"""Class names beside a model: ``class_indices.json``, as the tutorials of Keras and PyTorch write it, and lists."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alexdeploy import files
from alexdeploy.errors import InputError, few, words_of

_LINE_END = re.compile(r"\r\n|\r|\n")


def place_finder(labels: Sequence[str]) -> Callable[[str], int | None]:
    """What finds a class among ``labels``: by its name, else by its name but for case, where just one is alike."""
    places = {label: place for place, label in enumerate(labels)}
    alike = Counter(label.casefold() for label in labels)
    loose = {label.casefold(): place for label, place in places.items() if alike[label.casefold()] == 1}
    return lambda name: places.get(name, loose.get(name.casefold()))


def read_class_indices(path: Path) -> tuple[str, ...]:
    """Class names in output order.

    From JSON: ``{"0": "daisy", …}`` (PyTorch), ``{"daisy": 0, …}`` (Keras), ``["daisy", …]``, or Keras'
    ``imagenet_class_index.json``, ``{"0": ["n01440764", "tench"], …}``, where names that stand for two classes get
    their WordNet id behind them: ``crane (n02012849)``. From a file that does not end in .json: one name per line.

    Raises:
        InputError: not such a file, a name that is empty or there twice, or indices that are not 0, 1, 2 … each once.
    """
    files.check_input(path)
    text = files.utf8(path.read_bytes(), str(path))
    try:
        pairs = _from_json(text) if path.suffix.lower() == ".json" or text[:1] in "{[" else _from_lines(text)
        for index, name in pairs:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"class {index} is {json.dumps(name)}, not a name")
            name.encode()  # an error, and a ValueError, where JSON holds half of a character
    except RecursionError as error:
        raise InputError(f"{path}: not a class_indices.json: it is nested too deeply") from error
    except ValueError as error:
        raise InputError(
            f"{path}: not a class_indices.json ({words_of(error)}); "
            'expected {"0": "daisy", …}, or a .txt with a name per line'
        ) from error
    pairs.sort(key=lambda pair: pair[0])
    if [index for index, _ in pairs] != list(range(len(pairs))):
        raise InputError(f"{path}: its {len(pairs)} classes are not numbered 0 to {len(pairs) - 1}, each once")
    repeated = [repr(name) for name, count in Counter(name for _, name in pairs).items() if count > 1]
    if repeated:
        raise InputError(f"{path}: more than one class is named {few(repeated)}; give each a name of its own")
    return tuple(name for _, name in pairs)


def _from_lines(text: str) -> list[tuple[int, Any]]:
    return [(index, line.strip()) for index, line in enumerate(_LINE_END.split(text.rstrip()))]


def _from_json(text: str) -> list[tuple[int, Any]]:
    """(index, name) of each class, in the order of the file.

    Raises:
        ValueError: none of the forms.
    """
    content: Any = json.loads(text, object_pairs_hook=_without_repeats)
    if not isinstance(content, (dict, list)) or not content:
        raise ValueError("it names no class")
    if isinstance(content, list):
        pairs = list(enumerate(content))
    elif all(type(value) is int for value in content.values()):
        pairs = [(index, name) for name, index in content.items()]
    else:
        pairs = [(_number(index), name) for index, name in content.items()]
    if all(isinstance(value, list) and list(map(type, value)) == [str, str] for _, value in pairs):  # Keras
        count = Counter(name for _, (_, name) in pairs)
        pairs = [(index, f"{name} ({wordnet})" if count[name] > 1 else name) for index, (wordnet, name) in pairs]
    return pairs


def _number(key: str) -> int:
    if not key.strip().isdecimal():
        raise ValueError(f"'{key}' is no number of a class")
    return int(key)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands in it more than once")
    return content


def write_class_indices(path: Path, labels: tuple[str, ...]) -> None:
    """Write ``{"0": "daisy", …}`` atomically."""
    text = json.dumps({str(index): name for index, name in enumerate(labels)}, indent=4, ensure_ascii=False)
    files.write_bytes(path, text.encode())
