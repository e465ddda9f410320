"""Files the tool writes: atomic, with a sidecar ``<file>.json`` that holds what they are and where they come from.

Both files are written to temporaries, then renamed, sidecar last. A mismatch therefore means a later change, or a
crash between the renames. A process that is killed leaves its temporaries, ``.NAME.xxxxxxxx.partial``, which nothing
takes for a result, and which the next write of NAME removes.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from alexdeploy import locks
from alexdeploy._version import __version__
from alexdeploy.errors import GateError, InputError, UsageError

SCHEMA = 1
# what msgspec raises on text from outside: deep nesting and bytes that are no UTF-8 have errors of Python's own
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_LONGEST_NAME = 200  # bytes: a file system has 255, and what lies beside a file has longer names


class Parent(msgspec.Struct, frozen=True):
    """A file this artifact was made from: its name when it was read, and its SHA-256 (hex)."""

    name: str
    sha256: str


class Sidecar(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``<file>.json``.

    Attributes:
        kind: ``checkpoint``, ``onnx``, ``ranges``, ``engine`` or ``golden``.
        sha256: of the file itself.
        parents: what it was made from.
        options: the settings that shaped it.
        libraries: versions of the libraries that made it.
        details: what only this kind has (an engine's kernels, a checkpoint's metrics).
    """

    kind: str
    sha256: str
    parents: tuple[Parent, ...] = ()
    options: dict[str, Any] = {}
    libraries: dict[str, str] = {}
    details: dict[str, Any] = {}
    tool: str = __version__
    schema: int = SCHEMA

    def check(self, digest: str, path: Path) -> None:
        """The sidecar must belong to the bytes with this SHA-256, read from ``path``.

        Raises:
            GateError: the file was changed after its sidecar was written.
        """
        if digest != self.sha256:
            raise GateError(
                f"{path}: changed since it was written (sha256 {digest[:12]}…, its sidecar says "
                f"{self.sha256[:12]}…); write it again"
            )


def printable(name: str | os.PathLike[str]) -> str:
    """A file's name as text: bytes that are not UTF-8 as \\xbb, so that it can be printed and put into JSON."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def exists(path: Path) -> bool:
    """``path.exists()``, which fails where a name is longer than any file's."""
    return os.path.exists(path)  # noqa: PTH110


def _closed_folder(path: Path) -> Path | None:
    """The folder on the way to ``path`` that may not be entered, for which it seems not to be there."""
    for folder in reversed(Path(os.path.abspath(path)).parents):  # noqa: PTH100 (links are followed by what is asked)
        if folder.is_dir() and not os.access(folder, os.X_OK):
            return folder
    return None


def is_text(path: Path) -> bool:
    """False where the path has bytes that are not UTF-8: libraries in C++ refuse it, and are given the file's bytes."""
    return printable(path) == str(path)


def sidecar_path(path: Path) -> Path:
    """``model.engine`` → ``model.engine.json``."""
    return path.with_name(path.name + ".json")


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def identity(path: Path) -> tuple[int, ...]:
    """Of a file: its number on its device may be given to the next one, so its time and size besides."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def parent(path: Path) -> Parent:
    """Record ``path`` as the origin of another artifact."""
    return Parent(name=printable(path.name), sha256=sha256_file(path))


def check_input(path: Path) -> Path:
    """Fail early, in words, when an input file cannot be read.

    Raises:
        InputError: missing, no file, not to be read, or empty.
    """
    if not exists(path):
        if (folder := _closed_folder(path)) is not None:
            raise InputError(f"{path}: no permission to enter '{folder}'; change its mode or owner")
        raise InputError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a file")
    if not path.is_file():
        raise InputError(f"{path}: is a pipe, a socket or a device; write what it gives to a file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it; change its mode or owner")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; write or copy it again")
    return path


def utf8(data: bytes, origin: str) -> str:
    """The text of a file, with or without a byte order mark.

    Raises:
        InputError: it is in another encoding; ``origin`` is the file named in the message.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{origin}: its text is not UTF-8; save it as UTF-8") from error
    if "\0" in text:  # ASCII as UTF-16 without a mark
        raise InputError(f"{origin}: its text is not UTF-8; save it as UTF-8")
    return text


def make_folder(path: Path) -> None:
    """Make a folder where there is none; its parent must exist.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make folder {path}: {error.strerror}; name another") from error


def check_output(path: Path, *inputs: Path) -> Path:
    """Fail before the work, not after it, when the result could not be written or would overwrite what is read.

    Raises:
        UsageError: the folder does not exist or is not writable, the name is too long, ``path`` is a folder, device or
            pipe, or it or its sidecar is one of ``inputs``.
    """
    if (size := len(os.fsencode(path.name))) > _LONGEST_NAME:
        raise UsageError(f"cannot write {path}: its name has {size} bytes; give it at most {_LONGEST_NAME}")
    if not exists(path.parent) and (folder := _closed_folder(path.parent)) is not None:
        raise UsageError(f"cannot write {path}: no permission to enter '{folder}'; change its mode or owner")
    if not exists(path.parent) or not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: folder '{path.parent}' does not exist; create it first")
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder; expected a file name")
    if path.exists() and not path.is_file():
        # we write by rename, which would replace /dev/null with a regular file
        raise UsageError(f"cannot write {path}: it is a device or a pipe; expected a file name")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: no permission to write in '{path.parent}'")
    for written in (path, sidecar_path(path)):
        if written.exists() and any(source.exists() and written.samefile(source) for source in inputs):
            raise UsageError(f"cannot write {written}: it is what this reads; choose another name")
    return path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block succeeds and vanishes when it does not.

    A file that is replaced keeps its permissions, a new one gets those of the umask. A symbolic link is replaced, and
    what it names stays as it is: that may be another artifact, whose sidecar lies beside it.

    Raises:
        UsageError: see ``check_output``.
    """
    with _atomic_paths([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def _atomic_paths(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """``atomic_path`` for files that belong together: whatever a signal interrupts, all are new or none."""
    for path in paths:
        check_output(path)
    with contextlib.ExitStack() as stack:
        temporaries = [stack.enter_context(_temporary(path)) for path in paths]
        yield temporaries
        for path, temporary in zip(paths, temporaries, strict=True):
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            if path.exists():
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        with locks.alone_at(min(paths, key=lambda path: len(path.name))):  # the file that the others are named after
            _put_in_place(paths, temporaries)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new file beside ``path``, held by this process, and gone after the block."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.partial"):
        locks.remove_abandoned(left)

    def name() -> Path:
        return path.with_name(f".{path.name}.{locks.system()}{secrets.token_hex(2)}.partial")

    try:
        with locks.held(name) as temporary:  # the kernel applies the umask, which cannot be read without changing it
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        if str(error.filename).endswith(".partial") or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = str(path)
        raise


def _put_in_place(paths: Sequence[Path], temporaries: Sequence[Path]) -> None:
    """Rename all; a signal between two renames waits for the rest."""
    try:
        for path, temporary in zip(paths, temporaries, strict=True):
            temporary.replace(path)
    except OSError:
        raise
    except BaseException:
        for path, temporary in zip(paths, temporaries, strict=True):
            with contextlib.suppress(FileNotFoundError):
                temporary.replace(path)
        raise


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_artifact(
    path: Path,
    data: bytes | memoryview,
    kind: str,
    *,
    parents: tuple[Parent, ...] = (),
    options: Mapping[str, Any] | None = None,
    libraries: Mapping[str, str] | None = None,
    details: Mapping[str, Any] | None = None,
    beside: Mapping[Path, bytes | memoryview] | None = None,
) -> Sidecar:
    """Write a file, its sidecar and what else belongs to it (``beside``), all or nothing, and return the sidecar."""
    more = dict(beside or {})
    with _atomic_paths([*more, path, sidecar_path(path)]) as (*others, temporary, side):
        for other, content in zip(others, more.values(), strict=True):
            other.write_bytes(content)
        with ThreadPoolExecutor(1) as pool:  # an engine takes as long to hash as to write
            digest = pool.submit(lambda: hashlib.sha256(data).hexdigest())
            temporary.write_bytes(data)
        sidecar = Sidecar(
            kind=kind,
            sha256=digest.result(),
            parents=parents,
            options=dict(options or {}),
            libraries=dict(libraries or {}),
            details=dict(details or {}),
        )
        side.write_bytes(msgspec.json.format(msgspec.json.encode(sidecar), indent=1))
    return sidecar


def load_sidecar(path: Path, kind: str | None = None) -> Sidecar:
    """The sidecar of ``path``; whether it belongs to these bytes is for ``Sidecar.check`` to say.

    Raises:
        InputError: ``path`` is missing or empty, its sidecar is not one, or is of another kind than ``kind``.
        GateError: there is no sidecar.
    """
    check_input(path)
    side = sidecar_path(path)
    if not side.exists():
        raise GateError(f"{path}: its sidecar {side.name} is missing; copy both files together or write it again")
    try:
        sidecar = msgspec.json.decode(side.read_bytes(), type=Sidecar)
    except UNDECODABLE as error:
        raise InputError(f"{side}: not a sidecar of alexdeploy: {error}") from error
    if sidecar.schema > SCHEMA:
        raise InputError(f"{side}: schema {sidecar.schema} is newer than {SCHEMA}; upgrade alexdeploy")
    if kind is not None and sidecar.kind != kind:
        raise InputError(f"{path}: its sidecar says '{sidecar.kind}'; expected '{kind}'")
    return sidecar


def read_sidecar(path: Path, kind: str | None = None) -> Sidecar:
    """``load_sidecar``, after hashing the file and checking that the sidecar belongs to it.

    Raises:
        InputError, GateError: see ``load_sidecar``; GateError also where the file was changed after its sidecar.
    """
    sidecar = load_sidecar(path, kind)
    sidecar.check(sha256_file(path), path)
    return sidecar


def library_versions(*distributions: str) -> dict[str, str]:
    """Installed versions by distribution name; one that is not installed is left out."""
    from importlib import metadata

    versions = {}
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
