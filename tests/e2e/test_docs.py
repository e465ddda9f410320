"""The commands of the documents run as printed, in order; reference, links and examples are those of this version.

A bench takes no longer than it must: ten rounds on every image, whatever the page gives it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alexdeploy.cli import COMMANDS, main
from tests.helpers.docs import CLI, GUIDE, PAGES, README, ROOT, console_commands, links, python_blocks, reference

CHINESE = ROOT / "README.zh.md"
MAX_LINES = {"README.md": 160, "README.zh.md": 160, "docs/architecture.md": 100}


def _run(command: str) -> int:
    """Exit code in the working folder; our own commands run in this process, which has the libraries loaded."""
    command = re.sub(r"(?<=--seconds )\d+", "0.1", command)
    ours, _, target = command.partition(" > ")
    program, *arguments = shlex.split(ours)
    if program == "alexdeploy":
        with contextlib.ExitStack() as stack:
            if target:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(target).open("w"))))
            stop = stack.enter_context(pytest.raises(SystemExit))
            main(arguments)
        assert isinstance(stop.value.code, int)
        return stop.value.code
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, shell=True, env={**os.environ, "PATH": path}, check=False).returncode


@pytest.fixture
def beside_demo(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with what `make demo` leaves; each page begins with that."""
    (tmp_path / "demo").symlink_to(home / "demo")
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("page", [README, *GUIDE], ids=lambda page: page.stem)
@pytest.mark.usefixtures("beside_demo")
def test_every_console_command_ends_well(page: Path) -> None:
    for command in console_commands(page):
        assert _run(command) == 0, command


def test_every_verb_is_shown() -> None:
    shown = {
        command.split()[1] for page in GUIDE for command in console_commands(page) if command.startswith("alexdeploy ")
    }
    assert shown >= {*COMMANDS} - {"demo", "run"}, "the fixture has run demo, and test_run.py runs run"


def test_the_chinese_page_has_the_same_commands_and_examples() -> None:
    assert console_commands(CHINESE) == console_commands(README)
    assert python_blocks(CHINESE) == python_blocks(README)


@pytest.mark.usefixtures("beside_demo")
def test_python_examples_run() -> None:
    blocks = [block for page in (README, *GUIDE) for block in python_blocks(page) if "serve_forever" not in block]
    assert len(blocks) >= 3
    for block in blocks:  # the service is run by test_embedding.py
        exec(compile(block, "example.py", "exec"), {"__name__": "__main__"})


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="help is wrapped a little differently elsewhere")
def test_the_command_reference_is_in_sync() -> None:
    assert CLI.read_text() == reference(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("name", MAX_LINES)
def test_what_is_read_first_is_short(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= MAX_LINES[name]
