"""The scenarios for a bare GPU machine (tests/gpu/bare), asked here of the simulated driver; each can fail as well."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexdeploy.cuda import with_cuda_python
from alexdeploy.engine.execution import Execution
from alexdeploy.runners.tensorrt import TensorRTRunner
from tests.gpu.bare import child, double, libraries, measuring, running  # noqa: F401 (libraries fills SCENARIOS)
from tests.gpu.bare.scenario import SCENARIOS, NotRun, Place
from tests.simulated_cuda import engine_double
from tests.simulated_cuda.conftest import write_engine

ENDS_THE_PROCESS = {"device_fault", "exit_with_an_open_runner"}  # asked by tests/unit/test_bare_gpu.py


@pytest.fixture(autouse=True)
def sim() -> ctypes.CDLL:
    """In place of conftest's: a scenario that fails leaves things behind, as its process is to end."""
    return engine_double.simulator_library()


@pytest.fixture(autouse=True)
def _double(_tensorrt: None) -> Iterator[None]:
    double.install()
    yield
    double.during_enqueue.clear()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(write_engine(tmp_path / "model.engine"), tmp_path, double.is_simulated())


def names() -> list[str]:
    alike = {running.__name__, measuring.__name__}  # their scenarios need nothing but the driver
    return [name for name, one in SCENARIOS.items() if one.run.__module__ in alike and name not in ENDS_THE_PROCESS]


@pytest.mark.parametrize("name", names())
def test_it_is_right_on_the_simulated_driver(name: str, place: Place, sim: ctypes.CDLL) -> None:
    assert place.simulated
    before = sim.sim_live(), sim.sim_violations(), sim.sim_depth()
    SCENARIOS[name].run(place)
    assert (sim.sim_live(), sim.sim_violations(), sim.sim_depth()) == before
    assert engine_double.problems() == []


@pytest.mark.parametrize(
    "name", ["order_with_torch", "order_with_cupy", "torch_synchronised_all_the_time", "onnxruntime_cuda"]
)
def test_what_needs_a_real_driver_is_not_run(name: str, place: Place) -> None:
    with pytest.raises(NotRun):
        SCENARIOS[name].run(place)


def test_the_process_writes_no_figure_of_the_simulated_driver(tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert child.main(tmp_path, "cuda-python", results, ["pinned_copies", "order_with_torch"]) == 0
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    answers = {line["scenario"]: line for line in lines if line["status"] != "begun"}
    assert answers["pinned_copies"]["figures"] == {"H2D GB/s": None, "D2H GB/s": None}
    assert answers["order_with_torch"]["status"] == "not run"


def test_answers_of_another_batch_are_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(with_cuda_python.CudaPythonStream, "upload", lambda self, pointer, array: None)
    with pytest.raises(AssertionError):
        SCENARIOS["every_batch_size"].run(place)


def test_a_wait_that_is_missing_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(with_cuda_python.Order, "wait", lambda self, waiting, ahead: None)
    with pytest.raises(AssertionError):
        SCENARIOS["order_with_a_busy_stream"].run(place)


@pytest.mark.parametrize("name", ["replay", "allocated_during_a_capture"])
def test_a_graph_that_never_comes_is_seen(name: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(with_cuda_python, "capture", lambda stream, enqueue: None)
    with pytest.raises(AssertionError):
        SCENARIOS[name].run(place)


def test_a_graph_of_old_memory_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Execution.load

    def once(self: Execution, batch: Any) -> Any:
        if getattr(self, "loaded", None) == batch.shape:
            return (max(len(batch), 1), *batch.shape[1:])
        self.loaded = batch.shape  # type: ignore[attr-defined]
        return load(self, batch)

    monkeypatch.setattr(Execution, "load", once)
    with pytest.raises(AssertionError):
        SCENARIOS["replay"].run(place)


def test_a_runner_that_closes_too_early_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRTRunner, "infer", lambda self, batch: np.zeros((len(batch), 4), np.float32))
    with pytest.raises(AssertionError):
        SCENARIOS["close_under_load"].run(place)
