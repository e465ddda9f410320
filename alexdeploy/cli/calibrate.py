from __future__ import annotations

from pathlib import Path

import click

from alexdeploy import files
from alexdeploy.cli.allocator import keep_freed_memory
from alexdeploy.cli.options import FILE, DataChoice, data_options, json_option, output_option
from alexdeploy.cli.output import echo, note, note_data, note_skipped, print_json, progress
from alexdeploy.errors import UsageError


@click.command("calibrate")
@click.argument("model", type=FILE)
@data_options(required=True)
@click.option("--samples", type=click.IntRange(min=1), default=512, show_default=True, help="Images to feed.")
@click.option(
    "--percentile",
    type=click.FloatRange(50, 100, min_open=True),
    default=99.99,
    show_default=True,
    help="Percentage of magnitudes that the method percentile keeps unclipped.",
)
@click.option(
    "--ranges-only", is_flag=True, help="Without the moments that rounding by gptq needs: faster, a smaller file."
)
@click.option(
    "--cache",
    type=FILE,
    metavar="FILE",
    help="Also write the entropy ranges as a calibration cache, as IInt8EntropyCalibrator2 of TensorRT 10.16 would; "
    "another version may ask for its own number in the first line.",
)
@output_option("ranges.json")
@json_option
def command(
    model: Path,
    data: DataChoice,
    samples: int,
    percentile: float,
    ranges_only: bool,
    cache: Path | None,
    output: Path,
    as_json: bool,
) -> None:
    """Write the activation ranges of a float model.

    One pass gives the ranges of every method, and beside them, in FILE.moments.safetensors, what quantize needs to
    round the weights well. The images are training images where the data set is split, and need no
    labels. Memory does not grow with their number; the range file holds a receipt that every image reached every
    tensor.

    \b
    Example: alexdeploy calibrate model.onnx --data digits --samples 512 -o ranges.json
    """
    files.check_output(output, model)
    if cache is not None:
        _check_cache(cache, output, model)
    files.check_input(model)
    from alexdeploy.quantize.calibrate import calibrate
    from alexdeploy.quantize.moments import moments_path
    from alexdeploy.quantize.rangefile import save_ranges
    from alexdeploy.quantize.tensorrt_cache import save_cache

    keep_freed_memory()
    dataset = data.open("train")
    note_data(dataset, samples)
    with progress(f"reading {model.name}") as bar:
        ranges = calibrate(
            model, dataset, samples=samples, percentile=percentile, moments=not ranges_only, progress=bar
        )
    options = {"data": files.printable(data.name), "samples": samples, "percentile": percentile}
    save_ranges(output, ranges, (ranges.model_parent(model),), options)
    if cache is not None:
        save_cache(cache, ranges, (ranges.model_parent(model),), options)
    note_skipped(dataset)
    if ranges.samples < samples:
        note(f"note: {samples} samples asked for, {dataset.name} has {ranges.samples} that can be read; all were used")
    if as_json:
        print_json(
            {
                "ranges": str(output),
                "moments": str(moments_path(output)) if ranges.moments is not None else None,
                "cache": str(cache) if cache is not None else None,
                "samples": ranges.samples,
                "percentile": ranges.percentile,
                "tensors": ranges.tensors,
            }
        )
    else:
        echo(f"{output}: {len(ranges.tensors)} tensors, each saw all {ranges.samples} images")
        if ranges.moments is not None:
            echo(f"{moments_path(output)}: {len(ranges.moments.data) / 1e6:.1f} MB, for rounding by gptq")
        if cache is not None:
            echo(f"{cache}: the ranges by entropy, for TensorRT")


def _check_cache(cache: Path, output: Path, model: Path) -> None:
    from alexdeploy.quantize.moments import moments_path

    files.check_output(cache, model)
    written = [output, files.sidecar_path(output), moments_path(output), cache, files.sidecar_path(cache)]
    if len({path.absolute() for path in written}) < len(written):
        raise UsageError(f"--cache {cache} and -o {output} would overwrite each other; choose other names")
