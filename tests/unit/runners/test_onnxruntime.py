from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from alexdeploy.errors import InputError, UnavailableError
from alexdeploy.graph.lrn import lower
from alexdeploy.graph.model import load_onnx, model_bytes
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.runners import onnxruntime, onnxruntime_gpu
from alexdeploy.runners.artifact import load
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from alexdeploy.runners.onnxruntime_gpu import CudaRunner, TensorRtProviderRunner
from alexdeploy.specs import Precision
from tests.helpers.graphs import conv_lrn_gemm, conv_lrn_gemm_in_torch, images, run

MODEL = conv_lrn_gemm()
RANGES = {"input": TensorRange(4.0), "relu1": TensorRange(5.0, True), "flatten1": TensorRange(2.0, True)}


def test_infers_what_the_graph_says_at_any_batch() -> None:
    with OnnxRuntimeRunner(MODEL.SerializeToString()) as runner:
        assert (runner.input.name, runner.input.shape[1:], runner.classes) == ("input", (3, 8, 8), 4)
        for count in (1, 5, 3):
            expected = conv_lrn_gemm_in_torch(images(count))
            np.testing.assert_allclose(runner.infer(images(count)), expected, rtol=1e-5, atol=1e-5)
            bound: Any = runner.device_call(images(count))()
            np.testing.assert_allclose(bound[0].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_the_integer_kernels_give_the_answers_of_the_quantized_graph() -> None:
    model = insert_qdq(ir.from_proto(MODEL), RANGES, dialect="onnxruntime")
    batch = images(64)
    (expected,) = run(model, batch)  # node by node, in float between Q and DQ
    actual = OnnxRuntimeRunner(ir.to_proto(model).SerializeToString()).infer(batch)
    error = np.abs(actual - expected) / np.abs(expected).max()
    assert error.max() <= 1 / 255, "a rounding tie may fall to the other side in another kernel"
    assert error.mean() <= 1 / 2550


def test_a_fast_lrn_that_is_not_the_native_one_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    band = lower.band
    monkeypatch.setattr(lower, "band", lambda channels, size: band(channels, size - 2))
    with pytest.warns(UserWarning, match=r"fast form of LRN 'lrn1' is .* away"):
        runner = load(MODEL.SerializeToString(), runtime="onnxruntime-cpu")
    np.testing.assert_allclose(runner.infer(images()), run(MODEL, images())[0], rtol=1e-5, atol=1e-5)
    wrong = OnnxRuntimeRunner(model_bytes(lower.lower_lrn(load_onnx(MODEL.SerializeToString()))))
    assert np.abs(wrong.infer(images()) - runner.infer(images())).max() > 1e-4, "or the test shows nothing"


def test_what_onnx_runtime_refuses_comes_with_its_own_words() -> None:
    with pytest.raises(InputError, match="ONNX Runtime cannot load"):
        OnnxRuntimeRunner(b"not a model")
    with pytest.raises(InputError, match="LRN"):
        OnnxRuntimeRunner(conv_lrn_gemm(lrn_size=4).SerializeToString())


@pytest.mark.parametrize("runner", [CudaRunner, TensorRtProviderRunner])
def test_a_gpu_provider_that_this_onnxruntime_lacks_is_not_replaced_by_the_cpu(runner: type[CudaRunner]) -> None:
    if runner._provider in ort.get_available_providers():
        pytest.skip("this onnxruntime has GPU providers")
    with pytest.raises(UnavailableError, match=rf"has no {runner._provider}.*pip install onnxruntime-gpu"):
        runner(MODEL.SerializeToString(), Precision.FP32)


def test_a_session_that_started_elsewhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's ONNX Runtime, claiming to have the provider, as onnxruntime-gpu does without its libraries."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime_gpu, "why_no_cuda", lambda ordinal: None)
    monkeypatch.setattr(onnxruntime_gpu, "load_libraries", lambda provider: None)
    with (
        pytest.warns(UserWarning, match="not in available"),
        pytest.raises(UnavailableError, match="CUDAExecutionProvider did not start, ONNX Runtime fell back to CPU"),
    ):
        CudaRunner(MODEL.SerializeToString(), Precision.FP32)


def test_options_follow_the_precision_and_int8_on_cuda_is_refused() -> None:
    for precision in (Precision.INT8, Precision.INT8_FP16, Precision.FP8):
        with pytest.raises(UnavailableError, match=r"no INT8 or FP8 convolution.*onnxruntime-tensorrt"):
            CudaRunner(MODEL.SerializeToString(), precision)
    assert CudaRunner.defaults(Precision.FP16) == {"use_tf32": "0"}
    assert TensorRtProviderRunner.defaults(Precision.INT8_FP16) == {"trt_fp16_enable": "1", "trt_int8_enable": "1"}
    assert TensorRtProviderRunner.defaults(Precision.FP32) == {"trt_fp16_enable": "0", "trt_int8_enable": "0"}


def test_a_provider_knows_whether_it_computes_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of TensorRT has no option for it: NVIDIA's libraries go by their variable."""
    assert not CudaRunner._computes_in_tf32(CudaRunner.defaults(Precision.FP32))
    assert CudaRunner._computes_in_tf32({"use_tf32": "1"})
    for value, answer in (("0", False), (None, True)):
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
        if value is not None:
            monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
        assert TensorRtProviderRunner._computes_in_tf32(TensorRtProviderRunner.defaults(Precision.FP32)) is answer


def test_a_frozen_batch_is_served_in_pieces() -> None:
    frozen = onnx.ModelProto()
    frozen.CopyFrom(MODEL)
    frozen.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    runner = OnnxRuntimeRunner(frozen.SerializeToString())
    expected = OnnxRuntimeRunner(MODEL.SerializeToString()).infer(images(5))
    np.testing.assert_allclose(runner.infer(images(5)), expected, rtol=1e-5, atol=1e-6)
    whole: Any = runner.device_call(images(5))()
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("saturates", [True, False])
def test_sums_of_int8_are_made_exact_only_where_they_would_saturate(
    saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "saturates_int8", lambda: saturates)
    set_ones: list[str] = []
    monkeypatch.setattr(
        ort.SessionOptions, "add_session_config_entry", lambda _, key, value: set_ones.append(f"{key}={value}")
    )
    onnxruntime.session_options()
    assert ("session.x64quantprecision=1" in set_ones) is saturates


def test_a_profile_that_the_disk_did_not_take_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = OnnxRuntimeRunner(MODEL.SerializeToString())
    monkeypatch.setattr(Path, "read_bytes", lambda _path: b'[{"cat": "Nod')
    with pytest.raises(UnavailableError, match="ONNX Runtime's profile is cut off; free space there"):
        runner.layer_times_ms(images(2))
