"""Means and covariances of what each layer multiplies, gathered while calibrating, and the file that holds them.

They are what rounding by error and bias correction need, so that both are done later and without images. A layer's
columns (``alexdeploy.quantize.columns``) are sampled, so neither memory nor time grows with the number of images; of a
layer with many inputs the covariance is kept in blocks along its diagonal, so that memory grows with the number of
inputs and not with its square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import safetensors
import safetensors.numpy

from alexdeploy.errors import GateError, InputError, words_of
from alexdeploy.graph.equalize import equalizable
from alexdeploy.graph.weighted import WeightedNode, weighted_nodes
from alexdeploy.quantize.columns import has_columns, sample_columns, weight_rows

BLOCK = 1024  # inputs of a layer between which covariances are kept
_FEWEST, _PER_INPUT = 2048, 8  # columns sampled of a layer: at least, and for each input in a block
_TOGETHER, _HELD_BYTES = 256, 8 << 20  # columns multiplied at once: one pass over the sums for all of them

Columns = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class LayerMoments:
    """What one layer reads, on average.

    Attributes:
        mean: float32 (groups, K) of the K inputs of an output.
        blocks: float32 (groups, k, k) covariances of neighbouring inputs; the k of all blocks add up to K.
    """

    mean: npt.NDArray[np.float32]
    blocks: Sequence[npt.NDArray[np.float32]]


class Moments:
    """The moments by layer, and the largest magnitude of each channel by tensor; read from their file when used.

    Attributes:
        sha256: of the file's bytes.
    """

    def __init__(self, *, data: bytes | None = None, path: Path | None = None, digest: str = "") -> None:
        self._data, self._path = data, path
        self.sha256 = digest or sha256(data or b"").hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Moments) and other.sha256 == self.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    @property
    def missing(self) -> Path | None:
        """The path of the file, where it is not there."""
        return self._path if self._data is None and self._path is not None and not self._path.exists() else None

    @property
    def data(self) -> bytes:
        """The file's bytes.

        Raises:
            InputError: the file is missing.
            GateError: it is not the one that the range file names.
        """
        if self._data is None:
            assert self._path is not None
            if self.missing:
                raise InputError(
                    f"{self._path}: missing; calibrate wrote it beside the range file, for rounding by gptq; put the "
                    "two together, or round to the nearest"
                )
            data = self._path.read_bytes()
            if sha256(data).hexdigest() != self.sha256:
                raise GateError(f"{self._path}: belongs to another range file than the one beside it; calibrate again")
            self._data = data
        return self._data

    @cached_property
    def _arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        try:
            return dict(safetensors.numpy.load(self.data))
        except safetensors.SafetensorError as error:
            raise InputError(f"{self._path or 'the moments'}: not a safetensors file: {words_of(error)}") from error

    def layer(self, name: str) -> LayerMoments | None:
        """The moments of a layer; None where there are none."""
        mean = self._arrays.get(f"{name}.mean")
        if mean is None:
            return None
        blocks: list[npt.NDArray[np.float32]] = []
        while (block := self._arrays.get(f"{name}.covariance.{len(blocks)}")) is not None:
            blocks.append(block)
        return LayerMoments(mean, blocks)

    @property
    def channels(self) -> dict[str, npt.NDArray[np.float32]]:
        """Largest |x| per index of axis 1, of each tensor that can be equalized."""
        ending = ".channels"
        return {name.removesuffix(ending): a for name, a in self._arrays.items() if name.endswith(ending)}


def moments_path(ranges: Path) -> Path:
    """``ranges.json`` → ``ranges.json.moments.safetensors``."""
    return ranges.with_name(f"{ranges.name}.moments.safetensors")


class MomentsObserver:
    """Sums over the columns of every layer of a model; ``add`` in the order of the images gives the same bits always.

    Args:
        model: a float model.
        images: how many there will be, over which the columns are spread.
    """

    def __init__(self, model: ir.Model, images: int) -> None:
        self._layers = [layer for layer in weighted_nodes(model) if has_columns(layer)]
        self._sums = {layer.name: _Sums(layer) for layer in self._layers}
        self._images = max(images, 1)
        self._channels = {name: np.zeros(0, np.float32) for name in equalizable(model)}

    @property
    def nbytes(self) -> int:
        """Memory of the sums."""
        return sum(sums.nbytes for sums in self._sums.values())

    def columns(self, activations: Columns, first: int, images: int) -> Columns:
        """What ``add`` needs of a batch, copied out of it: the sampled columns by layer, and channels by tensor.

        Args:
            activations: by tensor; the first axis runs over the images, or over equal parts of them.
            first: the number of the first image.
            images: how many there are.
        """
        found = {}
        for layer in self._layers:
            sums, activation = self._sums[layer.name], activations[str(layer.activation.name)]
            parts = max(len(activation) // images, 1)  # of an image
            positions = -(-sums.columns // (self._images * parts))
            found[layer.name] = sample_columns(layer, activation, positions, first * parts)
        for name in self._channels:
            array = activations[name]
            axes = (0, *range(2, array.ndim))
            found[f"{name}.channels"] = np.maximum(np.abs(array.max(axis=axes)), np.abs(array.min(axis=axes)))
        return found

    def add(self, columns: Columns) -> None:
        """Add a batch."""
        for name, sums in self._sums.items():
            sums.add(columns[name])
        for name, largest in self._channels.items():
            new = columns[f"{name}.channels"]
            self._channels[name] = np.maximum(largest, new) if largest.size else new

    def result(self) -> Moments:
        """The moments of all batches; made in the sums' memory, so the observer is of no more use."""
        arrays = {f"{name}.channels": largest for name, largest in self._channels.items()}
        for name, sums in self._sums.items():
            arrays |= {f"{name}.{part}": array for part, array in sums.moments().items()}
        return Moments(data=safetensors.numpy.save(arrays))


class _Sums:
    """Σ x and Σ x·xᵀ of one layer, the latter float32, of values from which the first batch's mean is taken away."""

    def __init__(self, layer: WeightedNode) -> None:
        groups, _, inputs = weight_rows(layer).shape
        parts = -(-inputs // BLOCK)
        edges = [inputs * part // parts for part in range(parts + 1)]
        self._slices = [slice(*pair) for pair in pairwise(edges)]
        self._blocks = [np.zeros((groups, s.stop - s.start, s.stop - s.start), np.float32) for s in self._slices]
        self._sum = np.zeros((groups, inputs))
        self._origin: npt.NDArray[np.float32] | None = None
        self._count = 0
        self._held: list[npt.NDArray[np.float32]] = []
        self.columns = max(_FEWEST, _PER_INPUT * min(inputs, BLOCK))

    @property
    def nbytes(self) -> int:
        return self._sum.nbytes + sum(block.nbytes for block in self._blocks)

    def add(self, columns: npt.NDArray[np.float32]) -> None:
        """Columns (groups, n, K)."""
        if self._origin is None:
            self._origin = columns.mean(axis=1, dtype=np.float64).astype(np.float32)
        self._held.append(columns - self._origin[:, None, :])
        held = sum(array.shape[1] for array in self._held)
        if held >= _TOGETHER or held * self._origin.nbytes >= _HELD_BYTES:
            self._multiply()

    def _multiply(self) -> None:
        columns = np.concatenate(self._held, axis=1)
        self._held.clear()
        self._sum += columns.sum(axis=1, dtype=np.float64)
        self._count += columns.shape[1]
        for block, part in zip(self._blocks, self._slices, strict=True):
            # what is infinite is rounded without moments (alexdeploy.quantize.refine)
            with np.errstate(over="ignore", invalid="ignore"):
                block += columns[:, :, part].transpose(0, 2, 1) @ columns[:, :, part]

    def moments(self) -> dict[str, npt.NDArray[np.float32]]:
        assert self._origin is not None, "calibration saw an image"
        if self._held:
            self._multiply()
        shift = self._sum / self._count
        found = {"mean": (self._origin + shift).astype(np.float32)}
        for number, (block, part) in enumerate(zip(self._blocks, self._slices, strict=True)):
            with np.errstate(over="ignore", invalid="ignore"):
                block /= self._count
                np.subtract(block, shift[:, part, None] * shift[:, None, part], out=block, casting="same_kind")
            found[f"covariance.{number}"] = block
        return found
