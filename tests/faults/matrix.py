"""The faults, what is done for each, and whether what came of it is one clear outcome."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, Signals

from alexdeploy import files
from alexdeploy.errors import GateError
from tests.faults.forks import Call, Forks, Strike
from tests.faults.verbs import Verb, make_inputs

_NOISE = ("Traceback", "Exception ignored", "Fatal Python error", "terminate called", "Segmentation", "leaked ")
_STOPPED = {SIGTERM: 143, SIGINT: 130, SIGHUP: 129, SIGKILL: -SIGKILL}


class Skipped(Exception):  # noqa: N818 (no error)
    """The fault does not exist here, or not for this verb."""


class Bench:
    """What all cells share. ``brief`` is as in ``Call``."""

    def __init__(self, forks: Forks, bare: Forks, root: Path, *, brief: bool) -> None:
        self.forks, self.bare, self.root, self.brief = forks, bare, root, brief  # bare: without a locale and a home
        self.inputs = make_inputs(forks, root / "inputs")
        self._made: dict[str, tuple[dict[str, bytes | str], float]] = {}

    def earlier(self, verb: Verb, results: Path) -> None:
        """Put in place what is there before: nothing, or files that are another run's."""
        results.mkdir()
        if verb.takes_folder:
            self._call(verb, "old", results)
        elif verb.over_old:
            for first, *others in verb.groups:
                for name in (first, *others):
                    (results / name).write_bytes(b"of an earlier run")
                if others:  # the next is its sidecar
                    files.write_artifact(results / first, b"of an earlier run", "onnx")

    def expected(self, verb: Verb) -> dict[str, bytes | str]:
        """The results of a run without a fault."""
        return self._run(verb)[0]

    def seconds(self, verb: Verb) -> float:
        """The time of that run."""
        return self._run(verb)[1]

    def _run(self, verb: Verb) -> tuple[dict[str, bytes | str], float]:
        if verb.name not in self._made:
            results = self.root / verb.name
            self.earlier(verb, results)
            began = time.monotonic()
            self._call(verb, "new", results)
            self._made[verb.name] = snapshot(results), time.monotonic() - began
        return self._made[verb.name]

    def _call(self, verb: Verb, age: str, results: Path) -> None:
        said = self.root / "said"
        code = self.forks.wait(
            self.forks.start(Call(verb.call(self.inputs[age], results), self.root, said, brief=True))
        )
        assert code == 0, (said / "stderr").read_text()


@dataclass
class Cell:
    """One verb under one fault: what is given, then what is found."""

    bench: Bench
    verb: Verb
    root: Path
    chance: random.Random
    call: Call
    results: Path
    output: Path
    target: Path
    forks: Forks
    codes: tuple[int, ...]  # the right exit codes
    kept: dict[Path, bytes] = field(default_factory=dict)  # what must not change besides
    on_exit: ExitStack = field(default_factory=ExitStack)


@dataclass(frozen=True)
class Fault:
    """How to apply it, and the exit codes that are right.

    Attributes:
        name: in the table.
        apply: changes the cell before the call; may raise ``Skipped``.
        codes: right answers. With 0 the results must be whole and new; else the old ones must be whole.
        signal: sent at a random time of the run.
        cheap: refused at once, so every verb gets it in the suite.
    """

    name: str
    apply: Callable[[Cell], None]
    codes: tuple[int, ...]
    signal: Signals | None = None
    cheap: bool = False


def _nothing(cell: Cell) -> None:
    """A run without a fault, over the results of an earlier one."""


def _two(cell: Cell) -> None:
    """Two processes write the same."""
    if cell.verb.takes_folder:
        cell.codes = (0, 2)  # the same version cannot be published twice


def _at_rename(number: int, what: Signals) -> Callable[[Cell], None]:
    def apply(cell: Cell) -> None:
        cell.call = replace(cell.call, strike=Strike(what, "os.rename", number))

    return apply


def _in_its_place(make: Callable[[Path], None]) -> Callable[[Cell], None]:
    def apply(cell: Cell) -> None:
        _remove(cell.target)
        cell.target.parent.mkdir(parents=True, exist_ok=True)
        make(cell.target)

    return apply


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link_to_file(cell: Cell) -> None:
    cell.root.joinpath("elsewhere").write_bytes(b"of somebody else")
    cell.kept[cell.root / "elsewhere"] = b"of somebody else"
    _in_its_place(lambda path: path.symlink_to(cell.root / "elsewhere"))(cell)
    if cell.verb.takes_folder:
        cell.codes = (2,)


def _link_to_nothing(cell: Cell) -> None:
    _in_its_place(lambda path: path.symlink_to(cell.root / "nowhere"))(cell)
    if cell.verb.takes_folder:
        cell.codes = (2,)


def _folder(cell: Cell) -> None:
    if cell.verb.takes_folder:
        raise Skipped("writes into a folder")
    _in_its_place(lambda path: path.mkdir())(cell)


def _link_to_folder(cell: Cell) -> None:
    if cell.verb.takes_folder:
        raise Skipped("writes into a folder")
    cell.root.joinpath("elsewhere").mkdir()
    _in_its_place(lambda path: path.symlink_to(cell.root / "elsewhere"))(cell)


def _inputs_of_its_own(cell: Cell) -> Path:
    own = cell.root / "inputs"
    shutil.copytree(cell.bench.inputs["new"], own)
    cell.kept |= {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    return own


def _input(cell: Cell) -> None:
    if not cell.verb.input:
        raise Skipped("writes no file that it could read")
    own = _inputs_of_its_own(cell)
    cell.call = replace(cell.call, arguments=cell.verb.call(own, cell.results, own / cell.verb.input))


def _hard_link(cell: Cell) -> None:
    if not cell.verb.input:
        raise Skipped("writes no file that it could read")
    own = _inputs_of_its_own(cell)
    _remove(cell.target)
    os.link(own / cell.verb.input, cell.target)
    cell.call = replace(cell.call, arguments=cell.verb.call(own, cell.results))


def _read_only(cell: Cell) -> None:
    for folder in (cell.results, *(path for path in cell.results.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
        cell.on_exit.callback(folder.chmod, 0o755)
    cell.call = replace(cell.call, obeys_modes=True)


def _mounted(cell: Cell, size: str) -> None:
    """The results' folder on a file system of its own."""
    held = {path.name: path for path in cell.results.iterdir()}
    moved = cell.root / "moved"
    moved.mkdir()
    for path in held.values():
        path.rename(moved / path.name)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(cell.results)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        for name in held:
            (moved / name).rename(cell.results / name)
        raise Skipped("needs leave to mount")
    cell.on_exit.callback(subprocess.run, ["umount", str(cell.results)], check=True)
    for name in held:
        shutil.move(moved / name, cell.results / name)


def _read_only_mount(cell: Cell) -> None:
    _mounted(cell, "64m")
    subprocess.run(["mount", "-o", "remount,ro", str(cell.results)], check=True)


def _full_disk(cell: Cell) -> None:
    _mounted(cell, "8m")
    filler = cell.results / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass
    room = cell.chance.choice((0, 4096, 8192, 16384))
    os.truncate(filler, filler.stat().st_size - room)
    cell.kept[filler] = filler.read_bytes()


def _small_files(cell: Cell) -> None:
    most = cell.chance.choice((2000, 30_000))  # what it says goes to a file, too
    cell.call = replace(cell.call, limits={resource.RLIMIT_FSIZE: most})


def _few_descriptors(cell: Cell) -> None:
    cell.call = replace(cell.call, limits={resource.RLIMIT_NOFILE: 16})


def _little_memory(cell: Cell) -> None:
    # with less than 128 MiB, ONNX Runtime and OpenBLAS end the process themselves while they are loaded
    cell.call = replace(cell.call, memory=int(2 ** cell.chance.uniform(27, 30)))


def _no_home(cell: Cell) -> None:
    names = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "USER", "LOGNAME")
    cell.call = replace(cell.call, environment=dict.fromkeys(names))


def _c_locale(cell: Cell) -> None:
    cell.forks = cell.bench.bare
    cell.results = cell.results.rename(cell.root / "resultats é 图")
    cell.call = replace(cell.call, arguments=cell.verb.call(cell.bench.inputs["new"], cell.results))


def _stdout(kind: str) -> Callable[[Cell], None]:
    def apply(cell: Cell) -> None:
        cell.call = replace(cell.call, stdout=kind, brief=False)  # type: ignore[arg-type]

    return apply


FAULTS = (
    Fault("none", _nothing, (0,)),
    Fault("kill", _nothing, (-SIGKILL, 0), SIGKILL),
    Fault("kill@1", _at_rename(1, SIGKILL), (-SIGKILL,)),
    Fault("kill@2", _at_rename(2, SIGKILL), (-SIGKILL, 0)),
    Fault("term", _nothing, (143, 0), SIGTERM),
    Fault("term@1", _at_rename(1, SIGTERM), (143, 0)),
    Fault("term@2", _at_rename(2, SIGTERM), (143, 0)),
    Fault("int", _nothing, (130, 0), SIGINT),
    Fault("int@1", _at_rename(1, SIGINT), (130, 0)),
    Fault("hangup", _nothing, (129, 0), SIGHUP),
    Fault("full", _full_disk, (4, 2, 0)),
    Fault("fsize", _small_files, (4, 2, 0)),
    Fault("ro-folder", _read_only, (2,), cheap=True),
    Fault("ro-mount", _read_only_mount, (2, 4), cheap=True),
    Fault("folder", _folder, (2,), cheap=True),
    Fault("fifo", _in_its_place(lambda path: os.mkfifo(path)), (2,), cheap=True),
    Fault("link-dir", _link_to_folder, (2,), cheap=True),
    Fault("link", _link_to_file, (0,)),
    Fault("dangling", _link_to_nothing, (0,)),
    Fault("input", _input, (2,), cheap=True),
    Fault("hardlink", _hard_link, (2,), cheap=True),
    Fault("two", _two, (0,)),
    Fault("16fds", _few_descriptors, (0, 4)),
    Fault("no-home", _no_home, (0,)),
    Fault("c-locale", _c_locale, (0,)),
    Fault("closed", _stdout("closed"), (0,)),
    Fault("pipe", _stdout("pipe"), (0,)),
    Fault("devfull", _stdout("full"), (4,)),
    Fault("memory", _little_memory, (0, 4)),
)


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
        outcome, unfit = _judge_files(cell, before, max(codes, key=bool), killed=any(code < 0 for code in codes))
        wrong += unfit
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


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file's content; a word for what is no file."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_bytes()
        elif not path.is_dir():
            found[name] = "special"
        elif not any(path.iterdir()):
            found[name] = "empty folder"
    return found


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
    ends = {".html": b"</html>\n", ".png": b"IEND\xaeB`\x82", ".pt": b""}
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
    code, text = _ask(cell, cell.call.arguments)
    if code:
        return [f"after the kill: exit {code}: {text[-500:]!r}"]
    left = [name for name in snapshot(cell.root) if ".partial" in name]
    return [f"after the next run there is still {left}"] if left else []
