from __future__ import annotations

from pathlib import Path

import click

from alexdeploy.cli.options import FILE, json_option, output_option
from alexdeploy.cli.output import print_json


@click.command("quantize")
@click.argument("model", type=FILE)
@click.option("--ranges", type=FILE, required=True, metavar="ranges.json", help="What calibrate wrote.")
@click.option(
    "--method",
    type=click.Choice(["minmax", "entropy", "percentile", "mse"]),
    default="mse",
    show_default=True,
    help="How the clipping range was chosen.",
)
@click.option(
    "--for", "target", type=click.Choice(["tensorrt"]), default="tensorrt", show_default=True, help="Dialect."
)
@click.option("--fp16", is_flag=True, help="FP16 instead of FP32 between the INT8 layers (LRN stays FP32).")
@output_option("out.onnx")
@json_option
def command(model: Path, ranges: Path, method: str, target: str, fp16: bool, output: Path, as_json: bool) -> None:
    """Write a float model as INT8 (Q/DQ).

    The dialect is that of the runtime which is to run it; the ranges must come from this very model.

    \b
    Example: alexdeploy quantize model.onnx --ranges ranges.json -o int8.onnx
    """
    from alexdeploy.graph.model import op_counts, precision_of
    from alexdeploy.graph.weighted import quantized_nodes
    from alexdeploy.quantize.write import quantize_onnx

    result = quantize_onnx(model, ranges, output, method=method, fp16=fp16)
    layers = [str(node.name) for node in quantized_nodes(result)]
    if as_json:
        print_json(
            {
                "model": str(output),
                "precision": precision_of(result).value,
                "method": method,
                "for": target,
                "quantized": layers,
                "ops": op_counts(result),
            }
        )
    else:
        click.echo(f"{output}: {len(layers)} layers in INT8 ({', '.join(layers)}), ranges by {method}")
