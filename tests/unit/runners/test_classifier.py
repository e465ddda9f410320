from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from PIL import Image

import alexdeploy
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.errors import InputError, UnavailableError, UsageError
from tests.helpers.graphs import conv_lrn_gemm, images, run

CONTRACT = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, labels=("ant", "bee", "cat", "dog"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    proto = conv_lrn_gemm()
    helper.set_model_props(proto, {METADATA_KEY: CONTRACT.to_json()})
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_paths_images_and_arrays_give_the_same(model: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    (logits,) = run(
        conv_lrn_gemm(), ((pixels / np.float32(255) - 0.5) / 0.25).astype(np.float32).transpose(2, 0, 1)[None]
    )
    share = np.exp(logits[0]) / np.exp(logits[0]).sum()
    with alexdeploy.Classifier(model) as classifier:
        answers = classifier([tmp_path / "image.png", str(tmp_path / "image.png"), image, pixels])
    assert {label for label, _ in answers} == {CONTRACT.labels[int(share.argmax())]}
    assert [probability for _, probability in answers] == pytest.approx([share.max()] * 4, rel=1e-4)


def test_what_is_no_image_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with alexdeploy.Classifier(str(model)) as classifier:
        with pytest.raises(UsageError, match=r"\(H, W\) or \(H, W, 3\) uint8"):
            classifier([np.zeros((8, 8, 3), np.float32)])
        with pytest.raises(InputError, match=r"text\.png"):
            classifier([tmp_path / "text.png"])
        assert classifier([]) == []


def test_load_gives_a_runner_for_any_file(model: Path) -> None:
    with alexdeploy.load(model) as runner:
        np.testing.assert_allclose(runner.infer(images(3)), run(conv_lrn_gemm(), images(3))[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="does not run on tensorrt; it runs on onnxruntime-cpu"):
        alexdeploy.load(model, runtime="tensorrt")
    with pytest.raises(InputError, match="no such file"):
        alexdeploy.load("nothing.engine")


def test_a_runtime_gets_its_own_options_and_no_others(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alexdeploy.runners import onnxruntime

    asked: list[int | None] = []
    start = onnxruntime.OnnxRuntimeRunner.__init__

    def remember(self: Any, *model: Any, threads: int | None = None, **more: Any) -> None:
        asked.append(threads)
        start(self, *model, threads=threads, **more)

    monkeypatch.setattr(onnxruntime.OnnxRuntimeRunner, "__init__", remember)
    alexdeploy.load(model, threads=1).close()
    alexdeploy.Classifier(model, runtime="onnxruntime-cpu", threads=2).runner.close()
    assert {1, 2} <= set(asked)
    with pytest.raises(UsageError, match=r"onnxruntime-cpu has no option 'contexts'; it has threads"):
        alexdeploy.load(model, contexts=2)
    monkeypatch.delitem(sys.modules, "alexdeploy.runners.onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match=r"onnxruntime-cpu: .*not installed"):
        alexdeploy.load(model, threads=1)


def test_a_foreign_model_without_a_contract_loads_but_labels_nothing(tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(conv_lrn_gemm().SerializeToString())
    alexdeploy.load(path).close()
    with pytest.raises(InputError, match="contract"):
        alexdeploy.Classifier(path)


def test_a_library_that_is_missing_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("onnxruntime", "openvino"):
        monkeypatch.setitem(__import__("sys").modules, library, None)
    for runner in ("onnxruntime", "onnxruntime_gpu", "openvino"):
        monkeypatch.delitem(__import__("sys").modules, f"alexdeploy.runners.{runner}", raising=False)
    with pytest.raises(UnavailableError, match="pip install onnxruntime"):
        alexdeploy.load(model)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = alexdeploy.nothing
