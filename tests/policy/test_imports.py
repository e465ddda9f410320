"""Importing is cheap, and imports go downward only."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "alexdeploy"
FACE = PACKAGE / "__init__.py"  # offers load and Classifier under the package's own name, imported on first use
MODULES = sorted(PACKAGE.rglob("*.py"))

HEAVY = ("torch", "torchvision", "onnx", "onnx_ir", "onnxruntime", "tensorrt", "tensorrt_rtx", "openvino", "sklearn")
HELP = """
from alexdeploy.cli import COMMANDS, main
for arguments in ([], *([command] for command in COMMANDS)):
    try:
        main([*arguments, "--help"])
    except SystemExit as stop:
        assert not stop.code
"""

# Each line may import from the lines below it; rooms on one line do not import each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("pipeline", "tuning"),
    ("doctor",),
    ("train", "export", "quantize", "bench", "compare", "inspect", "triton"),
    ("runners",),
    ("engine",),
    ("graph", "data", "zoo", "cuda"),
    ("vocabulary",),
)
VOCABULARY = {
    "alexdeploy",
    "arrays",
    "_version",
    "columns",
    "errors",
    "optional",
    "specs",
    "contract",
    "locks",
    "files",
    "machine",
    "recipe",
    "preprocessor_config",
    "metrics",
    "pickled",
}
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def loaded_by(code: str, *modules: str) -> list[str]:
    """Which of the modules a clean interpreter has loaded after running ``code``."""
    check = f"\nimport json, sys\nprint('\\n' + json.dumps([name for name in {modules!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=True, cwd=ROOT)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("code", ["import alexdeploy", HELP], ids=["import", "help of every command"])
def test_import_and_help_load_nothing_heavy(code: str) -> None:
    assert loaded_by(code, *HEAVY, "numpy", "PIL", "scipy") == []


def test_an_application_on_onnxruntime_needs_neither_torch_nor_onnx() -> None:
    code = "import alexdeploy.runners.onnxruntime, alexdeploy.contract"
    unwanted = [name for name in HEAVY if name != "onnxruntime"]
    assert loaded_by(code, *unwanted, "PIL", "click", "onnxruntime") == ["onnxruntime"]


def name_of(path: Path) -> str:
    """``alexdeploy/graph/qdq.py`` → ``alexdeploy.graph.qdq``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """``alexdeploy.graph.qdq`` → ``graph``; the shared small modules are one room, ``python -m`` belongs to cli."""
    part = [*module.split("."), "alexdeploy"][1]
    return "vocabulary" if part in VOCABULARY else "cli" if part == "__main__" else part


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module of ours) of every import, those inside functions and for type checking too."""
    ours = {name_of(module) for module in MODULES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in ours else str(node.module) for name in inner]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.partition(".")[0] == "alexdeploy")


def test_every_module_is_in_a_room_with_a_floor() -> None:
    assert {room_of(name_of(path)) for path in MODULES} == FLOOR_OF.keys()


@pytest.mark.parametrize("path", [path for path in MODULES if path != FACE], ids=name_of)
def test_imports_go_downward(path: Path) -> None:
    here = room_of(name_of(path))
    upward = [
        f"{path.relative_to(ROOT)}:{line}: {here} imports {name}"
        for line, name in imports_of(path)
        if room_of(name) != here and FLOOR_OF[room_of(name)] <= FLOOR_OF[here]
    ]
    assert upward == []


def test_the_check_sees_imports_of_every_form(tmp_path: Path) -> None:
    forms = "import alexdeploy.cli\ndef f():\n    from alexdeploy import files, __version__\n"
    source = tmp_path / "forms.py"
    source.write_text(forms + "    from alexdeploy.graph.qdq import insert_qdq\n")
    found = [name for _, name in imports_of(source)]
    assert found == ["alexdeploy.cli", "alexdeploy.files", "alexdeploy", "alexdeploy.graph.qdq"]
