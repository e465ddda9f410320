"""What commands show: JSON on stdout, notes and progress on stderr, tables for people."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from alexdeploy.columns import Column, table_width
from alexdeploy.errors import escape_unseen, few, visible
from alexdeploy.files import printable
from alexdeploy.specs import Progress

if TYPE_CHECKING:
    from alexdeploy.data.dataset import ImageDataset


_NOT_ASCII = re.compile(r"[^\x00-\x7e]")
_SETTING = re.compile(r"(?<!field )`(\w+)`")
_OPTION_OF = {  # settings whose options have other names
    "batches": "--batch",
    "constants": "--constant",
    "dialect": "--for",
    "lrn_fp16": "--lrn fp16",
    "newer_versions": "--version-compatible",
    "shapes": "--profile",
    "skipped": "--skip-bad-images",
    "targets": "--target",
    "workspace_bytes": "--workspace",
}


def print_json(result: Any) -> None:
    """One JSON object; dataclasses and structs are spelt out. Names are whole, and no terminal obeys them.

    Where the locale's encoding is not UTF-8, all but ASCII is escaped, so that the object is the same everywhere.
    """
    try:
        encoded = msgspec.json.encode(result, enc_hook=str)
    except UnicodeEncodeError:  # a file's name in other bytes than UTF-8
        encoded = msgspec.json.encode(_in_utf8(msgspec.to_builtins(result, enc_hook=str)))
    lines = msgspec.json.format(encoded, indent=2).decode().split("\n")
    ours = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name == "utf-8"
    lines = [escape_unseen(line, _in_json) for line in lines]
    click.echo("\n".join(lines if ours else (_NOT_ASCII.sub(lambda match: _in_json(match[0]), line) for line in lines)))


def _in_json(character: str) -> str:
    return json.dumps(character)[1:-1]


def _in_utf8(value: Any) -> Any:
    """The same of lists, tuples, mappings and text, whose names are ``printable``."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_in_utf8(key): _in_utf8(each) for key, each in value.items()}
    return [_in_utf8(each) for each in value] if isinstance(value, (list, tuple)) else value


def terminal_width() -> int:
    """Columns of the terminal, or $COLUMNS, or 120 where stdout is a file."""
    return shutil.get_terminal_size((120, 24)).columns


def print_columns(
    columns: Sequence[Column],
    *,
    title: str = "",
    styles: Sequence[str | None] = (),
    width: int | None = None,
    stderr: bool = False,
) -> None:
    """A table on stdout, or on stderr, that fits the terminal; whole where that is a file.

    ``styles``: a colour for each row. ``width``: room in characters in place of the terminal's.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if width is None and ((sys.stderr if stderr else sys.stdout).isatty() or "COLUMNS" in os.environ):
        width = terminal_width()
    columns = [replace(column, cells=list(map(visible, column.cells))) for column in columns]
    shown = _fitting(columns, width) if width is not None else columns
    table = Table()
    for column in shown:
        justify: Literal["left", "right"] = "left" if column.text else "right"
        table.add_column(column.header, justify=justify, no_wrap=not column.folds, overflow="fold")
    rows = zip(*(column.cells for column in shown), strict=True)
    for cells, style in zip_longest(rows, styles):
        table.add_row(*map(Text, cells), style=style)
    whole = table_width(column.width for column in shown)
    least = table_width(column.least for column in shown)  # a line that is too long is better than half a number
    console = Console(width=max(width, least) if width is not None else max(whole, len(title)), stderr=stderr)
    if title:
        console.print(Text(visible(title), "bold"))
    console.print(table)
    note_left_out([column.header for column in columns if column.header and column not in shown], width)


def note_left_out(headers: Sequence[str], width: int | None) -> None:
    """Name the columns for which a table had no room."""
    if headers:
        text = f"left out at {width} characters: {', '.join(headers)}; a wider terminal and --json show them"
        note(*wrap(text, terminal_width(), subsequent_indent="  "))


def _fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns for which there is room, in order."""
    shown = list(columns)
    for column in sorted(columns, key=lambda column: column.rank, reverse=True):
        if column.rank and table_width(column.least for column in shown) > width:
            shown.remove(column)
    return shown


def with_options(message: str) -> str:
    """A library's message names settings in backquotes, as Python has them; here they become options.

    Not the fields of files, which msgspec names so.
    """
    return _SETTING.sub(lambda match: _OPTION_OF.get(match[1], f"--{match[1].replace('_', '-')}"), message)


def echo(*lines: str) -> None:
    """Lines on stdout. A name in them may hold what a terminal obeys, so all text of commands comes through here."""
    click.echo("\n".join(map(visible, lines)))


def say(text: str) -> None:
    """One line on stdout, broken between words where that is a terminal."""
    text = visible(with_options(text))
    lines = wrap(text, terminal_width(), subsequent_indent="  ", break_on_hyphens=False)
    echo(*lines if sys.stdout.isatty() else [text])


def note(*lines: str) -> None:
    """Lines on stderr."""
    click.echo("\n".join(visible(with_options(line)) for line in lines), err=True)


def warn(text: str) -> None:
    """One line on stderr that should not be missed."""
    click.secho(f"warning: {visible(with_options(text))}", err=True, fg="yellow", bold=True)


def note_data(dataset: ImageDataset, samples: int | None = None) -> None:
    """Say how many images of how many are taken, and why; ``samples``: only so many, spread over them."""
    chosen = dataset if samples is None else dataset.subset(samples)
    split = any(option.name == "split" for option in click.get_current_context().command.params)
    is_part = split and len(chosen) == len(dataset) < (dataset.total or 0)
    note(f"{chosen.name}: {chosen.taken}" + "; `split` all takes every one" * is_part)


def note_skipped(dataset: ImageDataset) -> None:
    """Say how many images were left out by ``--skip-bad-images``, and which."""
    if dataset.skipped:
        names = few(map(printable, dataset.skipped))
        warn(f"{len(dataset.skipped)} unreadable images left out of {dataset.name}: {names}")


@contextlib.contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A bar on stderr while the block runs, where stderr is a terminal; ``what`` is done first."""
    if not sys.stderr.isatty():
        yield lambda what, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(20),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(visible(what), total=None)  # it moves to and fro until a share is known
        last = 0.0

        def update(what: str, share: float) -> None:
            nonlocal last
            if share < last:  # the next piece of work: times are its own, and a full bar would stand still
                bar.reset(task)
            last = share
            bar.update(task, description=visible(what), total=1.0, completed=share)

        yield update
