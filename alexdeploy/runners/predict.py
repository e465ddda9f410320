"""Labels of image files: which files, what the model answers, and how many answers their class folders confirm."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from alexdeploy.data import arrays_on_disk, class_folders, lists
from alexdeploy.data.folders import image_names
from alexdeploy.data.labels import place_finder
from alexdeploy.errors import InputError, InputWarning, few
from alexdeploy.files import exists, printable
from alexdeploy.runners.artifact import Artifact
from alexdeploy.runners.classifier import Classifier, FoundPath

JUDGED = 5  # likeliest classes of each image, for top-5 accuracy


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image to label.

    Attributes:
        name: the path of the file; text, since there may be millions.
        truth: the class whose folder it lies in, where a folder was searched.
        folder: the folder that names no class, where one was searched and there is no truth.
        named: by the user, and not found in a folder or a list.
    """

    name: str
    truth: str | None = None
    folder: str | None = None
    named: bool = False

    @property
    def path(self) -> Path:
        return Path(self.name)


@dataclass(frozen=True)
class Prediction:
    """What the model answers for an image.

    Attributes:
        image: its path; bytes that are not UTF-8 as \\xbb.
        top: (label, probability) of the likeliest classes, best first. A probability is the softmax of the logits,
            with ten crops the mean of the ten.
        truth: see ``FoundImage``.
    """

    image: str
    top: list[tuple[str, float]]
    truth: str | None = None

    @property
    def label(self) -> str:
        return self.top[0][0]

    @property
    def probability(self) -> float:
        return self.top[0][1]


@dataclass(frozen=True)
class ClassAccuracy:
    """Of one class: its images, how many of them were answered with it, and their share."""

    label: str
    images: int
    right: int
    recall: float


@dataclass(frozen=True)
class FolderAccuracy:
    """Of the images in class folders.

    ``top1`` is the share that is right, ``top5`` the share whose class is among the five likeliest, None for a model
    of at most five classes. ``classes`` are those that have images, in label order.
    """

    top1: float
    top5: float | None
    images: int
    right: int
    classes: list[ClassAccuracy]


def find_images(paths: Sequence[Path], labels: Sequence[str]) -> list[FoundImage]:
    """Files as given; folders searched through, sorted; lists as ``data.lists`` reads them, with their truth.

    The nearest folder above an image, up to the one given, that is named as a class tells its truth. Names are
    compared as they are, then but for case. An ``InputWarning`` says where training images are among them.

    Raises:
        InputError: a path that does not exist, or a folder without images.
    """
    place = place_finder(labels)

    def truth_of(name: str) -> str | None:
        where = place(name)
        return labels[where] if where is not None else None

    found: list[FoundImage] = []
    for path in paths:
        if not exists(path):
            raise InputError(f"{printable(path)}: no such file; check the path")
        if path.is_dir():
            inside = image_names(path)
            if not inside:
                raise InputError(f"{printable(path)}: the folder holds no images; name another")
            _warn_of_train(path, truth_of)
            place_of = lru_cache(partial(_place_of_folder, root=path, truth_of=truth_of))
            found += [FoundImage(name, *place_of(os.path.dirname(name))) for name in inside]  # noqa: PTH120 (text)
        elif path.suffix.lower() in lists.SUFFIXES:
            found += _listed(path, truth_of)
        elif path.suffix.lower() in arrays_on_disk.SUFFIXES:
            raise InputError(f"{printable(path)}: holds an array; predict takes images, folders of them, and lists")
        else:
            found.append(FoundImage(str(path), named=True))
    return found


def _warn_of_train(root: Path, truth_of: Callable[[str], str | None]) -> None:
    """Say that training images are among those that are labelled, unless ``train`` and the like are classes."""
    held_out = [name for name in class_folders.splits_beside_train(root) if truth_of(name) is None]
    if held_out:
        warnings.warn(
            f"{printable(root)}: training images are labelled and counted as well as those in "
            f"{few(map(printable, held_out))}; name {printable(root / held_out[-1])} alone to judge the model",
            InputWarning,
            stacklevel=3,
        )


def _listed(path: Path, truth_of: Callable[[str], str | None]) -> list[FoundImage]:
    images = lists.load_list(path, skip_bad=True)
    names = images.names
    truths = [truth_of(names[label]) if names and label >= 0 else None for label in images.labels]
    return [FoundImage(str(path.parent / sample), truth) for sample, truth in zip(images.samples, truths, strict=True)]


def _place_of_folder(folder: str, root: Path, truth_of: Callable[[str], str | None]) -> tuple[str | None, str | None]:
    """Truth and folder, as of ``FoundImage``, of the images in a folder below ``root``."""
    own_name = os.path.basename(os.path.abspath(root))  # noqa: PTH100, PTH119 (of "." too, and of a link its own)
    folders = [own_name, *Path(folder).relative_to(root).parts]
    for name in map(printable, reversed(folders)):
        truth = truth_of(name)
        if truth is not None:
            return truth, None
    return None, printable(folders[min(1, len(folders) - 1)])


def predict(
    artifact: Path | str | bytes | Artifact,
    images: Iterable[Path | str | FoundImage],
    *,
    ten_crop: bool = False,
    top: int = 1,
    skipped: list[str] | None = None,
    **options: Any,
) -> Iterator[Prediction]:
    """One prediction per image, in order; the last partial batch too.

    Args:
        artifact: as for ``Classifier``.
        images: files, or what ``find_images`` found.
        ten_crop: as for ``Classifier``.
        top: how many classes of each image, at most.
        skipped: the names of unreadable images are added to it, and those images left out; without it the first one
            is an error.
        options: as for ``load``, such as ``device="cuda:1"``.

    Raises:
        UnavailableError: nothing on this machine can run the artifact.
        InputError: an image that cannot be read, or none that can.
        GateError: logits that are not finite.

    Example:
        >>> from alexdeploy import predict
        >>> [prediction] = predict("model.onnx", ["digit.png"])
        >>> prediction.label
        '0'
    """
    found = [image if isinstance(image, FoundImage) else FoundImage(str(Path(image)), named=True) for image in images]
    answered = False
    with Classifier(artifact, ten_crop=ten_crop, **options) as classifier:
        for _, prediction in answers(classifier, found, top=top, skipped=skipped):
            answered = True
            yield prediction
        classifier.seen.warn("the images", classifier.contract)
    if found and not answered:
        raise InputError(none_can_be_read(found))


def answers(
    classifier: Classifier, images: Sequence[FoundImage], *, top: int, skipped: list[str] | None
) -> Iterator[tuple[int, Prediction]]:
    """(position, prediction) of each image that can be read; arguments and errors as of ``predict``."""
    names = (image.name if image.named else FoundPath(image.name) for image in images)
    try:
        for position, best in classifier.ranked(names, top, skipped=skipped):
            yield position, Prediction(printable(images[position].name), best, images[position].truth)
    except InputError as error:
        raise InputError(f"{error}; remove it, or use `skipped`") from error


def none_can_be_read(images: Sequence[FoundImage]) -> str:
    """What to say where every one of the images was left out."""
    return f"none of the {len(images)} images can be read, {printable(images[0].name)} first"


class Tally:
    """Counts answers as they pass by, of the ``JUDGED`` likeliest classes at least; it keeps none of them.

    Attributes:
        predictions: how many have passed.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._images, self._right = Counter[str](), Counter[str]()  # by class
        self._near = 0
        self.predictions = 0

    def count(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """The same predictions, each counted before it is handed on."""
        for prediction in predictions:
            self.predictions += 1
            if prediction.truth is not None:
                self._images[prediction.truth] += 1
                self._right[prediction.truth] += prediction.label == prediction.truth
                self._near += prediction.truth in [label for label, _ in prediction.top[:JUDGED]]
            yield prediction

    @property
    def accuracy(self) -> FolderAccuracy | None:
        """Of what was counted so far; None where no truth is known."""
        images, right = self._images.total(), self._right.total()
        if not images:
            return None
        return FolderAccuracy(
            top1=right / images,
            top5=self._near / images if len(self._labels) > JUDGED else None,
            images=images,
            right=right,
            classes=[
                ClassAccuracy(label, self._images[label], self._right[label], self._right[label] / self._images[label])
                for label in dict.fromkeys(self._labels)
                if self._images[label]
            ],
        )
