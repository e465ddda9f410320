"""What the command line makes of signals, and of what a machine lacks; closed and full outputs are in tests/faults."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from alexdeploy import cli
from alexdeploy.cli import process
from alexdeploy.errors import InputError

ROOT = Path(__file__).parents[2]
_OWNED = "import sys; from alexdeploy import cli; from alexdeploy.cli import process\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.onnx"), "x.onnx; free space or write elsewhere"),
        (OSError(errno.EMFILE, "Too many open files", "x.onnx"), "x.onnx; raise the limit of open files (ulimit -n)"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x.onnx"), "x.onnx; choose a shorter name"),
        (OSError(errno.EACCES, "Permission denied", "x"), "x; change its mode or owner, or write elsewhere"),
        (OSError(errno.ESTALE, "Stale file handle", "x"), "x; mount its file system again"),
        (
            OSError(errno.ENOMEM, "Cannot allocate memory", "x"),
            "not enough memory: [Errno 12] Cannot",
        ),
        (MemoryError(), "not enough memory; free some"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. can't allocate memory: you tried"),
            "memory: [enforce fail",
        ),
        (RuntimeError("std::bad_alloc"), "not enough memory: std::bad_alloc; free some"),
        (RuntimeError("Myelin: Resource temporarily unavailable"), "not enough memory: Myelin: Resource temporarily"),
        (
            ImportError("x.so: failed to map segment from shared object"),
            "x.so: failed to map segment from shared object",
        ),
        (OSError("x.so: failed to map segment from shared object"), "or its file system forbids programs (noexec)"),
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
    assert message.startswith("not enough memory: x.onnx: ONNX Runtime cannot load it: std::bad_alloc; free some")


def test_an_interrupt_in_a_finalizer_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closing:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "unraisablehook", process._unraisable)
    monkeypatch.setattr(process, "received", [signal.SIGINT])
    Closing()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(5)


def _python(code: str, *arguments: str, **given: object) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-c", _OWNED + code, *arguments]
    return subprocess.run(whole, cwd=ROOT, text=True, check=False, timeout=60, **given)  # type: ignore[call-overload,no-any-return]


def test_a_command_called_from_python_leaves_the_signals_alone() -> None:
    before = [signal.getsignal(number) for number in process._SIGNALS]
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert [signal.getsignal(number) for number in process._SIGNALS] == before


def test_a_command_can_be_called_in_a_thread() -> None:
    ends: list[object] = []

    def call() -> None:
        try:
            cli.main(["--version"])
        except BaseException as end:
            ends.append(getattr(end, "code", end))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert ends == [0]


def _signalled(at_the_end: str, signals: int, before: str = "") -> int:
    """The exit code of a command that gets signals when it is done and does not end by itself."""
    code = f"import os, signal, time\nprocess.take_over()\n{before}\nprocess.finish()\n"
    code += f"for _ in range({signals}): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01)\n{at_the_end}"
    return _python(code).returncode


@pytest.mark.parametrize(
    ("signals", "before", "code"),
    [(1, "", 7), (2, "", -signal.SIGTERM), (1, "process.received.append(2)", -signal.SIGTERM)],
)
def test_a_second_signal_ends_a_process_that_hangs_at_its_end(signals: int, before: str, code: int) -> None:
    assert _signalled("sys.exit(7)", signals, before) == code


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    assert _signalled("sys.exit(7)", 3, before) == 7


def test_the_exit_code_is_the_commands_where_stderr_is_full() -> None:
    with Path("/dev/full").open("w") as full:
        done = _python("cli.main()", "inspect", "missing.onnx", stdout=subprocess.DEVNULL, stderr=full)
    assert done.returncode == 3


def test_a_child_of_a_command_without_streams_has_some() -> None:
    code = "import os, subprocess\nos.close(0)\nprocess.take_over()\n"
    code += "sys.exit(subprocess.run([sys.executable, '-c', 'import os; os.fstat(0)'], stdin=None).returncode)"
    assert _python(code).returncode == 0


def test_json_is_the_same_in_a_locale_that_is_not_utf8() -> None:
    code = "from alexdeploy.cli.output import print_json\nprocess.take_over()\n"
    code += f"print_json({ {'名': 'é 😀'}!a})"
    here = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}
    done = _python(code, env=here, capture_output=True)
    assert json.loads(done.stdout) == {"名": "é 😀"}
    assert done.stdout.isascii()
