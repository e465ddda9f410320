from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from alexdeploy.cli.options import (
    FILE,
    DataChoice,
    data_options,
    json_option,
    lrn_option,
    method_option,
    note_cache,
    option_group,
    output_option,
)
from alexdeploy.cli.output import echo, note, note_data, note_skipped, print_json, progress
from alexdeploy.errors import UsageError, few
from alexdeploy.files import printable
from alexdeploy.specs import Dialect, Rounding

if TYPE_CHECKING:
    from alexdeploy.quantize.quantize import QuantizeResult, QuantizeSettings


def _settings(**chosen: Any) -> QuantizeSettings:
    from alexdeploy.quantize.quantize import QuantizeSettings

    return QuantizeSettings(
        method=chosen["method"],
        rounding=chosen["rounding"],
        dialect=chosen["target"],
        fp8=chosen["fp8"],
        fp16=chosen["fp16"],
        bf16=chosen["bf16"],
        lrn_fp16=chosen["lrn"] == "fp16",
        keep_float=[name.strip() for name in (chosen["keep_float"] or "").split(",") if name.strip()],
        max_drop=chosen["max_drop"],
    )


_settings_options = option_group(
    "settings",
    _settings,
    method_option("auto"),
    click.option(
        "--rounding",
        type=click.Choice(get_args(Rounding)),
        help="Of the weights: gptq, by what each layer gives, with channels equalized and biases corrected, or "
        "nearest.  "
        "[default: gptq, where calibrate gathered its moments; auto measures both]",
    ),
    click.option(
        "--for",
        "target",
        type=click.Choice(get_args(Dialect)),
        default="tensorrt",
        show_default=True,
        help="Dialect.",
    ),
    click.option("--fp8", is_flag=True, help="FP8 (E4M3) instead of INT8; for TensorRT and GPUs from 8.9 on."),
    click.option("--fp16", is_flag=True, help="FP16 instead of FP32 between the quantized layers (LRN stays FP32)."),
    click.option("--bf16", is_flag=True, help="bfloat16 instead of FP32 there (LRN stays FP32)."),
    lrn_option,
    click.option(
        "--keep-float", metavar="NAME,...", help="Keep these layers in float, such as the worst that analyze ranks."
    ),
    click.option(
        "--max-drop",
        type=click.FloatRange(min=0),
        metavar="POINTS",
        help="Keep layers in float until top-1 falls by no more than this (needs --data).",
    ),
)


@click.command("quantize")
@click.argument("model", type=FILE)
@click.option(
    "--ranges",
    type=FILE,
    required=True,
    metavar="ranges.json",
    help="Range file from `alexdeploy calibrate`, or a calibration cache of TensorRT (then without --method).",
)
@_settings_options
@data_options(required=False)
@click.option("--samples", type=click.IntRange(min=1), default=256, show_default=True, help="Images for auto.")
@output_option("out.onnx")
@json_option
def command(
    model: Path,
    ranges: Path,
    settings: QuantizeSettings,
    data: DataChoice | None,
    samples: int,
    output: Path,
    as_json: bool,
) -> None:
    """Write a float model as INT8 or FP8 (Q/DQ).

    The dialect is that of the runtime which is to run it; the ranges must come from this very model. --method auto
    measures on training images that were not calibrated on and need no labels, --max-drop on all held-out images.

    \b
    Example: alexdeploy quantize model.onnx --ranges ranges.json -o int8.onnx
             alexdeploy quantize model.onnx --ranges ranges.json --keep-float conv1,fc8 -o int8.onnx
             alexdeploy quantize model.onnx --ranges ranges.json --max-drop 0.3 --data digits -o int8.onnx
    """
    auto, budget = settings.method == "auto", settings.max_drop is not None
    if (auto or budget) and data is None:
        raise UsageError("--method auto and --max-drop measure on images; name them with --data DATASET")
    if data is not None and not (auto or budget):
        raise UsageError("--data is for --method auto and --max-drop; leave it out")
    from alexdeploy.quantize.quantize import quantize_onnx

    note_cache(ranges)
    selection = data.open("train") if data is not None and auto else None
    validation = data.open("val") if data is not None and budget else None
    if validation is not None:
        note_data(validation)
    with progress(f"quantizing {model.name}") as bar:
        result = quantize_onnx(
            model,
            ranges,
            output,
            settings=settings,
            selection_images=selection,
            selection_samples=samples,
            validation_images=validation,
            progress=bar,
        )
    for dataset in (selection, validation):
        if dataset is not None:
            note_skipped(dataset)
    described = _describe(result)
    if as_json:
        used = {"method": result.method, "rounding": result.rounding, "for": settings.dialect}
        print_json({"model": str(output), **used, **described})
        return
    _explain(result)
    layers = len(described["quantized"])
    why = {name: f" ({reason})" for name, reason in described["reasons"].items()}
    left = f" (float: {few(name + why.get(name, '') for name in described['float'])})" if described["float"] else ""
    written = settings.precision.quantized
    rounded = "by gptq" if result.rounding == "gptq" else "to the nearest"
    echo(
        f"{output}: {layers} of {described['layers']} layers in {written}{left}, ranges by {result.method}, "
        f"weights rounded {rounded}"
    )
    if described["float"]:
        note(f"in float, for --keep-float and other tools: {shlex.quote(','.join(map(printable, described['float'])))}")


def _describe(result: QuantizeResult) -> dict[str, Any]:
    from alexdeploy.graph.model import op_counts, precision_of
    from alexdeploy.graph.weighted import is_weighted, layers_left, quantized_nodes

    choice, budget = result.choice, result.budget
    reasons = layers_left(result.model, precision_of(result.model))
    layers = list(dict.fromkeys([str(node.name) for node in result.model.graph if is_weighted(node)] + [*reasons]))
    quantized = [str(node.name) for node in quantized_nodes(result.model)]
    return {
        "precision": precision_of(result.model).value,
        "layers": len(layers),
        "quantized": quantized,
        "float": [name for name in layers if name not in quantized],
        "reasons": reasons,
        "ops": op_counts(result.model),
        "rounded_to_nearest": result.nearest,
        "methods": {"scores": choice.scores, "left_out": choice.left_out, "images": result.measured_on}
        if choice
        else None,
        "budget": {"chosen": budget.chosen, "attempts": budget.attempts} if budget else None,
    }


def _explain(result: QuantizeResult) -> None:
    if result.budget is not None:
        note(f"after {len(result.budget.attempts)} attempts: {result.budget.chosen}")
    if result.nearest:
        note(f"note: rounded to the nearest, since their inputs cannot be unfolded or overflow: {few(result.nearest)}")
    choice = result.choice
    if choice is None:
        return
    from alexdeploy.quantize.search import AUTO_SECONDS

    note(f"measured on {result.measured_on}")
    for tried, score in choice.scores.items():
        note(f"{tried}: agreement {score.agreement:.2%}, SQNR {score.sqnr_db:.1f} dB")
    if choice.left_out:
        note(f"not measured within {AUTO_SECONDS:.0f} s: {'; '.join(choice.left_out)}")
