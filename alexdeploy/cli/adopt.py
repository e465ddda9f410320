from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from alexdeploy import files
from alexdeploy.cli.options import FILE, DataChoice, data_options, json_option, output_option
from alexdeploy.cli.output import print_json, progress
from alexdeploy.errors import few

if TYPE_CHECKING:
    from alexdeploy.export.parity import Parity


@click.command("adopt")
@click.argument("model", type=FILE)
@click.option(
    "--contract",
    required=True,
    metavar="RECIPE|NETWORK",
    help="Preprocessing it was trained with: a network's, or a TOML file with a [preprocess] section.",
)
@data_options(required=False, split=False)
@output_option("model.onnx")
@json_option
def command(model: Path, contract: str, data: DataChoice | None, output: Path, as_json: bool) -> None:
    """Make a foreign ONNX classifier one of ours.

    It gets the preprocessing of --contract, the class names of --data, and one LRN node for each LRN that its
    exporter took apart.

    ONNX Runtime compares it with the original at batch 1, 2 and 5 on noise; beyond a relative error of 1e-5
    nothing is written (exit 5).

    \b
    Example: alexdeploy adopt foreign.onnx --contract alexnet -o model.onnx
    """
    adopt(model, contract, data, output, as_json)


def adopt(model: Path, name: str, data: DataChoice | None, output: Path, as_json: bool) -> None:
    """The command; also what ``export FOREIGN.onnx`` does."""
    files.check_output(output, model)
    files.check_input(model)
    import msgspec

    from alexdeploy.export.from_onnx import adopt_onnx
    from alexdeploy.recipe import load_contract

    contract = load_contract(name)
    if data is not None:
        contract = msgspec.structs.replace(contract, labels=data.open("val").classes)
    with progress(f"reading {model.name}") as bar:
        result = adopt_onnx(model, contract, output, progress=bar)
    if as_json:
        print_json({"model": str(output), "ops": result.ops, "fused_lrn": result.fused, "parity": result.parity})
        return
    lrn = f"LRN put back: {few(result.fused)}; " if result.fused else ""
    print_written(output, result.ops, result.parity, model.name, lrn)


def print_written(output: Path, ops: dict[str, int], parity: Parity, original: str, more: str = "") -> None:
    """The line that a written ONNX file gets."""
    counts = ", ".join(f"{count} {name}" for name, count in ops.items())
    limit = f"(relative, limit {parity.tolerance:.0e})"
    click.echo(f"{output}: {counts}; {more}parity with {original} {parity.worst:.1e} {limit}")
