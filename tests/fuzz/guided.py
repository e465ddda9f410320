"""``python -m tests.fuzz.guided TARGET [options of libFuzzer]``: inputs guided by the lines that they reach.

It stops at the first fault; ``-runs=100000`` and ``-max_total_time=600`` bound it. Needs atheris (pip install atheris).
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

_MOST_WORDS = 600


def main(arguments: list[str]) -> None:
    """Fuzz one target until a fault, an interruption or the end of what was asked for."""
    try:
        atheris: Any = importlib.import_module("atheris")
    except ModuleNotFoundError:
        sys.exit("error: atheris is missing; pip install atheris, or run python -m tests.fuzz, which needs none")
    with atheris.instrument_imports(include=["alexdeploy"]):  # also what is imported when it is used
        targets = importlib.import_module("tests.fuzz.targets")
        if not arguments or arguments[0] not in targets.all_targets():
            sys.exit(f"error: name a target: {', '.join(targets.all_targets())}")
        _fuzz(atheris, arguments[0], arguments[1:])


def _fuzz(atheris: Any, name: str, options: list[str]) -> None:
    from tests.fuzz.mutate import Inputs
    from tests.fuzz.run import keep
    from tests.fuzz.target import FAULTS, judge
    from tests.fuzz.targets import all_targets, kept

    target = all_targets()[name]
    inputs = Inputs(target, 0)
    seeds, work = (Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-")) for _ in range(2))
    for number, data in enumerate([*target.seeds(), *(path.read_bytes() for path in kept(name))]):
        (seeds / str(number)).write_bytes(data)
    os.chdir(work)
    if target.beside is not None:
        target.beside(work)

    def one_input(data: bytes) -> None:
        verdict = judge(target, data, work)
        if verdict.kind in FAULTS:
            raise AssertionError(f"{verdict.kind}: {verdict.what:.{_MOST_WORDS}} ({keep(name, verdict.kind, data)})")

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        own = random.random() < 0.5
        return bytes(inputs.mutated(random, data) if own else atheris.Mutate(data, most))[:most]

    atheris.Setup([sys.argv[0], *options, str(seeds)], one_input, custom_mutator=mutated, internal_libfuzzer=True)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
