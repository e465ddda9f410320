"""A file is opened once, and what was verified is what runs."""

from __future__ import annotations

import builtins
import hashlib
import io
import mmap
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import alexdeploy
from alexdeploy import files
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.engine.record import EngineRecord, read_engine, write_engine
from alexdeploy.errors import GateError, InputError, UnavailableError, UsageError
from alexdeploy.graph.model import load_onnx, split_weights
from alexdeploy.machine import why_no_cuda
from alexdeploy.runners.artifact import OnnxArtifact, load, open_artifact
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from alexdeploy.runners.runtimes import on_device
from alexdeploy.specs import Precision, Profile
from tests.helpers.graphs import conv_lrn_gemm, images

CONTRACT = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, labels=("ant", "bee", "cat", "dog"))


def with_contract(model: onnx.ModelProto) -> onnx.ModelProto:
    helper.set_model_props(model, {METADATA_KEY: CONTRACT.to_json()})
    return model


def test_the_ending_of_a_file_is_known_in_any_case(tmp_path: Path) -> None:
    onnx.save(with_contract(conv_lrn_gemm()), tmp_path / "MODEL.ONNX")
    assert open_artifact(tmp_path / "MODEL.ONNX").kind == "onnx"


def wide(lrn: bool) -> onnx.ModelProto:
    """The small network with weights that are large enough to be mapped, and the bytes "LRN" among them."""
    model = with_contract(conv_lrn_gemm())
    if not lrn:
        node = next(node for node in model.graph.node if node.op_type == "LRN")
        node.CopyFrom(helper.make_node("Identity", node.input, node.output, node.name))
    weights = np.random.default_rng(0).random((4, 4096), dtype=np.float32)
    weights.reshape(-1).view(np.uint8)[:3] = np.frombuffer(b"LRN", np.uint8)
    model.graph.initializer.append(numpy_helper.from_array(weights, "wide"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4096, np.float32), "zeros"))
    last = model.graph.node[-1]
    inner = [*last.output]
    last.output[:] = ["before"]
    model.graph.node.append(helper.make_node("MatMul", ["before", "wide"], ["widened"], "widen"))
    model.graph.node.append(helper.make_node("Add", ["widened", "zeros"], ["shifted"], "shift"))
    model.graph.initializer.append(numpy_helper.from_array(weights.T[:, :4].copy(), "narrow"))
    model.graph.node.append(helper.make_node("MatMul", ["shifted", "narrow"], inner, "narrow"))
    onnx.checker.check_model(model)
    return model


def stock(model: onnx.ModelProto, batch: Any) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": batch})[0]


@pytest.fixture(params=[True, False], ids=["with LRN", "without"])
def model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return wide(request.param)


def test_the_weights_are_handed_over_where_they_lie(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "model.onnx")
    light, weights = split_weights(load_onnx(tmp_path / "model.onnx"))
    assert set(weights) == {"wide", "zeros", "narrow"}
    assert len(light) < 20_000 < (tmp_path / "model.onnx").stat().st_size
    bases = [array.base for array in weights.values()]
    while any(isinstance(base, np.ndarray) for base in bases):
        bases = [base.base if isinstance(base, np.ndarray) else base for base in bases]
    assert all(isinstance(getattr(base, "obj", base), mmap.mmap) for base in bases), "a copy was made"
    with OnnxRuntimeRunner(light, weights) as runner:
        np.testing.assert_array_equal(runner.infer(images(3)), stock(model, images(3)))


def test_onnxruntime_maps_the_weights_of_a_file_itself(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    light, weights = split_weights(load_onnx(path), path)
    assert weights == {}
    assert len(light) < 20_000
    with OnnxRuntimeRunner(light, folder=tmp_path) as runner:
        np.testing.assert_array_equal(runner.infer(images(3)), stock(model, images(3)))


def test_a_link_to_a_file_elsewhere_is_loaded(model: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    onnx.save(model, tmp_path / "blobs" / "0f3a")
    (tmp_path / "model.onnx").symlink_to(tmp_path / "blobs" / "0f3a")
    with load(tmp_path / "model.onnx") as runner:
        np.testing.assert_allclose(runner.infer(images(3)), stock(model, images(3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_file_that_is_replaced_while_it_is_loaded_is_refused(
    in_place: bool, model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by one that has got its number on the device, as what is written over it has."""
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    artifact = OnnxArtifact(path)
    _ = artifact.model
    onnx.save(wide(lrn=False), tmp_path / "other.onnx")
    start = OnnxRuntimeRunner._start

    def replaced_meanwhile(runner: OnnxRuntimeRunner, options: ort.SessionOptions) -> ort.InferenceSession:
        session = start(runner, options)
        if runner._folder is not None and (tmp_path / "other.onnx").exists():
            if in_place:
                with path.open("r+b") as file:
                    file.write((tmp_path / "other.onnx").read_bytes())
            (tmp_path / "other.onnx").replace(tmp_path / "gone" if in_place else path)
        return session

    monkeypatch.setattr(OnnxRuntimeRunner, "_start", replaced_meanwhile)
    with pytest.raises(InputError, match="was replaced while it was being loaded"):
        artifact.runner()


def test_weights_may_lie_in_another_order_in_memory(tmp_path: Path) -> None:
    onnx.save(wide(lrn=True), tmp_path / "model.onnx")
    light, weights = split_weights(load_onnx(tmp_path / "model.onnx"))
    weights = {name: np.asfortranarray(array) for name, array in weights.items()}
    assert not all(array.flags.c_contiguous for array in weights.values())
    with OnnxRuntimeRunner(light, weights) as runner:
        np.testing.assert_array_equal(runner.infer(images(3)), stock(wide(lrn=True), images(3)))


def test_path_bytes_and_artifact_run_alike(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "model.onnx")
    expected = stock(model, images(3))
    path = tmp_path / "model.onnx"
    for source in (path, str(path), path.read_bytes(), open_artifact(path)):
        with alexdeploy.load(source) as runner:
            assert runner.runtime == "onnxruntime-cpu"
            np.testing.assert_allclose(runner.infer(images(3)), expected, rtol=1e-5, atol=1e-5)


def test_a_device_is_for_the_runtimes_on_a_gpu(model: onnx.ModelProto) -> None:
    content = model.SerializeToString()
    if why_no_cuda() is None:
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UnavailableError, match=r"onnxruntime-cuda: .*; onnxruntime-tensorrt: ") as refused:
        load(content, device="cuda:1")
    assert "onnxruntime-cpu" not in str(refused.value)
    with pytest.raises(UsageError, match="onnxruntime-cpu has no option 'device'; it has threads"):
        load(content, runtime="onnxruntime-cpu", device="cuda:1")
    with pytest.raises(UsageError, match="`device` gpu: expected cuda or cuda:N"):
        load(content, device="gpu")
    with pytest.raises(UsageError, match="`device` 1: expected cuda or cuda:N"):
        load(content, device=1)
    for runtime in (None, "onnxruntime-cpu"):
        with load(content, runtime=runtime, device=None) as runner:
            assert runner.runtime == "onnxruntime-cpu"
    assert on_device("onnxruntime-cpu", "cuda:1") == on_device("tensorrt", None) == {}
    assert on_device("tensorrt", "cuda:1") == {"device": "cuda:1"}


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(InputError, match="the model: not an ONNX file"):
        load(b"no model at all")
    with pytest.raises(UsageError, match="give its path"):
        load(b"\x10\0\0\0\0\0\0\0{a checkpoint}")
    for plan in (b"vtrt and more", b"ftrt and more"):
        with pytest.raises(UsageError, match="an engine in memory has no sidecar"):
            load(plan)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was opened, by name."""
    found: Counter[str] = Counter()
    real = io.open

    def counted(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if isinstance(file, str | os.PathLike) and "r" in mode and "+" not in mode:
            found[Path(file).name] += 1
        return real(file, mode, *arguments, **options)

    monkeypatch.setattr(io, "open", counted)
    monkeypatch.setattr(builtins, "open", counted)
    return found


def test_an_onnx_file_is_opened_once_to_be_described_and_run(
    model: onnx.ModelProto, tmp_path: Path, reads: Counter[str]
) -> None:
    onnx.save(model, tmp_path / "model.onnx")
    reads.clear()
    artifact = open_artifact(tmp_path / "model.onnx")
    assert artifact.precision == Precision.FP32
    assert artifact.layers()
    with artifact.runner() as runner:
        runner.infer(images(2))
    assert reads["model.onnx"] == 1


def engine(folder: Path, plan: bytes) -> Path:
    record = EngineRecord(
        builder="tensorrt",
        version="10.16.1.11",
        shapes={"input": Profile.parse("1:2:4").with_sizes((3, 8, 8))},
        precision=Precision.FP32,
        contract=CONTRACT,
        contract_sha256=CONTRACT.fingerprint,
    )
    write_engine(folder / "model.engine", plan, record, parents=(), options={})
    return folder / "model.engine"


def test_an_engine_is_read_once_and_hashed_once(
    tmp_path: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = engine(tmp_path, b"a plan")
    hashed = []
    monkeypatch.setattr(files, "sha256_file", lambda path: hashed.append(path))
    reads.clear()
    assert open_artifact(path).precision == Precision.FP32
    assert (reads["model.engine"], hashed) == (1, [])


def test_the_bytes_that_were_verified_are_those_that_are_kept(tmp_path: Path) -> None:
    path = engine(tmp_path, b"the plan that was built")
    file = read_engine(path)
    path.write_bytes(b"something else")
    assert file.plan == b"the plan that was built"
    assert hashlib.sha256(file.plan).hexdigest() == files.load_sidecar(path).sha256
    with pytest.raises(GateError, match="changed since it was written"):
        read_engine(path)


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    onnx.save(with_contract(conv_lrn_gemm()), tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    expected = hashlib.sha256(content).hexdigest()
    assert OnnxArtifact(tmp_path / "model.onnx").digest == OnnxArtifact(content).digest == expected
