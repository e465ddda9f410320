from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.errors import GateError, InputError
from alexdeploy.graph.taps import with_outputs
from alexdeploy.quantize import moments as moments_module
from alexdeploy.quantize.moments import Moments, MomentsObserver, moments_path
from tests.helpers.graphs import Array, conv_lrn_gemm, make_model, run

INNER = ["flatten1"]


def activations(batch: Array) -> dict[str, Array]:
    return {"input": batch, "flatten1": run(with_outputs(ir.from_proto(conv_lrn_gemm()), INNER), batch)[0]}


def observed(batches: list[Array]) -> Moments:
    observer = MomentsObserver(ir.from_proto(conv_lrn_gemm()), sum(map(len, batches)))
    first = 0
    for batch in batches:
        observer.add(observer.columns(activations(batch), first, len(batch)))
        first += len(batch)
    return observer.result()


@pytest.fixture
def images() -> Array:
    return np.random.default_rng(1).standard_normal((32, 3, 8, 8)).astype(np.float32) * 3 + 1


def test_means_and_covariances_are_those_of_numpy(images: Array) -> None:
    """Of 32 images with 2048 columns asked for, every place of the convolution is taken."""
    found = observed([images[:24], images[24:]])
    flat = activations(images)["flatten1"]
    layer = found.layer("fc2")
    assert layer is not None
    np.testing.assert_allclose(layer.mean[0], flat.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.blocks[0][0], np.cov(flat.T, bias=True), rtol=1e-4, atol=1e-4)
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    columns = patches.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 27)
    layer = found.layer("conv1")
    assert layer is not None
    np.testing.assert_allclose(layer.mean[0], columns.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(layer.blocks[0][0], np.cov(columns.T, bias=True), rtol=1e-3, atol=1e-3)


def test_a_wide_layer_is_kept_in_blocks_along_the_diagonal(images: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = observed([images]).layer("fc2")
    monkeypatch.setattr(moments_module, "BLOCK", 50)
    parts = observed([images]).layer("fc2")
    assert whole is not None
    assert parts is not None
    sizes = [block.shape[-1] for block in parts.blocks]
    assert max(sizes) <= 50
    assert sum(sizes) == 128
    start = sizes[0]
    second = whole.blocks[0][:, start : start + sizes[1], start : start + sizes[1]]
    np.testing.assert_allclose(parts.blocks[1], second, rtol=1e-4, atol=1e-5)


def test_memory_does_not_depend_on_the_number_of_images() -> None:
    model = ir.from_proto(conv_lrn_gemm())
    assert MomentsObserver(model, 16).nbytes == MomentsObserver(model, 100_000).nbytes
    columns = MomentsObserver(model, 100_000).columns(activations(np.ones((2, 3, 8, 8), np.float32)), 0, 2)
    assert columns["conv1"].shape == (1, 2, 27), "of very many images, one place of each"


def test_the_file_belongs_to_one_range_file(images: Array, tmp_path: Path) -> None:
    found = observed([images])
    path = moments_path(tmp_path / "mine.json")
    assert path.name == "mine.json.moments.safetensors"
    with pytest.raises(InputError, match=r"mine.json.moments.safetensors: missing; calibrate wrote it beside"):
        Moments(path=path, digest=found.sha256).layer("fc2")
    path.write_bytes(found.data)
    again = Moments(path=path, digest=found.sha256).layer("fc2")
    assert again is not None
    assert np.array_equal(again.blocks[0], found.layer("fc2").blocks[0])  # type: ignore[union-attr]
    with pytest.raises(GateError, match="belongs to another range file"):
        Moments(path=path, digest="0" * 64).layer("fc2")


def test_the_result_takes_the_memory_of_the_sums() -> None:
    """4096 inputs, four blocks of 4 MiB: their file, and no second set of sums."""
    nodes = [helper.make_node("Gemm", ["input", "w"], ["logits"], name="fc", transB=1)]
    proto = make_model(nodes, {"w": np.zeros((2, 4096), np.float32)}, shape=("batch", 4096), rank=2)
    observer = MomentsObserver(ir.from_proto(proto), 8)
    batch = np.random.default_rng(0).standard_normal((8, 4096)).astype(np.float32)
    observer.add(observer.columns({"input": batch}, 0, 8))
    tracemalloc.start()
    try:
        found = observer.result()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * observer.nbytes
    layer = found.layer("fc")
    assert layer is not None
    np.testing.assert_allclose(layer.blocks[1][0], np.cov(batch.T[1024:2048], bias=True), rtol=1e-4, atol=1e-5)
