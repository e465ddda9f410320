from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alexdeploy import files
from alexdeploy.cli import predictions as shown
from alexdeploy.cli.options import FILE, device_option, json_option
from alexdeploy.cli.output import echo, note, print_json, progress, warn
from alexdeploy.errors import UsageError, few
from alexdeploy.files import printable

if TYPE_CHECKING:
    from alexdeploy.runners.predict import Prediction
    from alexdeploy.specs import Progress

_KEEPS = "keeps what is done, the same command goes on from there"


@click.command("predict")
@click.argument("artifact", type=FILE)
@click.argument("images", type=FILE, nargs=-1, required=True, metavar="IMAGE|FOLDER...")
@click.option(
    "--top", type=click.IntRange(min=1), default=1, show_default=True, help="How many classes to show of each image."
)
@click.option("--ten-crop", is_flag=True, help="Average over four corners and centre, and their mirror images.")
@click.option(
    "--labels",
    type=FILE,
    metavar="class_indices.json",
    help='Class names of a file without: {"0": "daisy"}, {"daisy": 0}, ["daisy"], Keras\' imagenet_class_index.json, '
    "or a text file with a name per line.",
)
@click.option("--skip-bad-images", is_flag=True, help="Leave out images that cannot be read, and count them.")
@click.option(
    "--out",
    type=FILE,
    metavar="predictions.csv",
    help="Write CSV, JSON lines (.jsonl) or a record with model, answers and accuracy (.txt), instead of printing. In "
    "CSV an apostrophe stands before labels that a spreadsheet would take for formulas.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Label in N processes, each with the model loaded, for --out. The same command again goes on where a run was "
    "stopped.",
)
@device_option()
@json_option
def command(
    artifact: Path,
    images: tuple[Path, ...],
    top: int,
    ten_crop: bool,
    labels: Path | None,
    skip_bad_images: bool,
    out: Path | None,
    workers: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Label images.

    A checkpoint or an ONNX file labels images, preprocessed as it was trained. Where a FOLDER, or a folder in it, is
    named as a class, the accuracy is shown as well, and that of each class.

    \b
    Example: alexdeploy predict model.onnx photo.jpg photos/ --out predictions.csv
    """
    if out is not None:
        _check_out(out, labels, workers)
    elif workers is not None:
        raise UsageError("--workers goes with --out: finished shards are kept beside that file; name one")
    from alexdeploy.data.labels import read_class_indices
    from alexdeploy.runners.artifact import open_artifact
    from alexdeploy.runners.predict import JUDGED, find_images, predict

    skipped: list[str] = []
    with progress(f"opening {printable(artifact.name)}") as bar:
        opened = open_artifact(artifact)
        if labels is not None:
            opened = opened.with_labels(read_class_indices(labels))
        found = find_images(images, opened.contract.labels)
        judged = shown.Judged(opened, images, found, skipped)
        how: dict[str, Any] = {"ten_crop": ten_crop, "skipped": skipped if skip_bad_images else None, "device": device}
        predictions: list[Prediction] = []
        if workers is not None and out is not None:
            from alexdeploy.runners.labelling import labelled, shards_folder

            with (
                _resumable(shards_folder(out)),
                labelled(opened, found, out, workers=workers, top=top, on_progress=bar, **how) as answers,
            ):
                judged.write(out, judged.passing(answers, top))
        else:
            answers = _counted(predict(opened, found, top=max(top, JUDGED), **how), len(found), skipped, bar)
            predictions = list(judged.passing(answers, top))
            if out is not None:
                judged.write(out, predictions)
    if not opened.contract.labels:
        note(f"note: {printable(artifact)} has no class names, so these are numbers; name the classes with --labels")
    if as_json:
        answered = {"predictions": list(map(shown.row, predictions))} if workers is None else {"out": out}
        result = {"artifact": printable(artifact), **answered, "accuracy": judged.accuracy}
        print_json({**result, "other_folders": judged.others, "skipped": skipped})
    elif out is not None:
        echo(f"{printable(out)}: {judged.count} predictions")
    else:
        for prediction in predictions:
            echo(shown.line(prediction))
    if not as_json:
        judged.show()
    if skipped:
        warn(f"{len(skipped)} unreadable images left out: {few(skipped)}")


def _counted(answers: Iterable[Prediction], total: int, skipped: list[str], bar: Progress) -> Iterator[Prediction]:
    """The same answers; the bar shows how many there are."""
    began = time.monotonic()
    for number, answer in enumerate(answers, 1):
        yield answer
        done = number + len(skipped)
        bar(f"{done} of {total} images, {done / (time.monotonic() - began):.0f}/s", done / total)


def _check_out(out: Path, labels: Path | None, workers: int | None) -> None:
    files.check_output(out, *[labels] if labels is not None else [])
    if out.suffix.lower() not in shown.SUFFIXES:
        raise UsageError(f"--out {out}: expected a name that ends in .csv or .jsonl, or in .txt for a record")
    from alexdeploy.runners.labelling import shards_folder

    if workers is None and (folder := shards_folder(out)).is_dir():
        raise UsageError(f"{folder}: keeps shards of --out {out}; go on with --workers, or remove that folder")


@contextlib.contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Whoever stops the block is told how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.Abort(f"interrupted; {printable(folder)} {_KEEPS}") from None
    except SystemExit:
        note(f"{printable(folder)} {_KEEPS}")
        raise
