"""The command line run in this process, and small real artifacts that the tests share."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from alexdeploy import cli, files


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """``run("inspect", path)`` in an empty working folder → exit code and what the file descriptors got."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = exit_code(arguments)
        return Result(code, *capfd.readouterr())

    yield call
    signal.signal(signal.SIGTERM, handler)


def exit_code(arguments: tuple[object, ...]) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def _make(path: Path, *arguments: object) -> Path:
    assert exit_code((*arguments, "-o", path)) == 0
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for what a command writes."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the shared artifacts."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="session")
def checkpoint(shelf: Path) -> Path:
    """An untrained ``alexnet-mnist`` that is labelled for ``digits``."""
    from alexdeploy.zoo.checkpoint import Checkpoint, save_checkpoint, untrained

    path = shelf / "net.safetensors"
    fresh = untrained("alexnet-mnist", classes=10, seed=0)
    contract = msgspec.structs.replace(fresh.contract, labels=tuple("0123456789"))
    save_checkpoint(path, Checkpoint(fresh.model, fresh.recipe, contract, fresh.classes))
    return path


@pytest.fixture(scope="session")
def model(checkpoint: Path, shelf: Path) -> Path:
    return _make(shelf / "net.onnx", "export", checkpoint)


@pytest.fixture(scope="session")
def ranges(model: Path, shelf: Path) -> Path:
    return _make(shelf / "ranges.json", "calibrate", model, "--data", "digits", "--samples", 32)


@pytest.fixture(scope="session")
def int8(model: Path, ranges: Path, shelf: Path) -> Path:
    return _make(shelf / "int8.onnx", "quantize", model, "--ranges", ranges)


@pytest.fixture(scope="session")
def tensorrt_rtx() -> str:
    """Skips where TensorRT-RTX is not installed."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: no engine can be built")
    return "tensorrt-rtx"


@pytest.fixture(scope="session")
def engine(int8: Path, shelf: Path, tensorrt_rtx: str) -> Path:
    return _make(shelf / "int8.engine", "build-engine", int8, "--builder", tensorrt_rtx)


@pytest.fixture(scope="session")
def pictures(shelf: Path) -> Path:
    """``train/`` and ``val/`` with one digit in each of the ten classes."""
    folder = shelf / "pictures"
    for part, first in (("train", 0), ("val", 10)):
        _write_digits(folder / part, "0123456789", first)
    return folder


def _write_digits(folder: Path, classes: str, first: int, per_class: int = 1) -> None:
    """PNG files of scikit-learn's digits, which begin 0123456789 0123456789."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    scans = load_digits().images[first:]
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for copy in range(per_class):
            pixels = (scans[10 * copy + label] * 15).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"digit-{copy}.png")


@pytest.fixture(scope="session")
def data(shelf: Path, pictures: Path) -> Path:
    """Folders that are no data set, or not one for the shared model; each is named for what is wrong with it."""
    folder = shelf / "data"
    (folder / "empty").mkdir(parents=True)
    for name in ("cat", "dog"):
        (folder / "no-images" / name).mkdir(parents=True)
    _write_digits(folder / "one-class", "0", 0, per_class=2)
    _write_digits(folder / "two-classes", "01", 0, per_class=2)
    _write_digits(folder / "unsorted", "0", 0, per_class=2)
    shutil.move(folder / "unsorted" / "0" / "digit-0.png", folder / "unsorted")
    _write_digits(folder / "other-labels", "abcdefghij", 0, per_class=2)
    shutil.copytree(pictures, folder / "text-jpg")
    for part in ("train", "val"):
        (folder / "text-jpg" / part / "0" / f"a-{part}.jpg").write_text("not a picture")
    return folder


@pytest.fixture(scope="session")
def bad(shelf: Path, checkpoint: Path, model: Path, ranges: Path) -> Path:
    """Files that are broken or do not belong together; each is named for what is wrong with it."""
    import onnx
    import safetensors.torch

    from tests.cli import broken

    folder = shelf / "bad"
    folder.mkdir()
    for suffix in ("onnx", "safetensors", "engine", "json", "npy", "png", "toml"):
        (folder / f"empty.{suffix}").touch()
        (folder / f"garbage.{suffix}").write_bytes(b"\x00\xffnot what it says it is")
    contract = onnx.load(model).metadata_props[0].value
    for name, proto in broken.models(contract).items():
        onnx.save(proto, folder / f"{name}.onnx")
    (folder / "bomb.png").write_bytes(broken.decompression_bomb())
    (folder / "typo.toml").write_bytes(
        Path(__file__).parents[2].joinpath("models/alexnet-mnist/recipe.toml").read_bytes().replace(b"epochs", b"epocs")
    )
    safetensors.torch.save_file(safetensors.torch.load_file(checkpoint), folder / "bare.safetensors")
    text = ranges.read_text()
    (folder / "receipt.json").write_text(text.replace('"samples": 32', '"samples": 31', 1))
    (folder / "other-ranges.json").write_text(text.replace(files.sha256_file(model), 64 * "0"))
    shutil.copy(model, folder / "renamed.engine")
    shutil.copy(files.sidecar_path(model), folder / "renamed.engine.json")
    return folder


@pytest.fixture(scope="session")
def bad_engines(shelf: Path, engine: Path) -> Path:
    """``changed.engine`` (one byte), ``alone.engine`` (no sidecar), ``sidecar.engine`` (its sidecar is not JSON)."""
    folder = shelf / "bad-engines"
    folder.mkdir()
    plan = bytearray(engine.read_bytes())
    for name in ("alone", "changed", "sidecar"):
        plan[-1] ^= name == "changed"
        (folder / f"{name}.engine").write_bytes(plan)
    shutil.copy(files.sidecar_path(engine), folder / "changed.engine.json")
    (folder / "sidecar.engine.json").write_text("{")
    return folder
