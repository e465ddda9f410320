"""Who may write where: locks of the kernel, which lets go of them when a process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from alexdeploy.errors import UsageError

_CLAIMED: ContextVar[frozenset[Path]] = ContextVar("claimed", default=frozenset())
_PATIENCE_S = 2.0


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for one run at a time, on this machine; the kernel lets go when the process ends, however.

    The run that holds it may claim it again. Nothing is written: the lock is on the folder itself.

    Raises:
        UsageError: another run holds it.
    """
    place, held = folder.resolve(), _CLAIMED.get()
    if place in held:
        yield
        return
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # it cannot be read or is not there, which its first file will tell
        yield
        return
    mark = _CLAIMED.set(held | {place})
    try:
        if not _locked(descriptor):
            raise UsageError(f"{folder}: another run is writing there; wait for its end or name another")
        yield
    finally:
        _CLAIMED.reset(mark)
        os.close(descriptor)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let no other process put files in place there meanwhile: two that write the same two files could mix them.

    Not where the lock is not to be had: a run that holds the folder for hours writes files of other names.
    """
    if folder.resolve() in _CLAIMED.get():
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder that may be written and not be read
        yield
        return
    try:
        _locked(descriptor)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """False where another process holds that lock for longer than it takes to put files in place."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
        except OSError:  # not every file system has locks
            return True
        else:
            return True


@contextlib.contextmanager
def held(create: Callable[[], Path]) -> Iterator[Path]:
    """A new temporary file or folder that is locked: ``remove_abandoned`` of other processes leaves it alone."""
    while True:
        path = create()
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # removed before it was locked
            continue
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            break
        os.close(descriptor)
    try:
        yield path
    finally:
        os.close(descriptor)


def remove_abandoned(path: Path) -> bool:
    """Remove a temporary of a process that was killed; False where that may still hold it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
