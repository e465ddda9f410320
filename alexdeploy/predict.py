"""Images → labels, with whatever runtime runs the artifact, through the artifact's own preprocessing contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from alexdeploy.data.dataset import UNREADABLE
from alexdeploy.data.preprocess import preprocess
from alexdeploy.data.sources import IMAGE_SUFFIXES
from alexdeploy.errors import InputError, UnavailableError
from alexdeploy.runners.artifact import Artifact, open_runner
from alexdeploy.runners.base import Runner

_BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """``probability`` is the softmax of the winning logit."""

    image: str
    label: str
    probability: float


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as given; folders searched through, sorted.

    Raises:
        InputError: a path that does not exist, or a folder without images.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise InputError(f"{path}: the folder holds no images")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path}: no such file; check the path")
    return found


def predict(artifact: Artifact, images: Sequence[Path]) -> Iterator[Prediction]:
    """One prediction per image, in order; the last partial batch too.

    Raises:
        UnavailableError: nothing on this machine can run the artifact.
        InputError: an image that cannot be read.
    """
    with _first_runner(artifact) as runner:
        for start in range(0, len(images), _BATCH):
            chunk = images[start : start + _BATCH]
            logits = runner.infer(np.stack([preprocess(_open(path), artifact.contract) for path in chunk]))
            exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
            for path, row in zip(chunk, probabilities, strict=True):
                best = int(np.argmax(row))
                label = artifact.contract.labels[best] if artifact.contract.labels else str(best)
                yield Prediction(str(path), label, float(row[best]))


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
