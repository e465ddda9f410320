"""The exception family. Each class is one kind of trouble and carries the exit code of the command line.

A message is one line that says what was found, what was expected and how to fix it; whatever it quotes of a file, it
is safe to print and to log. Anything that is not an ``AlexdeployError`` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable

_LONGEST = 1000  # characters of a message
_LONGEST_OF_OTHERS = 300
_LONG_WORD = re.compile(r"[^\s/]{257,}")  # no file's name is longer; names of folders count by themselves
_ABOUT_MEMORY = re.compile(  # as Python, PyTorch, ONNX Runtime, OpenVINO and TensorRT say it
    r"bad_?alloc|bad allocation|out of memory|can't start new thread|resource temporarily unavailable|"
    r"(can't|cannot|failed to|unable to) allocate",
    re.IGNORECASE,
)
_LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE)
_ALL_SHOWN = 20  # commands, recipes and options; layers may be more
# what a terminal obeys, or what hides or turns the text around it: control characters, embeddings, overrides, isolates,
# tags. Not what scripts need: joiners, marks of direction, soft hyphens, the zero-width space of Thai and Khmer, and
# the tags of a flag
_UNSEEN = re.compile(
    "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f|"
    "([\x00-\x1f\x7f-\x9f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f])"
)


class AlexdeployError(Exception):
    """Base of every error that a user can cause and mend; of its text, ``one_line`` is kept."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(one_line(arg) if isinstance(arg, str) else arg for arg in args))


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

    def __init__(self, *args: object) -> None:
        super().__init__(*(one_line(arg) if isinstance(arg, str) else arg for arg in args))


def visible(text: str) -> str:
    """Text on one line as it can be shown to people, whatever names are in it.

    A file may be named ``\\x1b]0;title\\x07``, and a class with a line break or a mark that turns the line around. Such
    characters become escapes as Python writes them, bytes that are not UTF-8 as in ``files.printable``.
    """
    return escape_unseen(text, _as_python)


def escape_unseen(text: str, escaped: Callable[[str], str]) -> str:
    """The text with ``escaped(character)`` in place of each character that a terminal would obey or hide."""
    if text.isprintable():
        return text
    return _UNSEEN.sub(lambda match: escaped(match[1]) if match[1] else match[0], text)


def _as_python(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name, as os.fsdecode keeps it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def one_line(text: str) -> str:
    """A message as a terminal and a log can take it, whatever it quotes: ``visible``, and of bounded length.

    Of a word of more than 256 characters, and of more than 1,000 characters the middle is left out: what was found
    stands at the beginning, how to fix it at the end.
    """
    return shortened(_LONG_WORD.sub(lambda word: shortened(word[0], 100), visible(text)), _LONGEST)


def shortened(text: str, most: int) -> str:
    """At most ``most`` characters; of a longer text the middle is left out."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[1 - most // 2 :]}"


def few(names: Iterable[str], *, most: int = 4, separator: str = ", ") -> str:
    """At most ``most`` entries on a line; of fifty layers it is "conv1, conv2, conv3 and 47 more"."""
    found = list(names)
    if len(found) <= most:
        return separator.join(found)
    return f"{separator.join(found[: most - 1])} and {len(found) - most + 1} more"


def is_about_memory(text: str) -> bool:
    """True where other people's code says that it got no memory, or no thread for want of it."""
    return _ABOUT_MEMORY.search(text) is not None


def is_lack(error: BaseException) -> bool:
    """True where a file could not be read for want of descriptors, memory or a sound disk: the file is not to blame."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _LACKS)


def in_a_line(error: BaseException) -> str:
    """An error of other people's code, for a message of ours: ``ValueError: what it says``, cut where it is long."""
    return f"{type(error).__name__}: {words_of(error)}".removesuffix(": ")


def words_of(error: BaseException) -> str:
    """What an error of other people's code says, for a message of ours, cut where it is long."""
    return shortened(one_line(" ".join(str(error).split())), _LONGEST_OF_OTHERS)


def unknown_name(kind: str, found: str, valid: list[str]) -> str:
    """One line for a misspelt name: what was found, the nearest valid name, all valid names where they fit a line."""
    import difflib

    near = difflib.get_close_matches(found, valid, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {kind} '{found}'; {hint}valid: {few(sorted(valid), most=_ALL_SHOWN)}"
