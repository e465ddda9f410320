"""Every public name has a docstring whose example runs as printed."""

from __future__ import annotations

import doctest
import shutil
import warnings
from pathlib import Path

import pytest

import alexdeploy
from alexdeploy.files import sidecar_path
from tests.helpers.docs import GUIDE, README

NAMES = sorted({*alexdeploy.__all__} - {"__version__"})
FILES = {
    "model.safetensors": "alexnet-mnist.safetensors",
    "model.onnx": "alexnet-mnist.onnx",
    "ranges.json": "ranges.json",
    "int8.onnx": "alexnet-mnist-int8.onnx",
}


@pytest.fixture
def folder(home: Path, tmp_path: Path) -> Path:
    """The files that the examples name, from the demo."""
    import torch
    from PIL import Image
    from sklearn.datasets import load_digits

    from alexdeploy.zoo.checkpoint import load_checkpoint

    for name, made in FILES.items():
        shutil.copy(home / "demo" / made, tmp_path / name)
        shutil.copy(sidecar_path(home / "demo" / made), sidecar_path(tmp_path / name))
    network = load_checkpoint(tmp_path / "model.safetensors").model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = (torch.zeros(2, 1, 28, 28),)
        torch.onnx.export(
            network,
            images,
            str(tmp_path / "foreign.onnx"),
            dynamo=False,
            dynamic_axes={"input": {0: "n"}},
            input_names=["input"],
        )
    Image.fromarray((load_digits().images[0] * 15).astype("uint8")).save(tmp_path / "digit.png")
    return tmp_path


def test_the_face_is_small() -> None:
    assert len(NAMES) == 19


@pytest.mark.parametrize("name", NAMES)
def test_its_example_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documented = getattr(alexdeploy, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(documented, name, globs={})
    assert test.examples, f"{name} has no example"
    monkeypatch.chdir(folder)
    told: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=told.append)
    assert not told, "".join(told)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_it(name: str) -> None:
    assert any(f"{name}(" in page.read_text() or f"`{name}`" in page.read_text() for page in (README, *GUIDE))
