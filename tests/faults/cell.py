"""One verb under one fault: what all cells share, and what one is given."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from alexdeploy import files
from tests.faults.forks import Call, Forks
from tests.faults.verbs import Verb, make_inputs


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
