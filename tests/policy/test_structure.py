"""Small modules, small functions, names that say what is in the room, and a docstring on what others call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "alexdeploy"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
SAYS_NOTHING = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc"}

TEXT = {"read_text", "write_text"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end; decorators and docstring are not counted."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def public(path: Path) -> Iterator[Definition]:
    """Functions and classes at the top of a module whose names do not begin with an underscore."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_functions_are_small(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_MODULE_LINES
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {function.name: length(function) for function in functions if length(function) > MAX_FUNCTION_LINES}
    assert long == {}


def test_names_of_modules_say_what_is_in_them() -> None:
    names = {part for path in MODULES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert names & SAYS_NOTHING == set()


@pytest.mark.parametrize("path", [path for path in MODULES if "cli" not in path.parts], ids=name_of)
def test_what_is_public_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert [node.name for node in public(path) if not ast.get_docstring(node)] == []


def test_the_length_of_a_function_leaves_out_decorators_and_docstring() -> None:
    source = '@decorated\n@twice\ndef f(\n    a,\n):\n    """One\n\n    two."""\n    return a\n'
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert length(function) == 4


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_text_is_utf_8_whatever_the_locale(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    text = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in TEXT]
    assert [call.lineno for call in text if "encoding" not in {keyword.arg for keyword in call.keywords}] == []
