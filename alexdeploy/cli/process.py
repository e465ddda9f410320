"""What the command line does to the process that it owns: its signals and standard streams, and how it ends."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from alexdeploy.errors import AlexdeployError, is_about_memory, words_of

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

STOPPED = {130: "interrupted", 129: "hung up: the terminal was closed", 143: "terminated"}
received: list[int] = []  # the signals that ended the command; native code may have made another error of one
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SPACE = "free space or write elsewhere"
_ADVICE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "write elsewhere, or raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "change its mode or owner, or write elsewhere",
    errno.EPERM: "write elsewhere",
    errno.EIO: "check the disk",
    errno.ESTALE: "mount its file system again",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (ulimit -n)",
}
_NO_MEMORY = "free some, raise its limit, or take fewer images or smaller batches"
_NO_SEGMENT = "failed to map segment"  # says the loader, whether memory is short or the mount forbids it


def take_over() -> None:
    """Prepare a process that is nobody else's for a command."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file would get its number, and whatever prints would write into that
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # or a child has the same trouble
    sys.stdout = _stream(sys.stdout, 1)
    sys.stderr = _stream(sys.stderr, 2)
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in a script's background it is ignored
        signal.signal(signal.SIGINT, _interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # with nohup it is ignored
        signal.signal(signal.SIGHUP, stop)
    sys.unraisablehook = _unraisable
    atexit.register(_ignore_first)  # first of all, so that it runs last


def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """A signal handler that leaves by an exception, so that partial files are removed."""
    received.append(number)
    sys.exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    received.append(number)
    raise KeyboardInterrupt


def finish() -> None:
    """A command is done: one more signal does not disturb the interpreter's end, the next ends the process."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL if received else _give_way)


def _give_way(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    for each in _SIGNALS:
        if signal.getsignal(each) is _give_way:
            signal.signal(each, signal.SIG_DFL)


def _ignore_first() -> None:
    """After this the interpreter would put the default in place of a handler."""
    for number in _SIGNALS:
        if signal.getsignal(number) is _give_way:
            signal.signal(number, signal.SIG_IGN)


def flush() -> str | None:
    """Write out what was printed, and drop what cannot be; returns why, if so."""
    failed = None
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except OSError as error:
            failed = f"{error.strerror}: standard {'output' if descriptor == 1 else 'error'}; {_SPACE}"
            null = os.open(os.devnull, os.O_RDWR)  # the interpreter will flush once more
            os.dup2(null, descriptor)
            os.close(null)
    return failed


def lacking(error: BaseException, said: str = "") -> str | None:
    """What this machine lacks, where that is why a command failed; None where the error says something else.

    ``said``: the command's own words, where the error is the cause of them.
    """
    if isinstance(error, OSError) and error.errno in _ADVICE:
        place = error.filename2 or error.filename or "output"  # of a copy the second is where it goes
        return f"{error.strerror}: {place}; {_ADVICE[error.errno]}"
    words = (said or words_of(error)).rstrip(".")
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return f"not enough memory{': ' * bool(words)}{words}; {_NO_MEMORY}"
    if isinstance(error, AlexdeployError | LookupError) or (isinstance(error, OSError) and error.errno is not None):
        return None
    if _NO_SEGMENT in str(error):
        return f"{words}: not enough memory, or its file system forbids programs (noexec); {_NO_MEMORY}"
    return f"not enough memory: {words}; {_NO_MEMORY}" if is_about_memory(str(error)) else None


class _Pipe(io.FileIO):
    """A descriptor whose reader may leave, as ``head`` does: the command goes on to its end and its exit code."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        with contextlib.suppress(BrokenPipeError):
            return super().write(data)
        return len(data)


def _stream(stream: TextIO | None, descriptor: int) -> TextIO:
    """The same stream; it shrugs at a reader who has left, and escapes what its encoding does not have."""
    if stream is not None and stream is not (sys.__stdout__ if descriptor == 1 else sys.__stderr__):
        return stream  # somebody has put it there
    encoding = stream.encoding if stream is not None else "utf-8"
    buffer = io.BufferedWriter(_Pipe(descriptor, "w", closefd=False))  # type: ignore[type-var] # for mode "w" no reader
    errors = "surrogateescape" if encoding.lower().replace("-", "") == "utf8" else "backslashreplace"
    lines = descriptor == 2 or os.isatty(descriptor)
    return io.TextIOWrapper(buffer, encoding, errors, line_buffering=lines)


def _unraisable(found: UnraisableHookArgs) -> None:
    """A signal that struck where no exception can leave, such as a finalizer, is given again a moment later."""
    if not isinstance(found.exc_value, KeyboardInterrupt | SystemExit) or not received:
        sys.__unraisablehook__(found)
        return
    again = threading.Timer(0.05, signal.raise_signal, (received[-1],))  # in here it would be lost once more
    again.daemon = True
    again.start()
