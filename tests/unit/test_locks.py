"""Locks that end with the process that took them, and with nothing else; what they are for is tried with files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from alexdeploy import locks


def _is_free(folder: Path) -> bool:
    """By a descriptor of its own, as another process has it."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_a_process_that_was_forked_does_not_keep_a_folder(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with locks.claimed(tmp_path):
        child = os.fork()
        if not child:  # it outlives the run, as a worker of a run that was killed
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
        time.sleep(0.05)
        assert not _is_free(tmp_path)  # the run itself does
    try:
        until = time.monotonic() + 10
        while not (free := _is_free(tmp_path)) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        os.close(writing)
        os.waitpid(child, 0)
    assert free


def test_a_fork_that_unwinds_closes_no_file_of_its_own(tmp_path: Path) -> None:
    child = 0
    try:
        with locks.claimed(tmp_path):
            child = os.fork()
            if not child:
                numbers = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]  # one is the lock's former number
    except BaseException:
        if not child:
            os._exit(1)
        raise
    if not child:
        try:
            for number in numbers:
                os.fstat(number)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(("of", "age", "removed"), [("here", 0, True), ("there", 0, False), ("there", 4000, True)])
def test_what_another_system_may_still_write_is_removed_only_after_an_hour(
    tmp_path: Path, folder: bool, of: str, age: int, removed: bool
) -> None:
    mark = locks.system() if of == "here" else f"{int(locks.system(), 16) ^ 1:04x}"
    path = tmp_path / f".x.{mark}abcd.partial"
    path.mkdir() if folder else path.touch()
    os.utime(path, (time.time() - age,) * 2)
    assert locks.remove_abandoned(path) == removed
    assert path.exists() != removed
