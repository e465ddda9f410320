"""The parity gate: an ONNX graph must give the original's answers in ONNX Runtime before it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexdeploy.arrays import Batch
from alexdeploy.errors import GateError
from alexdeploy.graph.model import model_bytes
from alexdeploy.metrics import PARITY_TOLERANCE, relative_error
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner

PARITY_BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Parity:
    """ONNX Runtime's distance from the original: max|difference| / max|original|, the largest over all batches.

    ``real_inputs`` is None where there were no real images to try.
    """

    random_inputs: float
    real_inputs: float | None = None
    batches: tuple[int, ...] = PARITY_BATCHES
    tolerance: float = PARITY_TOLERANCE

    @property
    def worst(self) -> float:
        """The larger of the two."""
        return max(self.random_inputs, self.real_inputs or 0.0)

    def check(self, what: str, cause: str = "") -> None:
        """Refuse a graph that computes something else.

        Raises:
            GateError: beyond the tolerance; ``what`` is the subject of the message, ``cause`` its end.
        """
        for kind, error in (("random", self.random_inputs), ("real", self.real_inputs)):
            if error is not None and not error <= self.tolerance:
                raise GateError(
                    f"parity: {what} by {error:.2e} (relative) on {kind} inputs; at most {self.tolerance:.0e} is "
                    f"allowed, so nothing was written{cause}"
                )


def noise(shape: tuple[int, int, int], count: int = max(PARITY_BATCHES), dtype: str = "float32") -> Batch:
    """(count, *shape) of standard normal values, of uint8 any pixels; the same every time."""
    random = np.random.default_rng(0)
    if dtype == "uint8":
        return random.integers(0, 256, (count, *shape), np.uint8)
    return random.standard_normal((count, *shape), dtype=np.float32).astype(dtype)


def in_batches(images: Batch, sizes: Sequence[int] = PARITY_BATCHES) -> list[Batch]:
    """Batches of these sizes, each from the first image on, which come again where there are too few."""
    return [np.take(images, range(size), axis=0, mode="wrap") for size in sizes]


def distance(
    model: ir.Model,
    inputs: Sequence[Batch],
    original: Callable[[Batch], npt.NDArray[np.floating]],
    seen: Callable[[npt.NDArray[np.floating]], npt.NDArray[np.floating]] = lambda scores: scores,
) -> float:
    """The largest relative error of the graph in ONNX Runtime over all batches; ``seen`` is taken of its results."""
    with OnnxRuntimeRunner(model_bytes(model)) as runner:
        name = runner.output_names[0]
        return max(relative_error(seen(runner.run(batch)[name]), original(batch)) for batch in inputs)
