"""Options that several commands share, spelt and explained once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

if TYPE_CHECKING:
    from alexdeploy.data.dataset import ImageDataset

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout; notes go to stderr."
)


def output_option(example: str) -> Callable[[Command], Command]:
    """``-o FILE``, required."""
    return click.option("-o", "--output", type=FILE, required=True, metavar=example, help="File to write.")


def data_options(*, required: bool) -> Callable[[Command], Command]:
    """``--data`` and what goes with it; read them with ``open_data``."""

    def decorate(command: Command) -> Command:
        for option in (
            click.option(
                "--skip-bad-images", is_flag=True, help="Leave out images that cannot be read, and count them."
            ),
            click.option(
                "--data-root",
                type=FILE,
                metavar="DIR",
                help="Where mnist/*.gz lies.  [default: $ALEXDEPLOY_DATA, else ./data]",
            ),
            click.option(
                "--data",
                required=required,
                metavar="DATASET",
                help="digits, mnist, or a folder of class subfolders (or of train/ and val/; else split 80/20).",
            ),
        ):
            command = option(command)
        return command

    return decorate


def open_data(data: str, split: Literal["train", "val"], data_root: Path | None, skip_bad_images: bool) -> ImageDataset:
    """The split that the options name."""
    from alexdeploy.data.sources import load_dataset

    return load_dataset(data, split, data_root=data_root, skip_bad=skip_bad_images)
