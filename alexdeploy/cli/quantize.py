from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alexdeploy.cli.options import (
    FILE,
    DataChoice,
    data_options,
    json_option,
    lrn_option,
    method_for_ranges,
    output_option,
)
from alexdeploy.cli.output import note, note_skipped, print_json
from alexdeploy.errors import UsageError

if TYPE_CHECKING:
    from alexdeploy.graph.qdq import Dialect
    from alexdeploy.quantize.quantize import QuantizeResult


@click.command("quantize")
@click.argument("model", type=FILE)
@click.option(
    "--ranges",
    type=FILE,
    required=True,
    metavar="ranges.json",
    help="What calibrate wrote, or a calibration cache of TensorRT (then without --method).",
)
@click.option(
    "--method",
    type=click.Choice(["minmax", "entropy", "percentile", "mse", "auto"]),
    default="mse",
    show_default=True,
    help="How the clipping range is chosen; auto measures all of them, tensor by tensor (needs --data).",
)
@click.option(
    "--for",
    "target",
    type=click.Choice(["tensorrt", "onnxruntime", "openvino"]),
    default="tensorrt",
    show_default=True,
    help="Dialect.",
)
@click.option("--fp16", is_flag=True, help="FP16 instead of FP32 between the INT8 layers (LRN stays FP32).")
@lrn_option
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Keep layers in float until top-1 falls by no more than this (needs --data).",
)
@data_options(required=False)
@click.option("--samples", type=click.IntRange(min=1), default=256, show_default=True, help="Images for auto.")
@output_option("out.onnx")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    model: Path,
    ranges: Path,
    method: str,
    target: Dialect,
    fp16: bool,
    lrn: str,
    max_drop: float | None,
    data: DataChoice | None,
    samples: int,
    output: Path,
    as_json: bool,
) -> None:
    """Write a float model as INT8 (Q/DQ).

    The dialect is that of the runtime which is to run it; the ranges must come from this very model. --method auto
    measures on training images, --max-drop on all held-out images.

    \b
    Example: alexdeploy quantize model.onnx --ranges ranges.json -o int8.onnx
             alexdeploy quantize model.onnx --ranges ranges.json --max-drop 0.3 --data digits -o int8.onnx
    """
    measured = method == "auto" or max_drop is not None
    if measured and data is None:
        raise UsageError("--method auto and --max-drop measure on images; name them with --data DATASET")
    if data is not None and not measured:
        raise UsageError("--data is for --method auto and --max-drop; leave it out")
    from alexdeploy.quantize.quantize import QuantizeSettings, quantize_onnx

    method = method_for_ranges(ctx, ranges, method)
    choose_on = judge_on = None
    if data is not None and method == "auto":
        choose_on = data.open("train").subset(samples)
    if data is not None and max_drop is not None:
        judge_on = data.open("val")
    settings = QuantizeSettings(method=method, dialect=target, fp16=fp16, lrn_fp16=lrn == "fp16", max_drop=max_drop)
    result = quantize_onnx(
        model, ranges, output, settings=settings, choose_on=choose_on, judge_on=judge_on, progress=note
    )
    for dataset in (choose_on, judge_on):
        if dataset is not None:
            note_skipped(dataset)
    described = _describe(result)
    if as_json:
        print_json({"model": str(output), "method": method, "for": target, **described})
        return
    _explain_choice(result)
    layers = described["quantized"]
    click.echo(f"{output}: {len(layers)} layers in INT8 ({', '.join(layers)}), ranges by {method}")


def _describe(result: QuantizeResult) -> dict[str, Any]:
    from alexdeploy.graph.model import op_counts, precision_of
    from alexdeploy.graph.weighted import quantized_nodes

    choice, budget = result.choice, result.budget
    return {
        "precision": precision_of(result.model).value,
        "quantized": [str(node.name) for node in quantized_nodes(result.model)],
        "ops": op_counts(result.model),
        "methods": {"scores": choice.scores, "chosen": choice.method_of, "score": choice.chosen} if choice else None,
        "budget": {"chosen": budget.chosen, "attempts": budget.attempts} if budget else None,
    }


def _explain_choice(result: QuantizeResult) -> None:
    choice = result.choice
    if choice is None:
        return
    for method, score in choice.scores.items():
        note(f"{method}: agreement {score.agreement:.2%}, SQNR {score.sqnr_db:.1f} dB")
    counts = {name: list(choice.method_of.values()).count(name) for name in choice.scores}
    picked = ", ".join(f"{name} for {count} tensors" for name, count in counts.items() if count)
    evened = ", on equalized channels" if choice.equalized is not None else ""
    note(f"auto: {picked}{evened}: agreement {choice.chosen.agreement:.2%}, SQNR {choice.chosen.sqnr_db:.1f} dB")
