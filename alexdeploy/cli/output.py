"""What commands show: JSON on stdout, notes and progress on stderr, tables for people."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from alexdeploy.errors import few
from alexdeploy.specs import Progress

if TYPE_CHECKING:
    from rich.table import Table

    from alexdeploy.data.dataset import ImageDataset


def print_json(result: Any) -> None:
    """One JSON object; dataclasses and structs are spelt out."""
    encoded = msgspec.json.encode(result, enc_hook=str)
    click.echo(msgspec.json.format(encoded, indent=2).decode())


def terminal_width() -> int:
    """Columns of the terminal, or $COLUMNS, or 120 where stdout is a file."""
    return shutil.get_terminal_size((120, 24)).columns


def print_table(table: Table, *, width: int | None = None) -> None:
    """A table on stdout, as wide as the terminal, or as wide as it needs where stdout is a file."""
    from rich.console import Console

    Console(width=width if width is not None or sys.stdout.isatty() else 240).print(table)


def note(text: str) -> None:
    """One line on stderr."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """One line on stderr that should not be missed."""
    click.secho(f"warning: {text}", err=True, fg="yellow", bold=True)


def note_skipped(dataset: ImageDataset) -> None:
    """Say how many images were left out by ``--skip-bad-images``, and which."""
    if dataset.skipped:
        warn(f"{len(dataset.skipped)} unreadable images left out of {dataset.name}: {few(dataset.skipped)}")


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """A bar on stderr while the block runs, where stderr is a terminal; called with (what, share done)."""
    if not sys.stderr.isatty():
        yield lambda what, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        last = 0.0

        def update(what: str, share: float) -> None:
            nonlocal last
            if share < last:  # the next piece of work: times are its own, and a full bar would stand still
                bar.reset(task)
            last = share
            bar.update(task, description=what, completed=share)

        yield update
