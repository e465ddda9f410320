from __future__ import annotations

from pathlib import Path

import click

from alexdeploy import artifacts
from alexdeploy.cli.options import FILE, data_options, json_option, open_data, output_option
from alexdeploy.cli.output import note, note_skipped, print_json, progress


@click.command("calibrate")
@click.argument("model", type=FILE)
@data_options(required=True)
@click.option("--samples", type=click.IntRange(min=1), default=512, show_default=True, help="Training images to feed.")
@output_option("ranges.json")
@json_option
def command(
    model: Path,
    data: str,
    data_root: Path | None,
    skip_bad_images: bool,
    samples: int,
    output: Path,
    as_json: bool,
) -> None:
    """Write the activation ranges of a float model.

    One pass gives the ranges of every method. The images come from the training split. Memory does not grow
    with their number; the range file holds a receipt that every image reached every tensor.

    \b
    Example: alexdeploy calibrate model.onnx --data digits --samples 512 -o ranges.json
    """
    artifacts.check_output(output)
    artifacts.check_input(model)
    from alexdeploy.quantize.calibrate import calibrate
    from alexdeploy.quantize.rangefile import save_ranges

    dataset = open_data(data, "train", data_root, skip_bad_images)
    with progress() as bar:
        ranges = calibrate(
            model,
            dataset,
            samples=samples,
            progress=lambda done, total: bar(f"calibrating {done}/{total}", done / total),
        )
    save_ranges(output, ranges, (artifacts.parent(model),), {"data": data, "samples": samples})
    note_skipped(dataset)
    if ranges.samples < samples:
        note(f"note: {samples} samples asked for, {dataset.name} has {ranges.samples} that can be read; all were used")
    if as_json:
        print_json({"ranges": str(output), "samples": ranges.samples, "tensors": ranges.tensors})
    else:
        click.echo(f"{output}: {len(ranges.tensors)} tensors, each saw all {ranges.samples} images")
