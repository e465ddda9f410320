from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alexdeploy.cli.options import FILE, DataChoice, data_options, json_option
from alexdeploy.cli.output import note, note_data, note_skipped, print_columns, print_json, progress
from alexdeploy.columns import Column
from alexdeploy.errors import GateError

if TYPE_CHECKING:
    from alexdeploy.compare import Divergence


@click.command("compare")
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@data_options(required=True)
@click.option("--samples", type=click.IntRange(min=1), default=64, show_default=True, help="Images to run both on.")
@json_option
def command(a: Path, b: Path, data: DataChoice, samples: int, as_json: bool) -> None:
    """Find the first layer where B leaves A.

    A, the reference, and B are two versions of one network: a checkpoint or ONNX in FP32, FP16 or INT8. Both run on
    the same images, and the error is shown layer by layer.

    Exit code 5 when a layer's error is beyond what is normal for the precision. Where INT8 is wrong, the first
    such layer has the wrong range on its input, or its own weights are at fault. The part of a layer's output that a
    Relu or Clip removes does not count.

    \b
    Example: alexdeploy compare model.onnx int8.onnx --data digits
    """
    dataset = data.open("val")
    note_data(dataset, samples)
    from alexdeploy.compare import compare_layers

    with progress(f"opening {a.name} and {b.name}") as bar:
        result = compare_layers(a, b, dataset, samples=samples, progress=bar)
    note_skipped(dataset)
    if as_json:
        print_json(result)
    else:
        show_divergence(result)
    note(verdict(result))
    if result.first is not None:
        sys.exit(GateError.exit_code)


def show_divergence(result: Divergence) -> None:
    """One line per layer, those beyond the band in red, the first of them with an arrow."""
    rows = result.layers
    columns = [
        Column("layer", [row.layer for row in rows], text=True, folds=True),
        Column("type", [row.type for row in rows], text=True, rank=2),
        Column("relative error", [f"{row.relative_l2:.2e}" for row in rows]),
        Column("max error", [f"{row.max_abs:.2e}" for row in rows], rank=3),
        Column("SQNR, dB", ["-" if row.sqnr_db is None else f"{row.sqnr_db:.1f}" for row in rows], rank=4),
    ]
    if any(row.relative_l2 > result.band >= row.judged_l2 for row in rows):  # why such a layer is not red
        judged = [f"{row.judged_l2:.2e}" if row.judged_at != row.layer else "" for row in rows]
        columns.insert(3, Column("after activation", judged, rank=1))
    if result.first is not None:
        marks = ["<-- first beyond the band" if row.layer == result.first else "" for row in rows]
        columns.append(Column("", marks, text=True, rank=5))
    title = f"{Path(result.b).name} against {Path(result.a).name}: {result.images} images"
    print_columns(columns, title=title, styles=["red" if row.judged_l2 > result.band else None for row in rows])


def verdict(result: Divergence) -> str:
    """The result of the table in one sentence."""
    band = f"the {result.band:g} that is normal for {result.precision.value}"
    if result.first is None:
        worst = max(result.layers, key=lambda row: row.judged_l2)
        return f"every layer is within {band}; the largest error is {worst.judged_l2:.2g}, at {worst.judged_at}"
    found = next(row for row in result.layers if row.layer == result.first)
    cause = "its input range, or its weights" if result.precision.quantized else "its arithmetic and its weights"
    after = f" after {found.judged_at}" if found.judged_at != found.layer else ""
    return (
        f"error: {Path(result.b).name} leaves {Path(result.a).name} at layer {found.layer}: its relative error "
        f"{found.judged_l2:.2g}{after} is beyond {band}; look at {cause}"
    )
