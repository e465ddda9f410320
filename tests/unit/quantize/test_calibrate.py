"""The pass over the data: one test per defect seen in the field (style.md), besides its numbers."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import InputError
from alexdeploy.graph.model import save_onnx
from alexdeploy.quantize.calibrate import BATCH, calibrate, samples_first
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from tests.helpers.graphs import Array, conv_lrn_gemm, make_model, run

CONTRACT = Contract(color="rgb", crop=8, mean=(0.0,) * 3, std=(1.0,) * 3)
COUNT = 2 * BATCH + 5


def pixels(bright: int | None = None, count: int = COUNT) -> Array:
    """Dim images, one of them bright."""
    found = np.random.default_rng(0).integers(0, 100, (count, 8, 8, 3), dtype=np.uint8)
    if bright is not None:
        found[bright] = 255
    return found


def dataset(images: Array, *, skip_bad: bool = False, unreadable: frozenset[int] = frozenset()) -> ImageDataset:
    def read(index: int) -> Image.Image:
        if index in unreadable:
            raise OSError("truncated")
        return Image.fromarray(images[index])

    labels = np.zeros(len(images), np.int64)
    return ImageDataset("dim/train", ("a", "b"), [str(i) for i in range(len(images))], labels, read, skip_bad)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return store(conv_lrn_gemm(), tmp_path)


def store(proto: onnx.ModelProto, folder: Path) -> Path:
    loaded = ir.from_proto(proto)
    loaded.metadata_props[METADATA_KEY] = CONTRACT.to_json()
    save_onnx(loaded, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("bright", [0, BATCH - 1, BATCH, 2 * BATCH, COUNT - 1])
def test_any_one_image_shows_in_the_ranges(model: Path, bright: int) -> None:
    seen = calibrate(model, dataset(pixels(bright)), samples=COUNT)
    assert seen.tensors["input"]["minmax"] == 1.0
    assert calibrate(model, dataset(pixels()), samples=COUNT).tensors["input"]["minmax"] < 0.4


def test_ranges_and_receipt_are_those_of_the_float_graph_on_all_images(model: Path) -> None:
    seen = calibrate(model, dataset(pixels(7)), samples=COUNT)
    batch = pixels(7).transpose(0, 3, 1, 2).astype(np.float32) / 255
    proto = conv_lrn_gemm()
    for name in ("conv1", "relu1", "flatten1"):
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    del proto.graph.value_info[:]
    session = dict(zip(("logits", "conv1", "relu1", "flatten1"), _all_outputs(proto, batch), strict=True))
    assert seen.samples == COUNT
    assert seen.tensors.keys() == {"input", "relu1", "flatten1"}
    for name, values in seen.tensors.items():
        expected = batch if name == "input" else session[name]
        assert values["samples"] == COUNT
        assert values["minmax"] == pytest.approx(np.abs(expected).max(), rel=1e-5)
        assert values["min"] == pytest.approx(min(0.0, expected.min()), rel=1e-5)
    squares = np.pad(session["relu1"].astype(np.float64) ** 2, ((0, 0), (2, 2), (0, 0), (0, 0)))
    sums = sum(squares[:, i : i + 8] for i in range(5))
    assert seen.largest["lrn1"] == pytest.approx(np.max(sums), rel=1e-3)
    assert seen.largest["conv1"] == pytest.approx(session["conv1"].max(), rel=1e-5), "behind its ReLU"
    assert seen.largest["logits"] == pytest.approx(np.abs(session["logits"]).max(), rel=1e-5)


def _all_outputs(proto: onnx.ModelProto, batch: Array) -> list[Array]:
    shaped = onnx.shape_inference.infer_shapes(proto)
    return run(shaped, batch)


def test_the_same_call_twice_gives_the_same(model: Path) -> None:
    assert calibrate(model, dataset(pixels(3)), samples=20) == calibrate(model, dataset(pixels(3)), samples=20)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_bytes", [1, 1 << 12, 1 << 30])
def test_neither_threads_nor_the_size_of_batches_changes_the_ranges(
    model: Path, monkeypatch: pytest.MonkeyPatch, threads: int, batch_bytes: int
) -> None:
    expected = calibrate(model, dataset(pixels(3)), samples=COUNT)
    monkeypatch.setattr("alexdeploy.quantize.calibrate.cores", lambda: threads)
    monkeypatch.setattr("alexdeploy.quantize.calibrate._BATCH_BYTES", batch_bytes)
    monkeypatch.setattr("alexdeploy.quantize.calibrate._BYTES_AT_ONCE", 2 * batch_bytes)
    seen = calibrate(model, dataset(pixels(3)), samples=COUNT)
    assert seen.samples == COUNT
    for name, values in expected.tensors.items():
        assert seen.tensors[name] == pytest.approx(values, rel=1e-5)


def test_a_nan_is_named_with_tensor_and_sample(tmp_path: Path) -> None:
    proto = conv_lrn_gemm()
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "b1")
    bias.raw_data = np.full(8, np.nan, np.float32).tobytes()
    with pytest.raises(InputError, match=r"tensor '(relu1|flatten1)' holds NaN or Inf at sample 0"):
        calibrate(store(proto, tmp_path), dataset(pixels()), samples=COUNT)


def test_an_image_that_cannot_be_read_ends_calibration_with_its_name(model: Path) -> None:
    with pytest.raises(InputError, match=f"cannot read image '{BATCH + 3}'"):
        calibrate(model, dataset(pixels(), unreadable=frozenset({BATCH + 3})), samples=COUNT)


def test_skipped_images_are_not_in_the_receipt(model: Path) -> None:
    images = dataset(pixels(), skip_bad=True, unreadable=frozenset({0, BATCH + 2}))
    seen = calibrate(model, images, samples=COUNT)
    assert seen.samples == COUNT - 2
    assert {values["samples"] for values in seen.tensors.values()} == {COUNT - 2}
    assert images.skipped == ["0", str(BATCH + 2)]


def test_no_readable_image_at_all_is_an_error_not_a_random_calibration(model: Path) -> None:
    images = dataset(pixels(count=3), skip_bad=True, unreadable=frozenset({0, 1, 2}))
    with pytest.raises(InputError, match="none of the 3 images"):
        calibrate(model, images, samples=3)


@pytest.mark.parametrize("batch", ["batch", BATCH])
def test_any_token_of_any_image_shows_where_the_tokens_come_first(batch: int | str, tmp_path: Path) -> None:
    """16 tokens are twice the images of a batch, and yet no axis of images; the last batch is filled up."""
    nodes = [
        onnx.helper.make_node("AveragePool", ["input"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        onnx.helper.make_node("Transpose", ["pooled"], ["turned"], "turn", perm=[2, 3, 0, 1]),
        onnx.helper.make_node("Reshape", ["turned", "rows"], ["tokens"], "tokens"),
        onnx.helper.make_node("MatMul", ["tokens", "w"], ["wide"], "mm"),
        onnx.helper.make_node("ReduceMean", ["wide", "first"], ["logits"], "mean", keepdims=0),
    ]
    weights = {"w": np.ones((3, 4), np.float32), "rows": np.array([16, -1, 3]), "first": np.array([0])}
    model = store(make_model(nodes, weights, rank=2, shape=(batch, 3, 8, 8)), tmp_path)
    for image in (0, BATCH, COUNT - 1):
        bright = pixels()
        bright[image, 6:, 6:] = 255
        assert calibrate(model, dataset(bright), samples=COUNT).tensors["tokens"]["minmax"] == 1.0


SHAPES = {
    "images": (("batch", 3), (8, 3), (8, 3)),
    "windows": (("windows", 3), (32, 3), (32, 3)),
    "tokens": ((16, "batch", 3), (16, 8, 3), (8, 16, 3)),
    "as many tokens": ((8, "batch", 3), (8, 8, 3), (8, 8, 3)),
    "frozen": ((8, 3), (8, 3), (8, 3)),
    "unknown": (None, (8, 3), (8, 3)),
    "no axis": ((5, 3), (5, 3), (1, 5, 3)),
    "scalar": ((), (), (1,)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_axis_of_the_images_comes_first(name: str) -> None:
    known, sizes, expected = SHAPES[name]
    shape = None if known is None else ir.Shape(known)
    activation = np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes)
    found = samples_first(activation, shape, 8, 8)
    assert found.shape == expected
    assert sorted(found.ravel()) == sorted(activation.ravel())
    if name in ("tokens", "as many tokens"):
        np.testing.assert_array_equal(found[5], activation[:, 5])


def test_one_image_whose_batch_a_squeeze_took_away_is_one_image() -> None:
    assert samples_first(np.zeros(16, np.float32), None, 1, 1).shape == (1, 16)


@pytest.mark.parametrize(
    ("sizes", "expected"), [((8, 3), (3, 3)), ((16, 8, 3), (16, 8, 3)), ((8, 8, 3), (8, 8, 3)), ((), (1,))]
)
def test_what_fills_a_frozen_batch_is_cut_off_only_where_its_axis_is_plain(
    sizes: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert samples_first(np.zeros(sizes, np.float32), ir.Shape(sizes), 8, 3).shape == expected


def many_convolutions(count: int = 12, channels: int = 64) -> onnx.ModelProto:
    """A chain of convolutions of 8×8 maps: 16 KiB observed for each image at every layer, 36,864 weights each."""
    rng = np.random.default_rng(0)
    nodes, constants = [], {}
    value, depth = "input", 3
    for index in range(count):
        constants[f"w{index}"] = rng.standard_normal((channels, depth, 3, 3)).astype(np.float32) / channels
        nodes.append(
            onnx.helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], name=f"conv{index}", pads=[1] * 4)
        )
        value, depth = f"c{index}", channels
    nodes += [
        onnx.helper.make_node("GlobalAveragePool", [value], ["mean"]),
        onnx.helper.make_node("Flatten", ["mean"], ["logits"]),
    ]
    return make_model(nodes, constants, rank=2)


class Watched(OnnxRuntimeRunner):
    """Counts the bytes of activations that calls under way give, and how many there are."""

    graph_bytes = 0
    sizes: ClassVar[list[int]] = []
    most: ClassVar[list[tuple[int, int]]] = []
    _lock = Lock()

    def __init__(self, model: bytes, *args: Any, **options: Any) -> None:
        Watched.graph_bytes = len(model)
        Watched.sizes, Watched.most = [], []
        super().__init__(model, *args, **options)

    def run(self, batch: Array) -> dict[str, Array]:
        found = super().run(batch)
        size = batch.nbytes + sum(array.nbytes for array in found.values())
        with self._lock:
            self.sizes.append(size)
            self.most.append((len(self.sizes), sum(self.sizes)))
        time.sleep(0.01)  # so that others come
        with self._lock:
            self.sizes.remove(size)
        return found


@pytest.mark.parametrize(("mebibytes", "calls"), [(2, 1), (5, 3)])
def test_activations_under_way_are_bounded_by_bytes_on_any_number_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mebibytes: int, calls: int
) -> None:
    """11 tensors of 8 images are 1.4 MiB, ONNX Runtime's own and the columns for the moments besides."""
    monkeypatch.setattr("alexdeploy.quantize.calibrate.OnnxRuntimeRunner", Watched)
    monkeypatch.setattr("alexdeploy.quantize.calibrate.cores", lambda: 8)
    monkeypatch.setattr("alexdeploy.quantize.calibrate._BYTES_AT_ONCE", mebibytes << 20)
    path = store(many_convolutions(), tmp_path)
    assert calibrate(path, dataset(pixels(count=64)), samples=64, moments=False).samples == 64
    assert max(size for _, size in Watched.most) <= mebibytes << 20
    assert max(count for count, _ in Watched.most) <= calls
    assert Watched.graph_bytes < path.stat().st_size / 10, "the weights are mapped, not copied"


def test_columns_for_the_moments_count_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few images more columns are taken of each, here 64 places of 576 inputs at 11 layers: 1.5 MiB an image."""
    monkeypatch.setattr("alexdeploy.quantize.calibrate.OnnxRuntimeRunner", Watched)
    monkeypatch.setattr("alexdeploy.quantize.calibrate.cores", lambda: 8)
    monkeypatch.setattr("alexdeploy.quantize.calibrate._BYTES_AT_ONCE", 14 << 20)
    calibrate(store(many_convolutions(), tmp_path), dataset(pixels(count=64)), samples=64)
    assert max(count for count, _ in Watched.most) == 1


def test_a_file_that_is_replaced_meanwhile_gives_no_ranges(tmp_path: Path) -> None:
    path = store(conv_lrn_gemm(), tmp_path)
    other = path.read_bytes()

    def replace(_: str, share: float) -> None:  # noqa: ARG001
        (tmp_path / "other").write_bytes(other)
        (tmp_path / "other").replace(path)

    with pytest.raises(InputError, match="was replaced while it was being read; calibrate again"):
        calibrate(path, dataset(pixels()), samples=COUNT, progress=replace)
