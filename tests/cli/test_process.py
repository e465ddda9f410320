"""What the command line makes of signals, and of what a machine lacks; closed and full outputs are in tests/faults."""

from __future__ import annotations

import errno
import signal
import sys
import time

import pytest

from alexdeploy import cli
from alexdeploy.cli import process
from alexdeploy.errors import InputError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.onnx"), "x.onnx; free space or write elsewhere"),
        (OSError(errno.EMFILE, "Too many open files", "x.onnx"), "x.onnx; raise the limit of open files (ulimit -n)"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x.onnx"), "x.onnx; choose a shorter name"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory; free some"),
        (MemoryError(), "not enough memory; free some"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. can't allocate memory: you tried"), "not enough"),
        (RuntimeError("std::bad_alloc"), "not enough memory; free some"),
        (ImportError("x.so: failed to map segment from shared object"), "not enough memory; free some"),
    ],
)
def test_what_the_machine_lacks_is_a_line(error: Exception, words: str) -> None:
    found = process.lacking(error)
    assert found is not None
    assert words in found


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), FileNotFoundError(errno.ENOENT, "No such"), KeyError()]
)
def test_a_fault_of_ours_is_none_of_the_machine(error: Exception) -> None:
    assert process.lacking(error) is None


def test_an_error_that_native_code_made_of_an_interrupt_is_the_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_given: object) -> None:
        with pytest.raises(KeyboardInterrupt):
            process._interrupt(signal.SIGINT, None)
        raise ImportError("initialization failed")

    monkeypatch.setattr(cli.cli, "main", interrupted)
    monkeypatch.setattr(process, "received", [])
    assert cli._run([]) == (130, "interrupted")


def test_a_model_is_not_blamed_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def short_of_memory(**_given: object) -> None:
        raise InputError("x.onnx: ONNX Runtime cannot load it: std::bad_alloc") from RuntimeError("std::bad_alloc")

    monkeypatch.setattr(cli.cli, "main", short_of_memory)
    code, message = cli._run([])
    assert code == 4
    assert message is not None
    assert message.startswith("not enough memory")


def test_an_interrupt_in_a_finalizer_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closing:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "unraisablehook", process._unraisable)
    monkeypatch.setattr(process, "received", [signal.SIGINT])
    Closing()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(5)
