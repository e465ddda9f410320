from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from alexdeploy import files
from alexdeploy.cli.options import FILE, DataChoice, data_options, json_option
from alexdeploy.cli.output import note, note_data, note_skipped, print_columns, print_json, progress
from alexdeploy.columns import Column
from alexdeploy.specs import DEFAULT_METHOD, Method

if TYPE_CHECKING:
    from alexdeploy.quantize.search import Sensitivity


@click.command("analyze")
@click.argument("model", type=FILE)
@click.option(
    "--ranges", type=FILE, required=True, metavar="ranges.json", help="Range file from `alexdeploy calibrate`."
)
@click.option(
    "--method",
    type=click.Choice(get_args(Method)),
    default=DEFAULT_METHOD,
    show_default=True,
    help="How the clipping range was chosen.",
)
@data_options(required=True)
@click.option("--samples", type=click.IntRange(min=1), default=256, show_default=True, help="Labelled images to use.")
@json_option
def command(
    model: Path,
    ranges: Path,
    method: str,
    data: DataChoice,
    samples: int,
    as_json: bool,
) -> None:
    """Rank the layers by what quantizing each costs.

    Each layer is quantized alone and the whole network run on held-out images: the signal-to-noise ratio of its
    logits, their agreement with the float model, and the loss of top-1. The most harmful layer comes first.

    \b
    Example: alexdeploy analyze model.onnx --ranges ranges.json --data digits
    """
    files.check_input(model)
    from alexdeploy.graph.model import class_count, contract_of, load_onnx
    from alexdeploy.graph.weighted import grouped_hint, grouped_layers
    from alexdeploy.quantize.apply import PrecisionSettings, QuantizedWriter
    from alexdeploy.quantize.rangefile import load_ranges
    from alexdeploy.quantize.search import QuantizationScorer, analyze

    loaded, seen = load_onnx(model), load_ranges(ranges)
    seen.check_fits(loaded, model)
    dataset = data.open("val")
    contract = contract_of(loaded, str(model))
    dataset = dataset.labelled(contract, class_count(loaded), str(model))
    note_data(dataset, samples)
    chosen = dataset.subset(samples)
    with progress("the float model's answers") as bar:
        scorer = QuantizationScorer(loaded, contract, chosen, write=QuantizedWriter(seen, PrecisionSettings(int8=True)))
        bar("every layer in INT8", 0.0)
        whole = scorer.score(seen.of(method))
        found = analyze(scorer, seen.of(method), progress=bar)
    note_skipped(dataset)
    if as_json:
        print_json({"model": str(model), "method": method, "images": scorer.images, "all": whole, "layers": found})
        return
    show(found, scorer.images)
    note(f"all layers in INT8: SQNR {whole.sqnr_db:.1f} dB, agreement {whole.agreement:.2%}, drop {whole.drop:+.2f}")
    if grouped := grouped_layers(loaded):
        note(grouped_hint(grouped))


def show(rows: list[Sensitivity], images: int) -> None:
    """One line per layer, the most harmful first."""
    columns = [
        Column("layer", [row.layer for row in rows], text=True, folds=True),
        Column("SQNR dB", [f"{row.score.sqnr_db:.1f}" for row in rows]),
        Column("agreement", [f"{row.score.agreement:.2%}" for row in rows]),
        Column("top-1 drop", [f"{row.score.drop:+.2f}" for row in rows]),
        Column("MACs", [f"{row.macs_share:.1%}" for row in rows]),
    ]
    print_columns(columns, title=f"each layer alone in INT8, {images} images")
