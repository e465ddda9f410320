"""Writing a model repository for Triton: built and checked beside it, then put in place by renames.

A server that polls the repository sees a version whole or not at all, and no file that it serves is ever rewritten.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from alexdeploy import files
from alexdeploy.errors import GateError, UnavailableError, UsageError
from alexdeploy.optional import require
from alexdeploy.runners.artifact import Artifact, EngineArtifact, open_artifact
from alexdeploy.triton.config import (
    DECODE,
    IMAGE,
    LABEL,
    LABELS,
    WARM_UP,
    ModelConfig,
    Served,
    Settings,
    config_text,
    difference,
    image_configs,
    network_config,
    read_config,
    served,
    settings_of,
)
from alexdeploy.triton.golden import About, Golden, draw_images, likeliest, network_inputs, write_golden

CONFIG = "config.pbtxt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # what a URL, Triton and a file system take alike
_VERSION = re.compile(r"[1-9][0-9]*")  # Triton reads no others
_MODEL_PY = "# written by alexdeploy publish\nfrom alexdeploy.triton.backend import {} as TritonPythonModel\n"
_CLASS_OF = {"": "Network", DECODE: "Decode", LABEL: "Label"}
_MODELS = ("model.onnx", "model.plan", "model.engine")


@dataclass(frozen=True)
class Published:
    """What was written.

    Attributes:
        repository: the folder that holds the models.
        name, version: of the network.
        models: folders that are new, or got the version.
        served: how the server runs it.
        settings: what was chosen, or taken from the versions before.
        answers: labels of the golden images; empty where nothing here runs the engine.
    """

    repository: Path
    name: str
    version: int
    models: tuple[str, ...]
    served: Served
    settings: Settings
    answers: tuple[str, ...]


def publish(
    artifact: Path | str | Artifact,
    repository: Path | str,
    *,
    name: str | None = None,
    version: int | None = None,
    image: bool = False,
    backend: str | None = None,
    instances: int | None = None,
    max_batch: int | None = None,
    max_delay_us: int | None = None,
) -> Published:
    """Write an ONNX file or an engine into a model repository of Triton Inference Server.

    Args:
        artifact: the file, an engine with its sidecar beside it.
        repository: the folder that holds the models; made where it is missing.
        name: of the model; None for the file's without its suffix.
        version: None for the one after the highest there is.
        image: write the models that take encoded images and give label and probability, too.
        backend: ``onnxruntime`` for an ONNX file without our runner; None for what the file needs.
        instances: copies that run side by side; None for that of the versions before, or 1.
        max_batch: images in one call at most; None for that of the versions before, or 32, or what the engine takes.
        max_delay_us: microseconds that a request waits for others; None for that of the versions before, or 0.

    Raises:
        UsageError: a checkpoint; a name or version that is taken or is none; settings that the file or the versions
            before do not allow; a folder that cannot be written.
        InputError: no such file, or without a contract.
        GateError: an engine that does not match its sidecar.
        UnavailableError: a library is missing.

    Example:
        >>> from alexdeploy import publish
        >>> publish("model.onnx", "repository", name="digits", image=True).version
        1
    """
    require("tritonclient.grpc.model_config_pb2")
    root = Path(repository).absolute()
    opened = open_artifact(artifact)
    found = served(opened, backend)
    name = _checked_name(name if name is not None else opened.path.stem)
    chosen = {"instances": instances, "max_batch": max_batch, "max_delay_us": max_delay_us}
    settings = _settings(found, _present(root / name), {key: n for key, n in chosen.items() if n is not None}, name)
    number = _version(root / name, version)
    with _staging(root) as stage:
        answers = _write_network(stage / name, found, settings, opened, number, image=image)
        models = [name]
        if image:
            models += _write_image_models(stage, found, settings, name)
        check_repository(stage, name)
        written = _put_in_place(stage, root, models, number)
    return Published(root, name, number, written, found, settings, answers)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"`name` '{files.printable(name)}': expected letters, digits and . _ + - behind a letter or digit"
        )
    return name


def _present(folder: Path) -> ModelConfig | None:
    """The configuration of a model that is there."""
    if not folder.exists():
        return None
    if not (folder / CONFIG).exists():
        raise UsageError(f"{folder}: is there and has no {CONFIG}, so it is no model of ours; choose another `name`")
    return read_config(folder / CONFIG)


def _settings(found: Served, present: ModelConfig | None, chosen: dict[str, int], name: str) -> Settings:
    settings = Settings(max_batch=found.max_batch)
    if present is not None:
        settings = settings_of(present)
        for key, value in chosen.items():
            if getattr(settings, key) != value:
                raise UsageError(
                    f"`{key}` {value}: the versions of '{name}' share one configuration, which says "
                    f"{getattr(settings, key)}; leave it out, or choose another `name`"
                )
    settings = replace(settings, **chosen)
    for key, least in (("instances", 1), ("max_batch", 1), ("max_delay_us", 0)):
        if getattr(settings, key) < least:
            raise UsageError(f"`{key}` {getattr(settings, key)}: expected at least {least}")
    if found.batches is not None and settings.max_batch > found.batches.max[0]:
        raise UsageError(
            f"`max_batch` {settings.max_batch}: the engine takes batches of {found.batches}; choose at most "
            f"{found.batches.max[0]}, or build it with a profile that goes further"
        )
    return settings


def versions_of(folder: Path) -> list[int]:
    """Versions of a model that a server sees, ascending."""
    names = (entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else ()
    return sorted(int(name) for name in names if _VERSION.fullmatch(name))


def _version(folder: Path, asked: int | None) -> int:
    there = versions_of(folder)
    if asked is None:
        return max(there, default=0) + 1
    if asked < 1:
        raise UsageError(f"`version` {asked}: expected at least 1")
    if asked in there:
        raise UsageError(
            f"`version` {asked}: '{folder.name}' has it, and a published version is not overwritten; "
            f"{max(there) + 1} is free"
        )
    return asked


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """A folder that no server looks into, on the repository's file system; it vanishes with what is left in it."""
    if root.exists() and not root.is_dir():
        raise UsageError(f"cannot write into {root}: it is a file; name a folder")
    root = root.resolve()
    # Triton takes any folder in a repository for a model, hidden ones too
    beside = not root.is_mount() and os.access(root.parent, os.W_OK)
    try:
        folder = TemporaryDirectory(dir=root.parent if beside else root, prefix=f".{root.name}.", suffix=".partial")
    except OSError as error:
        raise UsageError(f"cannot write into {root}: {error.strerror}; name another folder") from error
    with folder as path:
        yield Path(path)


def _write_network(
    folder: Path, found: Served, settings: Settings, artifact: Artifact, version: int, *, image: bool
) -> tuple[str, ...]:
    """The network's folder with this one version; returns the labels of the golden images."""
    inside = folder / str(version)
    copied = _copy(artifact, inside, found)
    images = draw_images()
    inputs = network_inputs(images, found.contract)
    _write_model(folder, network_config(found, folder.name, settings), inputs[0].tobytes())
    if found.contract.labels:
        (folder / LABELS).write_text(_labels_text(found), encoding="utf-8")
    if found.backend == "python":
        (inside / "model.py").write_text(_MODEL_PY.format(_CLASS_OF[""]))
    runtime, labels, logits, probabilities = "", (), None, None
    try:
        with copied.runner(None if isinstance(copied, EngineArtifact) else "onnxruntime-cpu") as runner:
            runtime, logits = runner.runtime, runner.infer(inputs)
        labels, probabilities = likeliest(logits, found.contract, ends_in_softmax=found.ends_in_softmax)
    except (GateError, UnavailableError):
        if not isinstance(copied, EngineArtifact):  # built for the server's GPU, not for this machine
            raise
    about = About(
        name=folder.name,
        version=version,
        contract=found.contract.to_json(),
        labels=labels,
        runtime=runtime,
        precision=copied.precision,
        image=image,
        artifact_sha256=copied.digest,
    )
    origin = files.Parent(name=artifact.path.name, sha256=copied.digest)
    write_golden(inside, Golden(about, images, inputs, logits, probabilities), origin)
    return labels


def _copy(artifact: Artifact, folder: Path, found: Served) -> Artifact:
    """The file with its sidecar and its external weights; what was copied is what is checked and run from here on."""
    path = artifact.path
    target = folder / found.file
    if found.backend == "onnxruntime" and (weights := _external_weights(path)):
        target /= found.file  # that backend wants a folder then
    else:
        weights = [] if isinstance(artifact, EngineArtifact) else _external_weights(path)
    for name in weights:
        (target.parent / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / name, target.parent / name)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    if files.sidecar_path(path).exists():
        shutil.copyfile(files.sidecar_path(path), files.sidecar_path(target))
    return open_artifact(target)


def _external_weights(path: Path) -> list[str]:
    """Names of the files beside an ONNX file that hold weights of it."""
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    from alexdeploy.graph.mapped import MappedModel

    tensors = MappedModel(path).proto.graph.initializer
    return sorted({ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)})


def _write_model(folder: Path, config: ModelConfig, warm_up: bytes | None = None) -> None:
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(config_text(config), encoding="utf-8")
    if warm_up is not None:
        (folder / "warmup").mkdir()
        (folder / "warmup" / WARM_UP).write_bytes(warm_up)


def _labels_text(found: Served) -> str:
    """One name in each line, as Triton counts them."""
    return "".join(f"{' '.join(label.split())}\n" for label in found.contract.labels)


def _write_image_models(stage: Path, found: Served, settings: Settings, name: str) -> list[str]:
    """Decode, label and the ensemble, in the order in which a server can load them; returns their names."""
    image = draw_images()[0]
    as_element = struct.pack("<I", len(image)) + image  # how Triton lays out an element of TYPE_STRING
    written = []
    for config in image_configs(found, name, settings):
        folder = stage / config.name
        _write_model(folder, config, as_element if config.model_warmup else None)
        (folder / "1").mkdir()
        kind = _CLASS_OF.get(config.name.removeprefix(name))
        if kind is not None:
            (folder / "1" / "model.py").write_text(_MODEL_PY.format(kind))
        written.append(config.name)
    return written


def _put_in_place(stage: Path, root: Path, models: Sequence[str], version: int) -> tuple[str, ...]:
    """Rename what is new, the network first; all of it or nothing."""
    moves = []
    for model in models:
        present = _present(root / model)
        if present is None:
            moves.append(Path(model))
            continue
        differs = difference(present, read_config(stage / model / CONFIG))
        if differs is not None:
            what = "its contract or class names" if differs.field == "metric_tags.contract" else differs.field
            raise UsageError(
                f"'{model}' is published with another configuration ({what}: {differs.found} there, "
                f"{differs.expected} here), which its versions share; choose another `name`"
            )
        if model == models[0]:
            moves.append(Path(model, str(version)))
    for path in stage.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    files.make_folder(root)
    with ExitStack() as undo:
        for move in moves:
            try:
                (stage / move).rename(root / move)
            except OSError as error:
                raise UsageError(f"cannot write {root / move}: {error.strerror}; nothing was published") from error
            undo.callback((root / move).rename, stage / move)
        undo.pop_all()
    return tuple(move.parts[0] for move in moves)


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
        found = served(open_artifact(_model_in(folder / name / str(version))), _backend_of(config))
        _compare(folder, config, found, f"version {version}")
        if found.batches is not None and config.max_batch_size > found.batches.max[0]:
            raise GateError(
                f"{name}: max_batch_size is {config.max_batch_size}, and the engine of version {version} takes at most "
                f"{found.batches.max[0]} images; lower it, or build the engine with a profile that goes further"
            )
        if found.contract.labels and (folder / name / LABELS).read_text(encoding="utf-8") != _labels_text(found):
            raise GateError(
                f"{name}: {LABELS} does not hold the class names of version {version} in their order; publish it again"
            )


def _backend_of(config: ModelConfig) -> str | None:
    return "onnxruntime" if config.platform == "onnxruntime_onnx" else None


def _model_in(folder: Path) -> Path:
    for name in _MODELS:
        path = folder / name / name if (folder / name).is_dir() else folder / name
        if path.exists():
            return path
    raise GateError(f"{folder}: holds none of {', '.join(_MODELS)}; publish it again")


def _compare(folder: Path, config: ModelConfig, found: Served, whose: str) -> None:
    name = config.name
    settings = settings_of(config)
    pairs = [(config, network_config(found, name, settings))]
    if (folder / f"{name}{IMAGE}").exists():
        pairs += [(read_config(folder / one.name / CONFIG), one) for one in image_configs(found, name, settings)]
    for there, expected in pairs:
        differs = difference(there, expected)
        if differs is not None:
            raise GateError(f"{expected.name}: {CONFIG}: {differs}, as {whose} demands; publish it again")
