"""The exception family. Each class is one kind of trouble and carries the exit code of the command line.

A message is one line that says what was found, what was expected and how to fix it. Anything that is not an
``AlexdeployError`` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ABOUT_MEMORY = re.compile(  # as Python, PyTorch, ONNX Runtime, OpenVINO and TensorRT say it
    r"bad_?alloc|bad allocation|failed to map segment|out of memory|can't start new thread|"
    r"(can't|cannot|failed to|unable to) allocate",
    re.IGNORECASE,
)
_ALL_SHOWN = 20  # commands, recipes and options; layers may be more


class AlexdeployError(Exception):
    """Base of every error that a user can cause and mend."""

    exit_code = 1


class UsageError(AlexdeployError, ValueError):  # a ValueError: msgspec adds the place in a file to such alone
    """Options that do not make sense, alone or together (exit 2)."""

    exit_code = 2


class InputError(AlexdeployError):
    """A file or data set that is missing, unreadable or not what it should be (exit 3)."""

    exit_code = 3


class UnavailableError(AlexdeployError):
    """A library, device or other resource that this machine lacks (exit 4)."""

    exit_code = 4


class DeviceLostError(AlexdeployError):
    """The GPU failed under way, and CUDA no longer works in this process (exit 6): end it and start it again."""

    exit_code = 6


class GateError(AlexdeployError):
    """A check that guards the result said no: parity, accuracy, INT8 coverage, sidecar (exit 5)."""

    exit_code = 5


class InputWarning(UserWarning):
    """A file that works and is not quite what it should be; one line, which the command line shows on stderr."""


def few(names: Iterable[str], *, most: int = 4, separator: str = ", ") -> str:
    """At most ``most`` entries on a line; of fifty layers it is "conv1, conv2, conv3 and 47 more"."""
    found = list(names)
    if len(found) <= most:
        return separator.join(found)
    return f"{separator.join(found[: most - 1])} and {len(found) - most + 1} more"


def is_about_memory(text: str) -> bool:
    """True where other people's code says that it got no memory, or no thread for want of it."""
    return _ABOUT_MEMORY.search(text) is not None


def in_a_line(error: BaseException) -> str:
    """An error of other people's code, for a message of ours: ``ValueError: what it says``, cut where it is long."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")


def unknown_name(kind: str, found: str, valid: list[str]) -> str:
    """One line for a misspelt name: what was found, the nearest valid name, all valid names where they fit a line."""
    import difflib

    near = difflib.get_close_matches(found, valid, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {kind} '{found}'; {hint}valid: {few(sorted(valid), most=_ALL_SHOWN)}"
