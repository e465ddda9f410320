"""Each verb that writes under each fault: one clear outcome, nothing half-written, and the old files intact.

The quick verbs get every fault, the others those that are refused at once; ``python -m tests.faults`` runs all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cell import Bench
from tests.faults.faults import FAULTS, Fault
from tests.faults.forks import BARE, forks
from tests.faults.matrix import try_cell
from tests.faults.verbs import VERBS, Verb

_TRIED = tuple(verb for verb in VERBS if not verb.slow)
_CELLS = [(verb, fault) for verb in _TRIED for fault in FAULTS if verb.quick or fault.cheap]


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: no engine can be built")
    with forks() as opened, forks(BARE) as bare:
        yield Bench(opened, bare, tmp_path_factory.mktemp("made"), brief=True)


@pytest.mark.parametrize(("verb", "fault"), _CELLS, ids=[f"{verb.name}-{fault.name}" for verb, fault in _CELLS])
def test_a_fault_has_one_clear_outcome(bench: Bench, verb: Verb, fault: Fault, tmp_path: Path) -> None:
    outcome, wrong = try_cell(bench, verb, fault, tmp_path)
    if outcome == "-":
        pytest.skip(wrong[0])
    assert not wrong, f"{outcome}: {wrong}"
