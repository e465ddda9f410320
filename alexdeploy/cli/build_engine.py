from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alexdeploy import artifacts
from alexdeploy.cli.options import (
    FILE,
    check_lrn,
    data_options,
    json_option,
    lrn_option,
    method_for_ranges,
    open_data,
    output_option,
)
from alexdeploy.cli.output import note_skipped, print_json, progress, warn
from alexdeploy.errors import UsageError
from alexdeploy.specs import BatchProfile

if TYPE_CHECKING:
    from alexdeploy.engine.build import EngineReport
    from alexdeploy.engine.versions import Builder
    from alexdeploy.quantize.write import Ranges


@click.command("build-engine")
@click.argument("model", type=FILE)
@click.option("--fp16", is_flag=True, help="FP16 arithmetic; LRN stays FP32.")
@lrn_option
@click.option("--int8", is_flag=True, help="INT8 convolutions and matrix products; needs --ranges or --data.")
@click.option(
    "--ranges",
    type=FILE,
    metavar="ranges.json",
    help="What calibrate wrote, or a calibration cache of TensorRT; for --int8, and for islands of --fp16.",
)
@click.option(
    "--method",
    type=click.Choice(["minmax", "entropy", "percentile", "mse"]),
    default="mse",
    show_default=True,
    help="How the clipping range was chosen, for --int8.",
)
@data_options(required=False)
@click.option("--samples", type=click.IntRange(min=1), default=512, show_default=True, help="Images to calibrate on.")
@click.option("--batch", default="1:8:64", show_default=True, metavar="MIN:OPT:MAX", help="Batch sizes to accept.")
@click.option("--builder", type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]), default="auto", show_default=True)
@click.option("--strict", is_flag=True, help="Fail (exit 5) when an INT8 layer was built in float.")
@output_option("model.engine")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    model: Path,
    fp16: bool,
    lrn: str,
    int8: bool,
    ranges: Path | None,
    method: str,
    data: str | None,
    data_root: Path | None,
    skip_bad_images: bool,
    samples: int,
    batch: str,
    builder: Builder,
    strict: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Build a TensorRT engine from an ONNX model.

    It says in which type the layers really compute. A model that quantize wrote is built as it is. TensorRT-RTX
    builds without a GPU; TensorRT needs one.

    \b
    Example: alexdeploy build-engine model.onnx --int8 --data digits -o int8.engine
             alexdeploy build-engine model.onnx --fp16 --batch 1:8:64 -o fp16.engine
    """
    profile = BatchProfile.parse(batch)
    check_lrn(lrn, fp16)
    _check_arguments(int8, fp16, ranges, data)
    artifacts.check_output(output)
    artifacts.check_input(model)
    from alexdeploy.engine.versions import load_library

    if ranges is not None:
        method = method_for_ranges(ctx, ranges, method)
    load_library(builder)  # before a calibration that would be for nothing
    from alexdeploy.pipeline.build import BuildSettings, build_engine, int8_verdict

    seen = _ranges(model, ranges, data, data_root, skip_bad_images, samples)
    settings = BuildSettings(
        int8=int8,
        fp16=fp16,
        lrn_fp16=lrn == "fp16",
        method=method,
        profile=profile,
        builder=builder,
        strict=strict,
    )
    report = build_engine(model, output, ranges=seen, settings=settings, rebuild=shlex.join(["alexdeploy", *ctx.obj]))
    if report.float_layers:
        warn(int8_verdict(report))
    _show(output, report, as_json)


def _show(output: Path, report: EngineReport, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "engine": str(output),
                "builder": report.builder,
                "builder_version": report.builder_version,
                "size_bytes": report.size_bytes,
                "seconds": round(report.seconds, 3),
                "precisions": report.precisions,
                "layer_precisions": report.layer_precisions,
                "float_layers": report.float_layers,
            }
        )
        return
    types = ", ".join(f"{count} {name}" for name, count in report.precisions.items() if count)
    click.echo(
        f"{output}: {report.size_bytes / 1e6:.1f} MB in {report.seconds:.1f} s with {report.builder} "
        f"{report.builder_version}; Conv/Gemm kernels: {types or 'not reported by this builder'}"
    )


def _check_arguments(int8: bool, fp16: bool, ranges: Path | None, data: str | None) -> None:
    if ranges is not None and data is not None:
        raise UsageError("--ranges and --data both name the ranges; leave one out")
    if int8 and ranges is None and data is None:
        raise UsageError("--int8 needs either --ranges ranges.json or --data DATASET to calibrate on")
    if not (int8 or fp16) and (ranges is not None or data is not None):
        raise UsageError("--ranges and --data are for --int8 and --fp16; add one or leave them out")


def _ranges(
    model: Path, ranges: Path | None, data: str | None, data_root: Path | None, skip_bad_images: bool, samples: int
) -> Ranges | None:
    from alexdeploy.quantize import cache
    from alexdeploy.quantize.calibrate import calibrate

    if ranges is not None:
        return cache.load(ranges)
    if data is None:
        return None
    dataset = open_data(data, "train", data_root, skip_bad_images)
    with progress() as bar:
        seen = calibrate(
            model,
            dataset,
            samples=samples,
            progress=lambda done, total: bar(f"calibrating {done}/{total}", done / total),
        )
    note_skipped(dataset)
    return seen
