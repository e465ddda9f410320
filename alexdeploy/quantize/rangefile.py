"""The range file: the result of calibration, the receipt that no image was lost, the hashes of model and contract.

Beside ``ranges.json`` lies ``ranges.json.moments.safetensors``, which the range file names by its SHA-256.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import onnx_ir as ir

from alexdeploy import files
from alexdeploy._version import __version__
from alexdeploy.errors import GateError, InputError, UsageError, unknown_name
from alexdeploy.graph.model import contract_of
from alexdeploy.graph.qdq import TensorRange
from alexdeploy.quantize.methods import METHODS, PERCENTILE
from alexdeploy.quantize.moments import Moments, moments_path

SCHEMA = 1
_NO_OPTIONS: Mapping[str, Any] = {}


class RangeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Content of ``ranges.json``. It holds no time and no path, so the same inputs give the same bytes.

    Attributes:
        model_sha256: of the float ONNX file that was calibrated.
        contract: fingerprint of the preprocessing contract.
        dataset: name of the data set and fingerprint of its sample list.
        samples: images fed.
        largest: largest |x| of every value that decides whether FP16 is safe (``alexdeploy.graph.fp16``).
        percentile: share of |x| that the method of that name kept unclipped.
        tensors: per tensor the amax of each method, ``min``, its smallest value or 0, and ``samples``, the images that
            its observer saw.
        moments: what rounding by error needs; the JSON holds only the SHA-256 of its file. None where it was not
            asked for.
    """

    model_sha256: str
    contract: str
    dataset: dict[str, str]
    samples: int
    tensors: dict[str, dict[str, float]]
    largest: dict[str, float] = {}
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = PERCENTILE
    moments: Moments | None = None
    tool: str = __version__
    schema: int = SCHEMA

    def of(self, method: str) -> dict[str, TensorRange]:
        """The range per tensor by one method.

        Raises:
            UsageError: a method that the file does not hold.
        """
        if method not in METHODS:
            raise UsageError(unknown_name("method", method, list(METHODS)))
        return {name: TensorRange(values[method], values["min"] >= 0) for name, values in self.tensors.items()}

    @property
    def origin(self) -> dict[str, Any]:
        """The origin of the ranges, for an engine's sidecar."""
        return self.dataset | {"samples": self.samples}

    def check_receipt(self) -> None:
        """Samples seen must equal samples fed for every tensor.

        Raises:
            GateError: a tensor's observer missed samples.
        """
        for name, values in self.tensors.items():
            if values["samples"] != self.samples:
                raise GateError(
                    f"calibration receipt: tensor '{name}' saw {values['samples']:g} of {self.samples} samples"
                )

    def model_parent(self, model: Path) -> files.Parent:
        """The calibrated model as the origin of what is made with these ranges."""
        return files.Parent(files.printable(model.name), self.model_sha256)

    def check_model(self, model: Path) -> None:
        """The file must belong to these bytes of the model.

        Raises:
            GateError: it was made from another model.
        """
        found = files.sha256_file(model)
        if found != self.model_sha256:
            raise GateError(
                f"the ranges were calibrated on another model (sha256 {self.model_sha256[:12]}…, {model} has "
                f"{found[:12]}…); run alexdeploy calibrate on this one"
            )

    def check_fits(self, model: ir.Model, path: Path) -> None:
        """The file must belong to ``model``, read from ``path``, and to the preprocessing that it names.

        Raises:
            GateError: it was made from another model or with other preprocessing.
        """
        self.check_model(path)
        if contract_of(model, str(path)).fingerprint != self.contract:
            raise GateError(f"the ranges were calibrated with other preprocessing than {path} names; calibrate again")


def save_ranges(
    path: Path, ranges: RangeFile, parents: tuple[files.Parent, ...] = (), options: Mapping[str, Any] = _NO_OPTIONS
) -> None:
    """Write the file, indented and sorted, with its sidecar and, where there are moments, their file beside it.

    Example:
        >>> from pathlib import Path
        >>> from alexdeploy import calibrate, load_dataset, save_ranges
        >>> save_ranges(Path("mine.json"), calibrate(Path("model.onnx"), load_dataset("digits", "train"), samples=32))
        >>> Path("mine.json").exists()
        True
    """
    encoder = msgspec.json.Encoder(order="sorted", enc_hook=_digest)
    data = msgspec.json.format(encoder.encode(ranges), indent=1) + b"\n"
    beside = moments_path(path)
    more = {beside: ranges.moments.data} if ranges.moments is not None else {}
    libraries = files.library_versions("pillow")
    files.write_artifact(path, data, "ranges", parents=parents, options=dict(options), libraries=libraries, beside=more)
    if ranges.moments is None:
        beside.unlink(missing_ok=True)  # of an earlier range file


def _digest(moments: Any) -> str:
    if not isinstance(moments, Moments):
        raise NotImplementedError
    return moments.sha256


def load_ranges(path: Path) -> RangeFile:
    """Read and check a range file; it needs no sidecar, since it carries the hashes it is judged by.

    Its moments are read when they are used.

    Raises:
        InputError: not a range file.
        GateError: its receipt does not add up.
    """
    files.check_input(path)
    try:
        decoder = msgspec.json.Decoder(RangeFile, dec_hook=partial(_stored, moments_path(path)))
        ranges = decoder.decode(path.read_bytes())
    except files.UNDECODABLE as error:
        raise InputError(f"{path}: not a range file of alexdeploy calibrate: {error}") from error
    if ranges.schema != SCHEMA:
        raise InputError(f"{path}: range file schema {ranges.schema}, expected {SCHEMA}; calibrate again")
    needed = {*METHODS, "min", "samples"}
    for name, values in ranges.tensors.items():
        if needed - values.keys():
            raise InputError(f"{path}: tensor '{name}' lacks {', '.join(sorted(needed - values.keys()))}")
        if not all(math.isfinite(value) and (value >= 0 or key == "min") for key, value in values.items()):
            raise InputError(f"{path}: tensor '{name}' has a range that is negative or not a number; calibrate again")
    ranges.check_receipt()
    return ranges


def _stored(path: Path, kind: type, digest: Any) -> Moments:
    if kind is not Moments or not isinstance(digest, str):
        raise ValueError(f"moments: expected a SHA-256, found {digest!r}")
    return Moments(path=path, digest=digest)
