"""What a scenario is, and the things that all of them use."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.graphs import Array, images
from tests.simulated_cuda.conftest import PROFILE, expected

MOST = PROFILE[2]
Figures = dict[str, Any]
_Run = Callable[["Place"], "Figures | None"]


class NotRun(Exception):  # noqa: N818 (it is no error)
    """The scenario cannot be run here; the message is the reason."""


@dataclass(frozen=True)
class Place:
    """Where a scenario runs: an engine of the double, a folder to write in, and which driver it is."""

    engine: Path
    folder: Path
    simulated: bool


@dataclass(frozen=True)
class Scenario:
    """One question to the device. It answers with figures (or none), raises ``NotRun``, or fails with any other error.

    Attributes:
        both: ask it through PyCUDA too; else through cuda-python alone.
        alone: in a process of its own, whose end is judged as well (status 0).
        silent: that process must not print anything on stderr either.
        control: not asked by itself; compute-sanitizer must object to it.
        seconds: after which it hangs.
    """

    name: str
    run: _Run
    both: bool
    alone: bool
    silent: bool
    control: bool
    seconds: float

    @property
    def what(self) -> str:
        return inspect.getdoc(self.run) or ""


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    *, both: bool = False, alone: bool = False, silent: bool = False, control: bool = False, seconds: float = 60.0
) -> Callable[[_Run], _Run]:
    """Add a function to ``SCENARIOS`` under its own name."""

    def add(run: _Run) -> _Run:
        SCENARIOS[run.__name__] = Scenario(run.__name__, run, both, alone, silent, control, seconds)
        return run

    return add


def ask(runner: Any, count: int, seed: int = 1) -> None:
    """One call, its answer held against ONNX Runtime's on the CPU."""
    check(runner.infer(images(count, seed=seed)), count, seed)


def check(found: Array, count: int, seed: int = 1) -> None:
    np.testing.assert_allclose(found, wanted(count, seed), rtol=1e-4, atol=1e-4)


def wanted(count: int, seed: int = 1) -> Array:
    return expected(images(count, seed=seed))
