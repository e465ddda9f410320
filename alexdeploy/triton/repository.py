"""Reading a model repository: its versions, and whether its configurations are what the files in it demand."""

from __future__ import annotations

import re
from pathlib import Path

from alexdeploy.errors import GateError
from alexdeploy.runners.artifact import open_artifact
from alexdeploy.triton.config import CONFIG, IMAGE, LABELS, ModelConfig, Served, expected_configs, read_config, served
from alexdeploy.triton.differences import difference

_VERSION = re.compile(r"[1-9][0-9]*")  # Triton reads no others
_MODELS = ("model.onnx", "model.plan", "model.engine")


def versions_of(folder: Path) -> list[int]:
    """Versions of a model that a server sees, ascending."""
    names = (entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else ()
    return sorted(int(name) for name in names if _VERSION.fullmatch(name))


def labels_text(found: Served) -> str:
    """One class name in each line, as Triton counts them."""
    return "".join(f"{' '.join(label.split())}\n" for label in found.contract.labels)


def check_repository(folder: Path, name: str) -> None:
    """Compare the configuration of a model, and of those around it, with what the files in it demand.

    Args:
        folder: the model repository.
        name: of the network.

    Raises:
        InputError: no such model, or one that cannot be read.
        GateError: a field, a label or a file is not what it must be; the message has what was found and expected.
    """
    config = read_config(folder / name / CONFIG)
    versions = versions_of(folder / name)
    if not versions:
        raise GateError(f"{folder / name}: has no version; publish one")
    for version in versions:
        artifact = open_artifact(model_in(folder / name / str(version)))
        try:
            found = served(artifact, backend_of(config))
        finally:
            artifact.release()
        _compare(folder, config, found, f"version {version}")
        if found.batches is not None and config.max_batch_size > found.batches.max[0]:
            raise GateError(
                f"{name}: max_batch_size is {config.max_batch_size}, and the engine of version {version} takes at most "
                f"{found.batches.max[0]} images; lower it, or build the engine with a profile that goes further"
            )
        if found.contract.labels and _read(folder / name / LABELS) != labels_text(found).encode():
            raise GateError(
                f"{name}: {LABELS} does not hold the class names of version {version} in their order; publish it again"
            )


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def backend_of(config: ModelConfig) -> str | None:
    """Whose it is, as ``served`` takes it."""
    return "onnxruntime" if config.platform == "onnxruntime_onnx" else None


def model_in(folder: Path) -> Path:
    """The graph or engine in a version's folder."""
    for name in _MODELS:
        path = folder / name / name if (folder / name).is_dir() else folder / name
        if path.exists():
            return path
    raise GateError(f"{folder}: holds none of {', '.join(_MODELS)}; publish it again")


def _compare(folder: Path, config: ModelConfig, found: Served, whose: str) -> None:
    image = (folder / f"{config.name}{IMAGE}").exists()
    for expected in expected_configs(config, found, image=image):
        differs = difference(read_config(folder / expected.name / CONFIG), expected)
        if differs is not None:
            raise GateError(f"{expected.name}: {CONFIG}: {differs}, as {whose} demands; publish it again")
