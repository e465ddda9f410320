"""The README's commands run as printed, in order; its reference and examples are those of this version."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.readme import console_commands, python_blocks, reference, shown_reference


def _run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, shell=True, cwd=cwd, capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False
    )


def test_every_console_command_ends_well(home: Path) -> None:
    commands = console_commands()
    verbs = {command.split()[1] for command in commands if command.startswith("alexdeploy ")}
    shown = {
        "train",
        "analyze",
        "export",
        "calibrate",
        "quantize",
        "lint",
        "build-engine",
        "bench",
        "compare",
        "predict",
        "inspect",
        "doctor",
    }
    assert verbs == shown, "demo is what the fixture has run"
    for command in commands:
        result = _run(command, home)
        assert result.returncode == 0, f"{command}\n{result.stderr}"


def test_the_python_example_runs(tmp_path: Path) -> None:
    block, _ = python_blocks()  # the other is run by test_embedding.py
    (tmp_path / "example.py").write_text(block)
    result = _run("python example.py", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "'LRN': 1" in result.stdout


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="help is wrapped a little differently elsewhere")
def test_the_command_reference_is_in_sync() -> None:
    assert shown_reference() == reference(), "run `make readme`"
