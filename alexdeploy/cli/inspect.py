from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alexdeploy.cli.options import FILE, json_option
from alexdeploy.cli.output import echo, note, print_columns, print_json, progress
from alexdeploy.columns import Column
from alexdeploy.errors import UsageError


@click.command("inspect")
@click.argument("artifact", type=FILE, required=False)
@click.option("--network", help="A network of the zoo instead of a file.")
@click.option("--classes", type=click.IntRange(min=2), default=1000, show_default=True, help="For --network.")
@json_option
def command(artifact: Path | None, network: str | None, classes: int, as_json: bool) -> None:
    """Show layers, costs and precisions.

    Of a checkpoint, an ONNX file, an engine (its kernels), or a network of the zoo. Kernel "5×5 s1 p2 g2" is a
    stride of 1, padding of 2 and 2 groups; a layer "sees" so many pixels, its receptive field.

    \b
    Example: alexdeploy inspect int8.engine
             alexdeploy inspect --network alexnet
    """
    from alexdeploy.inspect import inspect_artifact, inspect_network

    if (artifact is None) == (network is None):
        raise UsageError("name either an ARTIFACT or --network NAME")
    with progress(f"reading {artifact or network}"):
        result = inspect_artifact(artifact) if artifact is not None else inspect_network(str(network), classes)
    if as_json:
        print_json(result)
    else:
        show(str(artifact or network), result)


_COLUMNS = {  # key: header, rank
    "name": ("name", 0),
    "type": ("type", 0),
    "precision": ("precision", 0),
    "output_shape": ("output", 0),
    "kernel": ("kernel", 2),
    "receptive_field": ("sees", 4),
    "parameters": ("parameters", 1),
    "connections": ("connections", 5),
    "macs": ("MACs", 1),
    "memory_bytes": ("bytes", 3),
}


def show(title: str, result: dict[str, Any]) -> None:
    """The layers as a table, and the totals."""
    layers = result["layers"]
    columns = []
    for key, (header, rank) in _COLUMNS.items():
        if any(key in layer for layer in layers):
            cells = [_window(layer) if key == "kernel" else _cell(layer.get(key)) for layer in layers]
            text = not isinstance(layers[0].get(key), int)
            columns.append(Column(header, cells, text=text, folds=key in ("name", "type"), rank=rank))
    print_columns(columns, title=f"{title} ({result['kind']})")
    totals = ("parameters", "connections", "macs", "memory_bytes", "precisions", "builder", "size_bytes")
    echo(" · ".join(f"{key.replace('_', ' ')} {_cell(result[key])}" for key in totals if key in result))
    if result.get("kernels_unknown"):
        note(f"its kernels are not known: {result['kernels_unknown']}")


def _window(layer: dict[str, Any]) -> str:
    """``11×11 s4 p2 g2``: kernel, stride, padding, groups; what is 1 or 0 is left out."""
    if "kernel" not in layer:
        return ""
    stride, padding = layer["stride"], layer["padding"]
    words = [_cell(layer["kernel"])]
    if set(stride) != {1}:
        words.append("s" + "×".join(map(str, dict.fromkeys(stride))))
    if any(padding):
        words.append("p" + (str(padding[0]) if len(set(padding)) == 1 else ",".join(map(str, padding))))
    if layer["groups"] > 1:
        words.append(f"g{layer['groups']}")
    return " ".join(words)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if value else ""
    if isinstance(value, list | tuple):
        return "×".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items() if count)
    return str(value)
