"""The command line in forks of a process that has imported what it needs: a start costs milliseconds, not seconds.

The process is single-threaded and has computed nothing, so a fork of it behaves as one that was started anew.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, NoReturn

from alexdeploy import cli

_HEAVY = (  # not onnxruntime and openvino, which start threads, and what imports them
    *("scipy.stats", "sklearn.metrics", "sklearn.datasets", "PIL.PngImagePlugin", "onnx", "onnx_ir", "onnxscript"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "jinja2", "rich.table"),
    *("torch.onnx", "safetensors.torch"),
    *("alexdeploy.train", "alexdeploy.zoo.checkpoint", "alexdeploy.bench.results", "alexdeploy.quantize.apply"),
    "onnxscript._framework_apis.torch_2_5",
)
_LONGEST_S = 120.0


BARE: Mapping[str, str | None] = {"LC_ALL": "C", "PYTHONUTF8": "0", "HOME": "/nonexistent", "USER": None}


@dataclass(frozen=True)
class Strike:
    """A signal that the process gets when it is about to do something for the n-th time, by Python's audit events."""

    signal: signal.Signals
    event: str
    number: int


@dataclass(frozen=True)
class Call:
    """A command and the conditions under which it runs.

    Attributes:
        arguments: behind ``alexdeploy``.
        folder: the working folder.
        said: a folder for the files ``stdout`` and ``stderr``.
        stdout: a file, closed from the start, a pipe that nobody reads, or a full device.
        limits: soft limits by ``resource.RLIMIT_...``.
        memory: address space in bytes that the command may take beyond what the imports took.
        obeys_modes: without root's leave to write where a folder's mode forbids it.
        environment: variables that differ; None for one that is not set.
        strike: when a signal comes from within.
        brief: leave out most of the interpreter's end, which takes a second for all that is imported.
    """

    arguments: tuple[str, ...]
    folder: Path
    said: Path
    stdout: Literal["file", "closed", "pipe", "full"] = "file"
    limits: Mapping[int, int] = field(default_factory=dict)
    memory: int | None = None
    obeys_modes: bool = False
    environment: Mapping[str, str | None] = field(default_factory=dict)
    strike: Strike | None = None
    brief: bool = False


class Forks:
    """Starts calls; ``environment`` is that of the process which they are forks of."""

    def __init__(self, environment: Mapping[str, str | None] = {}) -> None:
        self._line, theirs = Pipe()
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        changed = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **single, **environment}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forks", str(theirs.fileno())],
            cwd=Path(__file__).parents[2],
            env={name: value for name, value in changed.items() if value is not None},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def start(self, call: Call) -> int:
        """The process id."""
        call.said.mkdir(parents=True, exist_ok=True)
        self._line.send(call)
        pid: int = self._line.recv()
        return pid

    def wait(self, pid: int) -> int:
        """The exit code, negative for a signal; one that hangs is killed."""
        timer = threading.Timer(_LONGEST_S, os.kill, (pid, signal.SIGKILL))
        timer.start()
        try:
            self._line.send(pid)
            code: int = self._line.recv()
        finally:
            timer.cancel()
        return code

    def close(self) -> None:
        """End the process."""
        self._line.close()
        self._process.wait()


@contextlib.contextmanager
def forks(environment: Mapping[str, str | None] = {}) -> Iterator[Forks]:
    """``Forks`` for a block."""
    opened = Forks(environment)
    try:
        yield opened
    finally:
        opened.close()


def _serve(line: Connection) -> None:
    """Fork for each call, wait for each process id, until the other end closes."""
    for name in (*(f"alexdeploy.cli.{name.replace('-', '_')}" for name in cli.COMMANDS), *_HEAVY):
        importlib.import_module(name)
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "threads do not survive a fork"
    gc.collect()
    gc.freeze()  # the forks have less to look through, and to copy
    while True:
        try:
            asked: Call | int = line.recv()
        except EOFError:
            return
        if isinstance(asked, int):
            line.send(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]))
            continue
        pid = os.fork()
        if not pid:
            line.close()
            _become(asked)
        line.send(pid)


def _become(call: Call) -> NoReturn:
    os.setsid()
    os.chdir(os.fsencode(call.folder))
    for name, value in call.environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    _redirect(call)
    if call.strike is not None:
        _arm(call.strike)
    for kind, most in call.limits.items():
        resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))
    if call.memory is not None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + call.memory, resource.RLIM_INFINITY))
    if call.obeys_modes:
        _give_up_root()
    # as Python would have read them, where the locale has no such characters
    sys.argv = ["alexdeploy", *(os.fsdecode(word.encode()) for word in call.arguments)]
    try:
        cli.main()
    except SystemExit as end:
        if call.brief:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise
    raise AssertionError("main ends the process")


def _give_up_root() -> None:
    """Drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, which only root has, and keep the rest."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for index in range(3):  # effective, permitted, inheritable
        sets[index] &= ~0b110
    assert libc.capset(header, sets) == 0


def _redirect(call: Call) -> None:
    for target, name in ((0, os.devnull), (1, str(call.said / "stdout")), (2, str(call.said / "stderr"))):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, target)
        os.close(descriptor)
    if call.stdout == "closed":
        os.close(1)
        sys.stdout = None  # as Python has it then
    elif call.stdout == "pipe":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
        os.close(writing)
    elif call.stdout == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.close(descriptor)


def _arm(strike: Strike) -> None:
    seen = 0

    def watch(event: str, _arguments: object) -> None:
        nonlocal seen
        if event == strike.event:
            seen += 1
            if seen == strike.number:
                os.kill(os.getpid(), strike.signal)

    sys.addaudithook(watch)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
