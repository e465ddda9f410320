"""Data sets: named, labelled images that can be read one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
from PIL import Image

from alexdeploy.contract import Contract
from alexdeploy.data.preprocess import preprocess
from alexdeploy.errors import InputError

# what Pillow raises on files that are not, or not wholly, images
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageDataset:
    """One split of a data set.

    Attributes:
        name: what the user called it, with the split: ``digits/val``.
        classes: class names in label order.
        samples: a name per image (a path relative to the data set, or ``index``).
        labels: int64 (N,), indices into ``classes``.
        read: image ``i`` decoded, any Pillow mode.
        skip_bad: leave out images that cannot be read, and count them in ``skipped``, instead of failing.
        skipped: names of the images left out so far.
    """

    name: str
    classes: tuple[str, ...]
    samples: Sequence[str]
    labels: npt.NDArray[np.int64]
    read: Callable[[int], Image.Image]
    skip_bad: bool = False
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over sample names and labels: which images, not their pixels nor where the folder lies."""
        lines = [f"{name}\t{label}" for name, label in zip(self.samples, self.labels, strict=True)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def subset(self, count: int) -> ImageDataset:
        """``count`` images spread evenly over the whole split, so that every class is met; all if there are fewer."""
        if count >= len(self):
            return self
        chosen = np.linspace(0, len(self) - 1, count).round().astype(np.int64)
        return ImageDataset(
            name=self.name,
            classes=self.classes,
            samples=[self.samples[i] for i in chosen],
            labels=self.labels[chosen],
            read=lambda i: self.read(int(chosen[i])),
            skip_bad=self.skip_bad,
            skipped=self.skipped,
        )

    def image(self, index: int) -> Image.Image:
        """Image ``index``, decoded.

        Raises:
            InputError: it cannot be read, whatever ``skip_bad`` says.
        """
        try:
            image = self.read(index)
            image.load()
        except UNREADABLE as error:
            raise InputError(
                f"{self.name}: cannot read image '{self.samples[index]}' ({error}); remove it, or use `skip_bad_images`"
            ) from error
        return image

    def images(self) -> Iterator[tuple[int, Image.Image]]:
        """(index, decoded image) in order.

        Raises:
            InputError: an image that cannot be read and ``skip_bad`` is off, or no image could be read at all.
        """
        good = 0
        for index in range(len(self)):
            try:
                image = self.image(index)
            except InputError:
                if not self.skip_bad:
                    raise
                if self.samples[index] not in self.skipped:
                    self.skipped.append(self.samples[index])
                continue
            good += 1
            yield index, image
        if not good:
            raise InputError(f"{self.name}: none of the {len(self)} images can be read")

    def batches(
        self, contract: Contract, batch_size: int
    ) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
        """((n, C, H, W) float32, (n,) labels) in order, n = ``batch_size`` except for a smaller last batch."""
        arrays: list[npt.NDArray[np.float32]] = []
        labels: list[np.int64] = []
        for index, image in self.images():
            arrays.append(preprocess(image, contract))
            labels.append(self.labels[index])
            if len(arrays) == batch_size:
                yield np.stack(arrays), np.asarray(labels, dtype=np.int64)
                arrays, labels = [], []
        if arrays:
            yield np.stack(arrays), np.asarray(labels, dtype=np.int64)

    def check_labels(self, contract: Contract, outputs: int | None, model: str) -> None:
        """Refuse to score a model on classes it does not know.

        Raises:
            InputError: another number of classes, or other names than the contract's labels.
        """
        if outputs is None:
            raise InputError(f"{model} does not say how many classes it has; export it with a fixed output width")
        if len(self.classes) != outputs:
            raise InputError(
                f"{self.name} has {len(self.classes)} classes but {model} has {outputs} outputs; "
                "use the data set it was trained for"
            )
        if contract.labels and contract.labels != self.classes:
            pairs = zip_longest(contract.labels, self.classes, fillvalue="nothing")
            ours, theirs = next(pair for pair in pairs if pair[0] != pair[1])
            raise InputError(f"{self.name} names class '{theirs}' where {model} has '{ours}'; the labels do not match")


def split_by_name(names: Sequence[str], held_out: float = 0.2) -> list[bool]:
    """True for each name of the held-out part: the ``held_out`` share with the smallest SHA-256 of its name.

    The choice depends on the names alone, neither on their order nor on the machine. At least one name is held out
    and one kept when there are two or more.
    """
    count = min(max(round(len(names) * held_out), 1), len(names) - 1)
    ranked = sorted(range(len(names)), key=lambda i: (hashlib.sha256(names[i].encode()).digest(), i))
    chosen = set(ranked[:count])
    return [i in chosen for i in range(len(names))]
