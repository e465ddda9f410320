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
        ({" 1": "roses", "0 ": "daisy"}, ("daisy", "roses")),
        ({"7": 0, "3": 1}, ("7", "3")),
        (["roses", "daisy"], ("roses", "daisy")),
        ({"1": ["n01443537", "goldfish"], "0": ["n01440764", "tench"]}, ("tench", "goldfish")),
        (
            {"0": ["n02012849", "crane"], "1": ["n01440764", "tench"], "2": ["n03126707", "crane"]},
            ("crane (n02012849)", "tench", "crane (n03126707)"),
        ),
    ],
)
def test_every_form_is_read(tmp_path: Path, content: dict[str, Any], names: tuple[str, ...]) -> None:
    (tmp_path / "class_indices.json").write_text(json.dumps(content))
    assert read_class_indices(tmp_path / "class_indices.json") == names


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_of_lines_and_the_bytes_of_a_windows_editor_are_read(tmp_path: Path, end: str) -> None:
    (tmp_path / "names.txt").write_bytes(end.join(["\ufeff雏菊", "great white shark", ""]).encode())
    assert read_class_indices(tmp_path / "names.txt") == ("雏菊", "great white shark")
    (tmp_path / "names.json").write_bytes(end.join(["\ufeff{", '"0": "雏菊"', "}"]).encode())
    assert read_class_indices(tmp_path / "names.json") == ("雏菊",)


def test_what_is_written_is_what_the_pytorch_tutorials_write(tmp_path: Path) -> None:
    write_class_indices(tmp_path / "class_indices.json", ("daisy", "Gänseblümchen"))
    assert json.loads((tmp_path / "class_indices.json").read_text()) == {"0": "daisy", "1": "Gänseblümchen"}
    assert read_class_indices(tmp_path / "class_indices.json") == ("daisy", "Gänseblümchen")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<html>", "not a class_indices.json"),
        ("[1, 2]", "class 0 is 1, not a name"),
        ('{"a": "b"}', "not a class_indices.json"),
        ('{"0": "a", "1": null}', "class 1 is null, not a name"),
        ('["a", " "]', 'class 1 is " ", not a name'),
        ('{"0": ["n1", "a"], "1": ["n2"]}', "not a name"),
        ("{}", "names no class"),
        ('{"a": 0, "a": 1}', "more than once"),
        ('{"0": "a", "2": "b"}', "its 2 classes are not numbered 0 to 1, each once"),
        ('{"a": 0, "b": 0}', "each once"),
        ('{"a": true, "b": false}', "not a class_indices.json"),
        ('{"id2label": {"0": "a"}}', "'id2label' is no number of a class"),
        ('{"-1": "a", "0": "b"}', "'-1' is no number of a class"),
        ('{"0": "\\ud800"}', "surrogates not allowed"),
        ("[" * 100_000, "nested too deeply"),
        ('["a", "b", "a"]', "more than one class is named 'a'"),
        ("", "empty"),
    ],
)
def test_anything_else_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=rf"x\.json: .*{complaint}"):
        read_class_indices(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("雏菊\n玫瑰\n".encode("gbk"), "save it as UTF-8"),
        ("daisy\n".encode("utf-16"), "save it as UTF-8"),
        ("daisy\n".encode("utf-16-le"), "save it as UTF-8"),
        (b"daisy\n\nroses\n", 'class 1 is "", not a name'),
        (b"daisy\ndaisy\n", "more than one class is named 'daisy'"),
    ],
)
def test_a_list_that_is_none_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"names\.txt: .*{complaint}"):
        read_class_indices(tmp_path / "names.txt")
