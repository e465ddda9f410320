"""Images in, labels out: a runner with the preprocessing contract and the class names that its file carries.

``Classifier`` serves an application, ``predict`` labels files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from alexdeploy.data import preprocess
from alexdeploy.data.dataset import UNREADABLE
from alexdeploy.data.sources import IMAGE_SUFFIXES
from alexdeploy.errors import InputError, UsageError
from alexdeploy.metrics import softmax
from alexdeploy.runners.artifact import Artifact, open_artifact

_BATCH = 32


class Classifier:
    """An engine, an ONNX file or a checkpoint that labels images. Threads may share it.

    Args:
        artifact: the file, its bytes, or what ``open_artifact`` gave.
        runtime, options: as for ``load``.
        ten_crop: average over the four corners and the centre of each image and their mirror images.

    Raises:
        InputError, GateError, UnavailableError: as for ``load``; also a file without a preprocessing contract.

    Example:
        >>> from alexdeploy import Classifier
        >>> with Classifier("model.onnx") as classifier:
        ...     [(label, probability)] = classifier(["digit.png"])
        >>> label
        '0'
    """

    def __init__(
        self,
        artifact: Path | str | bytes | Artifact,
        *,
        runtime: str | None = None,
        ten_crop: bool = False,
        **options: Any,
    ) -> None:
        opened = open_artifact(artifact)
        self.contract, self._ends_in_softmax = opened.contract, opened.ends_in_softmax
        self.runner = opened.runner(runtime, **options)
        self._ten_crop = ten_crop

    def __call__(self, images: Sequence[Path | str | Image.Image | npt.NDArray[np.uint8]]) -> list[tuple[str, float]]:
        """(label, probability) of the likeliest class of each image; the class number where the file has no names.

        Args:
            images: paths, Pillow images, or uint8 arrays of pixels: (H, W) grey or (H, W, 3) RGB.

        Raises:
            InputError: an image that cannot be read.
            UsageError: an array that is no image.
            UnavailableError: the runtime failed.
        """
        crops = 10 if self._ten_crop else 1
        step = max(_BATCH // crops, 1)
        found: list[tuple[str, float]] = []
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            batch = np.concatenate([self._network_input(image) for image in chunk])
            scores = self.runner.infer(batch)
            probabilities = scores if self._ends_in_softmax else softmax(scores)
            for row in probabilities.reshape(len(chunk), crops, -1).mean(axis=1):
                best = int(np.argmax(row))
                found.append((self.contract.labels[best] if self.contract.labels else str(best), float(row[best])))
        return found

    def close(self) -> None:
        """Release the runner."""
        self.runner.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _network_input(self, source: Path | str | Image.Image | npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        image = _image(source)
        if self._ten_crop:
            return preprocess.ten_crop(image, self.contract)
        return preprocess.preprocess(image, self.contract)[None]


def _image(source: Path | str | Image.Image | npt.NDArray[Any]) -> Image.Image:
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3)):
            raise UsageError(f"got an array {source.shape} {source.dtype}; an image is (H, W) or (H, W, 3) uint8")
        return Image.fromarray(source)
    if isinstance(source, Image.Image):
        return source
    try:
        image = Image.open(source)
        image.load()
    except UNREADABLE as error:
        raise InputError(f"cannot read image '{source}': {error}") from error
    return image


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


def predict(
    artifact: Path | str | bytes | Artifact, images: Sequence[Path | str], *, ten_crop: bool = False
) -> Iterator[Prediction]:
    """One prediction per image, in order; the last partial batch too.

    Raises:
        UnavailableError: nothing on this machine can run the artifact.
        InputError: an image that cannot be read.

    Example:
        >>> from alexdeploy import predict
        >>> [prediction] = predict("model.onnx", ["digit.png"])
        >>> prediction.label
        '0'
    """
    with Classifier(artifact, ten_crop=ten_crop) as classifier:
        for path, (label, probability) in zip(images, classifier(images), strict=True):
            yield Prediction(str(path), label, probability)
