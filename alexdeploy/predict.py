"""Images → labels, with whatever runtime runs the artifact, through the artifact's own preprocessing contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from alexdeploy.compare import softmax
from alexdeploy.contract import Contract
from alexdeploy.data import preprocess
from alexdeploy.data.dataset import UNREADABLE
from alexdeploy.data.sources import IMAGE_SUFFIXES
from alexdeploy.errors import InputError, UnavailableError
from alexdeploy.runners.artifact import Artifact, open_runner
from alexdeploy.runners.base import Runner

_BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """``probability`` of the winning class: its softmax, with ten crops the mean of the ten."""

    image: str
    label: str
    probability: float


@dataclass(frozen=True)
class FoundImage:
    """An image to label; ``truth`` is the class folder it lies in, where a folder was searched."""

    path: Path
    truth: str | None = None


def find_images(paths: Sequence[Path], labels: Sequence[str]) -> list[FoundImage]:
    """Files as given; folders searched through, sorted. Subfolders that are named as classes tell the truth.

    Raises:
        InputError: a path that does not exist, or a folder without images.
    """
    found: list[FoundImage] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise InputError(f"{path}: the folder holds no images")
            found += [
                FoundImage(p, p.parent.name if p.parent != path and p.parent.name in labels else None) for p in inside
            ]
        elif path.exists():
            found.append(FoundImage(path))
        else:
            raise InputError(f"{path}: no such file; check the path")
    return found


def with_labels(artifact: Artifact, labels: tuple[str, ...]) -> Artifact:
    """The artifact with the class names that its file lacks.

    Raises:
        InputError: another number of names than the file has outputs, or other names than the file carries.
    """
    if artifact.classes not in (-1, len(labels)):
        raise InputError(f"{artifact.path} has {artifact.classes} outputs but {len(labels)} class names were given")
    if artifact.contract.labels not in ((), labels):
        raise InputError(f"{artifact.path} carries other class names than were given; leave them out")
    return replace(artifact, contract=msgspec.structs.replace(artifact.contract, labels=labels))


def predict(artifact: Artifact, images: Sequence[Path], *, ten_crop: bool = False) -> Iterator[Prediction]:
    """One prediction per image, in order; the last partial batch too.

    Raises:
        UnavailableError: nothing on this machine can run the artifact.
        InputError: an image that cannot be read.
    """
    crops = 10 if ten_crop else 1
    step = max(_BATCH // crops, 1)
    with _first_runner(artifact) as runner:
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            batch = np.concatenate([_network_input(path, artifact.contract, ten_crop) for path in chunk])
            probabilities = softmax(runner.infer(batch)).reshape(len(chunk), crops, -1).mean(axis=1)
            for path, row in zip(chunk, probabilities, strict=True):
                best = int(np.argmax(row))
                label = artifact.contract.labels[best] if artifact.contract.labels else str(best)
                yield Prediction(str(path), label, float(row[best]))


def _network_input(path: Path, contract: Contract, ten_crop: bool) -> npt.NDArray[np.float32]:
    image = _open(path)
    return preprocess.ten_crop(image, contract) if ten_crop else preprocess.preprocess(image, contract)[None]


def _first_runner(artifact: Artifact) -> Runner:
    reasons = []
    for runtime in artifact.runtimes:
        try:
            return open_runner(artifact, runtime)
        except UnavailableError as error:
            reasons.append(f"{runtime}: {error}")
    raise UnavailableError(f"{artifact.path} cannot run here: {'; '.join(reasons)}")


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except UNREADABLE as error:
        raise InputError(f"cannot read image '{path}': {error}") from error
    return image
