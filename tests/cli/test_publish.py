"""What publish says, and that settings reach the repository."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from alexdeploy import files
from tests.cli.conftest import Run

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")


def test_an_onnx_file_with_all_settings(run: Run, model: Path, out: Path) -> None:
    settings = ("--instances", 2, "--max-batch", 8, "--max-delay-us", 250)
    repository = ("--triton", out / "repository", "--name", "digits")
    first = run("publish", model, *repository, "--image", *settings)
    assert (first.code, first.err) == (0, "")
    shown = first.out.splitlines()
    assert shown[0].startswith("digits, version 1: model.onnx on the backend python, 2 instances, batches up to 8, ")
    assert [line.strip() for line in shown[1:-1]] == [
        str(out / "repository" / f"digits{suffix}") for suffix in ("", "-decode", "-label", "-image")
    ]
    addresses = [word for word in shown[-1].split() if word.startswith("127.")]
    assert addresses == ["127.0.0.1"] * 3  # else the server listens on every network
    config = (out / "repository" / "digits" / "config.pbtxt").read_text().split()
    for key, value in (("max_batch_size:", "8"), ("count:", "2"), ("max_queue_delay_microseconds:", "250")):
        assert config[config.index(key) + 1] == value
    second = json.loads(run("publish", model, *repository, "--version", 5, "--json").out)
    assert (second["version"], second["models"], second["backend"]) == (5, ["digits"], "python")
    assert second["settings"] == {"instances": 2, "max_batch": 8, "max_delay_us": 250}
    assert set(second["answers"]) <= set("0123456789")


def test_the_file_s_name_is_the_model_s(run: Run, model: Path, out: Path) -> None:
    done = run("publish", model, "--triton", out, "--backend", "onnxruntime")
    assert (done.code, done.err.count("\n")) == (0, 1)
    assert "on a CPU its LRN runs in ONNX Runtime's slow kernel; our runner, the --backend python, " in done.err
    assert 'platform: "onnxruntime_onnx"' in (out / "net" / "config.pbtxt").read_text()


def test_a_full_disk_is_told_where_it_is_and_leaves_nothing(
    run: Run, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> NoReturn:
        Path(target).write_bytes(b"the first block still fitted")
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    done = run("publish", model, "--triton", out / "repository")
    assert done.code == 4
    assert done.err.startswith(f"error: No space left on device: {out}")
    assert "model.onnx; free space or write elsewhere" in done.err
    assert [*out.iterdir()] == []


def test_a_tensorrt_rtx_engine_keeps_its_sidecar(run: Run, engine: Path, out: Path) -> None:
    done = run("publish", engine, "--triton", out, "--name", "digits")
    assert done.code == 0
    assert "note: no golden answers were stored (" in done.err
    assert "1 instance," in done.out
    assert "note: the engine was made with tensorrt-rtx" in done.err
    assert files.read_sidecar(out / "digits/1/model.engine") == files.read_sidecar(engine)
    assert "KIND_GPU" in (out / "digits" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--name", "a/b"), 2, "error: --name 'a/b': expected at most 200 letters"),
        (("--max-batch", 9), 2, "error: --max-batch 9: 'digits' is published with 32"),
        (("--name", "new", "--max-batch", 0), 2, "error: Invalid value for '--max-batch'"),
        (("--backend", "openvino"), 2, "error: Invalid value for '--backend'"),
        (("--version", 1), 2, "error: --version 1: 'digits' has it"),
    ],
)
def test_a_mistake_is_one_line(
    run: Run, model: Path, out: Path, arguments: tuple[object, ...], code: int, text: str
) -> None:
    assert run("publish", model, "--triton", out, "--name", "digits").code == 0
    given = arguments if "--name" in arguments else ("--name", "digits", *arguments)
    found = run("publish", model, "--triton", out, *given)
    assert (found.code, found.out) == (code, "")
    assert found.err.startswith(text)
    assert found.err.count("\n") == 1
    assert [path.name for path in out.iterdir()] == ["digits"]


def test_what_is_not_served(run: Run, checkpoint: Path, bad: Path, engine: Path, out: Path) -> None:
    assert "export it first" in run("publish", checkpoint, "--triton", out).err
    assert run("publish", bad / "garbage.onnx", "--triton", out).code == 3
    alone = out / "alone.engine"
    shutil.copy(engine, alone)
    assert run("publish", alone, "--triton", out).code == 5


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "error: name the ARTIFACT to publish, or with --check the server"),
        (("net.onnx", "--check", "http://127.0.0.1:9"), 2, "error: --check publishes nothing; it takes --triton, "),
        (("--image", "--check", "http://127.0.0.1:9"), 2, "error: --check publishes nothing"),
        (("--max-batch", 4, "--check", "http://127.0.0.1:9"), 2, "error: --check publishes nothing"),
        (("--max-delay-us", 0, "--check", "http://127.0.0.1:9"), 2, "error: --check publishes nothing"),
        (("--check", "ftp://127.0.0.1:9"), 2, "error: 'ftp://127.0.0.1:9': expected where a server listens"),
        (("--check", "http://127.0.0.1:9"), 4, "error: http://127.0.0.1:9: no answer about 'net' ("),
        (("--check", "grpc://127.0.0.1:9"), 4, "error: grpc://127.0.0.1:9: no answer about 'net' ("),
        (("--check", "http://127.0.0.1:9", "--version", 7), 2, "error: --version 7: "),
        (("--check", "http://127.0.0.1:9", "--name", "other"), 3, "error: "),
    ],
)
def test_a_check_that_cannot_be_made_is_one_line(
    run: Run, model: Path, out: Path, arguments: tuple[object, ...], code: int, text: str
) -> None:
    assert run("publish", model, "--triton", out).code == 0
    found = run("publish", *arguments, "--triton", out)
    assert (found.code, found.out) == (code, "")
    assert found.err.startswith(text)
    assert found.err.count("\n") == 1
