"""What a check says of servers that the real one is not; faults planted on that are in tests/serving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from alexdeploy import load, publish
from alexdeploy.errors import InputError, UnavailableError, UsageError
from alexdeploy.runners.artifact import EngineArtifact
from alexdeploy.specs import TensorSpec
from alexdeploy.triton import check as room
from alexdeploy.triton.check import Checked, check_server
from alexdeploy.triton.config import CONFIG, read_config
from alexdeploy.triton.golden import likeliest
from tests.unit.triton.conftest import CONTRACT, save

Array = npt.NDArray[Any]


class Server:
    """Answers as a sound one; a test changes what it is about."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.runner = load(repository / "net" / "1" / "model.onnx", runtime="onnxruntime-cpu")
        self.versions = ["1"]
        self.changed: Callable[[Array], Array] = lambda logits: logits
        self.class_names = CONTRACT.labels
        self.asked: list[int] = []

    def open(self, url: str, model: str, *, version: str = "", timeout_s: float) -> Client:
        assert (url, timeout_s) == ("http://host:8000", 30)
        assert version in ("", "1")
        if model != "net":
            raise InputError(f"{url}: refuses a request to '{model}': unknown")
        return Client(self)


class Client:
    def __init__(self, server: Server) -> None:
        self.server, self.versions = server, server.versions
        self.input, self.outputs = TensorSpec("input", (-1, 3, 8, 8), "float32"), [TensorSpec("logits", (-1, 4), "")]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def config(self) -> Any:
        return read_config(self.server.repository / "net" / CONFIG)

    def infer(self, batch: Array) -> Array:
        self.server.asked.append(len(batch))
        return self.server.changed(self.server.runner.infer(batch))

    def ask(self, inputs: Mapping[str, Array], *, top: int) -> dict[str, Array]:
        logits = self.infer(inputs["input"])
        texts = [
            f"{row[index]:f}:{index}:{self.server.class_names[index]}".rstrip(":").encode()
            for row in logits
            for index in np.argsort(-row)[:top]
        ]
        return {self.config().output[0].name: np.array(texts, object).reshape(len(logits), top)}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    publish(save(tmp_path / "net.onnx"), tmp_path / "repository")
    found = Server(tmp_path / "repository")
    monkeypatch.setattr(room, "KServeRunner", found.open)
    return found


def check(server: Server, **options: Any) -> Checked:
    return check_server(server.repository, "http://host:8000", **options)


def test_a_sound_server(server: Server) -> None:
    found = check(server)
    assert found.findings == ()
    assert [(row.what, row.error, row.passed) for row in found.compared] == [
        ("logits, together", 0, True),
        ("logits, one by one", pytest.approx(0, abs=1e-6), True),
        ("configuration", None, True),
        ("4 class names", None, True),
    ]
    assert server.asked == [4, 1, 1, 1, 1, 1]


def test_requests_are_no_larger_than_the_server_takes(server: Server, tmp_path: Path) -> None:
    publish(tmp_path / "net.onnx", tmp_path / "other", name="net", max_batch=3)
    server.repository = tmp_path / "other"
    assert check(server).findings == ()
    assert server.asked[:2] == [3, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda logits: np.pad(logits, ((0, 0), (0, 1))), "have the shape (4, 5), expected (4, 4): wrong dims"),
        (lambda logits: logits * 1.0001, "differ by 1.0e-04 (relative, at most 1e-05 is allowed): another model"),
        (lambda logits: logits * np.nan, "differ by inf (relative"),
        (lambda logits: logits[:, ::-1], "differ by "),
    ],
)
def test_other_logits(server: Server, change: Callable[[Array], Array], words: str) -> None:
    server.changed = change
    server.class_names = (*CONTRACT.labels, "")
    found = check(server)
    assert [
        finding.startswith(f"net, version 1: logits, {how} {words}")
        for finding, how in zip(found.findings[:2], ("together", "one by one"), strict=True)
    ] == [True, True]
    assert [row.passed for row in found.compared[:2]] == [False, False]


def test_the_last_bits_may_differ(server: Server) -> None:
    server.changed = lambda logits: logits * np.float32(1 + 1e-6)
    found = check(server)
    assert found.findings == ()
    assert all(0 < (row.error or 0) < 1e-5 for row in found.compared[:2])


def test_a_class_without_a_name_and_names_with_colons(server: Server, tmp_path: Path) -> None:
    labels = ("a:b", "c  d", "2:e", "f")
    contract = msgspec.structs.replace(CONTRACT, labels=labels)
    publish(save(tmp_path / "named.onnx", contract=contract), tmp_path / "other", name="net")
    server.repository = tmp_path / "other"
    server.class_names = ("a:b", "c d", "2:e", "f")  # a line of labels.txt has single spaces
    assert check(server).findings == ()
    server.class_names = ("a:b", "c d", "2:e", "")
    assert check(server).findings == (
        "net: class 3 is '', expected 'f': labels.txt is in another order, or was changed",
    )


def test_images_that_the_server_says_it_does_not_take(server: Server) -> None:
    def refuse(_: Array) -> Array:
        raise UsageError("kserve-http: got a batch of shape (4, 3, 8, 8)")

    server.changed = refuse
    assert check(server).findings[0] == "net, version 1: kserve-http: got a batch of shape (4, 3, 8, 8)"


def test_a_server_that_fails_under_way_is_unavailable_unless_there_is_more_to_tell(server: Server) -> None:
    def fail(_: Array) -> Array:
        raise UnavailableError("http://host:8000: no answer")

    server.changed = fail
    with pytest.raises(UnavailableError, match="no answer"):
        check(server)
    (server.repository / "net" / "labels.txt").write_text("ant\n")
    found = check(server)
    assert [finding.split(" ")[1] for finding in found.findings] == ["labels.txt"]
    assert found.left_out == ("http://host:8000: no answer",)


def test_a_version_that_was_not_published_is_named(server: Server) -> None:
    server.versions = ["1", "2", "3"]
    words = ("net: the server also has version 2, 3, which was not published here",)
    assert check(server).findings == check(server, version=1).findings == words


def test_of_an_older_version_the_ensemble_is_not_asked(server: Server, tmp_path: Path) -> None:
    publish(tmp_path / "net.onnx", tmp_path / "other", name="net", image=True)
    publish(tmp_path / "net.onnx", tmp_path / "other", name="net")
    server.repository, server.versions = tmp_path / "other", ["1", "2"]
    words = ("net-image: its answers were not compared: it takes a newer version than this",)
    assert check(server, version=1).left_out == words


def test_the_label_s_model_is_held_to_its_own_arithmetic(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room._Version, "tolerance", 2e-2)  # as of a network in INT8
    version = room._opened(server.repository, "net", 1)
    labels, shares = likeliest(version.logits, CONTRACT, ends_in_softmax=False)
    lines = {}
    for model in ("_label", "_image"):
        judge = room._Check(server.repository, "http://host:8000", 30)
        answers = iter([np.array([[name, 1.0] for name in CONTRACT.labels], object)] if model == "_label" else [])
        given = np.array([*zip(labels, shares * 1.001, strict=True)], object)
        monkeypatch.setattr(room, "_labels", lambda *_, answers=answers, given=given: next(answers, given))
        getattr(judge, model)(version, Client(server), 9)
        lines[model] = judge.findings
    assert lines["_image"] == []
    assert [line[:44] for line in lines["_label"]] == ["net-label: probabilities differ by 1.0e-03 ("]


def test_golden_answers_of_an_engine_that_nothing_here_runs(
    server: Server, engine: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(engine(builder="tensorrt-rtx"), tmp_path / "engines", name="net")
    server.repository = tmp_path / "engines"
    with pytest.raises(UnavailableError, match="no golden answers were stored, and nothing here runs the engine"):
        check(server)
    # where something runs it, that computes them
    monkeypatch.setattr(EngineArtifact, "runner", lambda *_: server.runner)
    asked = []
    server.changed = lambda logits: asked.append(len(logits)) or logits  # type: ignore[func-returns-value]
    monkeypatch.setattr(server.runner, "infer", lambda batch: np.zeros((len(batch), 4), np.float32))
    assert check(server).findings == ()
    assert asked == [4, 1, 1, 1, 1, 1]


def test_what_is_not_in_the_repository(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"repository: no model 'nothing' was published in it; it has net"):
        check(server, name="nothing")
    for name in (None, "net"):
        with pytest.raises(
            InputError, match="absent: no model was published in it; name the folder that publish wrote"
        ):
            check_server(tmp_path / "absent", "http://host:8000", name=name)
    with pytest.raises(UsageError, match=r"`version` 2: .*repository has 1"):
        check(server, version=2)


def test_a_file_that_is_no_longer_the_published_one(server: Server) -> None:
    path = server.repository / "net" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\x72\x00")  # another, empty, field of the model
    [found] = check(server).findings
    assert found.startswith("net, version 1: model.onnx is not the file that was published (sha256 ")


def test_golden_answers_that_were_changed(server: Server) -> None:
    path = server.repository / "net" / "1" / "golden.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert any("changed since it was written" in finding for finding in check(server).findings)
