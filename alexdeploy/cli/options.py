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


lrn_option = click.option(
    "--lrn",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Arithmetic of LRN under --fp16; fp16 only if the ranges prove that its sums stay in range (else exit 5).",
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
                help="Where mnist/*.gz, fashion-mnist/*.gz and cifar-10-batches-py/ lie.  "
                "[default: $ALEXDEPLOY_DATA, else ./data]",
            ),
            click.option(
                "--data",
                required=required,
                metavar="DATASET",
                help="digits, mnist, fashion-mnist, cifar10, or a folder of class subfolders (or of train/ and val/; "
                "else split 80/20).",
            ),
        ):
            command = option(command)
        return command

    return decorate


def method_for_ranges(ctx: click.Context, ranges: Path, method: str) -> str:
    """The method to use with a range file; a calibration cache of TensorRT has only its own."""
    from click.core import ParameterSource

    from alexdeploy.quantize import tensorrt_cache

    chosen = ctx.get_parameter_source("method") is not ParameterSource.DEFAULT
    method = tensorrt_cache.method_for(ranges, method, chosen=chosen)
    if method == tensorrt_cache.METHOD:
        click.echo(tensorrt_cache.PROVES_NOTHING, err=True)
    return method


def open_data(data: str, split: Literal["train", "val"], data_root: Path | None, skip_bad_images: bool) -> ImageDataset:
    """The split that the options name."""
    from alexdeploy.data.sources import load_dataset

    return load_dataset(data, split, data_root=data_root, skip_bad=skip_bad_images)
