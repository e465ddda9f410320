from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alexdeploy.cli.options import FILE, json_option
from alexdeploy.cli.output import print_json, print_table
from alexdeploy.errors import UsageError


@click.command("inspect")
@click.argument("artifact", type=FILE, required=False)
@click.option("--network", help="A network of the zoo instead of a file.")
@click.option("--classes", type=click.IntRange(min=2), default=1000, show_default=True, help="For --network.")
@json_option
def command(artifact: Path | None, network: str | None, classes: int, as_json: bool) -> None:
    """Show layers, costs and precisions.

    Of a checkpoint, an ONNX file, an engine (its kernels), or a network of the zoo.

    \b
    Example: alexdeploy inspect int8.engine
             alexdeploy inspect --network alexnet
    """
    from alexdeploy.pipeline.inspect import inspect_artifact, inspect_network

    if (artifact is None) == (network is None):
        raise UsageError("name either an ARTIFACT or --network NAME")
    result = inspect_artifact(artifact) if artifact is not None else inspect_network(str(network), classes)
    if as_json:
        print_json(result)
    else:
        _show(str(artifact or network), result)


def _show(title: str, result: dict[str, Any]) -> None:
    from rich.table import Table

    layers = result["layers"]
    table = Table(title=f"{title} ({result['kind']})")
    columns = [
        key
        for key in ("name", "type", "precision", "output_shape", "parameters", "connections", "macs")
        if key in layers[0]
    ]
    for name in columns:
        table.add_column(
            name.replace("_", " "), justify="right" if name in ("parameters", "connections", "macs") else "left"
        )
    for layer in layers:
        table.add_row(*(_cell(layer[name]) for name in columns))
    print_table(table)
    totals = {
        key: result[key] for key in ("parameters", "macs", "precisions", "builder", "size_bytes") if key in result
    }
    click.echo(" · ".join(f"{key.replace('_', ' ')} {_cell(value)}" for key, value in totals.items()))


def _cell(value: Any) -> str:
    if isinstance(value, bool | str) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if value else ""
    if isinstance(value, list | tuple):
        return "×".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items() if count)
    return str(value)
