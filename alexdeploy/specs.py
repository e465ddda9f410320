"""The words and small value types that every room shares; loading them loads nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from alexdeploy.errors import UsageError

Kind = Literal["checkpoint", "onnx", "engine"]
Runtime = Literal[
    "pytorch", "onnxruntime-cpu", "openvino", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx"
]
Method = Literal["minmax", "entropy", "percentile", "mse"]
DEFAULT_METHOD: Method = "mse"
Rounding = Literal["gptq", "nearest"]
Dialect = Literal["tensorrt", "onnxruntime", "openvino"]
BuilderName = Literal["tensorrt", "tensorrt-rtx"]
Builder = BuilderName | Literal["auto"]
Split = Literal["train", "val", "test", "all"]
Hardware = Literal["same-gpu", "same-compute-capability", "ampere+"]

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done, 0 to 1."""


def cuda_ordinal(device: str | None) -> int:
    """``"cuda:1"`` → 1, ``"cuda"`` → 0: the device's number, as the driver and ``CUDA_VISIBLE_DEVICES`` count.

    None, which is no choice, is the first.

    Raises:
        UsageError: none of these.
    """
    if device is None:
        return 0
    if not isinstance(device, str):
        raise UsageError(f"`device` {device!r}: expected cuda or cuda:N, such as 'cuda:1' for the second GPU")
    name, colon, number = device.partition(":")
    if name != "cuda" or (colon and not (number.isascii() and number.isdecimal())):
        raise UsageError(f"`device` {device}: expected cuda or cuda:N, such as cuda:1 for the second GPU")
    return int(number or 0)


class Precision(str, Enum):
    """Arithmetic of the convolutions and matrix products of a graph or an engine."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT8_FP16 = "int8+fp16"
    FP8 = "fp8"
    FP8_FP16 = "fp8+fp16"
    BF16 = "bf16"
    INT8_BF16 = "int8+bf16"
    FP8_BF16 = "fp8+bf16"

    @classmethod
    def of(cls, *, int8: bool = False, fp16: bool = False, fp8: bool = False, bf16: bool = False) -> Precision:
        """``Precision.of(int8=True) is Precision.INT8``; INT8 where there is FP8 too."""
        quantized = "int8" if int8 else "fp8" if fp8 else ""
        between = "fp16" if fp16 else "bf16" if bf16 else ""
        return cls("+".join(filter(None, (quantized, between))) or "fp32")

    @property
    def fp16(self) -> bool:
        """FP16 where it is not quantized."""
        return self in (Precision.FP16, Precision.INT8_FP16, Precision.FP8_FP16)

    @property
    def bf16(self) -> bool:
        """bfloat16 where it is not quantized."""
        return self in (Precision.BF16, Precision.INT8_BF16, Precision.FP8_BF16)

    @property
    def quantized(self) -> bool:
        """INT8 or FP8 by Q/DQ."""
        return self not in (Precision.FP32, Precision.FP16, Precision.BF16)


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and NumPy dtype name of a graph input or output.

    A symbolic dimension is its name, or -1 where the runtime gives none: ``TensorSpec("input", ("batch", 3, 227,
    227), "float32")``.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    @property
    def classes(self) -> int | None:
        """Columns of a row of scores, channels of a map of them; None where they are not fixed."""
        columns = self.shape[1] if len(self.shape) > 1 else None
        return columns if isinstance(columns, int) and columns > 0 else None

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype}, shape ({', '.join(map(str, self.shape))}))"


def find_logits(outputs: Sequence[TensorSpec], classes: int | None = None) -> TensorSpec | None:
    """The output that holds the logits: the only one, or the only row of scores; None where that is not clear.

    A row of scores is float, (batch, classes) or (batch, classes, 1, 1), the number of classes fixed. Where there are
    several, ``classes`` decides, the number that is expected.
    """
    if len(outputs) == 1:
        return outputs[0]
    rows = [one for one in outputs if "float" in one.dtype and one.classes and one.shape[2:] in ((), (1, 1))]
    if len(rows) > 1:
        rows = [row for row in rows if row.classes == classes]
    return rows[0] if len(rows) == 1 else None


@dataclass(frozen=True)
class Profile:
    """Shapes that an engine accepts at one input, batch first; kernels are tuned for ``opt``.

    A profile of batch sizes alone has one axis: ``Profile.parse("1:8:64") == Profile((1,), (8,), (64,))``.
    """

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        same_rank = len(self.min) == len(self.opt) == len(self.max) > 0
        bounds = zip(self.min, self.opt, self.max, strict=True) if same_rank else ()
        if not same_rank or not all(1 <= low <= best <= high for low, best, high in bounds):
            raise UsageError(f"profile {self}: expected 1 <= min <= opt <= max, along every axis")

    @classmethod
    def parse(cls, text: str) -> Profile:
        """``"1:8:64"``, ``"1x3x224x224:8x3x224x224:8x3x448x448"``, or one size or shape for all three.

        Raises:
            UsageError: not one or three shapes of whole numbers in ascending order.
        """
        try:
            shapes = [tuple(int(dim) for dim in shape.split("x")) for shape in text.split(":")]
        except ValueError:
            shapes = []
        if len(shapes) == 1:
            shapes *= 3
        if len(shapes) != 3:
            raise UsageError(
                f"profile '{text}': expected MIN:OPT:MAX such as 1:8:64 or 1x3x224x224:8x3x224x224:8x3x448x448"
            )
        return cls(*shapes)

    @property
    def batches(self) -> Profile:
        """The batch sizes alone."""
        return Profile(self.min[:1], self.opt[:1], self.max[:1])

    def with_sizes(self, sizes: tuple[int, ...]) -> Profile:
        """The same batches of one size: ``Profile.parse("1:8:64").with_sizes((3, 224, 224))``."""
        return Profile((self.min[0], *sizes), (self.opt[0], *sizes), (self.max[0], *sizes))

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """True if ``shape`` lies between ``min`` and ``max``."""
        return len(shape) == len(self.min) and all(
            low <= dim <= high for low, dim, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        return ":".join("x".join(map(str, shape)) for shape in (self.min, self.opt, self.max))


DEFAULT_BATCHES = Profile((1,), (8,), (64,))


@dataclass(frozen=True)
class Window:
    """The sliding window of a convolution or pooling; pairs are (height, width), padding (t, l, b, r)."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Field:
    """Receptive field: the pixels, (height, width), that one output value sees, and how far apart two outputs see.

    Padding is not cut off, as is usual: the field may be larger than the image.
    """

    size: tuple[int, int] = (1, 1)
    step: tuple[int, int] = (1, 1)

    def through(self, window: Window) -> Field:
        """Behind a sliding window: size + (extent of the kernel - 1)·step, and step·stride."""
        axes = range(2)
        reach = [window.dilation[i] * (window.kernel[i] - 1) for i in axes]
        height, width = (self.size[i] + reach[i] * self.step[i] for i in axes)
        return Field((height, width), (self.step[0] * window.stride[0], self.step[1] * window.stride[1]))


@dataclass(frozen=True)
class Layer:
    """One row of a layer table, for one image.

    ``precision`` is TensorRT's name of the arithmetic (FLOAT, HALF, BFLOAT16, INT8, FP8). ``output_shape`` excludes the
    batch; ``connections`` counts uses of weights and biases, F²·(K²·C + 1)·C_out for a convolution, ``macs`` without
    biases; ``memory_bytes`` are weights and output. A fully connected layer sees all of the maps before it.
    """

    name: str
    type: str
    precision: str
    output_shape: tuple[int, ...]
    parameters: int = 0
    connections: int = 0
    macs: int = 0
    memory_bytes: int = 0
    window: Window | None = None
    receptive_field: tuple[int, int] | None = None


_SHORT_NAMES = {
    "Conv": "conv",
    "Gemm": "fc",
    "MatMul": "fc",
    "MaxPool": "pool",
    "AveragePool": "pool",
    "GlobalAveragePool": "pool",
    "BatchNormalization": "bn",
}


def layer_name(op_type: str, number: int) -> str:
    """Caffe's name of a layer: ``layer_name("Gemm", 6)`` is ``fc6``; ``number`` counts Conv, Gemm and MatMul."""
    return f"{_SHORT_NAMES.get(op_type, op_type.lower())}{max(number, 1)}"
