"""What TensorRT 10 and 11 tell of an engine's layers, and the verdict on it.

No TensorRT has run here. The samples in ``tests/references/engine_reports`` are written by hand in the form that public
sources show. 10: the engine.graph.json files of NVIDIA's trt-engine-explorer (tests/inputs), issues 3737 and 4020 of
NVIDIA/TensorRT, the layer list in sampleEditableTimingCache's README. 11: NVIDIA's page on migrating IEngineInspector
(``I/O Tensors``; ``Format`` and ``Datatype`` apart), and the report of TensorRT-RTX 1.7.1, which has ``Constants``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alexdeploy.engine.kernels import Kernel, parse_inspection, precisions_of_layers
from alexdeploy.engine.plan import precision_verdict, strict_refusal
from alexdeploy.engine.record import EngineRecord

REPORTS = Path(__file__).resolve().parents[2] / "references" / "engine_reports"
TRUE = {
    "tensorrt-10": {
        "conv1": "INT8",
        "grouped": "HALF",  # two kernels, one per group: INT8 and HALF
        "depthwise": "INT8",  # by its weights; its tactic has a name of its own
        "deceptive": "FLOAT",  # reads INT8, and its weights are float
        "halves": "HALF",
        "fc2": "INT8",
        "fc3": "HALF",
        "fc4": "INT8",  # a fusion whose tactic multiplies i8
    },
    "tensorrt-11": {
        "conv1": "INT8",
        "conv2": "FP8",
        "conv3": "BFLOAT16",
        "conv4": "INT8",  # after a generated kernel in float that pads it
        "fc2": "INT8",
        "fc5": "FLOAT",  # TF32 is FLOAT
    },
}


def read(version: str) -> str:
    return (REPORTS / f"{version}.json").read_text()


@pytest.mark.parametrize("version", TRUE)
def test_each_layer_has_the_type_that_its_kernel_multiplies_in(version: str) -> None:
    kernels = parse_inspection(read(version))
    assert precisions_of_layers(kernels, [*TRUE[version], "untold", "absent"]) == TRUE[version]
    first = next(kernel for kernel in kernels if "conv1" in kernel.onnx_layers)
    assert first.onnx_layers == ("conv1.weight.dequantize", "conv1", "relu1")
    assert (first.type, first.weighted) == ("CaskConvolution", True)
    assert "i8f32_i8i32" in first.tactic
    assert [k.precision for k in kernels if k.type == "Reformat"] == ["NONE"] * (2 if version == "tensorrt-10" else 1)


def test_without_shapes_weights_and_tactics_still_tell() -> None:
    unknown = re.sub(r'("Format/Datatype": )"[^"]*"', r'\1"N/A due to dynamic shapes"', read("tensorrt-10"))
    assert unknown != read("tensorrt-10")
    found = precisions_of_layers(parse_inspection(unknown), TRUE["tensorrt-10"])
    assert found == {name: kind for name, kind in TRUE["tensorrt-10"].items() if name != "fc3"}


def test_a_layer_without_metadata_is_known_by_its_name() -> None:
    layer = {
        "Name": "w + w_QuantizeLinear + conv1 + PWN(relu1)",
        "LayerType": "CaskConvolution",
        "Weights": {"Type": "Int8", "Count": 864},
        "TacticName": "turing_fp16_i8816cudnn_int8_128x128_nt_v1",
    }
    assert precisions_of_layers(parse_inspection(json.dumps({"Layers": [layer]})), ["conv1"]) == {"conv1": "INT8"}


def test_names_alone_tell_nothing_and_what_is_no_report_is_an_error() -> None:
    assert parse_inspection('{"Layers": ["conv1 + relu1", "fc2"], "Bindings": ["input", "logits"]}') == []
    for text in ("", "Layers: conv1", "[]", '{"Layers": {}}'):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_inspection(text)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Row major linear FP32", "FLOAT"),
        ("Channel major FP16 format where channel % 8 == 0", "HALF"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "INT8"),
        ("Row major linear BFloat16 format", "BFLOAT16"),
        ("Row major linear FP8 format", "FP8"),
        ("Half", "HALF"),
        ("Int32", "NONE"),
        ("N/A due to dynamic shapes", "NONE"),
    ],
)
def test_words_for_types(words: str, kind: str) -> None:
    layer = {"Name": "fc", "LayerType": "gemm", "Inputs": [{"Name": "x", "Format/Datatype": words}]}
    (kernel,) = parse_inspection(json.dumps({"Layers": [layer]}))
    assert kernel == Kernel("fc", "gemm", kind, ("fc",), True)


def record(**found: str) -> EngineRecord:
    asked = {"conv1": "INT8", "conv2": "INT8", "fc3": "HALF"}
    return EngineRecord(
        builder="tensorrt",
        precisions={kind: [*found.values()].count(kind) for kind in ("INT8", "HALF", "FLOAT")},
        layer_precisions=found,
        quantized={name: kind for name, kind in asked.items() if kind == "INT8"},
        half={"fc3": "HALF"},
        float_layers=tuple(name for name, kind in asked.items() if found.get(name) != kind),
    )


def test_the_verdict_says_which_layer_lost_which_type_and_which_was_not_found() -> None:
    assert precision_verdict(record(conv1="INT8", conv2="INT8", fc3="HALF")) == (
        "1 of 3 layers in HALF, 2 of 3 layers in INT8"
    )
    assert precision_verdict(record(conv1="HALF", fc3="FLOAT")) == (
        "1 of 3 layers in HALF, 0 of 3 layers in INT8; quantized in the graph but built in float: conv1; "
        "of 16 bits in the graph but built in another type: fc3; "
        "of unknown type, since not found among the kernels: conv2"
    )


def test_a_layer_that_is_left_in_float_is_not_counted_with_those_of_16_bits() -> None:
    """A report may call its kernel HALF by what it writes."""
    half = EngineRecord(
        builder="tensorrt",
        precisions={"HALF": 3},
        layer_precisions=dict.fromkeys(("c1", "c2", "fc"), "HALF"),
        half=dict.fromkeys(("c1", "fc"), "HALF"),
        left={"c2": "FP16 does not hold its weights"},
    )
    told = "2 of 3 layers in HALF; left in float in the graph: c2 (FP16 does not hold its weights)"
    assert precision_verdict(half) == told


def test_strict_names_the_file_and_all_layers_in_one_list() -> None:
    names = [f"conv{number}" for number in range(1, 7)]
    refused = EngineRecord(
        builder="tensorrt",
        layer_precisions=dict.fromkeys(names, "FLOAT"),
        quantized=dict.fromkeys(names, "INT8"),
        float_layers=tuple(names),
        left={"fc": "its weights are float64"},
    )
    told = strict_refusal(refused, Path("int8.onnx"))
    assert told.startswith("int8.onnx: 0 of 7 layers in INT8; ")
    assert told.endswith("; by `strict`, nothing was written. The layers: conv1,conv2,conv3,conv4,conv5,conv6,fc")
    assert "by `strict`, which also refuses layers whose type is not known, nothing" in strict_refusal(
        record(conv1="INT8", conv2="INT8"), Path("int8.onnx")
    )
