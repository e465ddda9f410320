"""Precision in the graph: what must be refused before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import safetensors.numpy

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.errors import InputError, InputWarning, UsageError
from alexdeploy.files import sha256_file
from alexdeploy.graph.model import contract_of, load_onnx, precision_of, save_onnx
from alexdeploy.graph.qdq import TensorRange
from alexdeploy.graph.weighted import quantized_nodes
from alexdeploy.quantize.apply import PrecisionSettings, QuantizedWriter, with_precision
from alexdeploy.quantize.methods import METHODS
from alexdeploy.quantize.moments import Moments
from alexdeploy.quantize.rangefile import RangeFile
from alexdeploy.quantize.tensorrt_cache import CalibrationCache
from alexdeploy.specs import Precision
from tests.helpers.graphs import conv_lrn_gemm


def test_int8_without_ranges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="INT8 needs ranges"):
        with_precision(tmp_path / "m.onnx", settings=PrecisionSettings(int8=True))
    with pytest.raises(UsageError, match="FP8 needs ranges"):
        with_precision(tmp_path / "m.onnx", settings=PrecisionSettings(fp8=True))
    with pytest.raises(UsageError, match="`lrn_fp16` is for `fp16`"):
        PrecisionSettings(lrn_fp16=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"int8": True, "fp8": True}, "`int8` and `fp8`"),
        ({"fp16": True, "bf16": True}, "`fp16` and `bf16`"),
        ({"fp8": True, "dialect": "openvino"}, "openvino has no FP8 kernels"),
        ({"bf16": True, "lrn_fp16": True}, "`lrn_fp16` is for `fp16`"),
    ],
)
def test_types_that_exclude_each_other_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        PrecisionSettings(**settings)


def test_the_graph_scored_is_in_the_types_asked_for() -> None:
    model, ranges = ir.from_proto(conv_lrn_gemm()), {"input": TensorRange(4.0), "flatten1": TensorRange(2.0)}
    cache = CalibrationCache(name="c", sha256="0", calibrator="t", amax={"input": 4.0, "flatten1": 2.0})
    for settings, expected in (
        (PrecisionSettings(fp8=True), Precision.FP8),
        (PrecisionSettings(fp8=True, fp16=True), Precision.FP8_FP16),
        (PrecisionSettings(fp8=True, bf16=True), Precision.FP8_BF16),
        (PrecisionSettings(int8=True, bf16=True), Precision.INT8_BF16),
    ):
        assert precision_of(QuantizedWriter(cache, settings)(model, ranges)) is expected


def test_a_range_file_that_left_its_moments_behind_is_told_of_and_gptq_refused(tmp_path: Path) -> None:
    model = ir.from_proto(conv_lrn_gemm())
    tensors = {name: {**dict.fromkeys(METHODS, 2.0), "min": 0.0, "samples": 1} for name in ("input", "flatten1")}
    moments = Moments(path=tmp_path / "ranges.json.moments.safetensors", digest="0" * 64)
    seen = RangeFile(model_sha256="", contract="", dataset={}, samples=1, tensors=tensors, moments=moments)
    with pytest.warns(InputWarning, match=r"ranges.json.moments.safetensors is missing.*rounded to the nearest"):
        writer = QuantizedWriter(seen, PrecisionSettings(int8=True))
    assert writer.rounding == "nearest"
    assert len(quantized_nodes(writer(model, seen.of("minmax")))) == 2
    asked = QuantizedWriter(seen, PrecisionSettings(int8=True, rounding="gptq"))
    with pytest.raises(InputError, match="missing; calibrate wrote it beside"):
        asked(model, seen.of("minmax"))


def test_gptq_without_moments_or_for_fp8_is_refused() -> None:
    cache = CalibrationCache(name="cache", sha256="", calibrator="", amax={})
    with pytest.raises(UsageError, match="`rounding` gptq needs the moments"):
        QuantizedWriter(cache, PrecisionSettings(int8=True, rounding="gptq"))
    with pytest.raises(UsageError, match="`rounding` gptq is for INT8"):
        QuantizedWriter(cache, PrecisionSettings(fp8=True, rounding="gptq"))


def test_a_layer_that_is_kept_in_float_is_not_told_to_be_rounded_to_the_nearest() -> None:
    model, tensors = ir.from_proto(conv_lrn_gemm()), {"input": TensorRange(4.0), "flatten1": TensorRange(2.0)}
    seen = RangeFile(model_sha256="", contract="", dataset={}, samples=64, tensors={}, moments=nothing())
    writer = QuantizedWriter(seen, PrecisionSettings(int8=True))
    writer(model, tensors)
    assert set(writer.nearest) == {"conv1", "fc2"}
    writer(model, tensors, keep_float=["fc2"])
    assert writer.nearest == ("conv1",)


def nothing() -> Moments:
    return Moments(data=safetensors.numpy.save({}))


@pytest.mark.parametrize("int8", [False, True])
def test_the_certificate_of_lrn_in_fp16_is_kept_by_whoever_writes_it(int8: bool, tmp_path: Path) -> None:
    model = ir.from_proto(conv_lrn_gemm())
    model.metadata_props[METADATA_KEY] = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3).to_json()
    save_onnx(model, tmp_path / "m.onnx")
    tensors = {name: {**dict.fromkeys(METHODS, 2.0), "min": 0.0, "samples": 1} for name in ("input", "flatten1")}
    seen = RangeFile(
        model_sha256=sha256_file(tmp_path / "m.onnx"),
        contract=contract_of(model, "m").fingerprint,
        dataset={},
        samples=1,
        tensors=tensors,
        largest={"lrn1": 655.04, "conv1": 30.0, "logits": 5.0},
    )
    settings = PrecisionSettings(int8=int8, fp16=True, lrn_fp16=True)
    prepared = with_precision(tmp_path / "m.onnx", seen, settings=settings)
    assert prepared.options["lrn_fp16_headroom"] == {"lrn1": pytest.approx(100.0)}
    writer = QuantizedWriter(seen, replace(settings, int8=True))
    written = writer(load_onnx(tmp_path / "m.onnx"), seen.of("mse"))
    assert writer.headroom == {"lrn1": pytest.approx(100.0)}
    if int8:
        assert ir.to_proto(written).SerializeToString() == ir.to_proto(prepared.model).SerializeToString()
