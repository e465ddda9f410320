"""Lists of images in text and CSV files: ``path``, ``path,label`` or ``path label`` on each line."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.decode import open_image
from alexdeploy.data.folders import IMAGE_SUFFIXES, is_image
from alexdeploy.errors import InputError
from alexdeploy.files import check_input, printable

SUFFIXES = (".txt", ".csv", ".tsv", ".lst")
_PATHS, _LABELS = frozenset({"path", "image", "file", "filename"}), frozenset({"label", "class"})
_AFTER = '"end"'  # behind the last line: a row of its own, unless a quotation mark is left open, which it closes
_Columns = tuple[int, ...]
_ENDINGS = "|".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
# paths and labels may hold blanks: the path goes as far as the last ending of an image
_LINE = re.compile(rf"(?P<path>.*\.(?:{_ENDINGS}))(?:\s*[,;\t ]\s*(?P<label>.*))?", re.IGNORECASE)


def load_list(path: Path, *, skip_bad: bool) -> ImageDataset:
    """The images that a list names, in its order; paths are relative to the folder of the list.

    Labels are class names, or if all are numbers, the model's outputs counted from 0. Lines that begin with ``#`` and
    empty ones do not count, nor does a first line ``path,label`` or ``image,label``. The text is UTF-8; the bytes of
    paths may be any.

    Raises:
        InputError: a line that is not understood, a file that does not exist (unless ``skip_bad``), or no image.
    """
    check_input(path)
    name, root = printable(path), path.parent
    rows = list(_rows(path, name))
    if not rows:
        raise InputError(f"{name}: lists no images; expected lines of path, path,label or path label")
    samples = [sample for _, sample, _ in rows]
    missing = [(line, sample) for line, sample, _ in rows if not skip_bad and not os.path.exists(root / sample)]  # noqa: PTH110 (any bytes)
    if missing:
        line, sample = missing[0]
        raise InputError(
            f"{name}: {len(missing)} of {len(rows)} files do not exist, first '{printable(sample)}' in line {line}; "
            f"paths are relative to {printable(root)}, and `skip_bad_images` leaves those out"
        )
    labels = [printable(label) for _, _, label in rows]
    are_indices = all(label.isdecimal() for label in labels if label)
    if are_indices:
        labels = [str(int(label)) if label else "" for label in labels]
    classes = tuple(sorted(set(labels) - {""}, key=int if are_indices else None))
    places = {label: place for place, label in enumerate(classes)}
    lacking = labels.count("")
    return ImageDataset(
        name=name,
        classes=classes,
        samples=samples,
        labels=np.array([places.get(label, -1) for label in labels], np.int64),
        read=lambda i: open_image(root / samples[i], found=True),
        skip_bad=skip_bad,
        are_indices=are_indices,
        unlabelled=f"{name} has no label for {lacking} of {len(rows)} images" if lacking else "",
    )


def _rows(path: Path, name: str) -> Iterator[tuple[int, str, str]]:
    """(number of the line, path, label or "") of each image."""
    data = path.read_bytes()
    if b"\0" in data:
        raise InputError(f"{name}: is not UTF-8 text; save it as UTF-8")
    text = io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="")
    is_table = path.suffix.lower() in (".csv", ".tsv")
    columns: _Columns | None = None
    begun = False
    for number, cells in _table_rows(text, name) if is_table else _text_rows(text):
        if not any(cells) or (cells[0].startswith("#") and not _LINE.fullmatch(cells[0])):
            continue
        if not begun:
            begun, columns = True, _columns(cells)
            if columns is not None:
                continue
        if is_table and columns is not None and len(cells) > max(columns):
            yield number, cells[columns[0]], cells[columns[1]] if len(columns) > 1 else ""
        elif len(cells) == 1:
            yield number, *_path_and_label(cells[0])
        elif columns is None and len(cells) == 2:
            yield number, cells[0], cells[1]
        else:
            raise InputError(
                f"{name}: line {number} has {len(cells)} columns; expected path,label, or a first line that names the "
                "columns path and label"
            )


def _text_rows(text: io.StringIO) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text, 1):
        yield number, [line.strip()]


def _table_rows(text: io.StringIO, name: str) -> Iterator[tuple[int, list[str]]]:
    first = next((line for line in text if line.strip() and not line.startswith("#")), "")
    text.seek(0)
    delimiter = next((character for character in ",;\t" if character in first), ",")
    read_all, begins = False, 1

    def lines() -> Iterator[str]:
        nonlocal read_all
        yield from text
        read_all = True
        yield _AFTER

    rows = csv.reader(lines(), delimiter=delimiter, skipinitialspace=True)
    try:
        for cells in rows:
            if not read_all:
                begins = rows.line_num + 1
                yield rows.line_num, [cell.strip() for cell in cells]
            elif cells != ["end"]:
                raise InputError(f"{name}: line {begins} opens a quotation mark that none closes; close it")
    except csv.Error as error:
        raise InputError(f"{name}: line {rows.line_num} is not CSV ({error})") from error


def _columns(cells: list[str]) -> _Columns | None:
    """The places of path and label, where the cells are the names of columns."""
    names = [cell.lower() for cell in (re.split(r"[,\s]+", cells[0]) if len(cells) == 1 else cells)]
    paths = [place for place, name in enumerate(names) if name in _PATHS]
    labels = [place for place, name in enumerate(names) if name in _LABELS]
    if len(names) == 2:  # the other one, whatever its name
        labels = [place for place in (0, 1) if place not in paths[:1]]
    return (paths[0], *labels[:1]) if paths and not any(map(is_image, names)) else None


def _path_and_label(line: str) -> tuple[str, str]:
    if found := _LINE.fullmatch(line):
        return found["path"].strip(), (found["label"] or "").strip()
    path, *label = line.rsplit("," if "," in line else None, 1)  # a path without a known ending
    return path.strip(), "".join(label).strip()
