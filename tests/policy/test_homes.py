"""One home per concept: the shared words are listed once, commands stay small, libraries do not speak command line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from alexdeploy import specs
from alexdeploy.cli import COMMANDS, cli
from tests.policy.test_imports import FACE, MODULES, PACKAGE, imports_of, name_of

SPECS = PACKAGE / "specs.py"
VOCABULARIES = {
    name: frozenset(get_args(getattr(specs, name)))
    for name in ("Kind", "Runtime", "Method", "Dialect", "BuilderName", "Hardware")
}
# A table that gives each word its meaning is no second list; mypy or a test holds its keys.
TABLES = {
    "Kind": {"runners/artifact.py", "runners/runtimes.py"},  # suffix → kind, kind → class, runtime → kind
    "Runtime": {"runners/runtimes.py", "doctor.py", "pipeline.py", "engine/versions.py"},
    "Method": {"quantize/methods.py"},  # method → function
    "Dialect": {"runners/runtimes.py"},
    "BuilderName": {"runners/runtimes.py", "engine/versions.py"},
    "Hardware": {"engine/versions.py"},  # → TensorRT's name
}
LIBRARIES = {"optional.py", "bench/environment.py", "cuda/wheels.py"}  # distributions, some of the same name
MAX_PARAMETERS = 10


_PRINTED = {
    "__main__.py": {"'error: interrupted'"},  # before anything is loaded
    "cli/__init__.py": {  # visible; ASCII; our own help
        "f'error: {message}'",
        "json.dumps({'error': message, 'exit_code': code})",
        "error.format_message()",
    },
    "cli/lint.py": {"f'{severity}: '"},
}


def words(node: ast.AST) -> set[str]:
    """The string constants directly inside a display, a subscript or a mapping's keys and values."""
    match node:
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            pass
        case ast.Dict(keys=keys, values=values):
            parts = [part for part in (*keys, *values) if part is not None]
        case _:
            return set()
    return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def lists_of(path: Path, vocabulary: frozenset[str]) -> Iterator[int]:
    """Lines where two or more words of a vocabulary stand in one list, tuple, set, Literal or mapping."""
    for node in ast.walk(ast.parse(path.read_text())):
        found = words(node) & vocabulary
        if isinstance(node, ast.expr) and len(found) >= 2:
            yield node.lineno


@pytest.mark.parametrize("name", VOCABULARIES)
def test_the_shared_words_are_listed_once(name: str) -> None:
    vocabulary = VOCABULARIES[name]
    whole = [node for node in ast.walk(ast.parse(SPECS.read_text())) if words(node) == vocabulary]
    assert len(whole) == 1
    homes = {path: [*lists_of(path, vocabulary)] for path in MODULES if path != SPECS}
    found = {str(path.relative_to(PACKAGE)): lines for path, lines in homes.items() if lines}
    assert {path: lines for path, lines in found.items() if path not in TABLES[name] | LIBRARIES} == {}


def test_a_list_in_any_form_is_found(tmp_path: Path) -> None:
    source = tmp_path / "forms.py"
    source.write_text(
        'A = ("onnx", "engine")\nB = Literal["onnx", "engine"]\nC = {"onnx": 1, "engine": 2}\nD = "onnx"\n'
    )
    assert sorted(lists_of(source, VOCABULARIES["Kind"])) == [1, 2, 3]


def test_only_the_artifact_asks_for_the_kind_of_a_file() -> None:
    asking = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith("kind"):
                constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                if constants & VOCABULARIES["Kind"]:
                    asking.add(str(path.relative_to(PACKAGE)))
    assert asking == {"runners/artifact.py"}


def test_progress_has_one_form() -> None:
    spelled = [path for path in MODULES if "Callable[[str, float], None]" in path.read_text()]
    assert spelled == [SPECS]


def test_names_reach_a_terminal_through_one_module() -> None:
    """``cli/output.py`` makes control characters visible."""
    found: dict[str, set[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "click.echo", "click.secho"):
                found.setdefault(str(path.relative_to(PACKAGE)), set()).add(ast.unparse(node.args[0]))
    assert len(found.pop("cli/output.py")) >= 3
    assert found == _PRINTED


def test_no_import_circles() -> None:
    graph = {name_of(path): {name for _, name in imports_of(path)} for path in MODULES if path != FACE}
    finished: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " → ".join([*above[above.index(module) :], module])
        if module not in finished:
            for name in graph.get(module, ()):
                visit(name, (*above, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_have_few_parameters(name: str) -> None:
    import inspect

    command = cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    assert command.callback is not None
    assert len(inspect.signature(inspect.unwrap(command.callback)).parameters) <= MAX_PARAMETERS


@pytest.mark.parametrize("path", [path for path in MODULES if "cli" not in path.parts], ids=name_of)
def test_libraries_name_fields_and_not_options(path: Path) -> None:
    tree = ast.parse(path.read_text())
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    said = [text for text in texts if text not in docstrings and " " in text and re.search(_OPTION, text)]
    assert said == []


_OPTION = r"(?<![\w-])--[a-z]"
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
