"""The last check of what was written into a graph: it is run once beside the graph that it was made from.

It asks whether the graph is right, not how exact it is: ONNX Runtime has to load it, and its answers must have to do
with those of the original. How exact it is, ``compare`` measures on a data set. A network that is right may be far off
on two drawn images: EfficientNet-Lite0 by 6 % in BF16, 58 % in FP8 and 73 % in INT8, LeNet with ``entropy`` by 84 %.

Both run without ONNX Runtime's own optimizations, which may be wrong (``graph.emulate`` knows of a case): MobileNet-V2
with fresh weights was off by 75 % with them, and by 6 % without. A quantized graph is run with them as well, and it is
told where they change its answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from PIL import Image

from alexdeploy.arrays import Batch
from alexdeploy.contract import Contract
from alexdeploy.data.preprocess import from_pixels
from alexdeploy.errors import GateError, InputError, InputWarning, UnavailableError, few
from alexdeploy.graph.emulate import for_cpu
from alexdeploy.graph.lrn.lower import lower_lrn
from alexdeploy.graph.model import foreign_operators, precision_of, split_weights
from alexdeploy.optional import require
from alexdeploy.specs import Precision

IMAGES = 2
# of the distance ‖answers - original‖ / ‖original‖; at 1 the answers might as well be zeros. FP16 has 11 bits, so what
# is far off has overflowed or vanished.
UNRELATED, HALF_BOUND = 1.0, 0.05
QUANTIZED_DOUBT, BF16_DOUBT = 0.5, 0.2
_COARSE = 9  # colours along each side of a drawn image


def check_answers(
    written: ir.Model, original: ir.Model, contract: Contract, origin: Path, *, calibrated: bool = False
) -> float | None:
    """Run both graphs on two drawn images. Answers that are far off, but may be right, are an ``InputWarning``.

    Args:
        written: what is to be saved or built.
        original: the float graph that it was made from.
        contract: preprocessing of both.
        origin: the file that ``original`` was read from, whose weights are mapped.
        calibrated: ``written`` was made with ranges.

    Returns:
        The largest distance of any output; None, with an ``InputWarning``, where ONNX Runtime is not installed, or does
        not load ``original`` for operators that ONNX does not have, such as plugins of TensorRT.

    Raises:
        GateError: ONNX Runtime does not load ``written``, or its answers have nothing to do with those of ``original``.
        InputError: it does not load ``original``, which has ONNX's operators alone.
        UnavailableError: it fails in running one of them, as where memory is short.
    """
    precision, images = precision_of(written), drawn_images(contract)
    try:
        require("onnxruntime")
    except UnavailableError as error:
        warnings.warn(
            f"{origin} in {precision.value} was not run beside the original: {error}", InputWarning, stacklevel=2
        )
        return None
    foreign = foreign_operators(original)
    try:
        expected = _answers(original, images, str(origin), file=origin)
    except InputError as error:
        if not foreign:
            raise
        warnings.warn(
            f"{origin} in {precision.value} was not run beside the original, since ONNX Runtime does not load its "
            f"{few(foreign)}: judge it with the runtime that does, on your images ({error})",
            InputWarning,
            stacklevel=2,
        )
        return None
    try:
        found = _answers(written, images, f"{origin} in {precision.value}")
        _check_types(written, f"{origin} in {precision.value}")
    except InputError as error:
        raise GateError(
            f"{error}; nothing was written, and this is a fault of alexdeploy, please report it with the file"
        ) from error
    if expected and all(np.array_equal(answer[:-1], answer[1:]) for answer in expected.values()):
        warnings.warn(
            f"{origin} answers the same whatever the image is, so {precision.value} was not judged; train it, or look "
            "for what loses the image (a last layer of zeros, say)",
            InputWarning,
            stacklevel=2,
        )
    worst = max((_distance(found[name], answer) for name, answer in expected.items()), default=0.0)
    half = precision is Precision.FP16
    if worst > HALF_BOUND if half else worst >= UNRELATED:
        most = f"at most {HALF_BOUND:.0%}" if half else f"less than {UNRELATED:.0%}"
        raise GateError(
            f"{origin} in {precision.value} answers otherwise than it does in float: on {IMAGES} drawn images by "
            f"{worst:.0%} of its answers, {most} is allowed, so nothing was written; {_fix(precision, calibrated)}"
        )
    if worst >= (QUANTIZED_DOUBT if precision.quantized else BF16_DOUBT):
        warnings.warn(
            f"{origin} in {precision.value} is {worst:.0%} away from its answers in float on {IMAGES} drawn images; "
            "judge it on your images, with compare or bench",
            InputWarning,
            stacklevel=2,
        )
    if precision.quantized:
        optimized = _answers(written, images, f"{origin} in {precision.value}", optimized=True)
        _tell_of_optimizers(found, optimized, f"{origin} in {precision.value}")
    return worst


def _tell_of_optimizers(
    found: Mapping[str, npt.NDArray[np.floating]], optimized: Mapping[str, npt.NDArray[np.floating]], what: str
) -> None:
    """Warn where ONNX Runtime's own optimizations change the answers."""
    changed = max((_distance(optimized[name], answer) for name, answer in found.items()), default=0.0)
    if changed >= QUANTIZED_DOUBT:
        warnings.warn(
            f"ONNX Runtime's own optimizations change the answers of {what} by {changed:.0%} on {IMAGES} drawn images, "
            "which is a fault of ONNX Runtime; run it in OpenVINO or TensorRT",
            InputWarning,
            stacklevel=3,
        )


def drawn_images(contract: Contract, count: int = IMAGES) -> Batch:
    """(count, *input_shape) of smooth random colours, as the contract says; the same every time."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, _COARSE, _COARSE, 3), np.uint8)
    mode, (height, width) = "L" if contract.color == "gray" else "RGB", contract.size
    images = [Image.fromarray(colours).convert(mode).resize((width, height)) for colours in coarse]
    return from_pixels(np.stack([np.asarray(image).reshape(height, width, -1) for image in images]), contract)


def _answers(
    model: ir.Model, images: Batch, origin: str, *, file: Path | None = None, optimized: bool = False
) -> dict[str, npt.NDArray[np.floating]]:
    """Its float outputs by name; weights that lie in ``file`` are mapped."""
    from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner  # where TensorRT-RTX builds it may be missing

    graph, weights = split_weights(lower_lrn(for_cpu(model, fp16=True)), file)  # large weights are not copied
    folder = file.parent if file is not None else None
    try:
        with OnnxRuntimeRunner(graph, weights, folder=folder, optimized=optimized) as runner:
            outputs = runner.run(images)
    except (InputError, UnavailableError) as error:
        raise type(error)(f"{origin}: {str(error).removeprefix('the model: ')}") from error
    return {name: array for name, array in outputs.items() if np.issubdtype(array.dtype, np.floating)}


def _check_types(written: ir.Model, origin: str) -> None:
    """Have ONNX Runtime load the graph itself where ``_answers`` runs another form of it; kernels may be missing.

    Raises:
        InputError: its types do not fit together.
    """
    from alexdeploy.runners.onnxruntime import NO_KERNEL, OnnxRuntimeRunner

    if for_cpu(written, fp16=True) is written:
        return
    try:
        OnnxRuntimeRunner(*split_weights(written), optimized=False).close()
    except InputError as error:
        if NO_KERNEL not in str(error):
            raise InputError(f"{origin}: {str(error).removeprefix('the model: ')}") from error


def _distance(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """‖found - expected‖ / ‖expected‖ where ``expected`` is finite; inf where only ``found`` is not."""
    told = np.isfinite(expected)
    wide, reference = found[told].astype(np.float64), expected[told].astype(np.float64)
    lost, norm = float(np.linalg.norm(wide - reference)), float(np.linalg.norm(reference))
    if not np.isfinite(lost):
        return float("inf")
    return lost / norm if norm > 0 else 0.0 if lost == 0 else float("inf")


def _fix(precision: Precision, calibrated: bool) -> str:
    if precision.quantized:
        return "calibrate on images that the network is for, or find the layers to keep in float with analyze"
    if precision.bf16:
        return "take FP32, or FP16 with `ranges`; if it has the answers of FP32 on your images, report it with the file"
    if calibrated:
        return "take BF16, or FP32; the ranges do not tell what FP16 loses, please report it with the file"
    return "calibrate, and give `ranges`, which tell the layers that FP16 does not hold; or take BF16"
