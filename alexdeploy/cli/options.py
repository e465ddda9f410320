"""Options that several commands share, spelt and explained once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from alexdeploy.files import check_output
from alexdeploy.specs import DEFAULT_METHOD, Method, Split, cuda_ordinal

if TYPE_CHECKING:
    from alexdeploy.data.dataset import ImageDataset

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)


def option_group(
    parameter: str, build: Callable[..., object], *options: Callable[[Command], Command]
) -> Callable[[Command], Command]:
    """Add ``options`` to a command and hand them over as one value: ``build(**options)``, passed as ``parameter``."""

    def declared() -> None:
        """Collects the options, so that their names are known."""

    for option in options:
        option(declared)  # type: ignore[arg-type]
    names = [option.name for option in declared.__click_params__]  # type: ignore[attr-defined]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def call(*arguments: Any, **given: Any) -> Any:
            value = build(**{name: given.pop(name) for name in names})
            return command(*arguments, **given, **{parameter: value})

        for option in reversed(options):
            call = option(call)
        return call  # type: ignore[return-value]

    return decorate


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


def device_option(*others: str) -> Callable[[Command], Command]:
    """``--device``, a GPU; None where it was not given, or the first of the ``others`` that may stand for it."""

    def checked(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:  # noqa: ARG001
        if value is not None and value not in others:
            cuda_ordinal(value)
        return value

    return click.option(
        "--device",
        callback=checked,
        default=others[0] if others else None,
        show_default=bool(others),
        metavar="|".join([*others, "cuda[:N]"]),
        help="Where to train; cuda:1 is the second GPU."
        if others
        else "GPU to use, cuda:1 for the second.  [default: the first]",
    )


def output_option(example: str) -> Callable[[Command], Command]:
    """``-o FILE``, required."""
    return click.option("-o", "--output", type=FILE, required=True, metavar=example, help="File to write.")


@dataclass(frozen=True)
class DataChoice:
    """The data set that ``--data`` and what goes with it name."""

    name: str
    root: Path | None
    skip_bad_images: bool
    split: Split | None = None

    def open(self, default: Split) -> ImageDataset:
        """The split that was asked for, or else the default one; all of a source without splits."""
        from alexdeploy.data.sources import load_dataset

        return load_dataset(
            self.name,
            self.split or default,
            data_root=self.root,
            skip_bad=self.skip_bad_images,
            split_required=self.split is not None,
        )

    def open_test(self) -> ImageDataset | None:
        """The images of a folder ``test``, where there is one."""
        from alexdeploy.data.class_folders import has_test

        folder = Path(self.name)
        return self.open("test") if folder.is_dir() and has_test(folder) else None


def data_options(*, required: bool, split: bool = True) -> Callable[[Command], Command]:
    """``--data`` and what goes with it, handed over as ``data``; None where it was not given.

    ``split``: with ``--split``, where the command takes one split.
    """

    def chosen(
        data: str | None, data_root: Path | None, skip_bad_images: bool, split: Split | None = None
    ) -> DataChoice | None:
        return DataChoice(data, data_root, skip_bad_images, split) if data is not None else None

    split_option = click.option(
        "--split",
        type=click.Choice(get_args(Split)),
        help="Images to take.  [default: val to judge on, train to learn and calibrate; all of what is not split]",
    )
    return option_group(
        "data",
        chosen,
        click.option(
            "--data",
            required=required,
            metavar="DATASET",
            help="digits, mnist, fashion-mnist, cifar10; class folders, split 80/20 or in train/, val/ and test/; a "
            "folder of images; a .txt or .csv list of path[,label]; an array .npy or .npz; an image.",
        ),
        click.option(
            "--data-root",
            type=FILE,
            metavar="DIR",
            help="Where mnist/*.gz, fashion-mnist/*.gz and cifar-10-batches-py/ lie.  "
            "[default: $ALEXDEPLOY_DATA, else ./data]",
        ),
        click.option("--skip-bad-images", is_flag=True, help="Leave out images that cannot be read, and count them."),
        *[split_option] * split,
    )


def method_option(*more: str) -> Callable[[Command], Command]:
    """``--method``; None where it was not given, since a calibration cache holds only its own."""
    also = "; auto measures each, at most a minute (needs --data)" if more else ""
    return click.option(
        "--method",
        type=click.Choice([*get_args(Method), *more]),
        help=f"How the clipping range is chosen{also}.  [default: {DEFAULT_METHOD}]",
    )


def note_cache(ranges: Path) -> None:
    """Say what cannot be checked where the ranges come from a calibration cache of TensorRT."""
    from alexdeploy.cli.output import note
    from alexdeploy.quantize import tensorrt_cache

    if tensorrt_cache.is_cache(ranges):
        note(tensorrt_cache.PROVES_NOTHING)


@dataclass(frozen=True)
class ReportFiles:
    """Files to write beside the terminal, and the width of the table."""

    html: Path | None
    markdown: Path | None
    wide: bool

    def check(self, *inputs: Path) -> None:
        """Fail early where a file could not be written, or would overwrite one of ``inputs``."""
        for path in filter(None, (self.html, self.markdown)):
            check_output(path, *inputs)


report_options = option_group(
    "shown",
    ReportFiles,
    click.option("--html", type=FILE, metavar="report.html", help="Also write a page with pictures, in one file."),
    click.option("--markdown", type=FILE, metavar="report.md", help="Also write the table as Markdown."),
    click.option("--wide", is_flag=True, help="Show every column, however wide the terminal is."),
)
