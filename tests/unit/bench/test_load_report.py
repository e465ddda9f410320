"""``run_load`` against a server of our own runner over HTTP, and what its report says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from alexdeploy.bench import load_rounds, traffic
from alexdeploy.bench.baseline import load_saved
from alexdeploy.bench.intervals import Estimate
from alexdeploy.bench.load import is_loopback, run_load
from alexdeploy.bench.load_results import LoadReport
from alexdeploy.bench.report.load import load_columns, load_notes, ratio_columns, write_html, write_markdown
from alexdeploy.errors import GateError, InputError, UnavailableError, UsageError
from alexdeploy.runners.artifact import load
from tests.helpers.graphs import Array, conv_lrn_gemm
from tests.helpers.served import Served, serve
from tests.unit.bench.test_run import by_hand, images, save

pytest.importorskip("tritonclient", reason="tritonclient is not installed")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(conv_lrn_gemm(), tmp_path_factory.mktemp("load") / "flowers.onnx")


@pytest.fixture
def served(path: Path) -> Iterator[Served]:
    with load(path) as runner, serve(runner, "flowers") as server:
        yield server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_rounds, "_LEAST_REQUESTS", 1)
    monkeypatch.setattr(load_rounds, "_LEAST_ARRIVALS", 5)
    monkeypatch.setattr(traffic, "SENDERS", 8)


def under_load(served: Served, path: Path, **options: object) -> LoadReport:
    asked: dict[str, object] = {"in_flight": [1, 3], "rates": [], "seconds": 0.01, **options}
    return run_load(path, images(), served.url, **asked)  # type: ignore[arg-type]


def test_the_server_and_the_runner_meet_the_same_loads(served: Served, path: Path) -> None:
    report = under_load(served, path, rates=[500])
    assert (report.model, report.protocol, report.runtime) == ("flowers", "kserve-http", "onnxruntime-cpu")
    assert (report.images, report.max_batch, report.rounds, report.same_machine) == (64, 8, 10, True)
    assert (report.agreement, report.relative_error) == (1.0, 0.0)
    assert [(row.target, str(row.load)) for row in report.rows] == [
        (target, load) for load in ("1 in flight", "3 in flight", "500/s") for target in ("server", "queued", "shared")
    ]
    assert {row.failures for row in report.rows} == {0}
    assert served.requests == 64 + sum(row.requests for row in report.rows if row.target == "server")
    for row in report.rows:
        if row.target != "server":
            assert row.served is None
            continue
        assert row.served is not None
        assert row.served.inferences == row.requests
        assert (row.served.queue_ms, row.served.compute_ms) == (3, 1)
        assert row.served.mean_batch == pytest.approx(2, rel=0.5)


def test_a_report_is_saved_and_shown_again(served: Served, path: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    report = under_load(served, path)
    saved = tmp_path / "load.json"
    saved.write_bytes(msgspec.json.encode(report))
    assert load_saved(saved) == report
    write_markdown(report, tmp_path / "load.md")
    write_html(report, tmp_path / "load.html")
    for name in ("load.md", "load.html"):
        text = (tmp_path / name).read_text()
        for column in (*load_columns(report), *ratio_columns(report)):
            assert column.header in text
            assert all(cell in text for cell in column.cells)
        assert f"{served.url}, model" in text.replace("\\:", ":"), "Markdown makes no link of it"
    assert "<script" not in (tmp_path / "load.html").read_text()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="expected the JSON of a bench"):
        load_saved(tmp_path / "other.json")
    (tmp_path / "other.json").write_bytes(saved.read_bytes().replace(b'"p50_ms":{"value":', b'"p50_ms":{"valve":', 1))
    with pytest.raises(InputError, match=r"missing required field `value` - at `\$\.rows\[0\]\.p50_ms`"):
        load_saved(tmp_path / "other.json")


def test_an_interval_is_shown_with_both_its_ends(served: Served, path: Path) -> None:
    """±, half its width, would say of this one that the latency may be below 0."""
    report = under_load(served, path, in_flight=[1])
    row = dataclasses.replace(report.rows[0], p99_ms=Estimate(0.58, (0.4, 4.0)))
    (p99,) = [column for column in load_columns(dataclasses.replace(report, rows=[row])) if column.header == "p99 ms"]
    assert p99.cells == ["0.58 (0.4–4)"]


def test_a_server_that_answers_something_else_is_refused_before_timing(served: Served, path: Path) -> None:
    right = served.answer
    served.answer = lambda batch: right(batch)[:, [1, 0, 2, 3]]  # type: ignore[method-assign]
    wrong = by_hand()[:, [1, 0, 2, 3]].argmax(axis=1) == by_hand().argmax(axis=1)
    spread = np.linspace(0, 69, 64).round().astype(int)
    with pytest.raises(GateError, match=f"agree on {wrong[spread].mean():.2%} of 64 images; nothing was timed"):
        under_load(served, path)
    assert served.requests == 64
    served.answer = lambda batch: right(batch) * np.float32(np.nan)  # type: ignore[method-assign]
    with pytest.raises(GateError, match=r"differ by inf \(relative\), where 1e-05 is allowed"):
        under_load(served, path)
    served.answer = lambda batch: right(batch)[:, :3]  # type: ignore[method-assign]
    with pytest.raises(GateError, match="has 3 outputs, the artifact 4"):
        under_load(served, path)


def test_a_server_that_takes_other_images_is_refused(served: Served, path: Path) -> None:
    served.runner.input = dataclasses.replace(served.runner.input, shape=(-1, 3, 9, 9))
    with pytest.raises(GateError, match=r"takes input \(float32, shape \(-1, 3, 9, 9\)\), the artifact input"):
        under_load(served, path)
    assert served.requests == 0


def test_answers_that_are_swapped_under_load_fail_it(served: Served, path: Path) -> None:
    """Right until the check is over; then each third request gets the answer of the one before."""
    right, before = served.answer, []

    def swapping(batch: Array) -> Array:
        before.append(batch)
        late = served.requests > 64 and served.requests % 3 == 0
        return right(before[-2] if late else batch)

    served.answer = swapping  # type: ignore[method-assign]
    report = under_load(served, path, in_flight=[2])
    rows = {row.target: row for row in report.rows}
    assert [rows[target].status for target in ("server", "queued", "shared")] == ["failed", "ok", "ok"]
    assert (
        f"{rows['server'].failures} of {rows['server'].requests} requests failed, the first: the answer to image"
        in (rows["server"].reason or "")
    )
    assert any(note.startswith("WARNING: 2 in flight, server: ") for note in load_notes(report))
    (cells,) = [line for line in zip(*(c.cells for c in load_columns(report)), strict=True) if line[1] == "server"]
    assert cells[2:6] == ("-", "failed", "-", "-")


def test_other_clients_and_missing_counters_are_told(served: Served, path: Path) -> None:
    report = under_load(served, path, in_flight=[1])
    assert not any("other clients" in note for note in load_notes(report))
    (row,) = [row for row in report.rows if row.served]
    assert row.served is not None
    more = dataclasses.replace(row, served=dataclasses.replace(row.served, inferences=2 * row.requests))
    shared = dataclasses.replace(report, rows=[more])
    assert any(f"answered {row.requests} images of other clients" in note for note in load_notes(shared))
    served.has_counters = False
    report = under_load(served, path, in_flight=[1])
    assert all(row.served is None for row in report.rows)
    assert "The server has no counters: batch and queue are not known." in load_notes(report)


@pytest.mark.parametrize(("load", "warned"), [(0.5, False), (2.0, False), (2.5, True), (None, False)])
def test_a_machine_that_is_busy_with_other_work_is_told(
    load: float | None, warned: bool, served: Served, path: Path
) -> None:
    report = under_load(served, path, in_flight=[1], seconds=0.01)
    busy = dataclasses.replace(report, environment={**report.environment, "load": load, "cores": 2})
    assert any("WARNING: load 2.5 on 2 cores" in note for note in load_notes(busy)) == warned


def test_what_cannot_be_asked_is_refused(served: Served, path: Path) -> None:
    with pytest.raises(UsageError, match="no load was given"):
        under_load(served, path, in_flight=[])
    with pytest.raises(UsageError, match="`in_flight` 5000: expected at most 1024"):
        under_load(served, path, in_flight=[5000])
    for rate in (1e-300, 0.09, 1e8, 1e20):
        with pytest.raises(UsageError, match=r"`rates` .*: expected 0\.1 to 100,000 images per second"):
            under_load(served, path, rates=[100, rate])
    with pytest.raises(InputError, match="unknown model: 'weeds'"):
        under_load(served, path, model="weeds")
    served.url = "http://127.0.0.1:9"
    with pytest.raises(UnavailableError, match="no answer"):
        under_load(served, path)


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8000", True),
        ("127.0.3.1:8000", True),
        ("grpc://localhost:8001", True),
        ("http://[::1]:8000/path", True),
        ("gpu-7:8000", False),
        ("https://192.168.0.1", False),
        ("http://localhost.example.org:8000", False),
    ],
)
def test_a_server_on_this_machine_is_known_by_its_address(url: str, here: bool) -> None:
    assert is_loopback(url) is here
