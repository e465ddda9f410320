"""Data sets: named, labelled images that can be read one at a time."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from alexdeploy.arrays import Batch, Labels
from alexdeploy.contract import Contract
from alexdeploy.data.decode import UNREADABLE, decode_reduced, has_frames, raise_if_lacking, why_unreadable
from alexdeploy.data.labels import place_finder
from alexdeploy.data.preprocess import preprocess
from alexdeploy.errors import InputError, InputWarning, few
from alexdeploy.files import printable

_Item = TypeVar("_Item")

_MUCH_LARGER = 2  # times the crop: below that, most of an image is seen
_MEASURED = 100  # images whose size is kept
_AHEAD = 32  # images that a pool reads ahead


@dataclass(frozen=True)
class ImageDataset:
    """Images of a data set, or of a split of it, with or without labels.

    Attributes:
        name: what the user called it, with the split: ``digits/val``.
        classes: class names in label order; empty without labels.
        samples: a name per image (a path relative to the data set, or ``index``).
        labels: int64 (N,), indices into ``classes``; -1 for an image whose class is not known.
        read: image ``i`` decoded, any Pillow mode, or as an array that is the network's input already.
        skip_bad: leave out images that cannot be read, and count them in ``skipped``, instead of failing.
        skipped: names of the images left out so far.
        total: images of the source, of which these are a part; None where these are all.
        part: which part these are, in words.
        unlabelled: why no label is known, in words.
        are_indices: the classes are numbers that count the model's outputs from 0, and no names.
        warned: fingerprints of the contracts whose effect on these images was told.
    """

    name: str
    classes: tuple[str, ...]
    samples: Sequence[str]
    labels: Labels
    read: Callable[[int], Image.Image | Batch]
    skip_bad: bool = False
    skipped: list[str] = field(default_factory=list)
    total: int | None = None
    part: str = ""
    unlabelled: str = ""
    are_indices: bool = False
    warned: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over sample names and labels: which images, not their pixels nor where the folder lies."""
        lines = [f"{name}\t{label}" for name, label in zip(self.samples, self.labels, strict=True)]
        return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()

    @property
    def is_labelled(self) -> bool:
        """True if the class of every image is known."""
        return bool(self.classes) and bool(np.all(self.labels >= 0))

    @property
    def names(self) -> tuple[str, ...]:
        """The class names in label order; none where the classes are numbers of a model's outputs."""
        return () if self.are_indices else self.classes

    @property
    def taken(self) -> str:
        """How many images these are of how many, and why: ``147 of 736 images (the held-out fifth of each class)``."""
        if self.total is None or self.total == len(self):
            return f"{len(self)} image{'s' * (len(self) != 1)}" + (f" ({self.part})" if self.part else "")
        return f"{len(self)} of {self.total} images ({self.part})"

    def subset(self, count: int) -> ImageDataset:
        """``count`` images spread evenly over the whole split, so that every class is met; all if there are fewer."""
        if count >= len(self):
            return self
        return self._only(self._spread(count), f"{count} spread over it")

    def without(self, count: int) -> ImageDataset:
        """The images that ``subset(count)`` leaves out."""
        left = np.delete(np.arange(len(self)), self._spread(min(count, len(self))))
        return self._only(left, f"without {min(count, len(self))} spread over it")

    def _spread(self, count: int) -> npt.NDArray[np.int64]:
        return np.linspace(0, len(self) - 1, count).round().astype(np.int64)

    def _only(self, chosen: npt.NDArray[np.int64], words: str) -> ImageDataset:
        return replace(
            self,
            samples=[self.samples[i] for i in chosen],
            labels=self.labels[chosen],
            read=lambda i: self.read(int(chosen[i])),
            total=self.total or len(self),
            part=f"{self.part}, {words}" if self.part else words.removeprefix(f"{len(chosen)} "),
        )

    def item(self, index: int) -> Image.Image | Batch:
        """Image ``index``, decoded, or the network's input.

        Raises:
            InputError: it cannot be read, whatever ``skip_bad`` says.
            OSError: for want of descriptors or memory, or of a disk that works; so wherever images are read.
        """
        return self._item(index, None)

    def _item(self, index: int, reduced_for: Contract | None) -> Image.Image | Batch:
        """``item``, where a contract is given at the part of its size that suffices for that."""
        try:
            item = self.read(index)
            if isinstance(item, Image.Image):
                if reduced_for is not None:
                    decode_reduced(item, reduced_for)
                item.load()
        except UNREADABLE as error:
            raise self._unreadable(index, error) from error
        return item

    def image(self, index: int) -> Image.Image:
        """Image ``index``, decoded.

        Raises:
            InputError: it cannot be read, or the data set holds network inputs, not images.
        """
        item = self.item(index)
        if isinstance(item, Image.Image):
            return item
        if not _is_picture(item):
            raise InputError(f"{self.name}: holds preprocessed tensors; this needs images")
        return Image.fromarray(item.squeeze(2) if item.shape[2:] == (1,) else item)

    def network_input(self, index: int, contract: Contract) -> Batch:
        """Image ``index`` as the contract wants it; a tensor of its shape as it is, floats in its precision.

        Raises:
            InputError: it cannot be read, or is a tensor of another shape or type than the contract's.
        """
        return self._input(index, contract, Seen())

    def _input(self, index: int, contract: Contract, seen: Seen, *, reduced: bool = False) -> Batch:
        item = self._item(index, contract if reduced else None)
        if not isinstance(item, Image.Image):
            if not _is_picture(item):
                floats = np.issubdtype(item.dtype, np.floating) and contract.input_type != "uint8"
                if item.shape == contract.input_shape and (floats or item.dtype == contract.input_type):
                    return item.astype(contract.input_type, copy=False)
                raise InputError(
                    f"{self.name}: tensor '{printable(self.samples[index])}' is {item.shape} {item.dtype}; the model "
                    f"takes {contract.input_shape} {contract.input_type}, so preprocess for this model, or give its "
                    "images"
                )
            item = self.image(index)
        try:
            seen.add(item)
            return preprocess(item, contract)
        except (InputError, *UNREADABLE) as error:
            raise self._unreadable(index, error) from error

    def _unreadable(self, index: int, error: Exception) -> InputError:
        name = printable(self.samples[index])
        raise_if_lacking(error, f"{self.name}: {name}")
        why = why_unreadable(error)
        return InputError(f"{self.name}: cannot read image '{name}' ({why}); remove it, or use `skip_bad_images`")

    def images(self) -> Iterator[tuple[int, Image.Image]]:
        """(index, decoded image) in order.

        Raises:
            InputError: an image that cannot be read and ``skip_bad`` is off, or no image could be read at all.
        """
        return self._each(self.image)

    def inputs(
        self, contract: Contract, *, pool: Executor | None = None, reduced: bool = False
    ) -> Iterator[tuple[int, Batch]]:
        """(index, network input) in order.

        At the end an ``InputWarning`` says what of the images the contract leaves unseen, once for each contract.

        Args:
            contract: how an image becomes the network's input.
            pool: threads that read and preprocess images ahead; None for one image after the other.
            reduced: decode large JPEGs at a part of their size; ``decode_reduced`` says how far off that is.

        Raises:
            InputError: as ``images``.
        """
        seen = Seen()
        yield from self._each(partial(self._input, contract=contract, seen=seen, reduced=reduced), pool)
        if contract.fingerprint not in self.warned:
            self.warned.add(contract.fingerprint)
            seen.warn(self.name, contract)

    def _each(self, read: Callable[[int], _Item], pool: Executor | None = None) -> Iterator[tuple[int, _Item]]:
        good = 0
        for index, result in enumerate(_results(read, len(self), pool)):
            try:
                item = result()
            except InputError:
                if not self.skip_bad:
                    raise
                if self.samples[index] not in self.skipped:
                    self.skipped.append(self.samples[index])
                continue
            good += 1
            yield index, item
        if not good:
            raise InputError(f"{self.name}: none of the {len(self)} images can be read")

    def batches(self, contract: Contract, batch_size: int) -> Iterator[tuple[Batch, Labels]]:
        """((n, *input_shape), (n,) labels) in order, n = ``batch_size`` except for a smaller last batch.

        Raises:
            InputError: as ``images``.
        """
        pending: list[tuple[int, Batch]] = []
        for pair in self.inputs(contract):
            pending.append(pair)
            if len(pending) == batch_size:
                yield self._stacked(pending)
                pending = []
        if pending:
            yield self._stacked(pending)

    def batches_for(
        self, contracts: Iterable[Contract], batch_size: int
    ) -> Iterator[tuple[dict[Contract, Batch], Labels]]:
        """``batches`` of the same images for several models, by contract; equal contracts share one preprocessing.

        Raises:
            InputError: as ``images``.
        """
        distinct = list(dict.fromkeys(contracts))
        for batches in zip(*(self.batches(contract, batch_size) for contract in distinct), strict=True):
            yield {contract: batch for contract, (batch, _) in zip(distinct, batches, strict=True)}, batches[0][1]

    def _stacked(self, inputs: list[tuple[int, Batch]]) -> tuple[Batch, Labels]:
        return np.stack([array for _, array in inputs]), self.labels[[index for index, _ in inputs]]

    def matched(self, contract: Contract, outputs: int | None, model: str) -> ImageDataset:
        """The same images with labels in the order of a model's outputs; without labels where those do not match.

        Classes are matched by name, and where no name is the same, by name but for case; without names in the
        contract in their order, which an ``InputWarning`` says. Numbers are matched as names where all names in the
        contract are numbers.
        ``unlabelled`` then says what does not match.
        """
        if not self.is_labelled:
            return self
        known = contract.labels
        if self.are_indices and not (known and all(map(str.isdecimal, known))):
            return self._numbered(known, outputs, model)
        if not known:
            if outputs == len(self.classes):
                order = few(self.classes)
                warnings.warn(f"{model} has no class names; took {order} in that order", InputWarning, stacklevel=2)
                return self
            has = "does not say how many classes it has" if outputs is None else f"has {outputs} outputs"
            return self._without_labels(f"{self.name} has {len(self.classes)} classes but {model} {has}")
        found = list(map(place_finder(known), self.classes))
        missing = [name for name, place in zip(self.classes, found, strict=True) if place is None]
        if missing or len(set(found)) < len(found):
            odd = f"class {', '.join(map(repr, missing[:3]))}" if missing else "classes that differ only in case"
            return self._without_labels(f"{self.name} has {odd}; {model} has {few(known)}")
        return replace(self, classes=known, labels=np.array(found, np.int64)[self.labels])

    def _numbered(self, known: tuple[str, ...], outputs: int | None, model: str) -> ImageDataset:
        """The labels as numbers of the model's outputs."""
        numbers = list(map(int, self.classes))
        count = len(known) or outputs
        if count is None or max(numbers) >= count:
            has = "does not say how many classes it has" if count is None else f"has {count} outputs"
            return self._without_labels(f"{self.name} has the label {max(numbers)} but {model} {has}")
        labels = np.array(numbers, np.int64)[self.labels]
        return replace(self, classes=known or tuple(map(str, range(count))), labels=labels)

    def _without_labels(self, reason: str) -> ImageDataset:
        return replace(self, classes=(), labels=np.full(len(self), -1), unlabelled=reason)

    def labelled(self, contract: Contract, outputs: int | None, model: str) -> ImageDataset:
        """``matched`` where labels are needed.

        Raises:
            InputError: there are none, or they do not match the model's.
        """
        matched = self.matched(contract, outputs, model)
        if not matched.is_labelled:
            reason = matched.unlabelled or f"{self.name} has no labels"
            raise InputError(f"{reason}; this needs images of the model's classes, with labels")
        return matched


def _results(read: Callable[[int], _Item], count: int, pool: Executor | None) -> Iterator[Callable[[], _Item]]:
    """A call for the result of each of ``count`` reads, in order; a pool reads ahead."""
    if pool is None:
        yield from (partial(read, index) for index in range(count))
        return
    pending: deque[Future[_Item]] = deque()
    for index in range(count):
        pending.append(pool.submit(read, index))
        if len(pending) > _AHEAD:
            yield pending.popleft().result
    while pending:
        yield pending.popleft().result


def _is_picture(array: Batch) -> bool:
    """True for uint8 pixels (H, W) or (H, W, channels)."""
    return array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4)))


class Seen:
    """What images are like that a contract was applied to, in any thread: their sizes, turned ones, further frames."""

    def __init__(self) -> None:
        self._shorter_sides: list[int] = []
        self._images = self._turned = self._with_frames = 0
        self._lock = Lock()

    def add(self, image: Image.Image) -> None:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        with_frames = has_frames(image)
        with self._lock:
            self._images += 1
            if len(self._shorter_sides) < _MEASURED:
                self._shorter_sides.append(min(image.size))
            self._turned += turned
            self._with_frames += with_frames

    def merge(self, other: Seen) -> None:
        """Add what another one, such as that of another process, has seen."""
        self._shorter_sides = (self._shorter_sides + other._shorter_sides)[:_MEASURED]
        self._images += other._images
        self._turned += other._turned
        self._with_frames += other._with_frames

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}  # a lock stays in its process

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock())

    def warn(self, name: str, contract: Contract) -> None:
        """An ``InputWarning`` of what is left unseen of such images, or seen as it was hardly meant."""
        side, crop = int(np.median(self._shorter_sides or [0])), min(contract.size)
        if contract.resize is None and side > _MUCH_LARGER * crop:
            warnings.warn(
                f"{name}: only the central {crop} pixels of images of about {side} are seen; give the contract a "
                "resize, if the network was trained on whole images",
                InputWarning,
                stacklevel=2,
            )
        if self._with_frames:
            warnings.warn(
                f"{name}: {self._with_frames} of {self._images} images are animated or have pages; only the first of "
                "each is seen",
                InputWarning,
                stacklevel=2,
            )
        if self._turned and not contract.exif_orientation:
            warnings.warn(
                f"{name}: {self._turned} of {self._images} images carry an EXIF orientation that the contract does not "
                "apply, so they are seen turned; it can say exif_orientation = true",
                InputWarning,
                stacklevel=2,
            )


def split_by_name(names: Sequence[str], held_out: float = 0.2) -> list[bool]:
    """True for each name of the held-out part: the ``held_out`` share with the smallest SHA-256 of its name.

    The choice depends on the names alone, neither on their order nor on the machine. At least one name is held out
    and one kept when there are two or more.
    """
    count = min(max(round(len(names) * held_out), 1), len(names) - 1)
    ranked = sorted(range(len(names)), key=lambda i: (hashlib.sha256(os.fsencode(names[i])).digest(), i))
    chosen = set(ranked[:count])
    return [i in chosen for i in range(len(names))]
