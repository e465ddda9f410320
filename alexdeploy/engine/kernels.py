"""Which kernels an engine is made of and in which type they compute, read from the builder's own report.

TensorRT-RTX prints the report to a VERBOSE logger when the engine is built with DETAILED profiling verbosity, as one
message that starts with ``Layers:``. The format is not documented; a test builds engines and holds it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_KERNEL = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[.*\], TacticName: .*?, StreamId: \d+, Metadata: (?P<metadata>.*)$",
    re.MULTILINE,
)
_TENSOR = re.compile(r"\{ Name: [^{}]*?Dimensions: \[(?P<dims>[-\d,]*)\][^{}]*?Datatype: (?P<type>\w+)")
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class Kernel:
    """One fused kernel.

    Attributes:
        name, type: the builder's.
        precision: type of the arithmetic, FLOAT, HALF, BFLOAT16, INT8 or FP8: that of the first input, which decides.
        onnx_layers: names of the ONNX nodes it was made from.
        weighted: it multiplies with a weight matrix or filter (a constant with two or more dimensions over 1).
    """

    name: str
    type: str
    precision: str
    onnx_layers: tuple[str, ...]
    weighted: bool


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


def precisions_of_layers(kernels: Iterable[Kernel], onnx_layers: Iterable[str]) -> dict[str, str]:
    """Precision of the kernel that multiplies, by Conv/Gemm node; a node without such a kernel is absent.

    Where a kernel before it dequantizes the weights, it holds no constant: it reads and is not generated.
    """
    wanted = set(onnx_layers)
    found: dict[str, str] = {}
    # a generated kernel that pads the channels holds a constant as large as a filter; the multiplication comes first
    for kernel in sorted(kernels, key=lambda kernel: (not kernel.weighted, kernel.type == "kgen")):
        if kernel.precision != "NONE" and (kernel.weighted or kernel.type != "kgen"):
            for layer in kernel.onnx_layers:
                if layer in wanted:
                    found.setdefault(layer, kernel.precision)
    return found


def count_precisions(precisions: dict[str, str]) -> dict[str, int]:
    """``{"INT8": n, "HALF": n, "FLOAT": n}``, zeros included; other types where there are any."""
    counts = Counter(precisions.values())
    return {name: counts.pop(name, 0) for name in ("INT8", "HALF", "FLOAT")} | dict(counts)
