"""Describe a file or a network: layers, costs and precisions, in one form for all kinds."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from alexdeploy import files
from alexdeploy.engine.record import EngineRecord
from alexdeploy.errors import GateError, InputError, InputWarning
from alexdeploy.recipe import load_recipe
from alexdeploy.runners.artifact import CheckpointArtifact, EngineArtifact, OnnxArtifact, artifact_of
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
        GateError: an engine without its sidecar, or with one that does not match; of an ONNX file that is a warning.

    Example:
        >>> from pathlib import Path
        >>> from alexdeploy import inspect_artifact
        >>> inspect_artifact(Path("model.onnx"))["ops"]["LRN"]
        2
    """
    artifact = artifact_of(path)
    if isinstance(artifact, EngineArtifact):
        return _engine(artifact.record, artifact.size_bytes)
    described = _described(artifact.kind, artifact.layers() or []) | {"size_bytes": artifact.size_bytes}
    if isinstance(artifact, OnnxArtifact):
        from alexdeploy.graph.model import op_counts

        _warn_of_sidecar(path)
        return described | {"ops": op_counts(artifact.model)}
    assert isinstance(artifact, CheckpointArtifact), "the third kind"
    checkpoint = artifact.checkpoint
    return described | {"metrics": checkpoint.metrics, "contract": msgspec.to_builtins(checkpoint.contract)}


def _warn_of_sidecar(path: Path) -> None:
    """Where an ONNX file, which is read without its sidecar, has that of another one."""
    if files.sidecar_path(path).is_file():
        try:
            files.read_sidecar(path, "onnx")
        except (GateError, InputError) as error:
            warnings.warn(str(error), InputWarning, stacklevel=3)


def inspect_network(name: str, classes: int) -> dict[str, Any]:
    """The same for a network of the zoo with its default contract."""
    import torch

    from alexdeploy.zoo.registry import build_network
    from alexdeploy.zoo.summary import summarize

    recipe = load_recipe(name)
    with torch.device("meta"):
        model = build_network(recipe.network, classes).eval()
        return _described("network", summarize(model, recipe.preprocess.input_shape))


def _described(kind: str, layers: list[Layer]) -> dict[str, Any]:
    return {
        "kind": kind,
        "ops": dict(sorted(Counter(layer.type for layer in layers).items())),
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


def _engine(record: EngineRecord, size_bytes: int) -> dict[str, Any]:
    return {
        "kind": "engine",
        "ops": dict(sorted(Counter(kernel.type for kernel in record.kernels).items())),
        "layers": msgspec.to_builtins(record.kernels),
        "size_bytes": size_bytes,
        "builder": record.builder,
        "version": record.version,
        "gpu": msgspec.to_builtins(record.gpu),
        "profile": str(record.batches),
        "precisions": record.precisions,
        "layer_precisions": record.layer_precisions,
        "kernels_unknown": record.kernels_unknown,
    }
