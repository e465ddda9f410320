"""NVIDIA's own parser and builder (TensorRT-RTX, on the CPU) judge the graphs that our passes write."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.engine import options as engine_options
from alexdeploy.engine import timing_cache
from alexdeploy.engine.build import BuilderInput, EngineBuild
from alexdeploy.engine.kernels import count_precisions, parse_report, precisions_of_layers
from alexdeploy.engine.options import BuilderOptions, BuildSettings
from alexdeploy.engine.plan import plan_engine, precision_verdict, reasons_of
from alexdeploy.engine.record import EngineRecord
from alexdeploy.engine.shapes import input_profiles
from alexdeploy.engine.versions import Compatibility, Library, load_library
from alexdeploy.errors import InputError, InputWarning, UnavailableError, UsageError
from alexdeploy.graph.fp16 import to_bf16, to_fp16
from alexdeploy.graph.model import PreparedGraph, model_bytes
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.graph.uint8_input import with_uint8_input
from alexdeploy.graph.weighted import quantized_type
from alexdeploy.machine import Gpu, why_no_cuda
from alexdeploy.specs import Profile
from tests.helpers.foreign_graphs import any_size
from tests.helpers.graphs import as_fp8, conv_lrn_gemm, make_model

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
AMAX = {"input": TensorRange(4.0), "flatten1": TensorRange(2.0)}


def test_sizes_that_a_graph_leaves_open_are_those_of_its_contract() -> None:
    foreign = any_size()
    model, settings = ir.from_proto(foreign.model), BuildSettings(batches=Profile.parse("1:2:4"))
    with pytest.raises(UsageError, match=r"'image' has shape \(n, 3, h, w\); name the sizes .* `shapes` image="):
        input_profiles(model, "theirs.onnx", settings)
    model.metadata_props[METADATA_KEY] = foreign.contract.to_json()
    assert input_profiles(model, "ours.onnx", settings) == {"image": settings.batches.with_sizes((3, 8, 8))}
    wider = Profile.parse("1x3x8x8:2x3x8x8:4x3x16x24")
    named = BuildSettings(batches=settings.batches, shapes={"image": wider})
    assert input_profiles(model, "ours.onnx", named) == {"image": wider}


SHAPES = {"input": Profile.parse("1:2:4").with_sizes((3, 8, 8))}


def build(graph: BuilderInput, **options: Any) -> tuple[memoryview, EngineRecord]:
    return EngineBuild(graph, BuilderOptions(**options), load_library("tensorrt-rtx")).run()


def graph_of(model: ir.Model, weighted: Sequence[str] = ("conv1", "fc2")) -> BuilderInput:
    return BuilderInput(
        source=model_bytes(model),
        shapes=SHAPES,
        weighted=weighted,
        quantized={str(node.name): asked for node in model.graph if (asked := quantized_type(node))},
    )


@pytest.mark.parametrize(
    ("int8", "fp16", "expected"),
    [(False, False, "FLOAT"), (False, True, "HALF"), (True, False, "INT8"), (True, True, "INT8")],
)
def test_kernels_compute_in_the_type_the_graph_says(int8: bool, fp16: bool, expected: str) -> None:
    model = ir.from_proto(conv_lrn_gemm())
    model = insert_qdq(model, AMAX) if int8 else model
    model = to_fp16(model) if fp16 else model
    plan, report = build(graph_of(model))
    assert report.layer_precisions == {"conv1": expected, "fc2": expected}
    assert report.float_layers == ()
    assert report.size_bytes == len(plan) > 0
    sums_of_squares = [k for k in report.kernels if "lrn1" in k.onnx_layers and k.type == "avgpool"]
    assert [kernel.precision for kernel in sums_of_squares] == ["FLOAT"]


def test_fp32_scales_behind_casts_cost_no_kernel_beside_fp16_scales() -> None:
    """The form that ``to_fp16`` writes, and that of NVIDIA's exporter."""
    quantized = insert_qdq(ir.from_proto(conv_lrn_gemm()), AMAX)
    ours, theirs = to_fp16(quantized), to_fp16(quantized)
    for node in [node for node in theirs.graph if node.op_type == "DequantizeLinear"]:
        (cast,), scale = node.outputs[0].consumers(), node.inputs[1]
        assert scale is not None
        assert scale.const_value is not None
        half = ir.val(f"{node.name}.half", const_value=ir.tensor(scale.const_value.numpy().astype(np.float16)))
        theirs.graph.register_initializer(half)
        node.replace_input_with(1, half)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
        ir.convenience.replace_all_uses_with(cast.outputs[0], node.outputs[0])
        theirs.graph.remove(cast)
    assert sum(node.op_type == "Cast" for node in theirs.graph) + 4 == sum(n.op_type == "Cast" for n in ours.graph)
    (_, here), (_, there) = build(graph_of(ours)), build(graph_of(theirs))
    assert here.layer_precisions == there.layer_precisions == {"conv1": "INT8", "fc2": "INT8"}
    assert sorted(kernel.type for kernel in here.kernels) == sorted(kernel.type for kernel in there.kernels)


@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_pixels_go_in_and_the_first_layer_is_int8(color: Any, fp16: bool) -> None:
    contract = Contract(color=color, crop=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    model, _ = with_uint8_input(ir.from_proto(conv_lrn_gemm()), contract)
    model = insert_qdq(model, {"mul_input": TensorRange(4.0), "flatten1": TensorRange(2.0)})
    graph = graph_of(to_fp16(model) if fp16 else model)
    pixels = {"input": Profile.parse("1:2:4").with_sizes((8, 8, 3))}
    _, report = build(BuilderInput(**{**graph.__dict__, "shapes": pixels}))
    assert report.layer_precisions == {"conv1": "INT8", "fc2": "INT8"}
    first = next(kernel for kernel in report.kernels if "cast_input" in kernel.onnx_layers)
    assert {"transpose_input", "sub_input"} <= set(first.onnx_layers)  # one kernel, and Mul in the scale behind it


@pytest.mark.parametrize("fp16", [False, True])
def test_fp8_is_judged_as_fp8(fp16: bool) -> None:
    model = as_fp8(insert_qdq(ir.from_proto(conv_lrn_gemm()), AMAX))
    _, report = build(graph_of(to_fp16(model) if fp16 else model))
    assert report.quantized == report.layer_precisions == {"conv1": "FP8", "fc2": "FP8"}
    assert report.precisions == {"INT8": 0, "HALF": 0, "FLOAT": 0, "FP8": 2}
    assert report.float_layers == ()
    assert precision_verdict(report) == "2 of 2 layers in FP8"


@pytest.mark.parametrize("kernel", [5, 6])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_layer_that_is_no_fp8_kernel_is_told_with_the_reason(kernel: int, bf16: bool) -> None:
    weight = np.ones((16, 16, kernel, kernel), np.float32)
    node = helper.make_node("Conv", ["input", "w"], ["logits"], "layer")
    model = ir.from_proto(make_model([node], {"w": weight}, shape=("batch", 16, 32, 32)))
    model = insert_qdq(model, {"input": TensorRange(1.0)}, fp8=True)
    graph = PreparedGraph(to_bf16(model) if bf16 else model, Path("model.onnx"))
    settings = BuildSettings(
        builder="tensorrt-rtx", options=BuilderOptions(compatibility=Compatibility(targets=("8.9",)))
    )
    record = plan_engine(graph, settings=settings).build.run()[1]
    record = msgspec.structs.replace(record, reasons=reasons_of(record, graph.model))
    if kernel == 5:
        assert (record.layer_precisions, record.reasons) == ({"layer": "FP8"}, {})
    else:
        assert record.layer_precisions == {"layer": "BFLOAT16" if bf16 else "FLOAT"}
        assert "0 of 1 layers in FP8" in precision_verdict(record)
        assert "layer (its window 6×6 has 36 places, an FP8 convolution at most 32)" in precision_verdict(record)


def test_bfloat16_is_computed_in_bfloat16() -> None:
    _, report = build(graph_of(to_bf16(ir.from_proto(conv_lrn_gemm()))))
    assert report.layer_precisions == {"conv1": "BFLOAT16", "fc2": "BFLOAT16"}


@pytest.mark.parametrize(("target", "fp8", "needed"), [("8.6", True, "8.9"), ("7.5", False, "8.0")])
def test_a_target_without_the_type_is_refused_before_the_build(target: str, fp8: bool, needed: str) -> None:
    model = ir.from_proto(conv_lrn_gemm())
    model = insert_qdq(model, AMAX, fp8=True) if fp8 else to_bf16(model)
    settings = BuildSettings(
        builder="tensorrt-rtx", options=BuilderOptions(compatibility=Compatibility(targets=(target,)))
    )
    with pytest.raises(UsageError, match=f"`targets` {target}: .*needs compute capability {needed}"):
        plan_engine(PreparedGraph(model, Path("model.onnx")), settings=settings)


def test_each_layer_is_judged_by_the_type_that_its_own_qdq_asks_for() -> None:
    int8 = insert_qdq(ir.from_proto(conv_lrn_gemm()), AMAX)
    graph = graph_of(int8)
    wrong = BuilderInput(**{**graph.__dict__, "quantized": {"conv1": "FP8", "fc2": "INT8"}})
    _, report = build(wrong)
    assert report.float_layers == ("conv1",)
    assert precision_verdict(report).startswith("0 of 2 layers in FP8, 2 of 2 layers in INT8; ")


def test_the_verdict_on_fifty_layers_is_a_count_and_three_names() -> None:
    names = [f"conv{number}" for number in range(1, 51)]
    record = EngineRecord(
        builder="tensorrt-rtx",
        precisions={"INT8": 0, "HALF": 0, "FLOAT": 50},
        layer_precisions=dict.fromkeys(names, "FLOAT"),
        quantized=dict.fromkeys(names, "INT8"),
        float_layers=tuple(names),
    )
    assert precision_verdict(record) == (
        "0 of 50 layers in INT8; quantized in the graph but built in float: conv1, conv2, conv3 and 47 more"
    )


def test_a_layer_quantized_on_its_activation_only_is_reported_as_float() -> None:
    model = insert_qdq(ir.from_proto(conv_lrn_gemm()), AMAX)
    conv = next(node for node in model.graph if node.name == "conv1")
    dequantize = conv.inputs[1]
    assert dequantize is not None
    producer = dequantize.producer()
    assert producer is not None
    levels = producer.inputs[0]
    assert levels is not None
    assert levels.const_value is not None
    weight = ir.val(
        "conv1.float", const_value=ir.tensor(levels.const_value.numpy().astype("float32"), name="conv1.float")
    )
    model.graph.register_initializer(weight)
    graph = graph_of(model)  # asks for INT8 on both
    conv.replace_input_with(1, weight)
    model.graph.remove(producer)
    changed = BuilderInput(**{**graph.__dict__, "source": model_bytes(model)})
    _, report = build(changed)
    assert report.float_layers == ("conv1",)
    assert report.precisions == {"INT8": 1, "HALF": 0, "FLOAT": 1}


def test_what_the_parser_refuses_is_named_with_node_and_operator() -> None:
    proto = conv_lrn_gemm()
    proto.graph.node[1].CopyFrom(helper.make_node("Swirl", ["conv1"], ["relu1"], "swirl", domain="my.ops"))
    proto.opset_import.append(helper.make_opsetid("my.ops", 1))
    graph = BuilderInput(proto.SerializeToString(), SHAPES, (), {})
    with pytest.raises(InputError, match=r"node 'swirl' \(Swirl\)"):
        build(graph)


def test_an_empty_or_broken_graph_is_an_error_not_an_empty_engine() -> None:
    good = graph_of(ir.from_proto(conv_lrn_gemm()))
    for data in (b"", b"not onnx at all", onnx.ModelProto().SerializeToString()):
        with pytest.raises(InputError):
            build(BuilderInput(**{**good.__dict__, "source": data}))


def test_shapes_that_do_not_fit_are_told_before_the_parser_sees_them(tmp_path: Path) -> None:
    """It may end the process on such a graph (TensorRT-RTX 1.7.1)."""
    model = conv_lrn_gemm()
    model.graph.node[3].attribute[0].ints[:] = [20, 20]
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with (
        pytest.warns(InputWarning, match="shapes cannot be inferred"),
        pytest.raises(InputError, match=r"shapes do not fit each other: .*node name: \w+"),
    ):
        plan_engine(path, settings=BuildSettings(builder="tensorrt-rtx"))


def test_a_profile_for_another_input_is_refused_with_the_builders_words() -> None:
    good = graph_of(ir.from_proto(conv_lrn_gemm()))
    with pytest.raises(InputError, match="tensorrt-rtx"):
        build(BuilderInput(**{**good.__dict__, "shapes": {"input": Profile.parse("1:8:64").with_sizes((3, 9, 9))}}))


def as_tensorrt() -> Library:
    """TensorRT-RTX under TensorRT's name: its binding has what TensorRT's has for the options that RTX itself lacks."""
    rtx = load_library("tensorrt-rtx")
    return Library("tensorrt", rtx.version, rtx.module)


def test_a_library_that_does_not_start_is_unavailable() -> None:
    rtx = load_library("tensorrt-rtx")
    module = ModuleType("tensorrt_rtx")
    module.__dict__.update(ILogger=rtx.module.ILogger, Builder=rtx.module.IBuilderConfig)  # refuses to be made, too
    broken = Library(rtx.name, rtx.version, module)
    with pytest.raises(UnavailableError, match="does not start"):
        EngineBuild(graph_of(ir.from_proto(conv_lrn_gemm())), BuilderOptions(), broken)


def test_too_little_workspace_is_refused_with_the_option_to_change() -> None:
    with pytest.raises(InputError, match=r"within workspace limit.*raise `workspace_bytes`"):
        build(graph_of(ir.from_proto(conv_lrn_gemm())), workspace_bytes=1)


def test_a_target_decides_for_which_gpus_tensorrt_rtx_compiles() -> None:
    graph = graph_of(ir.from_proto(conv_lrn_gemm()))
    plan, _ = build(graph, level=0, tf32=True, compatibility=Compatibility(targets=("8.6", "12.0")))
    assert plan
    with pytest.raises(InputError, match="FP32 GEMM is not supported"):
        build(graph, compatibility=Compatibility(targets=("7.5",)))
    with pytest.raises(UsageError, match=r"unknown target '9.0'.*7\.5, 8\.0, 8\.6, 8\.9"):
        build(graph, compatibility=Compatibility(targets=("9.0",)))


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"compatibility": Compatibility(hardware="ampere+")}, "hardware"),
        ({"compatibility": Compatibility(newer_versions=True)}, "newer_versions"),
        ({"timing_cache": Path()}, "timing_cache"),
    ],
)
def test_what_tensorrt_rtx_lacks_is_refused_and_not_dropped(options: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError, match=f"`{option}` is for `builder` tensorrt"):
        build(graph_of(ir.from_proto(conv_lrn_gemm())), **options)


def test_tensorrts_own_options_reach_the_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexdeploy.engine.versions.load_lean_runtime", lambda version: None)  # see test_lean.py
    graph, library = graph_of(ir.from_proto(conv_lrn_gemm())), as_tensorrt()
    levels = library.module.HardwareCompatibilityLevel
    flags: list[object] = []
    config = SimpleNamespace(set_flag=flags.append)  # RTX's own ignores both
    library.apply(Compatibility(hardware="same-compute-capability"), config)
    assert (config.hardware_compatibility_level, flags) == (levels.SAME_COMPUTE_CAPABILITY, [])
    library.apply(Compatibility(hardware="ampere+", newer_versions=True), config)
    assert config.hardware_compatibility_level == levels.AMPERE_PLUS
    assert flags == [library.module.BuilderFlag.VERSION_COMPATIBLE]
    with pytest.raises(UsageError, match="`targets` is for `builder` tensorrt-rtx"):
        EngineBuild(graph, BuilderOptions(compatibility=Compatibility(targets=("8.9",))), library)


@pytest.mark.filterwarnings("ignore:.*TensorRT-RTX:DeprecationWarning")
def test_the_timing_cache_is_kept_per_version_and_gpu_and_a_broken_one_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = [Gpu("NVIDIA L4", "8.9", "13.0"), Gpu("NVIDIA A10", "8.6", "13.0")]
    monkeypatch.setattr(timing_cache, "current_gpu", lambda ordinal: gpus[ordinal])
    monkeypatch.setattr(BuilderOptions, "on_device", lambda *_: contextlib.nullcontext())  # there is none here
    second = timing_cache.cache_path(tmp_path, as_tensorrt(), BuilderOptions(device="cuda:1").ordinal)
    assert second.name == f"tensorrt-{as_tensorrt().version}-NVIDIA-A10-8.6-cuda13.0.timing"
    options = BuilderOptions(timing_cache=tmp_path)
    for _ in range(2):
        EngineBuild(graph_of(ir.from_proto(conv_lrn_gemm())), options, as_tensorrt()).run()
        (kept,) = tmp_path.iterdir()
        assert kept.name == f"tensorrt-{as_tensorrt().version}-NVIDIA-L4-8.9-cuda13.0.timing"
        assert kept.stat().st_size > 20
        kept.write_bytes(b"not a timing cache")


def test_tensorrt_builds_on_the_device_that_it_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool's thread begins with the first device, whatever is current where the build was asked for."""
    opened: list[int] = []

    def open_device(ordinal: int) -> SimpleNamespace:
        opened.append(ordinal)
        return SimpleNamespace(current=contextlib.nullcontext)

    monkeypatch.setattr(engine_options, "open_device", open_device)
    for options, builder in ((BuilderOptions(), "tensorrt"), (BuilderOptions(device="cuda:1"), "tensorrt-rtx")):
        with options.on_device(builder):  # type: ignore[arg-type]
            pass
    with BuilderOptions().on_device("tensorrt-rtx"):
        pass
    assert opened == [0, 1]


def test_progress_tells_every_phase_from_nothing_to_all() -> None:
    told: dict[str, list[float]] = {}
    graph = graph_of(ir.from_proto(conv_lrn_gemm()))
    EngineBuild(graph, BuilderOptions(), load_library("tensorrt-rtx")).run(
        lambda phase, share: told.setdefault(phase, []).append(share)
    )
    assert {"Building engine", "Timing tactics"} <= told.keys()
    optimizing = told["Optimizing graph"]
    assert optimizing == sorted(optimizing)
    assert (optimizing[0], optimizing[-1]) == (0, 1)


def test_an_interrupt_stops_the_builder_and_the_next_build_works() -> None:
    building = EngineBuild(graph_of(ir.from_proto(conv_lrn_gemm())), BuilderOptions(), load_library("tensorrt-rtx"))
    told: list[str] = []

    def interrupt(phase: str, _: float) -> None:
        told.append(phase)
        if len(told) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # for the main thread to see it

    with pytest.raises(KeyboardInterrupt):
        building.run(interrupt)
    assert len(told) < 5
    assert building.run()[0]


@pytest.mark.skipif(why_no_cuda() is None, reason="this machine has a CUDA device")
def test_tensorrt_is_not_even_imported_without_a_gpu() -> None:
    with pytest.raises(UnavailableError, match="no CUDA device"):
        load_library("tensorrt")
    assert load_library("auto").name == "tensorrt-rtx"


def test_report_parser_on_a_recorded_line() -> None:
    line = (
        "Name: conv1_U28_myl0_2, LayerType: correlation, "
        "Inputs: [ { Name: a, Dimensions: [-1,4,8,8], Strides: [1], Datatype: Int8, Format: (x) y }], "
        "Constants: [ { Name: w, Dimensions: [48,4,11,11], Datatype: Int8, Format: (x) y }, "
        "{ Name: b, Dimensions: [1,48,1,1], Datatype: Float, Format: z }], "
        "Outputs: [ { Name: c, Dimensions: [-1,48,55,55], Datatype: Float, Format: z }], "
        "TacticName: __stub, StreamId: 0, Metadata: [ONNX Layer: conv1][ONNX Layer: input.dequantize]"
    )
    (kernel,) = parse_report(f"Layers:\n{line}\n\nI/O Tensors:\n Name: input, IOMode: Input")
    assert (kernel.name, kernel.type, kernel.precision, kernel.weighted) == (
        "conv1_U28_myl0_2",
        "correlation",
        "INT8",
        True,
    )
    assert kernel.onnx_layers == ("conv1", "input.dequantize")
    precisions = precisions_of_layers([kernel], ["conv1", "conv2"])
    assert precisions == {"conv1": "INT8"}
    assert count_precisions(precisions) == {"INT8": 1, "HALF": 0, "FLOAT": 0}
