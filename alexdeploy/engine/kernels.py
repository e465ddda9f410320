"""Which kernels an engine is made of and in which type they compute, read from the builder's own report.

TensorRT-RTX prints the report to a VERBOSE logger when the engine is built with DETAILED profiling verbosity, as one
message that starts with ``Layers:``. The format is not documented; a test builds engines and holds it.

TensorRT's ``EngineInspector`` gives JSON (developer guide 10 and 11, "Engine Inspector"). A convolution names the type
of its ``Weights``, and a kernel of NVIDIA's libraries, in its ``TacticName``, the types that it multiplies. Version 10
has a tensor's format and type in one text, 11 apart.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_KERNEL = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[.*\], TacticName: .*?, StreamId: \d+, Metadata: (?P<metadata>.*)$",
    re.MULTILINE,
)
_TENSOR = re.compile(r"\{ Name: [^{}]*?Dimensions: \[(?P<dims>[-\d,]*)\][^{}]*?Datatype: (?P<type>\w+)")
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")

_WIDEST_FIRST = ("FLOAT", "HALF", "BFLOAT16", "FP8", "INT8")
_TYPES = {  # in the words of the inspector: "Half", "Row major linear FP32", "Channel major INT8 format where …"
    **{"BFLOAT16": "BFLOAT16", "BF16": "BFLOAT16", "FLOAT": "FLOAT", "FP32": "FLOAT", "TF32": "FLOAT"},
    **{"HALF": "HALF", "FP16": "HALF", "INT8": "INT8", "FP8": "FP8", "E4M3": "FP8"},
}
_TYPE = re.compile(rf"(?<![A-Z0-9])({'|'.join(_TYPES)})(?![0-9])")
# …_gemm_i8f32_i8i32_f32_…: reads i8, writes f32, multiplies by i8, sums in i32, scales in f32
_MULTIPLIES = re.compile(r"_(?:(?:i8|f16|bf16|f32|e4m3){2})_(i8|f16|bf16|tf32|f32|e4m3)(?:i32|f16|bf16|f32)_")
_MULTIPLIED = {"i8": "INT8", "f16": "HALF", "bf16": "BFLOAT16", "tf32": "FLOAT", "f32": "FLOAT", "e4m3": "FP8"}
_PRODUCTS = re.compile(r"gemm|conv|correlation|matrixmultiply|fullyconnected", re.IGNORECASE)
_COPIES = ("Reformat", "Constant", "NoOp")  # TensorRT's, whose nodes are those of the layer that they serve


@dataclass(frozen=True)
class Kernel:
    """One fused kernel.

    Attributes:
        name, type: the builder's.
        precision: type of the arithmetic, FLOAT, HALF, BFLOAT16, INT8 or FP8: that of the first input, which decides.
        onnx_layers: names of the ONNX nodes it was made from.
        weighted: it multiplies with a weight matrix or filter (a constant with two or more dimensions over 1).
        tactic: the kernel's name in NVIDIA's libraries; TensorRT-RTX chooses it on the GPU that runs the engine.
    """

    name: str
    type: str
    precision: str
    onnx_layers: tuple[str, ...]
    weighted: bool
    tactic: str = ""


def parse_report(message: str) -> list[Kernel]:
    """Kernels in execution order from the builder's ``Layers:`` message."""
    return [_kernel(match) for match in _KERNEL.finditer(message)]


def _kernel(match: re.Match[str]) -> Kernel:
    inputs = _TENSOR.findall(match["inputs"])
    constants = _TENSOR.findall(match["constants"])
    precision = inputs[0][1].upper() if inputs else "NONE"
    if precision in ("INT8", "FP8") and match["type"] == "runtime_fusion":
        precision = "FLOAT"  # it takes 8 bits in, dequantizes, and multiplies in float
    return Kernel(
        name=match["name"],
        type=match["type"],
        precision=precision,
        onnx_layers=tuple(_ONNX_LAYER.findall(match["metadata"])),
        weighted=any(sum(int(dim) > 1 for dim in dims.split(",") if dim) >= 2 for dims, _ in constants),
    )


def parse_inspection(text: str) -> list[Kernel]:
    """Kernels in execution order from the JSON of ``EngineInspector``, TensorRT 10's or 11's.

    A layer that is told by its name alone, as in an engine without details, is left out. The type of a kernel is NONE
    where nothing tells it.

    Raises:
        ValueError: not such JSON.
    """
    report = json.loads(text)
    if not isinstance(report, dict) or not isinstance(report.get("Layers"), list):
        raise ValueError("it has no list of Layers")
    return [_inspected(layer) for layer in report["Layers"] if isinstance(layer, dict)]


def _inspected(layer: dict[str, Any]) -> Kernel:
    kind, name, tactic = (str(layer.get(key, "")) for key in ("LayerType", "Name", "TacticName"))
    constants, weights = layer.get("Constants") or (), layer.get("Weights") or {}
    multiplies = _MULTIPLIES.search(tactic)
    weighted = kind not in _COPIES and bool(
        weights.get("Count") or multiplies or _PRODUCTS.search(kind) or any(_is_matrix(c) for c in constants)
    )
    precision = next((_type_of_tensor(tensor) for tensor in layer.get("Inputs") or ()), "NONE")
    if weights.get("Count"):
        precision = _type_in(str(weights.get("Type")))
    elif multiplies:
        precision = _MULTIPLIED[multiplies[1]]
    elif kind in _COPIES or (precision in ("INT8", "FP8") and not _PRODUCTS.search(kind)):
        precision = "NONE"  # a copy, or a kernel that may well dequantize and multiply in float
    nodes = _ONNX_LAYER.findall(str(layer.get("Metadata", ""))) or name.split(" + ")
    return Kernel(name, kind, precision, tuple(nodes), weighted, tactic)


def _type_of_tensor(tensor: dict[str, Any]) -> str:
    return _type_in(str(tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype")))


def _type_in(words: str) -> str:
    found = _TYPE.search(words.upper())
    return _TYPES[found[1]] if found is not None else "NONE"


def _is_matrix(tensor: dict[str, Any]) -> bool:
    return sum(int(dim) > 1 for dim in tensor.get("Dimensions") or ()) >= 2


def precisions_of_layers(kernels: Iterable[Kernel], onnx_layers: Iterable[str]) -> dict[str, str]:
    """Precision of the kernel that multiplies, by Conv/Gemm node; a node without such a kernel is absent.

    Where a kernel before it dequantizes the weights, it holds no constant: it reads and is not generated. Of a node
    that several kernels compute (TensorRT may split a convolution by its groups) the widest type counts.
    """
    wanted = set(onnx_layers)
    found: dict[str, str] = {}
    # a generated kernel that pads the channels holds a constant as large as a filter; the multiplication comes first
    known = [kernel for kernel in kernels if kernel.precision in _WIDEST_FIRST]
    for kernel in sorted(known, key=lambda k: (not k.weighted, k.type == "kgen", _WIDEST_FIRST.index(k.precision))):
        if kernel.weighted or kernel.type != "kgen":
            for layer in kernel.onnx_layers:
                if layer in wanted:
                    found.setdefault(layer, kernel.precision)
    return found


def count_precisions(precisions: dict[str, str]) -> dict[str, int]:
    """``{"INT8": n, "HALF": n, "FLOAT": n}``, zeros included; other types where there are any."""
    counts = Counter(precisions.values())
    return {name: counts.pop(name, 0) for name in ("INT8", "HALF", "FLOAT")} | dict(counts)
