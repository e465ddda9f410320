"""Writing a model repository for Triton: built and checked beside it, then put in place by renames.

A server that polls the repository sees a version whole or not at all, and no file that it serves is ever rewritten.
"""

from __future__ import annotations

import glob
import math
import os
import re
import shutil
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from tempfile import mkdtemp

import numpy as np

from alexdeploy import files, locks
from alexdeploy.errors import GateError, InputWarning, UnavailableError, UsageError
from alexdeploy.runners.artifact import Artifact, EngineArtifact, OnnxArtifact, artifact_of, open_artifact
from alexdeploy.triton import golden
from alexdeploy.triton.config import (
    CONFIG,
    DECODE,
    IMAGE,
    LABEL,
    LABELS,
    WARM_UP,
    ModelConfig,
    Served,
    Settings,
    config_text,
    image_configs,
    network_config,
    read_config,
    served,
    settings_of,
)
from alexdeploy.triton.differences import difference
from alexdeploy.triton.repository import check_repository, labels_text, versions_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")  # what a URL, Triton and a file system take alike
_INT32, _INT64 = 2**31, 2**63
_LARGEST = 2**30  # bytes of a batch: its warm-up takes that at once, and so does every full batch
_MODEL_PY = "# written by alexdeploy publish\nfrom alexdeploy.triton.backend import {} as TritonPythonModel\n"
_OURS = ("model.py", "__pycache__", golden.FILE, f"{golden.FILE}.json")  # beside a model and its weights
_SHOWN = 40  # characters of a name that is none
_CLASS_OF = {"": "Network", DECODE: "Decode", LABEL: "Label"}


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
        unanswered: why not; empty where there are answers.
    """

    repository: Path
    name: str
    version: int
    models: tuple[str, ...]
    served: Served
    settings: Settings
    answers: tuple[str, ...]
    unanswered: str = ""


def publish(
    artifact: Path | str,
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
        image: write the models that take encoded images and give label and probability, too. Where they are there, a
            further version must fit them in any case.
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
    root = Path(repository).absolute()
    with ExitStack() as held:
        opened = artifact_of(Path(artifact))
        held.callback(opened.release)
        found = served(opened, backend)
        _warn_of_slow_lrn(opened, found)
        name = _checked_name(name if name is not None else opened.path.stem)
        chosen = {"instances": instances, "max_batch": max_batch, "max_delay_us": max_delay_us}
        settings = _settings(found, _present(root / name), {key: n for key, n in chosen.items() if n is not None})
        # those of the versions before would take a version that does not fit them, too
        image = image or (root / f"{name}{IMAGE}").exists()
        configs = [network_config(found, name, settings), *(image_configs(found, name, settings) if image else ())]
        new = [config for config in configs if not _is_published(root, config)]
        number = _version(root / name, version)
        with _staging(root) as stage:
            copied = _copy(opened, stage / name / str(number), found)
            held.callback(copied.release)
            origin = files.Parent(name=opened.path.name, sha256=copied.digest)
            answers, why_not = _write_network(stage / name, configs[0], found, copied, origin, number, image=image)
            for config in configs[1:]:
                _write_image_model(stage / config.name, config, config.name.removeprefix(name))
            check_repository(stage, name)
            moves = [Path(config.name) for config in new]
            if configs[0] not in new:
                moves.insert(0, Path(name, str(number)))
            _put_in_place(stage, root, moves)
    return Published(root, name, number, tuple(move.parts[0] for move in moves), found, settings, answers, why_not)


def _warn_of_slow_lrn(artifact: Artifact, found: Served) -> None:
    nodes = artifact.model.graph if isinstance(artifact, OnnxArtifact) else ()
    if found.backend == "onnxruntime_onnx" and any(node.op_type == "LRN" for node in nodes):
        text = "on a CPU its LRN runs in ONNX Runtime's slow kernel; our runner, the `backend` python, replaces that"
        warnings.warn(f"{artifact.origin}: {text}", InputWarning, stacklevel=3)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        shown = files.printable(name[:_SHOWN]) + ("…" if len(name) > _SHOWN else "")
        raise UsageError(f"`name` {shown!r}: expected at most 200 letters, digits and . _ + - behind a letter or digit")
    for suffix in (DECODE, LABEL, IMAGE):
        if name.endswith(suffix):
            raise UsageError(
                f"`name` '{name}': {suffix} is the end of a model beside a network's; choose another `name`"
            )
    return name


def _present(folder: Path) -> ModelConfig | None:
    """The configuration of a model that is there."""
    if not folder.exists():
        return None
    if not (folder / CONFIG).exists():
        raise UsageError(f"{folder}: is there and has no {CONFIG}, so it is no model of ours; choose another `name`")
    return read_config(folder / CONFIG)


def _is_published(root: Path, config: ModelConfig) -> bool:
    """Whether a model is there already, with the very configuration that this one needs."""
    present = _present(root / config.name)
    differs = difference(present, config) if present is not None else None
    if differs is not None:
        what = "its contract or class names" if differs.field == "metric_tags.contract" else differs.field
        raise UsageError(
            f"'{config.name}' is published with another configuration, which its versions share: {what}, there "
            f"{differs.found}, here {differs.expected}; choose another `name`"
        )
    return present is not None


def _settings(found: Served, present: ModelConfig | None, chosen: dict[str, int]) -> Settings:
    settings = Settings(max_batch=found.max_batch) if present is None else settings_of(present)
    for key, value in chosen.items():
        least = 0 if key == "max_delay_us" else 1
        if not least <= value < _INT32:
            raise UsageError(f"`{key}` {value}: expected {least} to {_INT32 - 1}")
        if present is not None and value != getattr(settings, key):
            raise UsageError(
                f"`{key}` {value}: '{present.name}' is published with {getattr(settings, key)}, and its versions share "
                "one configuration; leave it out, or choose another `name`"
            )
    settings = replace(settings, **chosen)
    if found.batches is not None and settings.max_batch > found.batches.max[0]:
        raise UsageError(
            f"`max_batch` {settings.max_batch}: the engine takes batches of {found.batches}; choose at most "
            f"{found.batches.max[0]}, or build it with a profile that goes further"
        )
    most = max(1, _LARGEST // (math.prod(found.contract.input_shape) * np.dtype(found.input.dtype).itemsize))
    if settings.max_batch > most:
        raise UsageError(
            f"`max_batch` {settings.max_batch}: one batch would take more than {_LARGEST >> 30} GiB; choose at most "
            f"{most}"
        )
    return settings


def _version(folder: Path, asked: int | None) -> int:
    there = versions_of(folder)
    if asked is None:
        return max(there, default=0) + 1
    if not 1 <= asked < _INT64:
        raise UsageError(f"`version` {asked}: expected 1 to {_INT64 - 1}")
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
    if not root.parent.is_dir():
        raise UsageError(f"cannot write into {root}: folder '{root.parent}' does not exist; create it first")
    root = root.resolve()
    # Triton takes any folder in a repository for a model, hidden ones too
    beside = not root.is_mount() and os.access(root.parent, os.W_OK)
    place = root.parent if beside else root
    for left in place.glob(f".{glob.escape(root.name)}.{'[a-z0-9_]' * 12}.partial"):  # of a publish that was killed
        if left.is_dir():
            locks.remove_abandoned(left)

    def create() -> Path:
        try:
            return Path(mkdtemp(dir=place, prefix=f".{root.name}.{locks.system()}", suffix=".partial"))
        except OSError as error:
            raise UsageError(f"cannot write into {root}: {error.strerror}; name another folder") from error

    with locks.held(create) as path:
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def _write_network(
    folder: Path,
    config: ModelConfig,
    found: Served,
    copied: Artifact,
    origin: files.Parent,
    version: int,
    *,
    image: bool,
) -> tuple[tuple[str, ...], str]:
    """The rest of the network's folder; returns the labels of the golden images, or why there are none."""
    inside = folder / str(version)
    images = golden.draw_images()
    inputs = golden.network_inputs(images, found.contract)
    _write_config(folder, config, inputs[0].tobytes())
    if found.contract.labels:
        (folder / LABELS).write_text(labels_text(found), encoding="utf-8")
    if found.backend == "python":
        _write_model_py(inside, "")
    labels: tuple[str, ...] = ()
    runtime, why_not, logits, probabilities = "", "", None, None
    try:
        with copied.runner(None if isinstance(copied, EngineArtifact) else "onnxruntime-cpu") as runner:
            runtime, logits = runner.runtime, runner.infer(inputs)
    except (GateError, UnavailableError) as error:
        if not isinstance(copied, EngineArtifact):  # built for the server's GPU, not for this machine
            raise
        why_not = str(error)
    if logits is not None:
        labels, probabilities = golden.likeliest(logits, found.contract, ends_in_softmax=found.ends_in_softmax)
    about = golden.About(
        name=folder.name,
        version=version,
        contract=found.contract.to_json(),
        labels=labels,
        runtime=runtime,
        precision=copied.precision,
        image=image,
        artifact_sha256=copied.digest,
    )
    golden.write_golden(inside, golden.Golden(about, images, inputs, logits, probabilities), origin)
    return labels, why_not


def _copy(artifact: Artifact, folder: Path, found: Served) -> Artifact:
    """The file with its sidecar and its external weights; what was copied is what is checked and run from here on."""
    path = artifact.path
    target = folder / found.file
    weights = [] if isinstance(artifact, EngineArtifact) else _external_weights(path)
    if weights and found.backend == "onnxruntime_onnx":
        target /= found.file  # that backend wants a folder then
    for name in weights:
        if PurePath(name).parts[0] in {*_OURS, found.file, files.sidecar_path(target).name}:
            raise UsageError(f"{path}: holds its weights in '{name}', a name that is needed; save them under another")
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


def _write_config(folder: Path, config: ModelConfig, warm_up: bytes) -> None:
    (folder / CONFIG).write_text(config_text(config), encoding="utf-8")
    if config.model_warmup:
        (folder / "warmup").mkdir()
        (folder / "warmup" / WARM_UP).write_bytes(warm_up)


def _write_image_model(folder: Path, config: ModelConfig, kind: str) -> None:
    """The folder of a model that takes or makes what is no network's: one version, which has no files but its own."""
    (folder / "1").mkdir(parents=True)
    image = golden.draw_images()[0]
    _write_config(folder, config, struct.pack("<I", len(image)) + image)  # as an element of TYPE_STRING lies in memory
    if kind in _CLASS_OF:
        _write_model_py(folder / "1", kind)


def _write_model_py(folder: Path, kind: str) -> None:
    (folder / "model.py").write_text(_MODEL_PY.format(_CLASS_OF[kind]), encoding="utf-8")
    # where Python would keep its bytecode: a server that polls takes a folder in which that appears for a changed one,
    # and loads its model again
    (folder / "__pycache__").touch()


def _put_in_place(stage: Path, root: Path, moves: Sequence[Path]) -> None:
    """Rename what is new in this order, in which a server can load it: all of it or nothing."""
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
