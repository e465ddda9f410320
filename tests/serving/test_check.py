"""Faults that Triton serves without a word, planted one at a time: ``publish --check`` tells of each."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from alexdeploy.triton.publish import publish
from tests.cli.conftest import Result, exit_code
from tests.helpers.graphs import conv_lrn_gemm
from tests.serving.conftest import CONTRACT, Serving, save
from tests.serving.server import Server

Check = Callable[..., Result]
WITH_IMAGES = ("mean", "order")
FAULTS = ("classes", "dims", "file", "labels", "missing", *WITH_IMAGES)


class Planted(NamedTuple):
    """A server, what was published, and the changed copy of it that is served."""

    server: Server
    published: Path
    changed: Path


@pytest.fixture(scope="session")
def planted(triton_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Planted:
    folder = tmp_path_factory.mktemp("planted")
    network, other = (save(conv_lrn_gemm(seed), CONTRACT, folder / f"{seed}.onnx") for seed in range(2))
    published, changed = folder / "published", folder / "changed"
    for fault in FAULTS:
        publish(network, published, name=fault, image=fault in WITH_IMAGES)
    publish(network, published, name="missing")
    shutil.copytree(published, changed)
    shutil.copy(other, changed / "file" / "1" / "model.onnx")
    shutil.rmtree(changed / "missing" / "2")
    for name, old, new in (
        ("dims/config.pbtxt", "dims: 4", "dims: 5"),
        ("classes/labels.txt", "ant\n", ""),
        ("labels/labels.txt", "bee\ncat", "cat\nbee"),
        ("order-label/config.pbtxt", r"\"bee\",\"cat\"", r"\"cat\",\"bee\""),
        ("mean-decode/config.pbtxt", r"\"mean\":[0.5,", r"\"mean\":[0.4,"),
        ("mean-label/config.pbtxt", 'name: "label"', 'name: "name"'),
        ("mean-image/config.pbtxt", 'key: "label"', 'key: "name"'),
    ):
        path = changed / name
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))
    return Planted(triton_server(changed), published, changed)


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def check(capfd: pytest.CaptureFixture[str]) -> Iterator[Check]:
    """``check(repository, url, …)`` → exit code and what was printed."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(repository: Path, url: str, *arguments: object) -> Result:
        capfd.readouterr()
        code = exit_code(("publish", "--triton", repository, "--check", url, *arguments))
        return Result(code, *capfd.readouterr())

    yield call
    signal.signal(signal.SIGTERM, handler)


def test_a_sound_server(check: Check, serving: Serving, protocol: str) -> None:
    url = getattr(serving.server, protocol)
    found = check(serving.repository, url, "--name", "digits", "--json")
    assert (found.code, found.err) == (0, "")
    told = json.loads(found.out)
    assert told["findings"] == []
    assert all(row["passed"] and not row["error"] for row in told["compared"])  # to the last bit
    rows = {(row["model"], row["what"]) for row in told["compared"]}
    assert rows >= {
        *(("digits", what) for what in ("configuration", "logits, together", "logits, one by one", "4 class names")),
        *(("digits-decode", what) for what in ("configuration", "preprocessed images")),
        *(("digits-label", what) for what in ("configuration", "4 class names", "labels", "probabilities")),
        *(("digits-image", what) for what in ("configuration", "labels", "probabilities")),
    }
    shown = check(serving.repository, url, "--name", "pixels", "--version", 1)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.count("bit-equal") == 5


@pytest.mark.parametrize(
    ("fault", "error", "others"),
    [
        ("dims", "dims: on the server output[0].dims is [5], expected [4]", []),
        ("file", "file, version 1: logits, together differ by ", ["file, version 1: logits, one by one differ by "]),
        ("missing", "missing, version 2: is not served; the server has 1", []),
        ("labels", "labels: class 1 is 'cat', expected 'bee', and 1 more differ: labels.txt ", []),
        ("classes", "classes: class 0 is 'bee', expected 'ant', and 3 more differ: labels.txt ", []),
        (
            "order",
            "order-label: on the server contract.labels[1] is 'cat', expected 'bee'",
            ["order-label: class 1 is 'cat', expected 'bee', and 1 more differ: the class names in its contract "],
        ),
        (
            "mean",
            "mean-decode: on the server contract.mean is (0.4, 0.5, 0.5), expected (0.5, 0.5, 0.5)",
            [
                "mean-decode: preprocessed images differ by ",
                "mean-label: on the server output[0].name is name, expected label",  # a second fault
                "mean-label: gives name, probability, expected label",
                "mean-image: probabilities differ by ",
            ],
        ),
    ],
)
def test_a_planted_fault(
    check: Check, planted: Planted, protocol: str, fault: str, error: str, others: list[str]
) -> None:
    found = check(planted.published, getattr(planted.server, protocol), "--name", fault)
    lines = found.err.splitlines()
    assert found.code == 5
    assert lines[0].startswith(f"error: {error}")
    assert [sum(line.startswith(other) for line in lines[1:]) for other in others] == [1] * len(others)
    assert all(line.removeprefix("error: ").startswith(fault) for line in lines)  # and of nothing else


def test_every_model_at_once(check: Check, planted: Planted) -> None:
    found = check(planted.published, planted.server.http, "--json")
    told = json.loads(found.out)
    assert (found.code, told["exit_code"], told["error"]) == (5, 5, told["findings"][0])
    assert found.err.splitlines() == [f"error: {told['error']}", *told["findings"][1:]]
    assert {finding.replace(",", "-").replace(":", "-").split("-")[0] for finding in told["findings"]} == {*FAULTS}
    failed = {row["model"] for row in told["compared"] if not row["passed"]}
    assert failed >= {"dims", "file", "labels", "classes", "order-label", "mean-decode"}


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("dims", "dims: config.pbtxt: output[0].dims is [5], expected [4], as version 1 demands; publish it again"),
        (
            "mean",
            "mean-decode: config.pbtxt: contract.mean is (0.4, 0.5, 0.5), expected (0.5, 0.5, 0.5), as version 1 "
            "demands; publish it again",
        ),
        ("labels", "labels: labels.txt does not hold the class names of version 1 in their order; publish it again"),
        ("file", "file, version 1: model.onnx is not the file that was published (sha256 "),
    ],
)
def test_a_repository_that_was_changed_itself(check: Check, planted: Planted, fault: str, error: str) -> None:
    found = check(planted.changed, planted.server.http, "--name", fault)
    assert found.code == 5
    assert found.err.startswith(f"error: {error}")


def test_one_version_of_two(check: Check, planted: Planted) -> None:
    assert check(planted.published, planted.server.http, "--name", "missing", "--version", 1).code == 0
    found = check(planted.published, planted.server.http, "--name", "missing", "--version", 2)
    assert (found.code, found.err) == (5, "error: missing, version 2: is not served; the server has 1\n")
    found = check(planted.published, planted.server.http, "--name", "missing", "--version", 3)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert "--version 3: " in found.err


def test_a_model_that_the_server_does_not_have(check: Check, serving: Serving, planted: Planted) -> None:
    found = check(planted.published, serving.server.http, "--name", "dims")
    assert found.code == 5
    assert found.err.startswith("error: dims: is not served: ")
