from __future__ import annotations

import csv
import io
from pathlib import Path

import click

from alexdeploy import artifacts
from alexdeploy.cli.options import FILE, json_option
from alexdeploy.cli.output import print_json


@click.command("predict")
@click.argument("artifact", type=FILE)
@click.argument("images", type=FILE, nargs=-1, required=True, metavar="IMAGE|FOLDER...")
@click.option("--out", type=FILE, metavar="predictions.csv", help="Write a CSV file instead of printing.")
@json_option
def command(artifact: Path, images: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Label images.

    A checkpoint or an ONNX file labels images, preprocessed as it was trained.

    \b
    Example: alexdeploy predict model.onnx photo.jpg photos/ --out predictions.csv
    """
    if out is not None:
        artifacts.check_output(out)
    from alexdeploy.predict import find_images, predict
    from alexdeploy.runners.artifact import open_artifact

    opened = open_artifact(artifact)
    predictions = list(predict(opened, find_images(images)))
    if out is not None:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["image", "label", "probability"])
        writer.writerows([p.image, p.label, f"{p.probability:.6f}"] for p in predictions)
        artifacts.write_bytes(out, text.getvalue().encode())
    if as_json:
        print_json({"artifact": str(artifact), "predictions": predictions})
    elif out is not None:
        click.echo(f"{out}: {len(predictions)} predictions")
    else:
        for prediction in predictions:
            click.echo(f"{prediction.image}: {prediction.label} ({prediction.probability:.1%})")
