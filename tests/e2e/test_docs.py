"""The commands of the documents run as printed, in order; reference, links and examples are those of this version."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alexdeploy.cli import COMMANDS
from tests.helpers.docs import CLI, GUIDE, PAGES, README, ROOT, console_commands, links, python_blocks, reference

CHINESE = ROOT / "README.zh.md"
MAX_LINES = {"README.md": 160, "README.zh.md": 160, "docs/architecture.md": 100}


def _run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, shell=True, cwd=cwd, capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False
    )


@pytest.mark.parametrize("page", [README, *GUIDE], ids=lambda page: page.stem)
def test_every_console_command_ends_well(page: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "demo").symlink_to(home / "demo")  # what `make demo` leaves; each page begins with that
    for command in console_commands(page):
        result = _run(command, tmp_path)
        assert result.returncode == 0, f"{command}\n{result.stderr}"


def test_every_verb_is_shown() -> None:
    shown = {
        command.split()[1] for page in GUIDE for command in console_commands(page) if command.startswith("alexdeploy ")
    }
    assert shown >= {*COMMANDS} - {"demo", "run"}, "the fixture has run demo, and test_run.py runs run"


def test_the_chinese_page_has_the_same_commands_and_examples() -> None:
    assert console_commands(CHINESE) == console_commands(README)
    assert python_blocks(CHINESE) == python_blocks(README)


def test_python_examples_run(home: Path, tmp_path: Path) -> None:
    (tmp_path / "demo").symlink_to(home / "demo")
    blocks = [block for page in (README, *GUIDE) for block in python_blocks(page) if "serve_forever" not in block]
    assert len(blocks) >= 3
    for block in blocks:  # the service is run by test_embedding.py
        (tmp_path / "example.py").write_text(block)
        result = _run("python example.py", tmp_path)
        assert result.returncode == 0, f"{block}\n{result.stderr}"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="help is wrapped a little differently elsewhere")
def test_the_command_reference_is_in_sync() -> None:
    assert CLI.read_text() == reference(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("name", MAX_LINES)
def test_what_is_read_first_is_short(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= MAX_LINES[name]
