"""Images in, labels out: a runner with the preprocessing contract and the class names that its file carries."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from alexdeploy.arrays import Batch, Logits
from alexdeploy.data import preprocess
from alexdeploy.data.dataset import Seen
from alexdeploy.data.decode import UNREADABLE, open_image, raise_if_lacking, why_unreadable
from alexdeploy.errors import GateError, InputError, UsageError
from alexdeploy.files import printable
from alexdeploy.metrics import softmax
from alexdeploy.runners.artifact import Artifact, open_artifact
from alexdeploy.runners.base import CLOSED

BATCH = 32  # images, or crops, of one call
_EXPECTED = "an image is a path, a Pillow image, or an array (H, W) or (H, W, 3) uint8"

AnyImage = Path | str | Image.Image | npt.NDArray[np.uint8]


class FoundPath(str):
    """The path of an image in a folder or a list, where a pipe is a mistake; one that a user names may be a pipe."""

    __slots__ = ()


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
        if opened is not artifact:
            opened.release()
        self._origin = opened.origin
        self._ten_crop = ten_crop
        self._closed = False
        self.seen = Seen()

    def __call__(self, images: Iterable[AnyImage]) -> list[tuple[str, float]]:
        """(label, probability) of the likeliest class of each image; the class number where the file has no names.

        Args:
            images: paths, Pillow images, or uint8 arrays of pixels: (H, W) grey or (H, W, 3) RGB.

        Raises:
            InputError: an image that cannot be read.
            UsageError: something that is no image, or one image in place of a list.
            GateError: logits that are not finite.
            UnavailableError: the runtime failed.
        """
        return [likeliest for _, [likeliest] in self.ranked(images)]

    def ranked(
        self, images: Iterable[AnyImage], top: int = 1, *, skipped: list[str] | None = None
    ) -> Iterator[tuple[int, list[tuple[str, float]]]]:
        """(position, its ``top`` likeliest classes as (label, probability), best first) of each image, as they come.

        Args:
            images: as for a call; no more than a batch of them is held.
            top: at most this many classes.
            skipped: the names of unreadable images are added to it, and those images left out; without it the first
                one is an error.

        Raises:
            InputError, UsageError, GateError, UnavailableError: as for a call.
        """
        if self._closed:  # without images no runner would say so
            raise UsageError(CLOSED)
        pending: list[tuple[int, str, Batch]] = []
        images_per_call = -(-BATCH // self._crops)  # by place: an unreadable image does not move the others' calls
        for index, image in enumerate(_each(images)):
            name = printable(image) if isinstance(image, (str, os.PathLike)) else f"images[{index}]"
            try:
                pending.append((index, name, self._network_input(image, name)))
            except InputError:
                if skipped is None:
                    raise
                skipped.append(name)
            if (index + 1) % images_per_call == 0 and pending:
                yield from self._answers(pending, top)
                pending = []
        if pending:
            yield from self._answers(pending, top)

    def close(self) -> None:
        """Release the runner; later calls are refused."""
        self._closed = True
        self.runner.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _crops(self) -> int:
        return 10 if self._ten_crop else 1

    def _network_input(self, source: AnyImage, name: str) -> Batch:
        """(crops, *input_shape)."""
        try:
            image = _decoded(source, name)
            self.seen.add(image)
            if self._ten_crop:
                return preprocess.ten_crop(image, self.contract)
            return preprocess.preprocess(image, self.contract)[None]
        except UsageError:
            raise
        except (InputError, *UNREADABLE) as error:
            raise_if_lacking(error, name)
            raise InputError(f"cannot read image '{name}': {why_unreadable(error)}") from error

    def _answers(
        self, pending: list[tuple[int, str, Batch]], top: int
    ) -> Iterator[tuple[int, list[tuple[str, float]]]]:
        logits = self.runner.infer(np.concatenate([batch for _, _, batch in pending]))
        for (index, name, _), scores in zip(pending, logits.reshape(len(pending), self._crops, -1), strict=True):
            shares = probabilities(scores, self._ends_in_softmax, self._origin, name)
            yield index, likeliest(shares.mean(axis=0), self.contract.labels, top)


def probabilities(scores: Logits, ends_in_softmax: bool, origin: str, image: str) -> Logits:
    """(N, classes) of what a network gave for an image; softmax, unless it ends in one.

    Args:
        scores: (N, classes) float32.
        ends_in_softmax: they are probabilities already.
        origin: what a message calls the network.
        image: what a message calls the image.

    Raises:
        GateError: not finite.
    """
    if not np.isfinite(scores).all():
        kind = "NaN" if np.isnan(scores).any() else "infinite"
        raise GateError(
            f"{origin}: its logits are {kind} for image '{image}'; check its weights, and whether FP16 holds its values"
        )
    return scores if ends_in_softmax else softmax(scores)


def likeliest(shares: Logits, labels: Sequence[str], top: int) -> list[tuple[str, float]]:
    """(label, probability) of the ``top`` likeliest of (classes,), best first; numbers without names."""
    best = np.argsort(-shares, kind="stable")[:top]
    return [(labels[i] if labels else str(i), float(shares[i])) for i in best]


def _each(images: Iterable[AnyImage]) -> Iterator[AnyImage]:
    """The images of a list or another iterable; one image alone is none."""
    one_array = isinstance(images, np.ndarray) and (images.ndim < 3 or (images.ndim == 3 and images.shape[2] == 3))
    if isinstance(images, (str, bytes, os.PathLike, Image.Image)) or one_array or not isinstance(images, Iterable):
        raise UsageError(f"got {_kind(images)} in place of a list of images; {_EXPECTED}")
    return iter(images)


def _decoded(source: AnyImage, name: str) -> Image.Image:
    if isinstance(source, np.ndarray):
        if (
            np.ma.is_masked(source)
            or source.dtype != np.uint8
            or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3))
        ):
            raise UsageError(f"{name} is {_kind(source)}; {_EXPECTED}")
        return Image.fromarray(source)
    if not isinstance(source, (str, os.PathLike, Image.Image)):
        raise UsageError(f"{name} is {_kind(source)}; {_EXPECTED}")
    is_found = isinstance(source, FoundPath)
    image = source if isinstance(source, Image.Image) else open_image(Path(source), found=is_found)
    image.load()
    return image


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        masked = "a masked" if np.ma.is_masked(value) else "an"
        return f"{masked} array {value.shape} {value.dtype}"
    return "None" if value is None else f"one of type {type(value).__name__}"
