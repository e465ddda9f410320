"""The README's parts that code must agree with: its console commands and its command reference.

``python -m tests.helpers.readme`` writes the reference anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from alexdeploy.cli import COMMANDS, cli

README = Path(__file__).resolve().parents[2] / "README.md"
_REFERENCE = re.compile(r"(?<=held by a test -->\n).*?(?=<!-- /reference -->)", re.DOTALL)


def console_commands() -> list[str]:
    """Lines that the README shows as typed, without the prompt, in order."""
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def python_blocks() -> list[str]:
    """The README's Python examples."""
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def reference() -> str:
    """``alexdeploy COMMAND --help`` of every command, folded."""
    parts = []
    parent = click.Context(cli, info_name="alexdeploy", **cli.context_settings)
    for name in COMMANDS:
        command = cli.get_command(parent, name)
        assert command is not None
        context = click.Context(command, parent, info_name=name, terminal_width=110, max_content_width=110)
        text = command.get_help(context)
        parts.append(f"<details><summary><code>alexdeploy {name}</code></summary>\n\n```\n{text}\n```\n\n</details>\n")
    return "\n".join(parts)


def shown_reference() -> str:
    """What the README shows now."""
    match = _REFERENCE.search(README.read_text())
    assert match is not None
    return match[0]


if __name__ == "__main__":
    README.write_text(_REFERENCE.sub(lambda _: reference(), README.read_text()))
