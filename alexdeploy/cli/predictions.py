"""What ``predict`` shows and writes of its answers: lines, files, accuracy."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from alexdeploy import files
from alexdeploy.cli.output import note, print_columns
from alexdeploy.columns import Column
from alexdeploy.errors import few, visible
from alexdeploy.files import printable

if TYPE_CHECKING:
    from alexdeploy.runners.artifact import Artifact
    from alexdeploy.runners.predict import FolderAccuracy, FoundImage, Prediction

SUFFIXES = (".csv", ".jsonl", ".txt")
_ROWS = 20  # classes in the table
# what a spreadsheet takes for a formula: after a sign, what calls a function, compares, names a program (cmd|…), a
# sheet or a cell. Not -1.5, -cat or +/-
_FORMULA = re.compile(
    r"(?:[=@\t\r\n＝＋－＠]|(?![-+][0-9.]+(?:e[-+]?[0-9]+)?\Z)[-+](?:.*[=(|!]|(?:.*[^a-z0-9])?[a-z]{1,3}\$?[0-9])).*",
    re.IGNORECASE | re.DOTALL,
)


class Judged:
    """Answers for the images that were found, counted as they pass; none of them is kept.

    Args:
        artifact: what answers.
        roots: files and folders as they were given.
        found: all images.
        skipped: the names of those that could not be read, once the answers are through.
    """

    def __init__(
        self, artifact: Artifact, roots: Sequence[Path], found: Sequence[FoundImage], skipped: list[str]
    ) -> None:
        from alexdeploy.runners.predict import Tally

        self._artifact, self._roots, self._found, self._skipped = artifact, roots, found, skipped
        self._tally = Tally(artifact.contract.labels)

    def passing(self, predictions: Iterable[Prediction], top: int) -> Iterator[Prediction]:
        """The predictions with at most ``top`` classes, judged by all they have."""
        return (replace(prediction, top=prediction.top[:top]) for prediction in self._tally.count(predictions))

    @property
    def count(self) -> int:
        return self._tally.predictions

    @property
    def accuracy(self) -> FolderAccuracy | None:
        return self._tally.accuracy

    @property
    def others(self) -> Counter[str]:
        """Folders that are no class, with the number of their images that were read."""
        unread = set(self._skipped)
        return Counter(i.folder for i in self._found if i.folder is not None and printable(i.name) not in unread)

    @property
    def summary(self) -> list[str]:
        """How many images are right, and in which folders that cannot be said; nothing where no folder is a class."""
        accuracy, others, labels = self.accuracy, self.others, self._artifact.contract.labels
        elsewhere = f"{others.total()} images in folders that are no class of the model ({few(sorted(others))})"
        if accuracy is None:
            return [f"note: no accuracy: {elsewhere}; it has {few(labels)}"] if labels and len(others) > 1 else []
        best = f"top-1 {accuracy.top1:.2%}"
        if accuracy.top5 is not None:
            best += f", top-5 {accuracy.top5:.2%}"
        right = f"{accuracy.right} of {accuracy.images} images in their class folder are right"
        return [f"{best}: {right}; {elsewhere}" if others else f"{best}: {right}"]

    def show(self) -> None:
        """Accuracy of each class and of all, on stderr."""
        if self.accuracy is not None:
            _show_classes(self.accuracy)
        for text in self.summary:
            note(text)

    def write(self, out: Path, predictions: Iterable[Prediction]) -> None:
        """Write predictions that are ``passing`` to the file, atomically; its name ends in one of ``SUFFIXES``."""
        encode = {".csv": _csv, ".jsonl": _json_lines}.get(out.suffix.lower(), self._record)
        with files.atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            file.writelines(encode(predictions))

    def _record(self, predictions: Iterable[Prediction]) -> Iterator[str]:
        """What was run on what, each answer with its truth, and how many are right, for people to read."""
        return (f"{visible(text)}\n" for text in self._lines(predictions))

    def _lines(self, predictions: Iterable[Prediction]) -> Iterator[str]:
        yield f"model: {printable(self._artifact.path)} (sha256 {self._artifact.digest})"
        yield from (f"images: {printable(root)}" for root in self._roots)
        yield ""
        yield from (line(p) if p.truth is None else f"{line(p)}; truth: {p.truth}" for p in predictions)
        yield from (f"{image}: cannot be read" for image in self._skipped)
        summary, accuracy = self.summary, self.accuracy
        yield from ["", *summary] if summary else []
        for row in accuracy.classes if accuracy is not None else ():
            yield f"{row.label}: {row.right} of {row.images} right ({row.recall:.2%})"


def line(prediction: Prediction) -> str:
    """The answer for people."""
    return f"{prediction.image}: {', '.join(f'{label} ({probability:.1%})' for label, probability in prediction.top)}"


def row(prediction: Prediction) -> dict[str, Any]:
    """The answer for JSON."""
    return {
        "image": prediction.image,
        "label": prediction.label,
        "probability": prediction.probability,
        "truth": prediction.truth,
        "top": [{"label": label, "probability": probability} for label, probability in prediction.top],
    }


def _show_classes(accuracy: FolderAccuracy) -> None:
    """Right answers of each class, on stderr; of many classes those with the lowest share. One needs no table."""
    shown, title = accuracy.classes, "images of each class"
    if len(shown) == 1:
        return
    if len(shown) > _ROWS:
        title = f"the {_ROWS} of {len(shown)} classes with the lowest share of right answers"
        shown = sorted(shown, key=lambda found: found.recall)[:_ROWS]
    columns = [
        Column("class", [found.label for found in shown], text=True, folds=True),
        Column("images", [str(found.images) for found in shown]),
        Column("right", [str(found.right) for found in shown]),
        Column("share", [f"{found.recall:.2%}" for found in shown]),
    ]
    print_columns(columns, title=title, stderr=True)


def _csv(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Image, label, probability, truth; then label and probability of the second, third, … likeliest class."""
    rest = iter(predictions)
    ahead = list(islice(rest, 1))  # tells how many classes there are of each
    more = range(2, len(ahead[0].top) + 1) if ahead else ()
    names = [f"{name}_{place}" for place in more for name in ("label", "probability")]
    yield _csv_line(["image", "label", "probability", "truth", *names])
    for prediction in chain(ahead, rest):
        image = f"./{prediction.image}" if _FORMULA.fullmatch(prediction.image) else prediction.image
        first, *others = [(_no_formula(label), f"{probability:.6f}") for label, probability in prediction.top]
        yield _csv_line([image, *first, _no_formula(prediction.truth or ""), *chain.from_iterable(others)])


def _no_formula(label: str) -> str:
    """The label; with an apostrophe in front where a spreadsheet would take it for a formula (OWASP, CSV injection)."""
    return f"'{label}" if _FORMULA.fullmatch(label) else label


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()


def _json_lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    return (msgspec.json.encode(row(prediction)).decode() + "\n" for prediction in predictions)
