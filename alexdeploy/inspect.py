"""What is inside a file or a network, in one form for all of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from alexdeploy.engine.record import read_engine
from alexdeploy.recipe import load_recipe
from alexdeploy.runners.artifact import kind_of
from alexdeploy.specs import Layer


def inspect_artifact(path: Path) -> dict[str, Any]:
    """Describe a checkpoint, an ONNX file or an engine.

    Returns:
        ``kind``, ``ops``, ``layers``, ``size_bytes``; ``parameters``, ``connections``, ``macs`` and ``memory_bytes``
        (weights and every layer's output) for one image, except for an engine, which has ``builder``, ``profile`` and
        ``precisions`` (counted over Conv/Gemm kernels) instead. An engine is described by its sidecar, not
        deserialised.

    Raises:
        InputError: missing, empty or not readable.
        GateError: an engine without its sidecar, or with one that does not match.

    Example:
        >>> from pathlib import Path
        >>> from alexdeploy import inspect_artifact
        >>> inspect_artifact(Path("model.onnx"))["ops"]["LRN"]
        2
    """
    kind = kind_of(path)
    if kind == "engine":
        return _inspect_engine(path)
    if kind == "onnx":
        from alexdeploy.graph.model import load_onnx, op_counts
        from alexdeploy.graph.table import layer_table

        model = load_onnx(path)
        return _described(kind, layer_table(model), op_counts(model)) | {"size_bytes": path.stat().st_size}
    from alexdeploy.zoo.checkpoint import load_checkpoint
    from alexdeploy.zoo.summary import summarize

    checkpoint = load_checkpoint(path)
    layers = summarize(checkpoint.model, checkpoint.contract.input_shape)
    more = {"metrics": checkpoint.metrics, "contract": msgspec.to_builtins(checkpoint.contract)}
    return _described(kind, layers) | {"size_bytes": path.stat().st_size} | more


def inspect_network(name: str, classes: int) -> dict[str, Any]:
    """The same for a network of the zoo with its default contract."""
    import torch

    from alexdeploy.zoo.registry import build_network
    from alexdeploy.zoo.summary import summarize

    recipe = load_recipe(name)
    with torch.device("meta"):
        model = build_network(recipe.network, classes).eval()
        return _described("network", summarize(model, recipe.preprocess.input_shape))


def _described(kind: str, layers: list[Layer], ops: dict[str, int] | None = None) -> dict[str, Any]:
    return {
        "kind": kind,
        "ops": ops or dict(sorted(Counter(layer.type for layer in layers).items())),
        "layers": [_row(layer) for layer in layers],
        **{
            total: sum(getattr(layer, total) for layer in layers)
            for total in ("parameters", "connections", "macs", "memory_bytes")
        },
    }


def _row(layer: Layer) -> dict[str, Any]:
    """The layer with ``kernel``, ``stride``, ``padding``, ``groups`` and ``dilation`` where it has a window."""
    row: dict[str, Any] = msgspec.to_builtins(layer)
    return {**row, **(row.pop("window") or {})}


def _inspect_engine(path: Path) -> dict[str, Any]:
    details = read_engine(path).record
    return {
        "kind": "engine",
        "ops": dict(sorted(Counter(kernel.type for kernel in details.kernels).items())),
        "layers": msgspec.to_builtins(details.kernels),
        "size_bytes": path.stat().st_size,
        "builder": details.builder,
        "version": details.version,
        "gpu": msgspec.to_builtins(details.gpu),
        "profile": str(details.batches),
        "precisions": details.precisions,
        "layer_precisions": details.layer_precisions,
    }
