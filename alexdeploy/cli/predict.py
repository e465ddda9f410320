from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alexdeploy import files
from alexdeploy.cli.options import FILE, json_option
from alexdeploy.cli.output import note, print_json, progress
from alexdeploy.errors import UsageError

if TYPE_CHECKING:
    from alexdeploy.runners.classifier import Prediction


@click.command("predict")
@click.argument("artifact", type=FILE)
@click.argument("images", type=FILE, nargs=-1, required=True, metavar="IMAGE|FOLDER...")
@click.option("--ten-crop", is_flag=True, help="Average over four corners and centre, and their mirror images.")
@click.option(
    "--labels",
    type=FILE,
    metavar="class_indices.json",
    help='Class names of a file without: {"0": "daisy"} or {"daisy": 0}.',
)
@click.option(
    "--out",
    type=FILE,
    metavar="predictions.csv",
    help="Write CSV, or JSON lines to a .jsonl file, instead of printing.",
)
@json_option
def command(
    artifact: Path, images: tuple[Path, ...], ten_crop: bool, labels: Path | None, out: Path | None, as_json: bool
) -> None:
    """Label images.

    A checkpoint or an ONNX file labels images, preprocessed as it was trained. Where a FOLDER has subfolders named
    as the classes, the accuracy is shown as well.

    \b
    Example: alexdeploy predict model.onnx photo.jpg photos/ --out predictions.csv
    """
    if out is not None:
        files.check_output(out)
        if out.suffix.lower() not in (".csv", ".jsonl"):
            raise UsageError(f"--out {out}: expected a name that ends in .csv or .jsonl")
    from alexdeploy.data.labels import read_class_indices
    from alexdeploy.runners.artifact import open_artifact
    from alexdeploy.runners.classifier import find_images, predict

    predictions: list[Prediction] = []
    with progress(f"opening {artifact.name}") as bar:
        opened = open_artifact(artifact)
        if labels is not None:
            opened = opened.with_labels(read_class_indices(labels))
        found = find_images(images, opened.contract.labels)
        for prediction in predict(opened, [image.path for image in found], ten_crop=ten_crop):
            predictions.append(prediction)
            bar(f"{len(predictions)} of {len(found)} images", len(predictions) / len(found))
    right = [p.label == image.truth for p, image in zip(predictions, found, strict=True) if image.truth is not None]
    if out is not None:
        files.write_bytes(out, _encoded(predictions, out.suffix.lower() == ".jsonl"))
    if not opened.contract.labels:
        note(f"note: {artifact} has no class names, so these are numbers; name the classes with --labels")
    if as_json:
        accuracy = {"top1": sum(right) / len(right), "images": len(right)} if right else None
        print_json({"artifact": str(artifact), "predictions": predictions, "accuracy": accuracy})
        return
    if out is not None:
        click.echo(f"{out}: {len(predictions)} predictions")
    else:
        for prediction in predictions:
            click.echo(f"{prediction.image}: {prediction.label} ({prediction.probability:.1%})")
    if right:
        note(
            f"top-1 {sum(right) / len(right):.2%}: {sum(right)} of {len(right)} images in their class folder are right"
        )


def _encoded(predictions: list[Prediction], lines: bool) -> bytes:
    if lines:
        import msgspec

        return msgspec.json.Encoder().encode_lines(predictions)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "label", "probability"])
    writer.writerows([p.image, p.label, f"{p.probability:.6f}"] for p in predictions)
    return text.getvalue().encode()
