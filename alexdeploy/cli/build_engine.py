from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alexdeploy import files
from alexdeploy.cli.options import (
    FILE,
    DataChoice,
    data_options,
    json_option,
    lrn_option,
    method_for_ranges,
    output_option,
)
from alexdeploy.cli.output import note_skipped, print_json, progress, warn
from alexdeploy.errors import UsageError
from alexdeploy.specs import BatchProfile, ShapeProfile

if TYPE_CHECKING:
    from alexdeploy.build import EnginePlan
    from alexdeploy.data.dataset import ImageDataset
    from alexdeploy.engine.build import EngineReport
    from alexdeploy.engine.versions import Builder, Hardware
    from alexdeploy.quantize.rangefile import RangeFile

MIB = 1 << 20


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
@click.option(
    "--profile",
    "shapes",
    multiple=True,
    metavar="INPUT=MIN:OPT:MAX",
    help="Whole shapes for an input that is dynamic beyond the batch, such as x=1x3x224x224:8x3x224x224:8x3x448x448.",
)
@click.option("--builder", type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]), default="auto", show_default=True)
@click.option(
    "--workspace",
    type=click.IntRange(1, 1 << 30),
    metavar="MIB",
    help="Scratch memory a kernel may take.  [default: all]",
)
@click.option("--level", type=click.IntRange(0, 5), help="Effort of the builder.  [default: TensorRT's, 3]")
@click.option("--tf32", is_flag=True, help="Let FP32 multiplications round their inputs to 10 bits.")
@click.option(
    "--target", "targets", multiple=True, metavar="8.9", help="TensorRT-RTX: build for this compute capability only."
)
@click.option(
    "--hardware",
    type=click.Choice(["same-gpu", "same-compute-capability", "ampere+"]),
    default="same-gpu",
    show_default=True,
    help="TensorRT: GPUs that the engine is to run on.",
)
@click.option("--version-compatible", is_flag=True, help="TensorRT: newer versions may load the engine too.")
@click.option("--timing-cache", type=FILE, metavar="DIR", help="TensorRT: keep what it measures for later builds.")
@click.option(
    "--implicit",
    is_flag=True,
    help="TensorRT 10: it calibrates and chooses the types itself (deprecated).",
)
@click.option("--strict", is_flag=True, help="Fail (exit 5) when an INT8 layer was built in float.")
@click.option("--dry-run", is_flag=True, help="Check all and say what would be built; build and write nothing.")
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
    data: DataChoice | None,
    samples: int,
    batch: str,
    shapes: tuple[str, ...],
    builder: Builder,
    workspace: int | None,
    level: int | None,
    tf32: bool,
    targets: tuple[str, ...],
    hardware: Hardware,
    version_compatible: bool,
    timing_cache: Path | None,
    implicit: bool,
    strict: bool,
    dry_run: bool,
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
    batches, named = BatchProfile.parse(batch), _parse_shapes(shapes)
    _check_arguments(int8, fp16, ranges, data)
    _check_implicit(ctx, implicit, int8, builder, ranges)
    files.check_output(output, *(path for path in (model, ranges) if path is not None))
    files.check_input(model)
    from alexdeploy.build import BuildSettings, open_library, plan_engine
    from alexdeploy.engine.build import BuilderOptions
    from alexdeploy.engine.versions import Compatibility

    if ranges is not None and not implicit:
        method = method_for_ranges(ctx, ranges, method)
    options = BuilderOptions(
        workspace_bytes=workspace * MIB if workspace is not None else None,
        level=level,
        tf32=tf32,
        timing_cache=timing_cache,
        compatibility=Compatibility(hardware=hardware, newer_versions=version_compatible, targets=targets),
    )
    asked = {"int8": int8, "fp16": fp16, "lrn_fp16": lrn == "fp16", "implicit": implicit, "strict": strict}
    settings = BuildSettings(**asked, method=method, builder=builder, batches=batches, shapes=named, options=options)
    open_library(settings)  # before a calibration that would be for nothing
    dataset = data.open("train") if data is not None else None
    seen: Path | RangeFile | ImageDataset | None = ranges
    if dataset is not None:
        seen = dataset.subset(samples) if implicit else _calibrated(model, dataset, samples)
    plan = plan_engine(model, ranges=seen, settings=settings)
    _warn_of_memory(plan)
    if dry_run:
        _show_plan(output, plan, as_json)
    else:
        _build(plan, output, shlex.join(["alexdeploy", *ctx.obj]), as_json)


def _build(plan: EnginePlan, output: Path, rebuild: str, as_json: bool) -> None:
    from alexdeploy.build import build_planned, int8_verdict

    with progress() as bar:
        report = build_planned(plan, output, rebuild=rebuild, progress=bar)
    if report.float_layers:
        warn(int8_verdict(report))
    _show(output, report, as_json)


def _warn_of_memory(plan: EnginePlan) -> None:
    need, free = plan.memory, plan.free_bytes
    if free is not None and need.total_bytes > free:
        warn(
            f"the engine will need about {need.total_bytes / MIB:,.0f} MiB at batch {need.batch}, and this device has "
            f"{free / MIB:,.0f} MiB free; lower the largest --batch, or free memory"
        )


def _show_plan(output: Path, plan: EnginePlan, as_json: bool) -> None:
    graph, library, need, options = plan.graph, plan.build.library, plan.memory, plan.settings.options
    if as_json:
        print_json(
            {
                "engine": str(output),
                "dry_run": True,
                "builder": library.name,
                "builder_version": library.version,
                "precision": graph.precision.value,
                "int8_layers": list(graph.quantized),
                "shapes": {name: str(shape) for name, shape in graph.shapes.items()},
                "options": options,
                "memory": need,
                "free_bytes": plan.free_bytes,
            }
        )
        return
    quantized = f", {len(graph.quantized)} of {len(graph.weighted)} Conv/Gemm in INT8" if graph.quantized else ""
    inputs = "\n".join(f"input {name}: {shape}" for name, shape in graph.shapes.items())
    free = f"; free now: {plan.free_bytes / MIB:,.0f} MiB" if plan.free_bytes is not None else ""
    click.echo(
        f"would build {output} ({graph.precision.value}{quantized}) with {library.name} {library.version}\n"
        f"{inputs}\n"
        f"device memory at batch {need.batch}, predicted: {need.total_bytes / MIB:,.0f} MiB "
        f"(weights {need.weights_bytes / MIB:,.0f}, activations {need.activations_bytes / MIB:,.0f}, "
        f"input and output {need.io_bytes / MIB:,.0f}) and the kernels' workspace{free}"
    )


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


def _parse_shapes(texts: tuple[str, ...]) -> dict[str, ShapeProfile]:
    """``"x=1x3x8x8:2x3x8x8:4x3x8x8"`` each; names may hold an equals sign."""
    found: dict[str, ShapeProfile] = {}
    for text in texts:
        name, _, shapes = text.rpartition("=")
        if not name:
            raise UsageError(
                f"--profile {text}: expected INPUT=MIN:OPT:MAX such as x=1x3x224x224:8x3x224x224:8x3x448x448"
            )
        if name in found:
            raise UsageError(f"--profile {name}=... is given twice; leave one out")
        found[name] = ShapeProfile.parse(shapes)
    return found


def _check_arguments(int8: bool, fp16: bool, ranges: Path | None, data: DataChoice | None) -> None:
    if ranges is not None and data is not None:
        raise UsageError("--ranges and --data both name the ranges; leave one out")
    if int8 and ranges is None and data is None:
        raise UsageError("--int8 needs either --ranges ranges.json or --data DATASET to calibrate on")
    if not (int8 or fp16) and (ranges is not None or data is not None):
        raise UsageError("--ranges and --data are for --int8 and --fp16; add one or leave them out")


def _check_implicit(ctx: click.Context, implicit: bool, int8: bool, builder: str, ranges: Path | None) -> None:
    if not implicit:
        return
    from click.core import ParameterSource

    from alexdeploy.quantize.tensorrt_cache import is_cache

    if not int8 or builder != "tensorrt":
        raise UsageError("--implicit needs --int8 and --builder tensorrt (version 10)")
    if ctx.get_parameter_source("method") is not ParameterSource.DEFAULT:
        raise UsageError("--method does not go with --implicit: TensorRT calibrates by its own entropy method")
    if ranges is not None and not is_cache(ranges):
        raise UsageError(f"--implicit takes a calibration cache of TensorRT as --ranges, which {ranges} is not")


def _calibrated(model: Path, dataset: ImageDataset, samples: int) -> RangeFile:
    from alexdeploy.quantize.calibrate import calibrate

    with progress() as bar:
        seen = calibrate(
            model,
            dataset,
            samples=samples,
            progress=lambda done, total: bar(f"calibrating {done}/{total}", done / total),
        )
    note_skipped(dataset)
    return seen
