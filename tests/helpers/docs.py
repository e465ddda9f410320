"""The parts of the documents that code must agree with: console commands, Python examples, the command reference.

``python -m tests.helpers.docs`` writes docs/cli.md anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from alexdeploy.cli import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
CLI = ROOT / "docs" / "cli.md"
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
PAGES = sorted(
    path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")) if path != CLI
)
_HEAD = """# Commands

`alexdeploy COMMAND --help` of this version, written by `make docs`. The [guide](guide/) has an example of each.
"""


def console_commands(page: Path) -> list[str]:
    """Lines that a page shows as typed, without the prompt, in order."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def python_blocks(page: Path) -> list[str]:
    """A page's Python examples."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def links(page: Path) -> list[str]:
    """Relative targets of a page's links and pictures, without the fragment."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return [target.partition("#")[0] for target in targets if "://" not in target and not target.startswith("#")]


def reference() -> str:
    """``alexdeploy COMMAND --help`` of every command."""
    parts = [_HEAD]
    parent = click.Context(cli, info_name="alexdeploy", **cli.context_settings)
    for name in COMMANDS:
        command = cli.get_command(parent, name)
        assert command is not None
        context = click.Context(command, parent, info_name=name, terminal_width=110, max_content_width=110)
        parts.append(f"## {name}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    CLI.write_text(reference())
