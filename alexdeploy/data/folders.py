"""The images below a folder: which files count, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

_SUFFIXES = "jpg jpeg jpe jfif png bmp webp ppm pgm pnm tif tiff gif avif jp2 j2k heic heif"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES.split())
_NO_IMAGES = frozenset(  # in any case, of macOS, Windows, Linux, Synology and QNAP: thumbnails and what was deleted
    {
        *("__macosx", "thumbs.db", "$recycle.bin", "system volume information", "lost+found"),
        *("@eadir", "#recycle", "@recycle", "#snapshot"),
    }
)  # beside those that begin with a dot, such as ._a.jpg of macOS


def is_image(name: str) -> bool:
    """By its ending, whatever its case; hidden files are none."""
    return not _is_hidden(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 (any bytes)


def image_files(root: Path) -> list[Path]:
    """All images below ``root``, through links too, sorted by path; hidden files and folders are left out."""
    return list(map(Path, image_names(root)))


def image_names(root: Path) -> list[str]:
    """``image_files`` as text, which takes a third of the memory: there may be millions."""
    found: list[str] = []
    seen = set(map(str, Path(os.path.realpath(root)).parents))  # a link to them leads to other classes, and round
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
        prefix = os.path.join(folder, "").removeprefix(os.path.join(".", ""))  # noqa: PTH118 (as Path writes it)
        found += [prefix + name for name in names if is_image(name)]
    found.sort(key=lambda name: name.replace(os.sep, "\0"))  # folder by folder, as Path compares, which is slow
    return found


def subfolders(root: Path) -> list[str]:
    """Names of the visible folders in ``root``, sorted."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _NO_IMAGES
