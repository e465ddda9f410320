"""``python -m tests.gpu.bare`` works up to the real driver, and never calls ok what was not run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.simulated_cuda.library import build, run

pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")

from tests.gpu.bare import double, libraries
from tests.gpu.bare.__main__ import Session, main
from tests.gpu.bare.scenario import NotRun, Place


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("driver"))


def test_every_scenario_on_the_simulated_driver(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SIMULATED_BINDING", "cuda-python")
    done = run(driver, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-x", "tests/simulated_cuda/inside_bare.py")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_processes_end_well_and_the_report_says_where_they_ran(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.gpu.bare.__main__.BINDINGS", ("cuda-python",))
    session = Session(tmp_path, ["exit_with_an_open_runner", "device_fault"])
    session.child = ("env", f"LD_PRELOAD={driver}", *session.child)
    monkeypatch.setitem(session.machine, "simulated", True)
    session.run()
    report = json.loads((tmp_path / "report.json").read_text())
    found = {one["scenario"]: one["status"] for one in report["results"]}
    assert found == dict.fromkeys(session.scenarios, "ok"), (tmp_path / "log.txt").read_text()
    assert session.exit_status == 0
    said = (tmp_path / "report.md").read_text()
    assert "simulated driver in host memory, no GPU" in said
    assert "| exit_with_an_open_runner | cuda-python | ok |" in said


def test_without_a_device_nothing_is_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexdeploy.machine.why_no_cuda", lambda *_: "no CUDA device (test)")
    assert main([str(tmp_path)]) == 4
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert len(results) > 20
    assert {(one["status"], one["detail"]) for one in results} == {("not run", "no CUDA device (test)")}


CHILD = """
import json, os, sys
answers, names = sys.argv[3], sys.argv[4:]
for name in names:
    for line in {lines}:
        print(json.dumps(dict(line, scenario=name)), file=open(answers, "a"))
    {end}
"""
BEGUN = {"status": "begun"}
OK = {"status": "ok", "seconds": 1.0, "figures": {}}


@pytest.mark.parametrize(
    ("lines", "end", "status", "words"),
    [
        ([BEGUN, OK], "", 0, ""),
        ([BEGUN], "os._exit(11)", 1, "status 11"),
        ([BEGUN, OK], "os._exit(11)", 1, "status 11 afterwards"),
        ([], "os._exit(11)", 1, "status 11"),
        ([BEGUN, {"status": "failed", "detail": "wrong"}], "sys.exit(1)", 1, "wrong"),
        ([BEGUN, {"status": "not run", "detail": "no torch"}], "", 4, "no torch"),
        ([BEGUN], "import time; time.sleep(60)", 1, "hung"),
    ],
)
def test_how_a_process_ends_is_judged(
    lines: list[Any], end: str, status: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.gpu.bare.__main__.BINDINGS", ("cuda-python",))
    session = Session(tmp_path, ["every_batch_size", "replay"])
    session.child = (sys.executable, "-S", "-c", CHILD.format(lines=repr(lines), end=end))
    if "hung" in words:
        monkeypatch.setattr(Session, "limit_s", lambda self, name: 0.2)
    session.run()
    assert session.exit_status == status
    for result in session.results.values():
        assert (result.status == "ok") == (status == 0)
        assert words in result.detail


def test_a_silent_end_must_be_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.gpu.bare.__main__.BINDINGS", ("cuda-python",))
    session = Session(tmp_path, ["exit_with_an_open_runner"])
    end = "print('== all were asked; what follows was said while the process ended\\nclean-up failed', file=sys.stderr)"
    session.child = (sys.executable, "-S", "-c", CHILD.format(lines=repr([BEGUN, OK]), end=end))
    session.run()
    (result,) = session.results.values()
    assert (result.status, result.detail) == ("failed", "its process said at its end: clean-up failed")


def test_the_kernels_compile_for_a_gpu() -> None:
    try:
        code = double.compile_for_gpu("9.0")
    except Exception as error:
        if "libnvrtc" not in str(error):
            raise
        pytest.skip(f"NVRTC is not installed: {error}")
    assert code.startswith(b"\x7fELF")
    for name in (b"conv_relu", b"lrn_pool", b"gemm", b"spin", b"write_behind"):
        assert b".text." + name in code


SANITIZER = """#!/bin/sh
results=; for word in "$@"; do case "$word" in *.jsonl) results="$word";; esac; done
case "$*" in
*planted*) echo "========= ERROR SUMMARY: {planted} errors"; exit {planted_status};;
esac
for name in a b c; do echo '{{"status": "ok"}}' >> "$results"; done
echo "========= ERROR SUMMARY: {found} errors"; exit {status}
"""


@pytest.mark.parametrize(
    ("found", "status", "planted_status", "good"), [(0, 0, 86, True), (1, 86, 86, False), (0, 0, 0, False)]
)
def test_compute_sanitizer_must_find_what_is_planted_and_nothing_else(
    found: int, status: int, planted_status: int, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(SANITIZER.format(found=found, status=status, planted=1, planted_status=planted_status))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    place = Place(tmp_path / "model.engine", tmp_path, simulated=True)
    if good:
        figures = libraries.under_compute_sanitizer(place)
        assert figures == {"calls": "ERROR SUMMARY: 0 errors", "control": "ERROR SUMMARY: 1 errors"}
    else:
        with pytest.raises(AssertionError):
            libraries.under_compute_sanitizer(place)


def test_compute_sanitizer_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "_sanitizer", lambda: None)
    with pytest.raises(NotRun, match="not installed"):
        libraries.under_compute_sanitizer(Place(tmp_path, tmp_path, simulated=True))
