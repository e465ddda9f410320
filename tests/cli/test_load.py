"""``bench --server`` against a server of our own runner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from alexdeploy.bench import load_rounds, traffic
from alexdeploy.bench.waiting import QueuedRunner
from alexdeploy.errors import UnavailableError
from alexdeploy.runners.artifact import load
from tests.cli.conftest import Run
from tests.helpers.served import Served, serve

pytest.importorskip("tritonclient", reason="tritonclient is not installed")

Patch = pytest.MonkeyPatch


@pytest.fixture
def served(model: Path) -> Iterator[Served]:
    with load(model) as runner, serve(runner, "digits") as server:
        yield server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: Patch) -> None:
    monkeypatch.setattr(load_rounds, "_LEAST_REQUESTS", 1)
    monkeypatch.setattr(load_rounds, "_LEAST_ARRIVALS", 5)
    monkeypatch.setattr(traffic, "SENDERS", 8)
    monkeypatch.setattr(traffic, "_PATIENCE_S", 0)


@pytest.fixture
def asked(model: Path, pictures: Path, served: Served) -> list[object]:
    """The words of the command up to its loads."""
    return ["bench", model, "--data", pictures, "--seconds", 0.01, "--server", served.url, "--model", "digits"]


def test_it_shows_each_load_and_target_at_80_characters(
    run: Run, asked: list[object], out: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run(*asked, "--in-flight", "1,2", "--rates", "300", "--markdown", out / "x.md")
    assert result.code == 0, result.err
    assert max(map(len, result.out.splitlines())) <= 80
    lines = [[cell.strip() for cell in line.split("│")[1:3]] for line in result.out.splitlines() if line[0] == "│"]
    loads, targets = ("1 in flight", "2 in flight", "300/s"), ("server", "queued", "shared")
    assert lines[:9] == [[load, target] for load in loads for target in targets]
    assert "Against the queued runner here" in result.out
    for word in ("100.00% agree", "Server and client share this machine", "differences of the server's counters"):
        assert word in " ".join(result.err.split())
    assert "| load | target | images/s |" in (out / "x.md").read_text()


def test_json_holds_every_sample_and_is_shown_again(run: Run, asked: list[object], out: Path) -> None:
    result = run(*asked, "--in-flight", 2, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert [row["target"] for row in report["rows"]] == ["server", "queued", "shared"]
    for row in report["rows"]:
        assert len(row["samples_ms"]) == len(row["rates_per_s"]) == report["rounds"] == 10
        samples = np.concatenate(row["samples_ms"])
        assert [row[f"p{q}_ms"]["value"] for q in (50, 90, 99)] == np.percentile(samples, [50, 90, 99]).tolist()
    (out / "load.json").write_text(result.out)
    assert "2 in flight" in run("report", out / "load.json").out


@pytest.mark.parametrize(
    ("words", "in_flight", "rates"),
    [
        ([], [1, 4, 16], []),
        (["--rates", "300,400.5,300"], [], [300, 400.5]),
        (["--in-flight", "8,2", "--rates", "5"], [8, 2], [5]),
    ],
)
def test_the_usual_loads_are_those_in_flight(
    words: list[object], in_flight: list[int], rates: list[float], run: Run, asked: list[object], monkeypatch: Patch
) -> None:
    given = {}

    def record(*_: object, **options: object) -> NoReturn:
        given.update(options)
        raise UnavailableError("enough")

    monkeypatch.setattr("alexdeploy.bench.load.run_load", record)
    assert run(*asked, *words).code == 4
    assert (given["in_flight"], given["rates"], given["model"]) == (in_flight, rates, "digits")


def test_requests_that_fail_exit_5_after_the_report(run: Run, asked: list[object], served: Served) -> None:
    right = served.answer
    # wrong under load alone: the ten images are compared before
    served.answer = lambda batch: right(batch) * np.float32(1 + (served.requests > 10))  # type: ignore[method-assign]
    result = run(*asked, "--in-flight", 1, "--json")
    assert result.code == 5
    rows = json.loads(result.out)["rows"]
    assert [row["status"] for row in rows] == ["failed", "ok", "ok"]
    assert "error: 1 of 3 rows had failed requests (server), see above; mend the server" in result.err


def test_requests_that_fail_here_are_no_fault_of_the_server(run: Run, asked: list[object], monkeypatch: Patch) -> None:
    def out_of_memory(*_: object) -> NoReturn:
        raise UnavailableError("out of memory")

    monkeypatch.setattr(QueuedRunner, "infer", out_of_memory)
    result = run(*asked, "--in-flight", 1)
    assert result.code == 5
    assert result.err.rstrip().endswith("error: 1 of 3 rows had failed requests (queued), see above")


@pytest.mark.parametrize("words", [["--rates", 200000], ["--in-flight", 5000], ["--server", "ftp://x"]])
def test_loads_and_url_are_checked_before_the_data_is_opened(
    words: list[object], run: Run, asked: list[object], tmp_path: Path
) -> None:
    result = run(*asked, "--data", tmp_path / "missing", *words)
    assert result.code == 2
    assert str(words[1]) in result.err


def test_rates_that_take_longer_than_asked_are_told_before(run: Run, asked: list[object], tmp_path: Path) -> None:
    result = run(*asked, "--data", tmp_path / "missing", "--rates", "0.5,100")
    assert "note: at these --rates ten rounds take 5.0 minutes at least, more than --seconds" in result.err
    result = run(*asked, "--data", tmp_path / "missing", "--rates", "100", "--seconds", 60)
    assert "ten rounds" not in result.err


def test_wide_shows_every_column(run: Run, asked: list[object], out: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    result = run(*asked, "--in-flight", 1, "--wide")
    assert result.code == 0, result.err
    columns = ("p90 ms", "batch", "queue ms", "model ms")
    assert all(column in result.out for column in columns)
    (out / "wide.json").write_text(run(*asked, "--in-flight", 1, "--json").out)
    assert all(column in run("report", out / "wide.json", "--wide").out for column in columns)
    assert not any(column in run("report", out / "wide.json").out for column in columns)


def test_another_model_is_refused(run: Run, asked: list[object], served: Served) -> None:
    right = served.answer
    served.answer = lambda batch: right(batch)[:, ::-1]  # type: ignore[method-assign]
    result = run(*asked)
    assert (result.code, result.out) == (5, "")
    assert "is not the artifact: its answers differ by" in result.err
    assert "alexdeploy publish with --check says more" in result.err
