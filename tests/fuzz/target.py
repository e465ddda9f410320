"""What is fuzzed, as a small value, and the judgement of one input: refused in one line, accepted, or a fault."""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

from alexdeploy.errors import AlexdeployError, InputWarning

Mutator = Callable[[Random, bytes], bytes]
Kind = Literal["refused", "accepted", "uncaught", "crashes", "hangs", "memory", "left", "words"]
FAULTS: tuple[Kind, ...] = ("uncaught", "crashes", "hangs", "memory", "left", "words")

MOST_SECONDS = 5.0  # of processor time, so that a busy machine is no fault
MOST_MIB = 512
MOST_CHARACTERS = 1000
_HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ResourceWarning)  # that Python does not show
_MIB = 1 << 20
_PEAK_KIB = 1 if sys.platform == "darwin" else 1024  # bytes of a unit of ru_maxrss
_OBEYED = ("Cc", "Cs", "Zl", "Zp")  # categories of characters that a terminal obeys or cannot print
_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # they turn the direction of writing


@dataclass(frozen=True)
class Target:
    """One reader of the project, and inputs to begin with.

    Attributes:
        name: at most 15 characters; also that of its folder below ``corpus``.
        seeds: small valid inputs, made by the project's own writers where it has them.
        check: reads a file as a verb does. It lets every exception out; an ``AlexdeployError`` is a refusal,
            anything else a fault. It may write into the folder of the file only what it removes.
        file: name of the file that the input is put into.
        mutators: those that know the format, such as ``mutate.json_value``; bytes are always mutated, too.
        tokens: pieces that mean something to the reader, to be put in.
        beside: makes other files that ``check`` needs, once, in the folder that it is given.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    check: Callable[[Path], object]
    file: str = "input"
    mutators: tuple[Mutator, ...] = ()
    tokens: tuple[bytes, ...] = ()
    beside: Callable[[Path], None] | None = None


class Verdict(NamedTuple):
    """What came of one input; ``what`` says more, and of a fault also where."""

    kind: Kind
    what: str = ""


def judge(target: Target, data: bytes, folder: Path) -> Verdict:
    """Put ``data`` into ``folder`` and have it read there.

    A crash cannot be judged here, nor a call that never ends: that is for the parent process.
    """
    path = folder / target.file
    path.write_bytes(data)
    there = {*folder.rglob("*")}
    before_mib, began = _resident_mib(), time.process_time()
    verdict = _read(target, path)
    seconds, grown = time.process_time() - began, _peak_mib() - before_mib
    left = {*folder.rglob("*")} - there
    for new in sorted(left, reverse=True):
        new.rmdir() if new.is_dir() else new.unlink()
    if verdict.kind in FAULTS:
        return verdict
    if left:
        return Verdict("left", f"left {sorted(new.name for new in left)}")
    if seconds > MOST_SECONDS:
        return Verdict("hangs", f"took {seconds:.1f} s")
    if grown > MOST_MIB:
        return Verdict("memory", f"took {grown:.0f} MiB")
    return verdict


def _read(target: Target, path: Path) -> Verdict:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for hidden in _HIDDEN:
            warnings.simplefilter("ignore", hidden)
        try:
            target.check(path)
            verdict = Verdict("accepted")
        except AlexdeployError as error:
            fault = _fault_of_words(str(error))
            found = f"{fault}: {error!r:.1200} {_place(error)}"
            verdict = Verdict("words", found) if fault else Verdict("refused", str(error))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            return Verdict("uncaught", f"{type(error).__name__}: {str(error)[:200]!r} {_place(error)}")
    for warning in told:
        fault = _fault_of_words(str(warning.message))
        if not isinstance(warning.message, InputWarning) and "PIL" not in Path(warning.filename).parts:
            fault = fault or "a warning of others"
        if fault:
            place = f"at {Path(warning.filename).name}:{warning.lineno}"
            return Verdict("words", f"{fault}: {warning.category.__name__} {str(warning.message)[:200]!r} {place}")
    return verdict


def _fault_of_words(text: str) -> str:
    if "\n" in text:
        return "more than one line"
    if any(unicodedata.category(each) in _OBEYED or unicodedata.bidirectional(each) in _TURNING for each in text):
        return "characters that do not print"
    if len(text) > MOST_CHARACTERS:
        return f"{len(text)} characters"
    return "" if text else "no words"


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}alexdeploy{os.sep}" in frame.filename] or frames
    return f"at {Path(ours[-1].filename).name}:{ours[-1].lineno}"


def _resident_mib() -> float:
    """Memory in use, after the mark of its peak is set back to it where much was used before."""
    try:
        now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / _MIB
        if _peak_mib() - now > MOST_MIB / 8:
            Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux
        return _peak_mib()
    return now


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_KIB / _MIB
