"""A verb under a fault, and whether what came of it is one clear outcome."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from alexdeploy import files
from alexdeploy.errors import GateError
from tests.faults.cell import Bench, Cell, snapshot
from tests.faults.faults import Fault, Skipped
from tests.faults.forks import Call
from tests.faults.verbs import Verb

_NOISE = ("Traceback", "Exception ignored", "Fatal Python error", "terminate called", "Segmentation", "leaked ")


def try_cell(bench: Bench, verb: Verb, fault: Fault, root: Path, seed: int = 0) -> tuple[str, list[str]]:
    """(outcome for the table, what is wrong with it)."""
    chance = random.Random(f"{verb.name} {fault.name} {seed}")
    results = root / "results"
    bench.earlier(verb, results)
    said = root / "said"
    output, target = results / verb.output, results / (verb.target or verb.output)
    call = Call(verb.call(bench.inputs["new"], results), root, said, brief=bench.brief)
    cell = Cell(bench, verb, root, chance, call, results, output, target, bench.forks, fault.codes)
    with cell.on_exit:
        try:
            fault.apply(cell)
        except Skipped as why:
            return "-", [f"skipped: {why}"]
        before = snapshot(results)
        codes = _run(cell, fault)
        wrong = [
            text for code, said in zip(codes, _said(cell), strict=False) for text in _judge_words(cell, code, said)
        ]
        least = min(codes, key=abs)  # of two that write the same, one does it
        outcome, unfit = _judge_files(cell, before, least, killed=any(code < 0 for code in codes))
        wrong += unfit
        if fault.name == "two" and 0 not in codes:
            wrong.append("neither did it")
        if any(code < 0 for code in codes) and not wrong:
            wrong += _judge_next_run(cell)
        return f"{' '.join(map(str, codes))} {outcome}", wrong


def _run(cell: Cell, fault: Fault) -> list[int]:
    forks, calls = cell.forks, [cell.call]
    if fault.name == "two":
        calls.append(replace(cell.call, said=_said(cell)[1]))
    longest = cell.bench.seconds(cell.verb) if fault.signal is not None else 0.0
    began = [forks.start(call) for call in calls]
    if fault.signal is not None:
        time.sleep(cell.chance.uniform(0.02, longest))
        os.kill(began[0], fault.signal)  # a process that has ended is not yet waited for
    return [forks.wait(pid) for pid in began]


def _said(cell: Cell) -> list[Path]:
    return [cell.call.said, cell.root / "said-2"]


def _judge_words(cell: Cell, code: int, said: Path) -> Iterator[str]:
    text = (said / "stderr").read_text(errors="replace")
    if code not in cell.codes:
        yield f"exit {code}, expected {cell.codes}: {text[-300:]!r}"
    for noise in _NOISE:
        if noise in text:
            yield f"{noise!r} in stderr: …{text[max(0, text.index(noise) - 200) : text.index(noise) + 1500]}"
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if code > 0 and len(errors) != 1:
        yield f"{len(errors)} lines begin with error: {text[-500:]!r}"
    if code == 0 and errors:
        yield f"exit 0 and {errors}"


def _judge_files(cell: Cell, before: dict[str, bytes | str], code: int, *, killed: bool) -> tuple[str, list[str]]:
    after = snapshot(cell.results)
    expected = cell.bench.expected(cell.verb) if after != before else before
    wrong = [f"{path.name}: changed" for path, data in cell.kept.items() if path.read_bytes() != data]
    states = []
    named: set[str] = set()
    for group in cell.verb.groups:
        names = {name for name in {*before, *after, *expected} if any(_is_in(name, member) for member in group)}
        if killed:
            names = {name for name in names if not name.endswith(".partial")}
        named |= names
        state = _state(names, before, after, expected)
        states.append(state)
        if state == "torn" and killed and _is_told(cell.results / group[0]):
            states[-1] = "told"
        elif state not in ("old", "new") or (code == 0 and state != "new"):
            wrong.append(f"{group[0]}: {state}")
    more = {name for name in after.keys() - named if after[name] not in (before.get(name), "empty folder")}
    if killed:
        more = {name for name in more if ".partial" not in name}
    if code and cell.verb.resumes:
        more = {name for name in more if not _is_in(name, cell.verb.resumes)}
    if not cell.verb.groups:  # each of its files is one of another verb
        made = {name for name in more if f"{name}.json" in more}
        wrong += [f"{name}: torn" for name in made if not _is_whole(name, after, b"") and not killed]
        more = {name for name in more if name.endswith(".partial")}
    if more:
        wrong.append(f"left: {sorted(more)}")
    return "/".join(sorted(set(states))), wrong


def _is_in(name: str, member: str) -> bool:
    return name == member or name.startswith(f"{member}/")


def _state(
    names: set[str],
    before: dict[str, bytes | str],
    after: dict[str, bytes | str],
    expected: dict[str, bytes | str],
) -> str:
    """``old``: not a bit differs; ``new``: all that a run without a fault makes, whole; else ``torn``."""
    if all(before.get(name) == after.get(name) for name in names):
        return "old"
    wanted = {name for name in names if name in expected}
    if all(_is_whole(name, after, expected[name]) for name in wanted):
        return "new"
    return "torn"


def _is_whole(name: str, after: dict[str, bytes | str], expected: bytes | str) -> bool:
    data = after.get(name)
    if not isinstance(data, bytes) or not isinstance(expected, bytes):
        return data == expected
    if f"{name}.json" in after:
        side = after[f"{name}.json"]
        return isinstance(side, bytes) and bool(json.loads(side)["sha256"] == hashlib.sha256(data).hexdigest())
    if data == expected:
        return True
    if name.endswith(".json"):
        return isinstance(json.loads(data), dict)
    ends = {".html": b"</html>", ".png": b"IEND\xaeB`\x82", ".pt": b""}
    suffix = Path(name).suffix
    if suffix in ends:
        return data.endswith(ends[suffix]) and len(data) > 0.8 * len(expected)
    return data.count(b"\n") == expected.count(b"\n") and data.endswith(b"\n")


def _is_told(path: Path) -> bool:
    """A kill between the renames of a file and its sidecar cannot be undone; whoever reads that must be told."""
    try:
        files.read_sidecar(path)
    except GateError as error:
        return "write it again" in str(error)
    return False


def _ask(cell: Cell, arguments: tuple[str, ...]) -> tuple[int, str]:
    said = cell.root / "said-later"
    forks = cell.bench.forks
    code = forks.wait(forks.start(Call(arguments, cell.root, said, brief=True)))
    return code, (said / "stderr").read_text(errors="replace")


def _judge_next_run(cell: Cell) -> list[str]:
    """The same command after a kill works, and removes what the kill left."""
    arguments = cell.call.arguments
    if cell.verb.name == "train" and (cell.output / "lenet.last.pt").exists():
        arguments = (*arguments, "--resume")  # a new training is refused
    code, text = _ask(cell, arguments)
    if code:
        return [f"after the kill: exit {code}: {text[-500:]!r}"]
    left = [name for name in snapshot(cell.root) if ".partial" in name]
    return [f"after the next run there is still {left}"] if left else []
