"""Child processes that read inputs, watched: whatever one dies of or hangs on is charged to one input."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.child import PROGRESS, inputs_of
from tests.fuzz.target import FAULTS, Kind, Verdict
from tests.fuzz.targets import CORPUS, all_targets

_BATCH = 200  # inputs of one job
_SILENCE_S = 60.0  # wall time without progress; the child itself counts processor time
_START_S = 180.0  # to import everything, on a busy machine
_NOT_STARTED = -1
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Tally:
    """What was seen of one target; ``faults`` has one input of each distinct kind."""

    name: str
    inputs: int = 0
    seconds: float = 0.0
    counts: Counter[Kind] = field(default_factory=Counter)
    faults: dict[str, tuple[int, Verdict]] = field(default_factory=dict)

    def add(self, index: int, verdict: Verdict) -> bool:
        """Count it; true where it is the first of its kind."""
        self.counts[verdict.kind] += 1
        key = re.sub(r"\d+", "0", f"{verdict.kind} {verdict.what.split(':')[0]} {verdict.what.rpartition(' at ')[2]}")
        return self.faults.setdefault(key, (index, verdict))[0] == index


class Watched:
    """A child process, started when there is something to do and again whenever it ended."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._file = tempfile.NamedTemporaryFile(prefix="fuzz-")  # noqa: SIM115 (closed by close)
        self._file.truncate(PROGRESS.size)
        self._shared = mmap.mmap(self._file.fileno(), PROGRESS.size)
        self._log = tempfile.TemporaryFile(prefix="fuzz-")  # noqa: SIM115 (closed by close)
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")  # for what a child leaves that dies

    def answers(self, name: str, seed: int, first: int, end: int) -> Iterator[tuple[int, Verdict]]:
        """The faults of a job; of one that is not finished the last one is what ended it.

        ``progress`` tells how far it came.
        """
        PROGRESS.pack_into(self._shared, 0, _NOT_STARTED, 0, 0)
        child = self._started()
        assert child.stdin is not None
        child.stdin.write(json.dumps([name, seed, first, end]).encode() + b"\n")
        while (line := self._line(child)) and (answer := json.loads(line)):
            index, kind, what = answer
            yield index, Verdict(kind, what)
        if line:
            return
        index, *_ = self.progress
        if index == _NOT_STARTED:
            raise RuntimeError(f"the child process does not start: {self._last_words()}")
        if child.poll() is None and not self._ended(child):
            self._end(child)
            yield index, Verdict("hangs", f"no answer within {_SILENCE_S:g} s")
            return
        code = child.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        yield index, Verdict("crashes", f"{how}: {self._last_words()}")

    @property
    def progress(self) -> tuple[int, int, int]:
        """(number of the input at work, refused, accepted) of the job."""
        index, refused, accepted = PROGRESS.unpack_from(self._shared)
        return index, refused, accepted

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._end(self._child)
        self._shared.close()
        self._file.close()
        self._log.close()
        self._folder.cleanup()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._log.truncate(0)
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.child", self._file.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                bufsize=0,  # a line that is read is all that is gone from the pipe
                cwd=_ROOT,
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(_ROOT), "TMPDIR": self._folder.name},
            )
        return self._child

    def _line(self, child: subprocess.Popen[bytes]) -> bytes:
        """The next answer; empty where the child ended, or makes no progress."""
        assert child.stdout is not None
        seen, since = self.progress, time.monotonic()
        while not select.select([child.stdout], [], [], 1.0)[0]:
            if self.progress != seen:
                seen, since = self.progress, time.monotonic()
            if time.monotonic() - since > (_START_S if seen[0] == _NOT_STARTED else _SILENCE_S):
                return b""
        return child.stdout.readline()

    def _ended(self, child: subprocess.Popen[bytes]) -> bool:
        """Whether it closed its end of the pipe, and so is about to end."""
        assert child.stdout is not None
        if not select.select([child.stdout], [], [], 0)[0]:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
        return True

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.wait()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return next((line for line in reversed(lines) if line.startswith("  File") and "alexdeploy" in line), "") or (
            lines[-1] if lines else ""
        )


def fuzz(name: str, watched: Watched, *, inputs: int, seconds: float, seed: int) -> Tally:
    """At most so many inputs and so many seconds of one target; the first input of each kind of fault is kept."""
    tally, began, first = Tally(name), time.monotonic(), 0
    while first < inputs and time.monotonic() - began < seconds:
        end = min(first + _BATCH, inputs)
        for index, verdict in watched.answers(name, seed, first, end):
            if tally.add(index, verdict):
                print(f"{name}: input {index}: {verdict.kind}: {verdict.what}", flush=True)
                keep(name, verdict.kind, inputs_of(name, seed)[index])
        reached, refused, accepted = watched.progress
        tally.counts["refused"] += refused
        tally.counts["accepted"] += accepted
        first = end if reached == end else reached + 1  # past the one that ended the child
        tally.inputs = first
    tally.seconds = time.monotonic() - began
    return tally


def keep(name: str, kind: Kind, data: bytes) -> Path:
    """Put an input into the corpus; the suite reads it from then on."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}-{hashlib.sha256(data).hexdigest()[:8]}{Path(all_targets()[name].file).suffix}"
    path.write_bytes(data)
    return path


def table(tallies: list[Tally]) -> str:
    """What was seen, at most 80 columns wide."""
    columns: tuple[Kind, ...] = ("refused", "accepted", *FAULTS)
    lines = [f"{'target':15}{'inputs':>8}" + "".join(f"{column:>{len(column) + 1}}" for column in columns)]
    total = Tally("all", sum(tally.inputs for tally in tallies))
    for tally in tallies:
        total.counts.update(tally.counts)
    for tally in [*tallies, total]:
        counts = "".join(f"{tally.counts[column]:>{len(column) + 1}}" for column in columns)
        lines.append(f"{tally.name:15}{tally.inputs:>8}{counts}")
    return "\n".join(lines)
