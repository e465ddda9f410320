from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alexdeploy.data.labels import read_class_indices, write_class_indices
from alexdeploy.errors import InputError


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"1": "roses", "0": "daisy"}, ("daisy", "roses")),
        ({"roses": 1, "daisy": 0}, ("daisy", "roses")),
        ({"0": "7", "1": "3"}, ("7", "3")),
        ({"7": 0, "3": 1}, ("7", "3")),
    ],
)
def test_both_directions_are_read(tmp_path: Path, content: dict[str, Any], names: tuple[str, ...]) -> None:
    (tmp_path / "class_indices.json").write_text(json.dumps(content))
    assert read_class_indices(tmp_path / "class_indices.json") == names


def test_what_is_written_is_what_the_pytorch_tutorials_write(tmp_path: Path) -> None:
    write_class_indices(tmp_path / "class_indices.json", ("daisy", "Gänseblümchen"))
    assert json.loads((tmp_path / "class_indices.json").read_text()) == {"0": "daisy", "1": "Gänseblümchen"}
    assert read_class_indices(tmp_path / "class_indices.json") == ("daisy", "Gänseblümchen")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<html>", "not a class_indices.json"),
        ("[1, 2]", "not a class_indices.json"),
        ('{"a": "b"}', "not a class_indices.json"),
        ('{"0": "a", "2": "b"}', "its 2 classes are not numbered 0 to 1, each once"),
        ('{"a": 0, "b": 0}', "each once"),
        ('{"a": 0, "1": "b"}', "each once"),
        ("", "empty"),
    ],
)
def test_anything_else_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=rf"x\.json: .*{complaint}"):
        read_class_indices(tmp_path / "x.json")
