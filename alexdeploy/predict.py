"""Images → labels, with whatever runtime runs the artifact, through the artifact's own preprocessing contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from alexdeploy.data.sources import IMAGE_SUFFIXES
from alexdeploy.errors import InputError
from alexdeploy.runners.artifact import Artifact
from alexdeploy.runners.classifier import Classifier


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
    with Classifier(artifact, ten_crop=ten_crop) as classifier:
        for path, (label, probability) in zip(images, classifier(images), strict=True):
            yield Prediction(str(path), label, probability)
