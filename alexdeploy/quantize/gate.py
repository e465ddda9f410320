"""The last check of what was written into a graph: it is run once beside the graph that it was made from.

It catches what is broken, not what is less exact: a file that ONNX Runtime does not load, or one whose answers have
nothing to do with those of the original. How exact it is, ``compare`` measures on a data set.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from PIL import Image

from alexdeploy.arrays import Batch
from alexdeploy.contract import Contract
from alexdeploy.data.preprocess import from_pixels
from alexdeploy.errors import GateError, InputError, UnavailableError
from alexdeploy.graph.emulate import for_cpu
from alexdeploy.graph.lrn.lower import lower_lrn
from alexdeploy.graph.model import precision_of, split_weights
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner

IMAGES = 2
# of the distance ‖answers - original‖ / ‖original‖; networks that work were below 0.15 in INT8 and 0.002 in FP16
QUANTIZED_BOUND, HALF_BOUND = 0.5, 0.05
_COARSE = 9  # colours along each side of a drawn image


def check_answers(written: ir.Model, original: ir.Model, contract: Contract, origin: Path) -> float:
    """Run both graphs on two drawn images.

    Args:
        written: what is to be saved or built.
        original: the float graph that it was made from.
        contract: preprocessing of both.
        origin: the file of ``original``, for messages.

    Returns:
        The largest distance of any output.

    Raises:
        GateError: ONNX Runtime does not run ``written``, or it answers otherwise than ``original``.
    """
    images = drawn_images(contract)
    precision = precision_of(written)
    expected = _answers(original, images)
    try:
        found = _answers(written, images)
    except (InputError, UnavailableError) as error:
        raise GateError(
            f"{origin} in {precision.value} cannot be run, so nothing was written: {error}; this is a fault of "
            "alexdeploy, please report it with the file"
        ) from error
    bound = QUANTIZED_BOUND if precision.quantized else HALF_BOUND
    worst = max((_distance(found[name], answer) for name, answer in expected.items()), default=0.0)
    if not worst <= bound:
        raise GateError(
            f"{origin} in {precision.value} answers otherwise than it does in float: on {IMAGES} drawn images by "
            f"{worst:.0%} of its answers, at most {bound:.0%} is allowed, so nothing was written; {_fix(written)}"
        )
    return worst


def drawn_images(contract: Contract, count: int = IMAGES) -> Batch:
    """(count, *input_shape) of smooth random colours, as the contract says; the same every time."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, _COARSE, _COARSE, 3), np.uint8)
    mode, (height, width) = "L" if contract.color == "gray" else "RGB", contract.size
    images = [Image.fromarray(colours).convert(mode).resize((width, height)) for colours in coarse]
    return from_pixels(np.stack([np.asarray(image).reshape(height, width, -1) for image in images]), contract)


def _answers(model: ir.Model, images: Batch) -> dict[str, npt.NDArray[np.floating]]:
    """Its float outputs by name."""
    graph, weights = split_weights(lower_lrn(for_cpu(model)))  # large weights are not copied
    with OnnxRuntimeRunner(graph, weights) as runner:
        outputs = runner.run(images)
    return {name: array for name, array in outputs.items() if np.issubdtype(array.dtype, np.floating)}


def _distance(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """‖found - expected‖ / ‖expected‖; inf where one is not finite."""
    wide, reference = found.astype(np.float64), expected.astype(np.float64)
    lost, norm = float(np.linalg.norm(wide - reference)), float(np.linalg.norm(reference))
    if not np.isfinite(lost):
        return float("inf")
    return lost / norm if norm > 0 else 0.0 if lost == 0 else float("inf")


def _fix(written: ir.Model) -> str:
    precision = precision_of(written)
    if precision.quantized:
        return "calibrate on images that the network is for, or find the layers to keep in float with analyze"
    return "calibrate, and give `ranges`, which tell the layers that FP16 does not hold; or take BF16"
