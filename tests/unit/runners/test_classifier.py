from __future__ import annotations

import io
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image

import alexdeploy
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.errors import GateError, InputError, UnavailableError, UsageError
from tests.helpers.graphs import conv_lrn_gemm, images, run

CONTRACT = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, labels=("ant", "bee", "cat", "dog"))


PIXELS = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), np.uint8)


def save(proto: onnx.ModelProto, path: Path) -> Path:
    helper.set_model_props(proto, {METADATA_KEY: CONTRACT.to_json()})
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(conv_lrn_gemm(), tmp_path / "model.onnx")


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
    Image.fromarray(PIXELS[0]).save(tmp_path / "pixels.dds")
    dds = bytearray((tmp_path / "pixels.dds").read_bytes())
    dds[80:88] = b"\x04\0\0\0ABCD"  # a pixel format that Pillow does not know, for which it raises RuntimeError
    (tmp_path / "pixels.dds").write_bytes(dds)
    with alexdeploy.Classifier(str(model)) as classifier:
        with pytest.raises(UsageError, match=r"\(H, W\) or \(H, W, 3\) uint8"):
            classifier([np.zeros((8, 8, 3), np.float32)])
        with pytest.raises(InputError, match=r"text\.png"):
            classifier([tmp_path / "text.png"])
        with pytest.raises(InputError, match=r"cannot read image '.*pixels\.dds': Unimplemented pixel format"):
            classifier([tmp_path / "pixels.dds"])
        assert classifier([]) == []


def test_what_the_machine_lacks_is_no_fault_of_an_image(model: Path, tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "image.png")
    with alexdeploy.Classifier(model) as classifier:
        classifier([tmp_path / "image.png"])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(OSError, match=r"Too many open files: '.*image\.png'"):
                list(classifier.ranked([tmp_path / "image.png"], skipped=[]))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "given",
    ["a.png", b"a.png", Path("a.png"), Image.new("L", (8, 8)), PIXELS[0], PIXELS[0, :, :, 0], None, 7],
    ids=lambda given: type(given).__name__,
)
def test_one_image_in_place_of_a_list_is_refused(model: Path, given: Any) -> None:
    with alexdeploy.Classifier(model) as classifier, pytest.raises(UsageError, match="in place of a list of images"):
        classifier(given)


@pytest.mark.parametrize("given", [torch.zeros(3, 8, 8), b"a.png", None, 7], ids=lambda given: type(given).__name__)
def test_an_entry_that_is_no_image_is_named(model: Path, given: Any) -> None:
    with (
        alexdeploy.Classifier(model) as classifier,
        pytest.raises(UsageError, match=r"images\[1\] is .*a Pillow image"),
    ):
        classifier([PIXELS[0], given])


def test_any_iterable_of_images_is_taken(model: Path) -> None:
    with alexdeploy.Classifier(model) as classifier:
        assert classifier(image for image in PIXELS) == classifier(list(PIXELS)) == classifier(PIXELS)


def damaged(kind: str) -> Image.Image:
    if kind == "floats":
        return Image.new("F", (8, 8))
    file = io.BytesIO()
    Image.fromarray(np.tile(PIXELS[0], (16, 16, 1))).save(file, kind)
    return Image.open(io.BytesIO(file.getvalue()[: -len(file.getvalue()) // 4]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "floats"])
def test_a_damaged_pillow_image_is_an_input_error_of_one_line(model: Path, kind: str) -> None:
    with alexdeploy.Classifier(model) as classifier:
        with pytest.raises(InputError, match=r"cannot read image 'images\[1\]': .+") as error:
            classifier([PIXELS[0], damaged(kind)])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "image",
    [np.zeros((0, 8, 3), np.uint8), np.zeros((8, 0), np.uint8), Image.new("RGB", (0, 0))],
    ids=["no rows", "no columns", "Pillow"],
)
@pytest.mark.parametrize("ten_crop", [False, True])
def test_an_image_without_pixels_has_no_answer(model: Path, image: Any, ten_crop: bool) -> None:
    said = r"cannot read image 'images\[0\]': it has no pixels: \d x \d$"
    with alexdeploy.Classifier(model, ten_crop=ten_crop) as classifier, pytest.raises(InputError, match=said):
        classifier([image])


def test_a_mask_is_not_dropped(model: Path) -> None:
    masked: Any = np.ma.masked_array(PIXELS[0], PIXELS[0] > 100)
    with alexdeploy.Classifier(model) as classifier:
        with pytest.raises(UsageError, match=r"images\[0\] is a masked array"):
            classifier([masked])
        assert classifier([np.ma.masked_array(PIXELS[0])]) == classifier([PIXELS[0]])


def test_a_closed_one_refuses_even_no_images(model: Path) -> None:
    classifier = alexdeploy.Classifier(model)
    assert classifier([]) == []
    classifier.close()
    with pytest.raises(UsageError, match="closed"):
        classifier([])


def test_the_likeliest_classes_come_best_first_across_batches(model: Path) -> None:
    (logits,) = run(conv_lrn_gemm(), ((PIXELS / np.float32(255) - 0.5) / 0.25).astype(np.float32).transpose(0, 3, 1, 2))
    shares = torch.from_numpy(logits).softmax(1)
    with alexdeploy.Classifier(model) as classifier:
        found = list(classifier.ranked(PIXELS, 3))
        assert [len(answers) for _, answers in classifier.ranked(PIXELS[:2], 9)] == [4, 4]
    assert [position for position, _ in found] == list(range(40))
    values, places = shares.topk(3)
    assert [[label for label, _ in answers] for _, answers in found] == [
        [CONTRACT.labels[place] for place in row] for row in places.tolist()
    ]
    np.testing.assert_allclose([[share for _, share in answers] for _, answers in found], values, rtol=1e-4)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinite")])
@pytest.mark.parametrize("ten_crop", [False, True])
def test_logits_that_are_not_finite_are_no_answer(tmp_path: Path, value: float, kind: str, ten_crop: bool) -> None:
    proto = conv_lrn_gemm()
    (bias,) = [weight for weight in proto.graph.initializer if weight.name == "b2"]
    bias.CopyFrom(numpy_helper.from_array(np.array([0, value, 0, 0], np.float32), "b2"))
    path = save(proto, tmp_path / "broken.onnx")
    said = rf"broken\.onnx: its logits are {kind} for image 'images\[0\]'"
    with alexdeploy.Classifier(path, ten_crop=ten_crop) as classifier, pytest.raises(GateError, match=said):
        classifier([PIXELS[0]])


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
