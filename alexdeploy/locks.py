"""Who may write where: locks of the kernel, which lets go of them when a process ends, however it ends.

A process that is forked does not keep them: the workers of a run that was killed may live on for a while. Locks on
folders, and on some mounts those on files, are not to be had over a network; then nothing is held.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from zlib import crc32

from alexdeploy.errors import UsageError

_CLAIMED: ContextVar[frozenset[Path]] = ContextVar("claimed", default=frozenset())
_PATIENCE_S = 2.0  # it takes far less to put files in place
_ABANDONED_S = 3600.0
_OPEN: set[int] = set()  # descriptors that hold locks


def _let_go(descriptor: int) -> None:
    if descriptor in _OPEN:  # not in a fork, which has closed it, and may have another file of that number
        _OPEN.discard(descriptor)
        os.close(descriptor)


def _forget_all() -> None:
    for descriptor in [*_OPEN]:
        _let_go(descriptor)


os.register_at_fork(after_in_child=_forget_all)


def _opened(path: Path, flags: int) -> int:
    """A descriptor to hold a lock by.

    Raises:
        OSError: the path cannot be opened.
    """
    descriptor = os.open(path, flags, 0o666)
    _OPEN.add(descriptor)
    return descriptor


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
        descriptor = _opened(place, os.O_RDONLY | os.O_DIRECTORY)
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
        _let_go(descriptor)


@contextlib.contextmanager
def alone_at(path: Path) -> Iterator[None]:
    """Let no other process put ``path`` in place meanwhile: two that write the same two files could mix them.

    The lock is on a file of its own, ``.NAME.partial``, that is gone after the block. Where it is not to be had, or
    another process keeps it for seconds, the block runs without it.
    """
    lock = path.with_name(f".{path.name}.partial")
    until = time.monotonic() + _PATIENCE_S
    descriptor = -1
    try:
        while time.monotonic() < until:
            try:
                descriptor = _opened(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
            except OSError:  # another user's, or the folder takes no files
                break
            if _locked(descriptor) and _is_at(lock, descriptor):
                break
            _let_go(descriptor)  # another process has it, or has just removed it
            descriptor = -1
            time.sleep(0.001)
        yield
    finally:
        if descriptor >= 0:
            lock.unlink(missing_ok=True)
            _let_go(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """False where the file has been removed, or replaced by another."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _locked(descriptor: int) -> bool:
    """False where another process holds that lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # not every file system has locks
        return True
    return True


@cache
def system() -> str:
    """Four hexadecimal digits for the running kernel: only of its own processes does it know what they hold."""
    try:
        found = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        found = os.uname().nodename.encode()
    return f"{crc32(found) & 0xFFFF:04x}"


@contextlib.contextmanager
def held(create: Callable[[], Path]) -> Iterator[Path]:
    """A new temporary file or folder that is locked: ``remove_abandoned`` of other processes leaves it alone.

    Args:
        create: makes a folder, or names a file that is not there, which is then created. The name ends in
            ``.XXXXxxxx.partial``, where XXXX is ``system()``.
    """
    while True:
        path = create()
        try:  # a file is never opened again: its mode, by the umask, may forbid that
            flags = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR | os.O_CREAT | os.O_EXCL
            descriptor = _opened(path, flags)
        except (FileExistsError, FileNotFoundError):  # another's, or removed before it was locked
            continue
        if _locked(descriptor) and _is_at(path, descriptor):
            break
        _let_go(descriptor)
    try:
        yield path
    finally:
        _let_go(descriptor)


def remove_abandoned(path: Path) -> bool:
    """Remove a temporary of a process that was killed; False where that may still hold it.

    A process of this system holds it as long as it is locked. Of another system, which shares the file system, the lock
    may not be seen here: that one's are left alone for an hour after their last change.
    """
    try:
        if not path.name.split(".")[-2].startswith(system()) and time.time() - path.stat().st_mtime < _ABANDONED_S:
            return False
        folder = path.is_dir()
        how = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_NONBLOCK  # NFS locks what may be written
        descriptor = _opened(path, how | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder:
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:
        return False
    finally:
        _let_go(descriptor)
    return True
