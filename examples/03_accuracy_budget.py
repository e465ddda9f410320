"""Quantize, and keep the layers that suffer most in float until INT8 gives the same answers often enough.

    python examples/03_accuracy_budget.py model.onnx ranges.json photos/ 0.995

The last argument is the share of held-out images on which the INT8 model must name the same class as the float model;
after it, optionally, the calibration method. Writes int8.onnx to the working directory.

`alexdeploy quantize --max-drop` searches by top-1 instead, and tries more combinations.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

from alexdeploy import Classifier, compare_layers, quantize_onnx
from alexdeploy.compare import LayerError
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import AlexdeployError, GateError
from alexdeploy.quantize.quantize import QuantizeSettings
from alexdeploy.specs import Method

OUTPUT = Path("int8.onnx")


def main(model: str, ranges: str, data: str, target: str, method: str = "mse") -> None:
    """One line per attempt; the last one has met the target."""
    images = load_dataset(data, "val").subset(1000)
    wanted = labels(Path(model), images)
    kept: list[str] = []
    while True:
        settings = QuantizeSettings(method=cast(Method, method), dialect="onnxruntime", keep_float=kept)
        quantize_onnx(Path(model), Path(ranges), OUTPUT, settings=settings)
        found = labels(OUTPUT, images)
        agreement = sum(a == b for a, b in zip(wanted, found, strict=True)) / len(wanted)
        print(f"{agreement:.2%} of {len(wanted)} answers are the same; in float: {', '.join(kept) or 'none'}")
        if agreement >= float(target):
            return
        candidates = [row for row in compare_layers(Path(model), OUTPUT, images).layers if is_quantized(row, kept)]
        if len(candidates) < 2:
            raise GateError(f"even with {', '.join(kept)} in float fewer than {float(target):.2%} agree")
        kept.append(steepest(candidates))


def labels(model: Path, images: ImageDataset) -> list[str]:
    """The class that the model names for each image."""
    with Classifier(model) as classifier:
        return [label for label, _ in classifier([image for _, image in images.images()])]


def is_quantized(row: LayerError, kept: list[str]) -> bool:
    """A convolution or a matrix product that is still INT8."""
    return row.type in ("Conv", "Gemm", "MatMul") and row.layer not in kept


def steepest(rows: list[LayerError]) -> str:
    """The layer at which the error grows most; later layers inherit the error of those before them."""
    before = [0.0, *(row.relative_l2 for row in rows)]
    growth = {row.layer: row.relative_l2 - before[number] for number, row in enumerate(rows)}
    return max(growth, key=growth.__getitem__)


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except AlexdeployError as error:  # one clear line instead of a traceback
        sys.exit(f"error: {error}")
