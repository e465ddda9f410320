from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alexdeploy import files
from alexdeploy.cli.options import FILE, device_option, json_option
from alexdeploy.cli.output import note, print_columns, print_json, progress, warn
from alexdeploy.columns import Column
from alexdeploy.errors import UsageError, few
from alexdeploy.files import printable

if TYPE_CHECKING:
    from alexdeploy.runners.artifact import Artifact
    from alexdeploy.runners.predict import FolderAccuracy, Prediction

_ROWS = 20  # classes in the table


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
    help="Write CSV, JSON lines (.jsonl) or a record with model, answers and accuracy (.txt), instead of printing.",
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
        files.check_output(out, *[labels] if labels is not None else [])
        if out.suffix.lower() not in (".csv", ".jsonl", ".txt"):
            raise UsageError(f"--out {out}: expected a name that ends in .csv or .jsonl, or in .txt for a record")
    from alexdeploy.data.labels import read_class_indices
    from alexdeploy.runners.artifact import open_artifact
    from alexdeploy.runners.predict import JUDGED, find_images, folder_accuracy, predict

    predictions: list[Prediction] = []
    skipped: list[str] = []
    with progress(f"opening {printable(artifact.name)}") as bar:
        opened = open_artifact(artifact)
        if labels is not None:
            opened = opened.with_labels(read_class_indices(labels))
        found = find_images(images, opened.contract.labels)
        bad = skipped if skip_bad_images else None
        on = {"device": device} if device is not None else {}
        for prediction in predict(opened, found, ten_crop=ten_crop, top=max(top, JUDGED), skipped=bad, **on):
            predictions.append(prediction)
            done = len(predictions) + len(skipped)
            bar(f"{done} of {len(found)} images", done / len(found))
    accuracy = folder_accuracy(predictions, opened.contract.labels)
    predictions = [replace(prediction, top=prediction.top[:top]) for prediction in predictions]
    unread = set(skipped)
    others = Counter(i.folder for i in found if i.folder is not None and printable(i.path) not in unread)
    summary = _summary(accuracy, others, opened.contract.labels)
    if out is not None:
        record = partial(_record, opened, images, accuracy, summary, skipped)
        encode = {".csv": _csv, ".jsonl": _json_lines}.get(out.suffix.lower(), record)
        files.write_bytes(out, encode(predictions).encode())
    if not opened.contract.labels:
        note(f"note: {printable(artifact)} has no class names, so these are numbers; name the classes with --labels")
    if as_json:
        rows = [_row(prediction) for prediction in predictions]
        result = {"artifact": printable(artifact), "predictions": rows, "accuracy": accuracy}
        print_json({**result, "other_folders": others, "skipped": skipped})
    elif out is not None:
        click.echo(f"{printable(out)}: {len(predictions)} predictions")
    else:
        for prediction in predictions:
            click.echo(_line(prediction))
    if accuracy is not None and not as_json:
        _show_classes(accuracy)
    for line in summary if not as_json else ():
        note(line)
    if skipped:
        warn(f"{len(skipped)} unreadable images left out: {few(skipped)}")


def _summary(accuracy: FolderAccuracy | None, others: Counter[str], labels: Sequence[str]) -> list[str]:
    """How many images are right, and in which folders that cannot be said; nothing where no folder is a class."""
    elsewhere = f"{others.total()} images in folders that are no class of the model ({few(sorted(others))})"
    if accuracy is None:
        return [f"note: no accuracy: {elsewhere}; it has {few(labels)}"] if labels and len(others) > 1 else []
    best = f"top-1 {accuracy.top1:.2%}"
    if accuracy.top5 is not None:
        best += f", top-5 {accuracy.top5:.2%}"
    right = f"{accuracy.right} of {accuracy.images} images in their class folder are right"
    return [f"{best}: {right}; {elsewhere}" if others else f"{best}: {right}"]


def _show_classes(accuracy: FolderAccuracy) -> None:
    """Right answers of each class, on stderr; of many classes those with the lowest share. One needs no table."""
    shown, title = accuracy.classes, "images of each class"
    if len(shown) == 1:
        return
    if len(shown) > _ROWS:
        title = f"the {_ROWS} of {len(shown)} classes with the lowest share of right answers"
        shown = sorted(shown, key=lambda row: row.recall)[:_ROWS]
    columns = [
        Column("class", [row.label for row in shown], text=True, folds=True),
        Column("images", [str(row.images) for row in shown]),
        Column("right", [str(row.right) for row in shown]),
        Column("share", [f"{row.recall:.2%}" for row in shown]),
    ]
    print_columns(columns, title=title, stderr=True)


def _line(prediction: Prediction) -> str:
    return f"{prediction.image}: {', '.join(f'{label} ({probability:.1%})' for label, probability in prediction.top)}"


def _row(prediction: Prediction) -> dict[str, Any]:
    return {
        "image": prediction.image,
        "label": prediction.label,
        "probability": prediction.probability,
        "truth": prediction.truth,
        "top": [{"label": label, "probability": probability} for label, probability in prediction.top],
    }


def _json_lines(predictions: list[Prediction]) -> str:
    import msgspec

    return msgspec.json.Encoder().encode_lines(map(_row, predictions)).decode()


def _csv(predictions: list[Prediction]) -> str:
    """Image, label, probability, truth; then label and probability of the second, third, … likeliest class."""
    text = io.StringIO()
    writer = csv.writer(text)
    more = range(2, len(predictions[0].top) + 1) if predictions else ()
    names = [f"{name}_{place}" for place in more for name in ("label", "probability")]
    writer.writerow(["image", "label", "probability", "truth", *names])
    for prediction in predictions:
        first, *others = [(label, f"{probability:.6f}") for label, probability in prediction.top]
        writer.writerow([prediction.image, *first, prediction.truth, *chain.from_iterable(others)])
    return text.getvalue()


def _record(
    opened: Artifact,
    roots: Sequence[Path],
    accuracy: FolderAccuracy | None,
    summary: list[str],
    skipped: list[str],
    predictions: list[Prediction],
) -> str:
    """What was run on what, each answer with its truth, and how many are right, for people to read."""
    lines = [f"model: {printable(opened.path)} (sha256 {opened.digest})"]
    lines += [f"images: {printable(root)}" for root in roots]
    lines.append("")
    lines += [_line(p) if p.truth is None else f"{_line(p)}; truth: {p.truth}" for p in predictions]
    lines += [f"{image}: cannot be read" for image in skipped]
    lines += ["", *summary] if summary else []
    classes = accuracy.classes if accuracy is not None else []
    lines += [f"{row.label}: {row.right} of {row.images} right ({row.recall:.2%})" for row in classes]
    return "\n".join(lines) + "\n"
