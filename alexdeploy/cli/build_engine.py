from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from alexdeploy import files
from alexdeploy.cli.allocator import keep_freed_memory
from alexdeploy.cli.options import (
    FILE,
    DataChoice,
    data_options,
    device_option,
    json_option,
    lrn_option,
    method_option,
    note_cache,
    option_group,
    output_option,
)
from alexdeploy.cli.output import echo, note, note_data, note_skipped, print_json, progress, warn
from alexdeploy.errors import UsageError
from alexdeploy.specs import Builder, Hardware, Method, Profile, Progress

if TYPE_CHECKING:
    from alexdeploy.data.dataset import ImageDataset
    from alexdeploy.engine.options import BuildSettings
    from alexdeploy.engine.plan import Plan
    from alexdeploy.engine.record import EngineRecord
    from alexdeploy.graph.model import PreparedGraph
    from alexdeploy.quantize.rangefile import RangeFile

MIB = 1 << 20


@dataclass(frozen=True)
class _Precision:
    """The values of ``--int8``, ``--fp8``, ``--fp16``, ``--bf16`` and the options that go with them."""

    fp16: bool
    bf16: bool
    lrn: str
    int8: bool
    fp8: bool
    ranges: Path | None
    method: Method | None
    implicit: bool

    @property
    def written(self) -> bool:
        """Something is to be written into the graph."""
        return self.int8 or self.fp8 or self.fp16 or self.bf16


_precision_options = option_group(
    "precision",
    _Precision,
    click.option("--fp16", is_flag=True, help="FP16 arithmetic; LRN stays FP32."),
    click.option("--bf16", is_flag=True, help="bfloat16 arithmetic; LRN stays FP32."),
    lrn_option,
    click.option("--int8", is_flag=True, help="INT8 convolutions and matrix products; needs --ranges or --data."),
    click.option("--fp8", is_flag=True, help="FP8 (E4M3) instead, for GPUs from 8.9 on; needs --ranges or --data."),
    click.option(
        "--ranges",
        type=FILE,
        metavar="ranges.json",
        help="Range file from `alexdeploy calibrate`, or a calibration cache of TensorRT; for --int8 and --fp8, and "
        "for islands of --fp16.",
    ),
    method_option(),
    click.option(
        "--implicit", is_flag=True, help="TensorRT 10: it calibrates and chooses the types itself (deprecated)."
    ),
)


def _settings(**chosen: Any) -> BuildSettings:
    from alexdeploy.engine.options import BuilderOptions, BuildSettings
    from alexdeploy.engine.versions import Compatibility

    workspace = chosen["workspace"]
    return BuildSettings(
        builder=chosen["builder"],
        batches=Profile.parse(chosen["batch"]),
        shapes=_parse_shapes(chosen["profile"]),
        strict=chosen["strict"],
        options=BuilderOptions(
            workspace_bytes=workspace * MIB if workspace is not None else None,
            level=chosen["level"],
            tf32=chosen["tf32"],
            timing_cache=chosen["timing_cache"],
            device=chosen["device"],
            compatibility=Compatibility(
                hardware=chosen["hardware"], newer_versions=chosen["version_compatible"], targets=chosen["target"]
            ),
        ),
    )


_builder_options = option_group(
    "settings",
    _settings,
    click.option("--batch", default="1:8:64", show_default=True, metavar="MIN:OPT:MAX", help="Batch sizes to accept."),
    click.option(
        "--profile",
        multiple=True,
        metavar="INPUT=MIN:OPT:MAX",
        help="Whole shapes for an input that is dynamic beyond the batch, such as "
        "x=1x3x224x224:8x3x224x224:8x3x448x448.",
    ),
    click.option(
        "--builder",
        type=click.Choice([name for part in get_args(Builder) for name in get_args(part) or (part,)]),
        default="auto",
        show_default=True,
    ),
    click.option(
        "--workspace",
        type=click.IntRange(1, 1 << 30),
        metavar="MIB",
        help="Scratch memory a kernel may take.  [default: all]",
    ),
    click.option("--level", type=click.IntRange(0, 5), help="Effort of the builder.  [default: TensorRT's, 3]"),
    click.option("--tf32", is_flag=True, help="Let FP32 multiplications round their inputs to 10 bits."),
    click.option(
        "--target", multiple=True, metavar="8.9", help="TensorRT-RTX: build for this compute capability only."
    ),
    click.option(
        "--hardware",
        type=click.Choice(get_args(Hardware)),
        default="same-gpu",
        show_default=True,
        help="TensorRT: GPUs that the engine is to run on.",
    ),
    click.option("--version-compatible", is_flag=True, help="TensorRT: newer versions may load the engine too."),
    click.option("--timing-cache", type=FILE, metavar="DIR", help="TensorRT: keep what it measures for later builds."),
    device_option(),
    click.option("--strict", is_flag=True, help="Fail (exit 5) when a layer was built in a wider type than asked."),
)


@click.command("build-engine")
@click.argument("model", type=FILE)
@_precision_options
@data_options(required=False)
@click.option("--samples", type=click.IntRange(min=1), default=512, show_default=True, help="Images to calibrate on.")
@_builder_options
@click.option("--dry-run", is_flag=True, help="Check all and say what would be built; build and write nothing.")
@output_option("model.engine")
@json_option
def command(
    model: Path,
    precision: _Precision,
    data: DataChoice | None,
    samples: int,
    settings: BuildSettings,
    dry_run: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Build a TensorRT engine from an ONNX model.

    Reports the precision each layer was actually built in. A model that quantize wrote is built as it is.
    TensorRT-RTX builds without a GPU; TensorRT needs one.

    \b
    Example: alexdeploy build-engine model.onnx --int8 --data digits -o int8.engine
             alexdeploy build-engine model.onnx --fp16 --batch 1:8:64 -o fp16.engine
    """
    _check(precision, data, settings)
    files.check_output(output, *(path for path in (model, precision.ranges) if path is not None))
    files.check_input(model)
    from alexdeploy.engine.plan import ImplicitInt8, open_library, plan_engine

    open_library(settings, implicit=precision.implicit)  # before a calibration that would be for nothing
    dataset = data.open("train") if data is not None else None
    if dataset is not None:
        note_data(dataset, samples)
    implicit = None
    if precision.implicit:
        images = precision.ranges or (dataset.subset(samples) if dataset is not None else None)
        assert images is not None, "guaranteed by _check"
        implicit = ImplicitInt8(images, fp16=precision.fp16)
    with progress(f"reading {model.name}") as bar:
        graph = model if implicit is not None else _with_precision(model, precision, dataset, samples, bar)
        bar("planning", 0.0)
        plan = plan_engine(graph, settings=settings, implicit=implicit)
    if dataset is not None:
        note_skipped(dataset)
    _warn_of_memory(plan)
    if dry_run:
        _show_plan(output, plan, as_json)
    else:
        rebuild = shlex.join(["alexdeploy", *click.get_current_context().obj])
        _build(plan, output, rebuild, as_json)


def _with_precision(
    model: Path, precision: _Precision, dataset: ImageDataset | None, samples: int, progress: Progress
) -> Path | PreparedGraph:
    if not precision.written:
        return model
    from alexdeploy.quantize.apply import PrecisionSettings, with_precision

    settings = PrecisionSettings(
        int8=precision.int8,
        fp8=precision.fp8,
        fp16=precision.fp16,
        bf16=precision.bf16,
        lrn_fp16=precision.lrn == "fp16",
        method=precision.method,
    )
    if precision.ranges is not None:
        note_cache(precision.ranges)
    ranges: Path | RangeFile | None = precision.ranges
    if dataset is not None:
        from alexdeploy.quantize.calibrate import calibrate

        keep_freed_memory()
        ranges = calibrate(model, dataset, samples=samples, moments=precision.int8, progress=progress)
    progress("writing the precision into the graph", 0.0)
    return with_precision(model, ranges, settings=settings)


def _build(plan: Plan, output: Path, rebuild: str, as_json: bool) -> None:
    from alexdeploy.engine.plan import build_planned, precision_verdict
    from alexdeploy.graph.weighted import grouped_hint

    with progress("building") as bar:
        record = build_planned(plan, output, rebuild=rebuild, progress=bar)
    if record.float_layers or record.left:
        warn(precision_verdict(record))
    if record.grouped and record.builder == "tensorrt":
        note(grouped_hint(record.grouped))
    if as_json:
        import msgspec

        print_json({"engine": str(output), **msgspec.to_builtins(record)})
    else:
        _show(output, record)


def _warn_of_memory(plan: Plan) -> None:
    need, free = plan.memory, plan.free_bytes
    if free is not None and need.total_bytes > free:
        warn(
            f"the engine will need about {need.total_bytes / MIB:,.0f} MiB at batch {need.batch}, and this device has "
            f"{free / MIB:,.0f} MiB free; lower the largest --batch, or free memory"
        )


def _show_plan(output: Path, plan: Plan, as_json: bool) -> None:
    graph, library, need, precision = plan.build.graph, plan.build.library, plan.memory, plan.precision.value
    shapes = {name: str(shape) for name, shape in graph.shapes.items()}
    if as_json:
        print_json(
            {
                "engine": str(output),
                "dry_run": True,
                "builder": library.name,
                "version": library.version,
                "precision": precision,
                "int8_layers": [name for name, asked in graph.quantized.items() if asked == "INT8"],
                "quantized": graph.quantized,
                "shapes": shapes,
                "options": plan.settings.options,
                "memory": need,
                "free_bytes": plan.free_bytes,
            }
        )
        return
    asked = Counter(graph.quantized.values())
    quantized = "".join(f", {count} of {len(graph.weighted)} layers in {name}" for name, count in asked.items())
    free = f"; free now: {plan.free_bytes / MIB:,.0f} MiB" if plan.free_bytes is not None else ""
    echo(
        f"would build {output} ({precision}{quantized}) with {library.name} {library.version}",
        *(f"input {name}: {shape}" for name, shape in shapes.items()),
        f"device memory at batch {need.batch}, predicted: {need.total_bytes / MIB:,.0f} MiB "
        f"(weights {need.weights_bytes / MIB:,.0f}, activations {need.activations_bytes / MIB:,.0f}, "
        f"input and output {need.io_bytes / MIB:,.0f}) and the kernels' workspace{free}",
    )


def _show(output: Path, record: EngineRecord) -> None:
    total = len(record.layer_precisions)
    types = ", ".join(f"{count} of {total} layers in {name}" for name, count in record.precisions.items() if count)
    echo(
        f"{output}: {record.size_bytes / 1e6:.1f} MB in {record.build_seconds:.1f} s with {record.builder} "
        f"{record.version}; {types or record.kernels_unknown or 'no layers with weights'}"
    )


def _parse_shapes(texts: tuple[str, ...]) -> dict[str, Profile]:
    """``"x=1x3x8x8:2x3x8x8:4x3x8x8"`` each; names may hold an equals sign."""
    found: dict[str, Profile] = {}
    for text in texts:
        name, _, shapes = text.rpartition("=")
        if not name:
            raise UsageError(
                f"--profile {text}: expected INPUT=MIN:OPT:MAX such as x=1x3x224x224:8x3x224x224:8x3x448x448"
            )
        if name in found:
            raise UsageError(f"--profile {name}=... is given twice; leave one out")
        found[name] = Profile.parse(shapes)
    return found


def _check(precision: _Precision, data: DataChoice | None, settings: BuildSettings) -> None:
    ranges = precision.ranges
    if ranges is not None and data is not None:
        raise UsageError("--ranges and --data both name the ranges; leave one out")
    if precision.implicit:
        _check_implicit(precision, settings)
    if (precision.int8 or precision.fp8) and ranges is None and data is None:
        named = "--int8" if precision.int8 else "--fp8"
        raise UsageError(f"{named} needs either --ranges ranges.json or --data DATASET to calibrate on")
    if not (precision.int8 or precision.fp8 or precision.fp16) and (ranges is not None or data is not None):
        raise UsageError("--ranges and --data are for --int8, --fp8 and --fp16; add one or leave them out")
    if precision.lrn == "fp16" and not precision.fp16:
        raise UsageError("--lrn fp16 is for --fp16; add it or leave --lrn out")


def _check_implicit(precision: _Precision, settings: BuildSettings) -> None:
    from alexdeploy.quantize.tensorrt_cache import is_cache

    if not precision.int8 or settings.builder != "tensorrt":
        raise UsageError("--implicit needs --int8 and --builder tensorrt (version 10)")
    if precision.fp8 or precision.bf16:
        raise UsageError("--fp8 and --bf16 do not go with --implicit: TensorRT chooses among INT8, FP16 and FP32")
    if precision.method is not None:
        raise UsageError("--method does not go with --implicit: TensorRT calibrates by its own entropy method")
    if precision.ranges is not None and not is_cache(precision.ranges):
        raise UsageError(
            f"--implicit takes a calibration cache of TensorRT as --ranges, which {precision.ranges} is not"
        )
